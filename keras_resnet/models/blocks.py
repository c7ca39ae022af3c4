"""The paper's building blocks (Fig. 2 and 5, section 3.3) as functions on Keras tensors."""

import dataclasses
from typing import Any

import keras
from keras import KerasTensor, layers

from keras_resnet.errors import InputError
from keras_resnet.models.config import ResNetConfig
from keras_resnet.models.layers import BatchNormalization


def channel_axis() -> int:
    """Returns the axis of the channels under `keras.config.image_data_format()`."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def he_normal() -> Any:
    """Returns He et al.'s initializer [13]: Gaussian, standard deviation sqrt(2 / fan_in).

    Keras' "he_normal" truncates the Gaussian at two deviations, and takes almost twice as long.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")


def conv(
    x: KerasTensor,
    filters: int,
    kernel_size: int,
    strides: int,
    name: str,
    *,
    dilation: int = 1,
    groups: int = 1,
    bias: bool = False,
) -> KerasTensor:
    """Adds a He-initialized convolution, called `{name}_conv`.

    Padding is symmetric, `dilation * (kernel_size // 2)` on every side, at any stride.
    """
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
        groups=groups,
        use_bias=bias,
        kernel_initializer=he_normal(),
        name=f"{name}_conv",
    )(x)


def bn_relu(x: KerasTensor, config: ResNetConfig, name: str, relu: bool = True) -> KerasTensor:
    """Adds batch normalization and, by default, ReLU, called `{name}_bn` and `{name}_relu`."""
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
    dilation: int = 1,
    groups: int = 1,
) -> KerasTensor:
    """Adds a convolution, batch normalization and, by default, ReLU (section 3.4); see `conv`.

    Only a network without batch normalization has biases here: normalization shifts its output anyway.
    """
    x = conv(
        x, filters, kernel_size, strides, name, dilation=dilation, groups=groups, bias=not config.batch_norm
    )
    return bn_relu(x, config, name, relu)


def shortcut(
    x: KerasTensor, filters: int, strides: int, config: ResNetConfig, name: str, dilated: bool = False
) -> KerasTensor:
    """Adds the shortcut of a block: option A, B or C of section 3.3, or D of "Bag of Tricks".

    Args:
        x: the block's input.
        filters: channels of the block's output.
        strides: of the block.
        config: of the network; it has a shortcut.
        name: the block's name.
        dilated: whether the block dilates instead of striding. Option D then averages the same
            neighbors without skipping any, as timm does.

    Raises:
        InputError: option A in a block with fewer channels than its input.
    """
    option, widening = config.shortcut, filters - x.shape[channel_axis()]
    if option == "D" and (strides > 1 or widening):
        if dilated:
            # timm's pooling without a stride includes the zeros behind the edge in the mean.
            x = layers.ZeroPadding2D(((0, 1), (0, 1)), name=f"{name}_0_pad")(x)
            x = layers.AveragePooling2D(2, 1, name=f"{name}_0_pool")(x)
        elif strides > 1:
            # At an odd edge, "same" averages only the pixels that exist.
            x = layers.AveragePooling2D(2, strides, padding="same", name=f"{name}_0_pool")(x)
        return conv_bn(x, filters, 1, 1, config, f"{name}_0", relu=False)
    if option == "C" or (option == "B" and (strides > 1 or widening)):
        return conv_bn(x, filters, 1, strides, config, f"{name}_0", relu=False)
    return identity(x, filters, strides, name)


def identity(x: KerasTensor, filters: int, strides: int, name: str) -> KerasTensor:
    """Adds option A of section 3.3: subsampling, and zeros for the channels that `x` lacks.

    Raises:
        InputError: `x` has more channels than `filters`.
    """
    axis = channel_axis()
    widening = filters - x.shape[axis]
    if widening < 0:
        raise InputError(f"shortcut option A cannot narrow {x.shape[axis]} channels to {filters} at {name}")
    if strides > 1:
        # A window of one pixel: subsampling, as the paper's identity with stride 2.
        x = layers.MaxPooling2D(1, strides, name=f"{name}_0_pool")(x)
    if widening:
        # Zeros for the new channels. Read with the other data format, the padding layer's
        # "width" (or "height") is the channel axis: Keras has no layer that pads channels.
        last = axis == -1
        x = layers.ZeroPadding2D(
            ((0, 0), (0, widening)) if last else ((0, widening), (0, 0)),
            data_format="channels_first" if last else "channels_last",
            name=f"{name}_0_pad",
        )(x)
    return x


@dataclasses.dataclass(frozen=True)
class BlockStride:
    """The strides and dilations of a block.

    Attributes:
        strides: in both directions.
        dilation_before: of the 3x3 convolutions up to the one that strides, or would stride.
        dilation: of those after it; twice as large where the block dilates instead of striding.
    """

    strides: int = 1
    dilation_before: int = 1
    dilation: int = 1

    @property
    def dilated(self) -> bool:
        """Whether the block dilates instead of striding."""
        return self.dilation != self.dilation_before


def _basic_block(
    x: KerasTensor, filters: int, stride: BlockStride, config: ResNetConfig, name: str
) -> KerasTensor:
    """Two 3x3 convolutions (Fig. 5, left); the first carries the stride."""
    y = conv_bn(x, filters, 3, stride.strides, config, f"{name}_1", dilation=stride.dilation_before)
    y = conv_bn(y, filters, 3, 1, config, f"{name}_2", relu=False, dilation=stride.dilation)
    return _add_shortcut(x, y, filters, stride, config, name)


def _bottleneck_block(
    x: KerasTensor, filters: int, stride: BlockStride, config: ResNetConfig, name: str
) -> KerasTensor:
    """1x1, 3x3 and 1x1 convolutions (Fig. 5, right)."""
    width = filters * config.expansion
    y = _reduce_and_conv(x, filters, stride, config, name)
    y = conv_bn(y, width, 1, 1, config, f"{name}_3", relu=False)
    return _add_shortcut(x, y, width, stride, config, name)


def _preactivation_block(
    x: KerasTensor, filters: int, stride: BlockStride, config: ResNetConfig, name: str
) -> KerasTensor:
    """A bottleneck with normalization and ReLU before its convolutions (He et al., 2016, Fig. 4e).

    Projections start after the first activation; identities are not activated.
    """
    width = filters * config.expansion
    active = bn_relu(x, config, f"{name}_preact")
    y = _reduce_and_conv(active, filters, stride, config, name)
    y = conv(y, width, 1, 1, f"{name}_3", bias=True)
    if config.shortcut is None:
        return y
    if config.shortcut == "C" or (config.shortcut == "B" and x.shape[channel_axis()] != width):
        around = conv(active, width, 1, stride.strides, f"{name}_0", bias=True)
    else:
        around = identity(x, width, stride.strides, name)
    return layers.Add(name=f"{name}_out")([around, y])


def _reduce_and_conv(x, filters, stride, config, name):
    """A bottleneck's first 1x1 and its 3x3.

    The stride is on the 1x1, as in the paper's released models, or on the 3x3 ("v1.5").
    """
    filters = config.inner_filters(filters)
    on_3x3 = config.bottleneck_stride == "3x3"
    x = conv_bn(x, filters, 1, 1 if on_3x3 else stride.strides, config, f"{name}_1")
    strides, dilation = (stride.strides, stride.dilation_before) if on_3x3 else (1, stride.dilation)
    return conv_bn(x, filters, 3, strides, config, f"{name}_2", dilation=dilation, groups=config.groups)


def _add_shortcut(x, y, filters, stride, config, name):
    if config.shortcut is not None:
        around = shortcut(x, filters, stride.strides, config, name, stride.dilated)
        y = layers.Add(name=f"{name}_add")([around, y])
    return layers.Activation("relu", name=f"{name}_out")(y)


BLOCKS = {"basic": _basic_block, "bottleneck": _bottleneck_block, "preactivation": _preactivation_block}
