"""Stem, stages, head: every network of the zoo through one code path."""

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import keras
from keras import layers

from keras_resnet.errors import InputError
from keras_resnet.models.blocks import BLOCKS, Step, bn_relu, channel_axis, conv, conv_bn, he_normal
from keras_resnet.models.config import MODELS, ResNetConfig, get_config
from keras_resnet.models.graph import recursion_limit

if TYPE_CHECKING:
    from keras_resnet.weights import PretrainedWeights


def build_resnet(
    config: ResNetConfig,
    *,
    include_top: bool = True,
    weights: "str | os.PathLike | PretrainedWeights | None" = None,
    input_tensor=None,
    input_shape: tuple | None = None,
    pooling: str | None = None,
    classes: int | None = None,
    classifier_activation: str | Callable | None = "softmax",
    name: str | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
) -> keras.Model:
    """Builds a network from its config; the first arguments are keras.applications' own.

    Args:
        config: a row of the zoo, possibly with fields replaced.
        include_top: whether global average pooling and the classifier end the network.
        weights: None for He-normal initialization; the name of a weight entry (`list_weights`), where
            "imagenet" is the network's default; or the path of a file: our own `.weights.h5`,
            torchvision's or timm's `.safetensors` or `.pth`, keras.applications' `.h5`. Where the file
            has another number of classes, the classifier stays freshly initialized; where it has
            another number of input channels, the first convolution is adapted as timm does: summed
            for one channel, else repeated and scaled. Images go in as red, green, blue.
        input_tensor: a Keras tensor to build upon, instead of a new input.
        input_shape: (height, width, channels), or channels first under that image data format;
            height and width may be None. Default: (size, size, 3) with the network's own size, and
            (None, None, 3) without the top.
        pooling: without the top: None gives the last feature map, "avg" or "max" a vector.
        classes: width of the classifier. Default: that of a weight file, else the config's.
        classifier_activation: None gives logits. The output is float32 under any dtype policy.
        name: of the model.
        features_only: gives the stages' feature maps as a dictionary, `{"C1": tensor, ...}`, as timm's
            argument of this name does with a list; there is no top then.
        out_indices: of `features_only`: which maps, 0 for C1 (behind the stem), 1 for C2, ...; what
            lies behind the last of them is not built. Default: all.
        output_stride: input pixels a pixel of the last feature map. Stages that would go beyond it
            dilate their 3x3 convolutions instead of striding, with the same weights (as torchvision's
            `replace_stride_with_dilation`). Default: 32 with ImageNet's stem, 4 with CIFAR's.

    Returns:
        A functional `keras.Model`: float (batch, height, width, channels) to float32 (batch, classes).
        With `weights` that say how their images were prepared, its attribute `preprocess` is the
        `Preprocessing` that does that, channels last, unless the input is not square.

    Raises:
        InputError: an argument is out of its range, or `weights` does not fit the network.
    """
    file = None
    if weights is not None:
        from keras_resnet.weights import open_weights

        file = open_weights(weights, config)
    if classes is None:
        classes = (file.classes if file and include_top else None) or config.classes
    if include_top and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise InputError(f"classes must be a positive integer; got {classes!r}")
    if pooling not in (None, "avg", "max"):
        raise InputError(f"pooling must be None, 'avg' or 'max'; got {pooling!r}")
    if features_only and pooling:
        raise InputError(f"features_only gives maps, which pooling={pooling!r} would end")
    if out_indices is not None and not features_only:
        raise InputError("out_indices selects among the maps of features_only=True")
    include_top = include_top and not features_only
    steps = list(_steps(config, output_stride))
    inputs, x = _inputs(config, input_tensor, input_shape, include_top)

    with recursion_limit():
        x = _stem(x, config)
        for (stage, index), step in steps:
            filters = config.stage_filters[stage]
            x = BLOCKS[config.block](x, filters, step, config, f"conv{stage + 2}_block{index + 1}")
        if config.block == "preactivation":
            x = bn_relu(x, config, "post")
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

        preprocess = None
        if file is not None:
            file.load(model, transfer=True)
            preprocess = file.preprocessing_for(model)
        if features_only:
            # After the loading, which wants to see a use for every tensor of a file.
            model = keras.Model(inputs, _select(_all_maps(model), out_indices), name=name)
    if preprocess is not None:
        model.preprocess = preprocess
    return model


def _steps(config: ResNetConfig, output_stride: int | None) -> Iterator[tuple[tuple[int, int], Step]]:
    """((stage from 0, block from 0), how the block moves) for every block."""
    strides = [config.stem_stride * 2**stage for stage in range(len(config.stage_depths))]
    if output_stride is None:
        output_stride = strides[-1]
    if output_stride not in strides:
        raise InputError(
            f"output_stride must be one of {', '.join(map(str, strides))}; got {output_stride!r}"
        )
    stride, dilation, last = strides[0], 1, len(strides) - 1
    for stage, depth in enumerate(config.stage_depths):
        for index in range(depth):
            if config.block == "preactivation":
                downsamples = stage < last and index == depth - 1
            else:
                downsamples = stage > 0 and index == 0
            if not downsamples:
                step = Step(1, dilation, dilation)
            elif stride < output_stride:
                step, stride = Step(2), stride * 2
            else:
                step, dilation = Step(1, dilation, dilation * 2), dilation * 2
            yield (stage, index), step


def _inputs(config, input_tensor, input_shape, include_top):
    if input_tensor is not None:
        if not keras.backend.is_keras_tensor(input_tensor):
            raise InputError(f"input_tensor must be a Keras tensor; got {type(input_tensor).__name__}")
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and _as_shape(input_shape) != shape:
            raise InputError(
                f"input_shape {_as_shape(input_shape)} differs from input_tensor's shape {shape}"
            )
        x, inputs = input_tensor, keras.utils.get_source_inputs(input_tensor)
        inputs = inputs[0] if len(inputs) == 1 else inputs
    else:
        size = config.input_size if include_top else None
        channels_first = channel_axis() == 1
        default = (3, size, size) if channels_first else (size, size, 3)
        shape = default if input_shape is None else _as_shape(input_shape)
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


def _as_shape(input_shape) -> tuple:
    if not isinstance(input_shape, Sequence):
        raise InputError(f"input_shape must be (height, width, channels); got {input_shape!r}")
    return tuple(input_shape)


def _stem(x, config):
    # A pre-activation network normalizes in its first block.
    last = functools.partial(conv_bn, config=config)
    if config.block == "preactivation":
        last = functools.partial(conv, bias=True)
    if config.stem == "cifar":
        return last(x, config.stage_filters[0], 3, 1, name="conv1")
    if config.stem == "deep":
        x = conv_bn(x, 32, 3, 2, config, "conv1_1")
        x = conv_bn(x, 32, 3, 1, config, "conv1_2")
        x = last(x, 64, 3, 1, name="conv1_3")
    else:
        x = last(x, 64, 7, 2, name="conv1")
    # Zeros after a ReLU pad a maximum as well as minus infinity would; keras.applications pads its
    # pre-activation networks with them, too.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def feature_maps(model: keras.Model) -> dict:
    """The output of each stage, by its usual name: `{"C2": tensor, ..., "C5": tensor}`.

    `keras.Model(model.input, feature_maps(model))` is a feature extractor. With the ImageNet stem
    C2 ... C5 have strides 4, 8, 16, 32; with the CIFAR stem C2 ... C4 have strides 1, 2, 4. Of a
    pre-activation network they are the last activations of each resolution.

    Raises:
        InputError: the model is not one of this package's.
    """
    maps = {name: tensor for name, tensor in _all_maps(model).items() if name != "C1"}
    if not maps:
        raise InputError(f"model {model.name!r} has no stages named conv2_block1_out, ...")
    return maps


def _all_maps(model: keras.Model) -> dict:
    """`feature_maps`, and "C1", which the stem's convolutions give."""
    maps = {}
    layer_names = [layer.name for layer in model.layers]
    # Its blocks end in sums that are not activated, and a stage's last block has the stride.
    preactivated = any(name.endswith("_preact_relu") for name in layer_names)
    ending = "preact_relu" if preactivated else "out"
    for layer in model.layers:
        if layer.name.startswith("conv1_"):
            maps["C1"] = layer.output
        elif match := re.fullmatch(rf"conv(\d+)_block\d+_{ending}", layer.name):
            maps[f"C{match[1]}"] = layer.output
    if not maps:
        raise InputError(f"model {model.name!r} has no stages named conv2_block1_out, ...")
    if "post_relu" in layer_names:
        maps[list(maps)[-1]] = model.get_layer("post_relu").output
    return maps


def _select(maps: dict, out_indices: Sequence[int] | None) -> dict:
    names = list(maps)
    if out_indices is None:
        return maps
    indices = list(out_indices) if isinstance(out_indices, Sequence) else [out_indices]
    right = all(isinstance(i, int) and -len(names) <= i < len(names) for i in indices)
    if not right or not indices or len({i % len(names) for i in indices}) < len(indices):
        raise InputError(
            f"out_indices must be different integers from 0 (C1) to {len(names) - 1} ({names[-1]}); "
            f"got {out_indices!r}"
        )
    return {names[i]: maps[names[i]] for i in indices}


def freeze(model: keras.Model, upto: str | None) -> keras.Model:
    """Excludes the first stages from training; all behind them can be trained.

    Batch normalization in them is in inference mode from then on, also in training: it neither uses nor
    updates the batch's statistics.

    Args:
        model: of `build_model`, with or without the top, or of `features_only`.
        upto: "C1" ... "C5": everything that this feature map depends on; None thaws the whole network.

    Returns:
        The model.

    Raises:
        InputError: there is no such feature map.
    """
    maps = _all_maps(model)
    if upto is not None and (not isinstance(upto, str) or upto not in maps):
        raise InputError(f"freeze takes one of {', '.join(maps)} or None; got {upto!r}")
    with recursion_limit():
        frozen = keras.Model(model.inputs, maps[upto]).layers if upto is not None else []
    names = {layer.name for layer in frozen}
    for layer in model.layers:
        layer.trainable = layer.name not in names
    return model


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
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    **config_overrides,
) -> keras.Model:
    """Builds the zoo's network `model`; see `build_resnet` for the arguments.

    Args:
        model: a name of `list_models()`.
        include_top: see `build_resnet`, as for all that follow.
        weights: None, a name of `list_weights(model)` such as "imagenet", or the path of a file.
        input_tensor: a Keras tensor, or None.
        input_shape: of one image, or None.
        pooling: None, "avg" or "max".
        classes: width of the classifier.
        classifier_activation: None gives logits.
        name: of the Keras model. Default: the zoo's name.
        features_only: gives a dictionary of feature maps.
        out_indices: of `features_only`.
        output_stride: input pixels a pixel of the last feature map.
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
        features_only=features_only,
        out_indices=out_indices,
        output_stride=output_stride,
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
    kind = "Plain" if config.shortcut is None else f"Residual (shortcut option {config.shortcut})"
    build.__doc__ = (
        f"{kind} network, {config.weighted_layers} weighted layers (`{name}`).\n\n"
        "    Arguments and errors are those of `build_model`, in keras.applications' order. With a weight\n"
        "    file and no `classes` the classifier is as wide as the file's.\n    "
    )
    return build


def _function_name(name: str) -> str:
    """`cifar_resnet20` -> `CifarResNet20`, `plain18` -> `PlainNet18`, `resnet50_v1_5` -> `ResNet50V1_5`."""
    words = {"cifar": "Cifar", "resnet": "ResNet", "plain": "PlainNet", "resnext": "ResNeXt", "wide": "Wide"}
    parts = re.findall(r"cifar|resnet|resnext|plain|wide|\d+x\d+d|\d+d?|v1_5|v2", name)
    spelled = [words.get(part) or (part if "x" in part else part.upper()) for part in parts]
    # An underscore stays between two numbers.
    return re.sub(r"(?<=\d) (?=\d)", "_", " ".join(spelled)).replace(" ", "")


BUILDERS = {_function_name(name): _builder(name, _function_name(name)) for name in MODELS}
