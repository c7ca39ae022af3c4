"""Stem, stages, head: every network of the zoo through one code path."""

import contextlib
import inspect
import re
import sys
from collections.abc import Callable

import keras
from keras import layers

from keras_resnet.blocks import BLOCKS, channel_axis, conv_bn, he_normal
from keras_resnet.config import MODELS, ResNetConfig, get_config
from keras_resnet.errors import InputError


@contextlib.contextmanager
def recursion_limit(limit: int = 20_000):
    """Raises Python's recursion limit for a while: Keras walks a graph recursively.

    Building `cifar_resnet1202`, and loading its saved graph, need it.
    """
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(max(before, limit))
    try:
        yield
    finally:
        sys.setrecursionlimit(before)


def build_resnet(
    config: ResNetConfig,
    *,
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: tuple | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | Callable | None = "softmax",
    name: str | None = None,
) -> keras.Model:
    """Builds a network from its config; the arguments are keras.applications' own.

    Args:
        config: a row of the zoo, possibly with fields replaced.
        include_top: whether global average pooling and the classifier end the network.
        weights: None for He-normal initialization, or the path of a `.weights.h5` file.
        input_tensor: a Keras tensor to build upon, instead of a new input.
        input_shape: (height, width, channels), or channels first under that image data format;
            height and width may be None. Default: (size, size, 3) with the network's own size, and
            (None, None, 3) without the top.
        pooling: without the top: None gives the last feature map, "avg" or "max" a vector.
        classes: width of the classifier. Default: the config's.
        classifier_activation: None gives logits. The output is float32 under any dtype policy.
        name: of the model.

    Returns:
        A functional `keras.Model`: float (batch, height, width, channels) to float32 (batch, classes).

    Raises:
        InputError: an argument is out of its range, or `weights` does not fit the network.
    """
    classes = config.classes if classes is None else classes
    if include_top and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise InputError(f"classes must be a positive integer; got {classes!r}")
    if pooling not in (None, "avg", "max"):
        raise InputError(f"pooling must be None, 'avg' or 'max'; got {pooling!r}")
    inputs, x = _inputs(config, input_tensor, input_shape, include_top)

    with recursion_limit():
        x = _stem(x, config)
        block = BLOCKS[config.block]
        for stage, (depth, filters) in enumerate(zip(config.stage_depths, config.stage_filters, strict=True)):
            for index in range(depth):
                strides = 2 if stage > 0 and index == 0 else 1
                x = block(x, filters, strides, config, f"conv{stage + 2}_block{index + 1}")
        if include_top:
            x = layers.GlobalAveragePooling2D(name="avg_pool")(x)
            x = layers.Dense(
                classes,
                activation=classifier_activation,
                kernel_initializer=he_normal(),
                dtype="float32",  # logits and losses lose too much in 16 bits
                name="predictions",
            )(x)
        elif pooling:
            pool = layers.GlobalAveragePooling2D if pooling == "avg" else layers.GlobalMaxPooling2D
            x = pool(name=f"{pooling}_pool")(x)
        model = keras.Model(inputs, x, name=name)

    if weights is not None:
        from keras_resnet.weights import load_weights, read_spec

        spec = read_spec(weights)
        if spec is not None:
            spec.check_architecture(config, weights)
        load_weights(model, weights)
    return model


def _inputs(config, input_tensor, input_shape, include_top):
    if input_tensor is not None:
        if not keras.backend.is_keras_tensor(input_tensor):
            raise InputError(f"input_tensor must be a Keras tensor; got {type(input_tensor).__name__}")
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and tuple(input_shape) != shape:
            raise InputError(f"input_shape {tuple(input_shape)} differs from input_tensor's shape {shape}")
        x, inputs = input_tensor, keras.utils.get_source_inputs(input_tensor)
        inputs = inputs[0] if len(inputs) == 1 else inputs
    else:
        size = config.input_size if include_top else None
        channels_first = channel_axis() == 1
        default = (3, size, size) if channels_first else (size, size, 3)
        shape = tuple(default if input_shape is None else input_shape)
        x = inputs = None

    axis = channel_axis()
    if len(shape) != 3:
        raise InputError(f"input_shape must be (height, width, channels) or channels first; got {shape}")
    channels = shape[0] if axis == 1 else shape[2]
    height, width = shape[1:] if axis == 1 else shape[:2]
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"input_shape needs a positive number of channels; got {shape}")
    least = config.total_stride
    for size in (height, width):
        if size is not None and (not isinstance(size, int) or size < least):
            raise InputError(f"the network needs images of at least {least}x{least} pixels; got {shape}")
    if inputs is None:
        x = inputs = layers.Input(shape, name="images")
    return inputs, x


def _stem(x, config):
    if config.stem == "cifar":
        return conv_bn(x, config.stage_filters[0], 3, 1, "conv1")
    x = conv_bn(x, 64, 7, 2, "conv1")
    # Zeros after a ReLU pad a maximum as well as minus infinity would.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def feature_maps(model: keras.Model) -> dict:
    """The output of each stage, by its usual name: `{"C2": tensor, ..., "C5": tensor}`.

    `keras.Model(model.input, feature_maps(model))` is a feature extractor. With the ImageNet stem
    C2 ... C5 have strides 4, 8, 16, 32; with the CIFAR stem C2 ... C4 have strides 1, 2, 4.

    Raises:
        InputError: the model is not one of this package's.
    """
    maps = {}
    for layer in model.layers:
        if match := re.fullmatch(r"conv(\d+)_block\d+_out", layer.name):
            maps[f"C{match[1]}"] = layer.output
    if not maps:
        raise InputError(f"model {model.name!r} has no stages named conv2_block1_out, ...")
    return maps


def build_model(
    model: str,
    include_top: bool = True,
    weights: str | None = None,
    input_tensor=None,
    input_shape: tuple | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | Callable | None = "softmax",
    name: str | None = None,
    **config_overrides,
) -> keras.Model:
    """Builds the zoo's network `model`; see `build_resnet` for the arguments.

    Args:
        model: a name of `list_models()`.
        include_top: see `build_resnet`, as for all that follow.
        weights: None or a path.
        input_tensor: a Keras tensor, or None.
        input_shape: of one image, or None.
        pooling: None, "avg" or "max".
        classes: width of the classifier.
        classifier_activation: None gives logits.
        name: of the Keras model. Default: the zoo's name.
        **config_overrides: fields of `ResNetConfig`, such as `shortcut="A"`.

    Raises:
        InputError: an unknown model or option, or an argument out of its range.
    """
    return build_resnet(
        get_config(model, **config_overrides),
        include_top=include_top,
        weights=weights,
        input_tensor=input_tensor,
        input_shape=input_shape,
        pooling=pooling,
        classes=classes,
        classifier_activation=classifier_activation,
        name=name or model,
    )


def _builder(name: str, function_name: str) -> Callable[..., keras.Model]:
    config = MODELS[name]

    def build(*args, **kwargs):
        return build_model(name, *args, **kwargs)

    parameters = list(inspect.signature(build_model).parameters.values())[1:]
    defaults = {"classes": config.classes, "name": name}
    build.__signature__ = inspect.Signature(
        [p.replace(default=defaults[p.name]) if p.name in defaults else p for p in parameters],
        return_annotation=keras.Model,
    )
    build.__name__ = build.__qualname__ = function_name
    kind = (
        "Plain network" if config.shortcut is None else f"Residual network, shortcut option {config.shortcut}"
    )
    build.__doc__ = (
        f"{kind}, {config.weighted_layers} weighted layers (`{name}`).\n\n"
        "    Arguments and errors are those of `build_model`; keras.applications' signature.\n    "
    )
    return build


def _function_name(name: str) -> str:
    """`cifar_resnet20` -> `CifarResNet20`, `plain18` -> `PlainNet18`, `resnet50_v1_5` -> `ResNet50V1_5`."""
    words = {"cifar": "Cifar", "resnet": "ResNet", "plain": "PlainNet"}
    parts = re.findall(r"cifar|resnet|plain|\d+|v1_5", name)
    return "".join(words.get(part, part.replace("v", "V")) for part in parts)


BUILDERS = {_function_name(name): _builder(name, _function_name(name)) for name in MODELS}
