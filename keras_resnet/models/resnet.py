"""Builds the graph of a network from its config: stem, stages and head."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
from keras import layers

from keras_resnet.errors import InputError, require
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
    """Builds a randomly initialized network; see `keras_resnet.build_resnet` for the arguments."""
    classes = config.classes if classes is None else classes
    is_count = isinstance(classes, int) and not isinstance(classes, bool) and classes > 0
    require(is_count or not include_top, "classes must be a positive integer", classes)
    require(pooling in (None, "avg", "max"), "pooling must be None, 'avg' or 'max'", pooling)
    _block_strides(config, output_stride)  # checks output_stride before anything is built
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
    """Builds the layers between the images `x` and the first stage."""
    # A pre-activation network normalizes in its first block.
    last = functools.partial(conv_bn, config=config)
    if config.block == "preactivation":
        last = functools.partial(conv, use_bias=True)
    if config.stem == "cifar":
        return last(x, config.stage_filters[0], 3, 1, name="conv1")
    if config.stem == "deep":
        x = conv_bn(x, 32, 3, 2, config, "conv1_1")
        x = conv_bn(x, 32, 3, 1, config, "conv1_2")
        x = last(x, 64, 3, 1, name="conv1_3")
    else:
        x = last(x, 64, 7, 2, name="conv1")
    # After a ReLU, zeros pad a maximum as well as minus infinity would. Pre-activation networks have no
    # ReLU here, but keras.applications pads them with zeros, too.
    x = layers.ZeroPadding2D(1, name="pool1_pad")(x)
    return layers.MaxPooling2D(3, 2, name="pool1_pool")(x)


def build_stages(
    x: keras.KerasTensor,
    config: ResNetConfig,
    first: int = 0,
    last: int | None = None,
    output_stride: int | None = None,
) -> keras.KerasTensor:
    """Builds the stages from `first`, counted from 0, until before `last`, by default all that follow.

    `x` is the output of the stem or of the stage before `first`, and `output_stride` the whole network's. The
    last stage of a pre-activation network includes its final normalization and ReLU.
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
    """Returns the strides and dilations of every block, stage by stage."""
    reachable = [config.stem_stride * 2**stage for stage in range(len(config.stage_depths))]
    output_stride = config.total_stride if output_stride is None else output_stride
    sentence = f"output_stride must be one of {', '.join(map(str, reachable))}"
    require(output_stride in reachable, sentence, output_stride)
    stages, stride, dilation = [], reachable[0], 1
    for stage, depth in enumerate(config.stage_depths):
        downsamples_at = 0 if stage > 0 else None
        if config.block == "preactivation":
            downsamples_at = depth - 1 if stage < len(reachable) - 1 else None
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
    """Returns the model's inputs, and the tensor that goes into the stem."""
    if input_tensor is not None and not keras.backend.is_keras_tensor(input_tensor):
        raise InputError(f"input_tensor must be a Keras tensor; got {type(input_tensor).__name__}")
    first = channel_axis() == 1
    if input_shape is not None:
        require(
            isinstance(input_shape, Sequence), "input_shape must be (height, width, channels)", input_shape
        )
        shape = tuple(input_shape)
    else:
        size = config.input_size if include_top else None
        shape = (3, size, size) if first else (size, size, 3)
    if input_tensor is not None:
        own_shape = tuple(input_tensor.shape[1:])
        if input_shape is not None and shape != own_shape:
            raise InputError(f"input_shape {shape} differs from input_tensor's shape {own_shape}")
        shape = own_shape
    require(len(shape) == 3, "input_shape must be (height, width, channels) or channels first", shape)
    channels, *sizes = shape if first else (shape[2], *shape[:2])
    is_count = isinstance(channels, int) and channels > 0
    require(is_count, "input_shape needs a positive number of channels", shape)
    least = config.total_stride
    large = all(size is None or (isinstance(size, int) and size >= least) for size in sizes)
    require(large, f"the network needs images of at least {least}x{least} pixels", shape)
    if input_tensor is None:
        images = layers.Input(shape, name="images")
        return images, images
    inputs = keras.utils.get_source_inputs(input_tensor)
    return inputs[0] if len(inputs) == 1 else inputs, input_tensor
