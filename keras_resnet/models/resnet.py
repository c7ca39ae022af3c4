"""From a config to the graph of the network: stem, stages and head. Weights are loaded by others."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
from keras import layers

from keras_resnet.errors import InputError
from keras_resnet.models.blocks import BLOCKS, BlockStride, bn_relu, channel_axis, conv, conv_bn, he_normal
from keras_resnet.models.config import ResNetConfig, Shape
from keras_resnet.models.graph import recursion_limit


def build_network(
    config: ResNetConfig,
    *,
    include_top: bool = True,
    input_tensor: keras.KerasTensor | None = None,
    input_shape: Shape | None = None,
    pooling: Literal["avg", "max"] | None = None,
    classes: int | None = None,
    classifier_activation: str | Callable[..., object] | None = "softmax",
    name: str | None = None,
    output_stride: int | None = None,
) -> keras.Model:
    """Builds a network with He-normal weights; `keras_resnet.build_resnet` explains the arguments.

    Raises:
        InputError: an argument is out of its range.
    """
    classes = config.classes if classes is None else classes
    if include_top and (isinstance(classes, bool) or not isinstance(classes, int) or classes < 1):
        raise InputError(f"classes must be a positive integer; got {classes!r}")
    if pooling not in (None, "avg", "max"):
        raise InputError(f"pooling must be None, 'avg' or 'max'; got {pooling!r}")
    _block_strides(config, output_stride)  # refuses a wrong output_stride before anything is built
    inputs, x = _inputs(config, input_tensor, input_shape, include_top)
    with recursion_limit():
        x = build_stages(build_stem(x, config), config, output_stride=output_stride)
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
        return keras.Model(inputs, x, name=name)


def build_stem(x: keras.KerasTensor, config: ResNetConfig) -> keras.KerasTensor:
    """Builds the layers before the first stage; `x` are the images."""
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
    # After a ReLU, zeros pad a maximum as well as minus infinity would; keras.applications pads its
    # pre-activation networks with them, too.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def build_stages(
    x: keras.KerasTensor,
    config: ResNetConfig,
    first: int = 0,
    last: int | None = None,
    output_stride: int | None = None,
) -> keras.KerasTensor:
    """Builds the stages `first` to `last` (exclusive, counted from 0) on any tensor.

    A detector shares the stages before the last one among its regions, and builds the last one on each.
    The last stage of a pre-activation network ends with its final normalization and ReLU.

    Args:
        x: the output of the stem, or of the stage before `first`.
        config: of the whole network.
        first: the first stage to build.
        last: the stage to stop before. Default: all that follow.
        output_stride: of the whole network; see `keras_resnet.build_resnet`.
    """
    strides = _block_strides(config, output_stride)
    for stage in range(len(strides))[first:last]:
        for index, stride in enumerate(strides[stage], start=1):
            filters = config.stage_filters[stage]
            x = BLOCKS[config.block](x, filters, stride, config, f"conv{stage + 2}_block{index}")
        if config.block == "preactivation" and stage == len(strides) - 1:
            x = bn_relu(x, config, "post")
    return x


def _block_strides(config: ResNetConfig, output_stride: int | None = None) -> list[list[BlockStride]]:
    """Returns the strides and dilations of every block, stage by stage.

    Raises:
        InputError: the network cannot have this output stride.
    """
    reachable = [config.stem_stride * 2**stage for stage in range(len(config.stage_depths))]
    if output_stride is None:
        output_stride = reachable[-1]
    if output_stride not in reachable:
        raise InputError(
            f"output_stride must be one of {', '.join(map(str, reachable))}; got {output_stride!r}"
        )
    stages, stride, dilation = [], reachable[0], 1
    for stage, depth in enumerate(config.stage_depths):
        if config.block == "preactivation":
            downsamples_at = depth - 1 if stage < len(reachable) - 1 else None
        else:
            downsamples_at = 0 if stage > 0 else None
        blocks = []
        for index in range(depth):
            if index != downsamples_at:
                blocks.append(BlockStride(1, dilation, dilation))
            elif stride < output_stride:
                blocks.append(BlockStride(2))
                stride *= 2
            else:
                blocks.append(BlockStride(1, dilation, dilation * 2))
                dilation *= 2
        stages.append(blocks)
    return stages


def _inputs(
    config: ResNetConfig, input_tensor: Any, input_shape: Shape | None, include_top: bool
) -> tuple[Any, Any]:
    """The model's inputs, and the tensor that goes into the stem."""
    first = channel_axis() == 1
    if input_tensor is not None:
        if not keras.backend.is_keras_tensor(input_tensor):
            raise InputError(f"input_tensor must be a Keras tensor; got {type(input_tensor).__name__}")
        shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and _as_shape(input_shape) != shape:
            raise InputError(
                f"input_shape {_as_shape(input_shape)} differs from input_tensor's shape {shape}"
            )
    elif input_shape is not None:
        shape = _as_shape(input_shape)
    else:
        size = config.input_size if include_top else None
        shape = (3, size, size) if first else (size, size, 3)
    _check_shape(shape, first, config.total_stride)
    if input_tensor is None:
        images = layers.Input(shape, name="images")
        return images, images
    inputs = keras.utils.get_source_inputs(input_tensor)
    return inputs[0] if len(inputs) == 1 else inputs, input_tensor


def _check_shape(shape: Shape, channels_first: bool, least: int) -> None:
    if len(shape) != 3:
        raise InputError(f"input_shape must be (height, width, channels) or channels first; got {shape}")
    channels = shape[0] if channels_first else shape[2]
    if not isinstance(channels, int) or channels < 1:
        raise InputError(f"input_shape needs a positive number of channels; got {shape}")
    for size in shape[1:] if channels_first else shape[:2]:
        if size is not None and (not isinstance(size, int) or size < least):
            raise InputError(f"the network needs images of at least {least}x{least} pixels; got {shape}")


def _as_shape(input_shape: Any) -> Shape:
    if not isinstance(input_shape, Sequence):
        raise InputError(f"input_shape must be (height, width, channels); got {input_shape!r}")
    return tuple(input_shape)
