"""Networks with their weights: `build_resnet`, `build_model`, and a function for each network of the zoo."""

import contextlib
import functools
from collections.abc import Callable, Sequence
from typing import Concatenate, Literal, ParamSpec, Unpack

import keras

from keras_resnet.errors import InputError
from keras_resnet.models.config import ConfigOverrides, ResNetConfig, Shape, get_config
from keras_resnet.models.features import extract_features
from keras_resnet.models.resnet import build_network
from keras_resnet.weights.weight_file import Weights, open_weights

_Arguments = ParamSpec("_Arguments")


def build_resnet(
    config: ResNetConfig,
    *,
    include_top: bool = True,
    weights: Weights | None = None,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: Shape | None = None,
    pooling: Literal["avg", "max"] | None = None,
    classes: int | None = None,
    classifier_activation: str | Callable[..., object] | None = "softmax",
    name: str | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
) -> keras.Model:
    """Builds a network from its config; the first arguments are those of keras.applications.

    Args:
        include_top: whether the network ends with global average pooling and the classifier.
        weights: None for He-normal initialization; the name of pretrained weights (`list_weights`), where
            "imagenet" is the network's default; or the path of a file: our own `.weights.h5`,
            torchvision's or timm's `.safetensors` or `.pth`, keras.applications' `.h5`, or a folder with
            timm's `config.json`. If the file has another number of classes, the classifier stays
            randomly initialized; if it has another number of input channels, the first convolution is
            adapted as in timm: summed for one channel, otherwise repeated and scaled. Images are RGB.
        input_shape: (height, width, channels), or channels first under that image data format;
            height and width may be None. Default: (size, size, 3) with the network's own size, and
            (None, None, 3) without the top.
        pooling: without the top: None gives the last feature map, "avg" or "max" a vector.
        classes: default: the number of classes of the weights, else of the config.
        classifier_activation: None gives logits. The output is float32 under any dtype policy.
        features_only: outputs the feature maps as a dictionary, `{"C1": tensor, ...}`, without the top;
            timm's argument of this name gives a list.
        out_indices: which maps `features_only` outputs, 0 for C1 (after the stem), 1 for C2, ...; layers
            after the last of them are removed. Default: all.
        output_stride: size of the input over the size of the last feature map. Stages beyond it dilate
            their 3x3 convolutions instead of striding, with the same weights (torchvision's
            `replace_stride_with_dilation`). Default: 32 with ImageNet's stem, 4 with CIFAR's.

    Returns:
        A functional `keras.Model`: float (batch, height, width, channels) to float32 (batch, classes).
        If the weights say how their images were prepared and the input is square, its attribute
        `preprocess` is the `Preprocessing` that does so, channels last.

    Raises:
        InputError: an argument is out of its range, or `weights` does not fit the network.
    """
    if features_only and pooling:
        raise InputError(
            f"features_only outputs feature maps; it cannot be combined with pooling={pooling!r}"
        )
    if out_indices is not None and not features_only:
        raise InputError("out_indices selects among the maps of features_only=True")
    with contextlib.nullcontext() if weights is None else open_weights(weights, config) as file:
        if classes is None and file is not None and include_top:
            classes = file.classes
        model = build_network(
            config,
            include_top=include_top and not features_only,
            input_tensor=input_tensor,
            input_shape=input_shape,
            pooling=pooling,
            classes=classes,
            classifier_activation=classifier_activation,
            name=name,
            output_stride=output_stride,
        )
        if file is not None:
            file.load(model, transfer=True)
        if features_only:  # after loading: every tensor of the file needs its layer
            model = extract_features(model, out_indices)
        if file is not None and (preprocess := file.preprocessing_for(model)) is not None:
            model.preprocess = preprocess  # pyright: ignore[reportAttributeAccessIssue]
        return model


def build_model(
    model: str,
    include_top: bool = True,
    weights: Weights | None = None,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: Shape | None = None,
    pooling: Literal["avg", "max"] | None = None,
    classes: int | None = None,
    classifier_activation: str | Callable[..., object] | None = "softmax",
    name: str | None = None,
    *,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    output_stride: int | None = None,
    **config_overrides: Unpack[ConfigOverrides],
) -> keras.Model:
    """Builds the network `model` of `list_models()`; see `build_resnet` for the arguments.

    The Keras model is named `name`, by default `model`. `config_overrides` are fields of `ResNetConfig`, such
    as `shortcut="A"`.
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


def _named(
    build: Callable[Concatenate[str, _Arguments], keras.Model], name: str, model: str
) -> Callable[_Arguments, keras.Model]:
    """Returns a function `name` that calls `build` with `model` as its first argument."""

    @functools.wraps(functools.partial(build, model))  # its signature
    def named(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> keras.Model:
        return build(model, *args, **kwargs)

    named.__name__ = named.__qualname__ = name
    named.__doc__ = f"Builds the network `{model}` of the zoo; the arguments are those of `build_model`."
    return named


ResNet18 = _named(build_model, "ResNet18", "resnet18")
ResNet34 = _named(build_model, "ResNet34", "resnet34")
ResNet50 = _named(build_model, "ResNet50", "resnet50")
ResNet101 = _named(build_model, "ResNet101", "resnet101")
ResNet152 = _named(build_model, "ResNet152", "resnet152")
ResNet50V1_5 = _named(build_model, "ResNet50V1_5", "resnet50_v1_5")
ResNet101V1_5 = _named(build_model, "ResNet101V1_5", "resnet101_v1_5")
ResNet152V1_5 = _named(build_model, "ResNet152V1_5", "resnet152_v1_5")
PlainNet18 = _named(build_model, "PlainNet18", "plain18")
PlainNet34 = _named(build_model, "PlainNet34", "plain34")
CifarResNet20 = _named(build_model, "CifarResNet20", "cifar_resnet20")
CifarResNet32 = _named(build_model, "CifarResNet32", "cifar_resnet32")
CifarResNet44 = _named(build_model, "CifarResNet44", "cifar_resnet44")
CifarResNet56 = _named(build_model, "CifarResNet56", "cifar_resnet56")
CifarResNet110 = _named(build_model, "CifarResNet110", "cifar_resnet110")
CifarResNet1202 = _named(build_model, "CifarResNet1202", "cifar_resnet1202")
CifarPlainNet20 = _named(build_model, "CifarPlainNet20", "cifar_plain20")
CifarPlainNet32 = _named(build_model, "CifarPlainNet32", "cifar_plain32")
CifarPlainNet44 = _named(build_model, "CifarPlainNet44", "cifar_plain44")
CifarPlainNet56 = _named(build_model, "CifarPlainNet56", "cifar_plain56")
CifarPlainNet110 = _named(build_model, "CifarPlainNet110", "cifar_plain110")
ResNet18D = _named(build_model, "ResNet18D", "resnet18d")
ResNet34D = _named(build_model, "ResNet34D", "resnet34d")
ResNet50D = _named(build_model, "ResNet50D", "resnet50d")
ResNet101D = _named(build_model, "ResNet101D", "resnet101d")
ResNet152D = _named(build_model, "ResNet152D", "resnet152d")
ResNet50V2 = _named(build_model, "ResNet50V2", "resnet50_v2")
ResNet101V2 = _named(build_model, "ResNet101V2", "resnet101_v2")
ResNet152V2 = _named(build_model, "ResNet152V2", "resnet152_v2")
ResNeXt50_32x4d = _named(build_model, "ResNeXt50_32x4d", "resnext50_32x4d")
ResNeXt101_32x8d = _named(build_model, "ResNeXt101_32x8d", "resnext101_32x8d")
ResNeXt101_64x4d = _named(build_model, "ResNeXt101_64x4d", "resnext101_64x4d")
WideResNet50_2 = _named(build_model, "WideResNet50_2", "wide_resnet50_2")
WideResNet101_2 = _named(build_model, "WideResNet101_2", "wide_resnet101_2")
