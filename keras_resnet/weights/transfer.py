"""Weights for a network that differs from the file's at its two ends: the first input, the last output."""

import re

import keras
import numpy as np

HEAD = "predictions"


def own_layers(model: keras.Model) -> list[keras.layers.Layer]:
    """The layers that `build_resnet` made, without those before an `input_tensor`."""
    return [layer for layer in model.layers if re.match(r"conv\d+_|post_|predictions$", layer.name)]


def stem_of(model: keras.Model) -> str:
    """Name of the convolution that the images go into."""
    return next(layer.name for layer in own_layers(model) if isinstance(layer, keras.layers.Conv2D))


def adapt_stem(kernel: np.ndarray, channels: int) -> np.ndarray:
    """The kernel of a first convolution for another number of input channels.

    As timm does it: for one channel the sum over the old ones, which sees a gray image as the old kernel
    sees it repeated; for others the old ones again and again, scaled to keep the size of the output.

    Args:
        kernel: (height, width, old channels, filters).
        channels: of the new input.

    Returns:
        (height, width, channels, filters).
    """
    old = kernel.shape[2]
    if channels == old:
        return kernel
    if channels == 1:
        return kernel.sum(2, keepdims=True)
    repeated = np.tile(kernel, (1, 1, -(-channels // old), 1))[:, :, :channels]
    return repeated * np.asarray(old / channels, kernel.dtype)


def differs_in_channels(kernel: tuple, other: tuple) -> bool:
    """Whether two kernels' shapes, (height, width, in, out), differ in their input channels alone."""
    same_besides = kernel[:2] + kernel[3:] == other[:2] + other[3:]
    return len(kernel) == len(other) == 4 and same_besides and kernel != other and kernel[2] > 0


def differs_in_classes(kernel: tuple, other: tuple) -> bool:
    """Whether two classifiers' shapes, (in, classes), differ in their classes alone."""
    return len(kernel) == len(other) == 2 and kernel != other and kernel[0] == other[0]
