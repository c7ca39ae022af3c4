"""The paper's building blocks (Fig. 2 and 5, section 3.3) as functions on Keras tensors."""

import keras
from keras import layers

from keras_resnet.config import ResNetConfig
from keras_resnet.errors import InputError
from keras_resnet.layers import BatchNormalization


def channel_axis() -> int:
    """The axis of the channels under `keras.config.image_data_format()`."""
    return 1 if keras.config.image_data_format() == "channels_first" else -1


def he_normal() -> keras.initializers.Initializer:
    """He et al.'s initialization [13]: Gaussian, standard deviation sqrt(2 / fan_in).

    Keras' "he_normal" cuts the Gaussian off at two deviations, and takes almost twice as long.
    """
    return keras.initializers.VarianceScaling(2.0, "fan_in", "untruncated_normal")


def conv_bn(x, filters: int, kernel_size: int, strides: int, name: str, relu: bool = True):
    """Convolution without bias, batch normalization and, by default, ReLU (section 3.4).

    Padding is symmetric, `kernel_size // 2` on every side, at any stride.

    Args:
        x: tensor (batch, height, width, channels), or channels first.
        filters: output channels.
        kernel_size: height and width of the kernel.
        strides: of the convolution, in both directions.
        name: prefix of the layers' names, as in keras.applications.
        relu: whether the nonlinearity follows.
    """
    padding = "same"
    if strides > 1 and kernel_size > 1:
        # "same" would pad an even input on one side only.
        x = layers.ZeroPadding2D(kernel_size // 2, name=f"{name}_pad")(x)
        padding = "valid"
    x = layers.Conv2D(
        filters,
        kernel_size,
        strides=strides,
        padding=padding,
        use_bias=False,
        kernel_initializer=he_normal(),
        name=f"{name}_conv",
    )(x)
    x = BatchNormalization(channel_axis(), momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
    return layers.Activation("relu", name=f"{name}_relu")(x) if relu else x


def shortcut(x, filters: int, strides: int, option: str, name: str):
    """The shortcut past a block: option A, B or C of section 3.3.

    Args:
        x: the block's input.
        filters: channels of the block's output.
        strides: of the block.
        option: "A", "B" or "C".
        name: the block's name.

    Raises:
        InputError: option A in a block that has fewer channels than its input.
    """
    axis = channel_axis()
    widening = filters - x.shape[axis]
    if option == "C" or (option == "B" and (strides > 1 or widening)):
        return conv_bn(x, filters, 1, strides, f"{name}_0", relu=False)
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


def basic_block(x, filters: int, strides: int, config: ResNetConfig, name: str):
    """Two 3x3 convolutions (Fig. 5, left); the first carries the stride."""
    y = conv_bn(x, filters, 3, strides, f"{name}_1")
    y = conv_bn(y, filters, 3, 1, f"{name}_2", relu=False)
    return _merge(x, y, filters, strides, config, name)


def bottleneck_block(x, filters: int, strides: int, config: ResNetConfig, name: str):
    """1x1, 3x3 and 1x1 convolutions (Fig. 5, right).

    The stride is on the first 1x1, as in the paper's released models, or on the 3x3 ("v1.5").
    """
    stride_1x1, stride_3x3 = (strides, 1) if config.bottleneck_stride == "1x1" else (1, strides)
    width = filters * config.expansion
    y = conv_bn(x, filters, 1, stride_1x1, f"{name}_1")
    y = conv_bn(y, filters, 3, stride_3x3, f"{name}_2")
    y = conv_bn(y, width, 1, 1, f"{name}_3", relu=False)
    return _merge(x, y, width, strides, config, name)


def _merge(x, y, filters, strides, config, name):
    if config.shortcut is not None:
        identity = shortcut(x, filters, strides, config.shortcut, name)
        y = layers.Add(name=f"{name}_add")([identity, y])
    return layers.Activation("relu", name=f"{name}_out")(y)


BLOCKS = {"basic": basic_block, "bottleneck": bottleneck_block}
