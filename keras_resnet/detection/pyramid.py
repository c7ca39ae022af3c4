"""The feature pyramid network (FPN, section 3), built from Keras tensors with torchvision's layers."""

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers

from keras_resnet.detection.config import DetectorConfig
from keras_resnet.models.layers import BatchNormalization


def feature_pyramid(maps: Sequence[keras.KerasTensor], config: DetectorConfig) -> list[keras.KerasTensor]:
    """Builds the levels of the pyramid from the outputs of the last stages, both from the finest on.

    The sides of the images must be multiples of the coarsest map's stride: each map must be exactly twice as
    large as the next.
    """
    inner = [_conv(x, 1, f"fpn_inner_{index}", config) for index, x in enumerate(maps)]
    sums = inner[-1:]
    for index in reversed(range(len(maps) - 1)):
        larger = layers.UpSampling2D(2, interpolation="nearest", name=f"fpn_upsample_{index}")(sums[0])
        sums.insert(0, layers.Add(name=f"fpn_add_{index}")([inner[index], larger]))
    levels = [_conv(x, 3, f"fpn_layer_{index}", config) for index, x in enumerate(sums)]
    if config.extra_levels == "pool":
        # Max pooling with a window of one pixel is subsampling.
        return [*levels, layers.MaxPooling2D(1, 2, name="fpn_pool")(levels[-1])]
    p6 = _downsample(levels[-1] if config.extra_levels == "P5" else maps[-1], "fpn_p6", config)
    return [*levels, p6, _downsample(layers.Activation("relu", name="fpn_p6_relu")(p6), "fpn_p7", config)]


def _conv(x, kernel_size, name, config):
    """A convolution without activation, followed by batch normalization if `pyramid_norm` is set."""
    x = layers.Conv2D(
        config.pyramid_channels,
        kernel_size,
        padding="same",
        use_bias=not config.pyramid_norm,
        kernel_initializer=_fan_in(),
        name=name,
    )(x)
    return BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x) if config.pyramid_norm else x


def _downsample(x, name, config):
    # "same" would pad inputs of even size on one side only.
    x = layers.ZeroPadding2D(1, name=f"{name}_pad")(x)
    return layers.Conv2D(config.pyramid_channels, 3, 2, kernel_initializer=_fan_in(), name=name)(x)


def _fan_in() -> Any:
    """The initializer of convolutions without activation: variance 1 / fan_in, as in torchvision."""
    return keras.initializers.VarianceScaling(1.0, "fan_in", "uniform")
