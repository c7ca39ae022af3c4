"""The paper's building blocks (Fig. 2 and 5, section 3.3) as functions on Keras tensors."""

from typing import Any, NamedTuple

import keras
from keras import KerasTensor, layers

from keras_resnet.errors import InputError
from keras_resnet.models.config import ResNetConfig
from keras_resnet.models.layers import BatchNormalization


class BlockStride(NamedTuple):
    """The strides of a block and the dilations of its 3x3 convolutions.

    `dilation_before` applies up to the convolution that strides or would stride, `dilation` after it; this is
    twice as large where the block dilates instead of striding.
    """

    strides: int = 1
    dilation_before: int = 1
    dilation: int = 1


def channel_axis() -> int:
    """Returns the axis of the channels under `keras.config.image_data_format()`."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def he_normal() -> Any:
    """Returns He et al.'s initializer [13]: Gaussian, standard deviation sqrt(2 / fan_in)."""
    # Keras' "he_normal" truncates the Gaussian at two standard deviations, and takes almost twice as long.
    return keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")


def conv(
    x: KerasTensor, filters: int, kernel_size: int, strides: int, name: str, dilation: int = 1, **options: Any
) -> KerasTensor:
    """Adds a `Conv2D` layer `{name}_conv`, padded by `dilation * (kernel_size // 2)` on every side."""
    padding = "same"
    if strides > 1 and kernel_size > 1:
        # "same" would pad an even input on one side only.
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    return layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        dilation_rate=dilation,
        kernel_initializer=he_normal(),
        name=f"{name}_conv",
        **options,
    )(x)


def bn_relu(x: KerasTensor, config: ResNetConfig, name: str, relu: bool = True) -> KerasTensor:
    """Adds batch normalization `{name}_bn` and, by default, ReLU `{name}_relu`."""
    if config.batch_norm:
        x = BatchNormalization(channel_axis(), momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x) if relu else x


def conv_bn(
    x: KerasTensor,
    filters: int,
    kernel_size: int,
    strides: int,
    config: ResNetConfig,
    name: str,
    relu: bool = True,
    **options: int,
) -> KerasTensor:
    """Adds a convolution (see `conv`), batch normalization and, by default, ReLU (section 3.4)."""
    # Batch normalization cancels a bias before it.
    x = conv(x, filters, kernel_size, strides, name, use_bias=not config.batch_norm, **options)
    return bn_relu(x, config, name, relu)


def _basic_block(x, filters, stride, config, name):
    """Two 3x3 convolutions (Fig. 5, left); the first carries the stride."""
    y = conv_bn(x, filters, 3, stride.strides, config, f"{name}_1", dilation=stride.dilation_before)
    y = conv_bn(y, filters, 3, 1, config, f"{name}_2", relu=False, dilation=stride.dilation)
    return _add_shortcut(x, y, filters, stride, config, name)


def _bottleneck_block(x, filters, stride, config, name):
    """1x1, 3x3 and 1x1 convolutions (Fig. 5, right)."""
    width = filters * config.expansion
    y = _reduce_and_conv(x, filters, stride, config, name)
    y = conv_bn(y, width, 1, 1, config, f"{name}_3", relu=False)
    return _add_shortcut(x, y, width, stride, config, name)


def _preactivation_block(x, filters, stride, config, name):
    """A bottleneck with normalization and ReLU before its convolutions (He et al., 2016, Fig. 4e)."""
    width = filters * config.expansion
    active = bn_relu(x, config, f"{name}_preact")
    y = _reduce_and_conv(active, filters, stride, config, name)
    y = conv(y, width, 1, 1, f"{name}_3", use_bias=True)
    if config.shortcut is None:
        return y
    if config.shortcut == "C" or (config.shortcut == "B" and x.shape[channel_axis()] != width):
        around = conv(active, width, 1, stride.strides, f"{name}_0", use_bias=True)
    else:
        around = _identity(x, width, stride.strides, name)
    return layers.Add(name=f"{name}_out")([around, y])


BLOCKS = {"basic": _basic_block, "bottleneck": _bottleneck_block, "preactivation": _preactivation_block}


def _reduce_and_conv(x, filters, stride, config, name):
    """The 1x1 and the 3x3 convolution of a bottleneck; either carries the stride."""
    filters = config.inner_filters(filters)
    on_3x3 = config.bottleneck_stride == "3x3"
    x = conv_bn(x, filters, 1, 1 if on_3x3 else stride.strides, config, f"{name}_1")
    strides, dilation = (stride.strides, stride.dilation_before) if on_3x3 else (1, stride.dilation)
    return conv_bn(x, filters, 3, strides, config, f"{name}_2", dilation=dilation, groups=config.groups)


def _add_shortcut(x, y, filters, stride, config, name):
    if config.shortcut is not None:
        y = layers.Add(name=f"{name}_add")([_shortcut(x, filters, stride, config, name), y])
    return layers.Activation("relu", name=f"{name}_out")(y)


def _shortcut(x, filters, stride, config, name):
    """Option A, B or C of section 3.3, or D of "Bag of Tricks"."""
    strides = stride.strides
    changes = strides > 1 or x.shape[channel_axis()] != filters
    if config.shortcut == "A" or (config.shortcut != "C" and not changes):
        return _identity(x, filters, strides, name)
    if config.shortcut == "D":
        if stride.dilation != stride.dilation_before:
            # Averages the same neighbors without skipping any, as timm does: its pooling without a
            # stride includes the zeros behind the edge in the mean.
            x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_0_pad")(x)
            x = layers.AveragePooling2D(2, 1, name=f"{name}_0_pool")(x)
        elif strides > 1:
            # At an odd edge, "same" averages only the pixels that exist.
            x = layers.AveragePooling2D(2, strides, padding="same", name=f"{name}_0_pool")(x)
            strides = 1
    return conv_bn(x, filters, 1, strides, config, f"{name}_0", relu=False)


def _identity(x, filters, strides, name):
    """Option A of section 3.3: subsampling, and zeros for the channels that `x` lacks."""
    axis = channel_axis()
    widening = filters - x.shape[axis]
    if widening < 0:
        raise InputError(f"shortcut option A cannot narrow {x.shape[axis]} channels to {filters} at {name}")
    if strides > 1:
        # A window of one pixel: subsampling, as the paper's identity with stride 2.
        x = layers.MaxPooling2D(1, strides, name=f"{name}_0_pool")(x)
    if widening:
        # Keras has no layer that pads channels. Read with the other data format, the channel axis is
        # this layer's "width" or "height".
        last = axis == -1
        x = layers.ZeroPadding2D(
            ((0, 0), (0, widening)) if last else ((0, widening), (0, 0)),
            data_format="channels_first" if last else "channels_last",
            name=f"{name}_0_pad",
        )(x)
    return x
