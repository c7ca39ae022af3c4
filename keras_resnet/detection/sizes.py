"""Resizes and pads images of any size for a detector, by torchvision's rule."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.images import ops
from keras_resnet.images.preprocessing import Normalization


def resized_shape(height: int, width: int, shorter_side: int, longer_side: float) -> tuple[int, int]:
    """Returns the height and width of a resized image, pixels.

    The shorter side becomes `shorter_side`, unless the longer side would exceed `longer_side`. As in
    torchvision, both are computed in float64 and rounded down, so a shorter side of 289 pixels becomes 799,
    not 800.
    """
    sides = height, width
    scale = min(shorter_side / min(sides), longer_side / max(sides))
    resized = (max(math.floor(side * scale), 1) for side in sides)
    return next(resized), next(resized)


def resized_shape_of(shape: tf.Tensor, shorter_side: int, longer_side: int) -> tf.Tensor:
    """`resized_shape` in TensorFlow, for an image of `shape`, integers (2,); returns int32 (2,)."""
    sides = tf.cast(shape, tf.float64)
    scale = tf.minimum(shorter_side / tf.reduce_min(sides), longer_side / tf.reduce_max(sides))
    return tf.maximum(tf.cast(tf.floor(sides * scale), tf.int32), 1)


def resized_shape_within(
    shape: tf.Tensor, shorter_side: int, longer_side: int, canvas: tf.Tensor
) -> tf.Tensor:
    """`resized_shape` in TensorFlow, for an image that must also fit in `canvas`.

    Args:
        shape: integers (2,), height and width of the image, pixels.
        canvas: int32 (2,), the largest height and width of the result, pixels.

    Returns:
        int32 (2,), height and width.
    """
    sides, room = tf.cast(shape, tf.float64), tf.cast(canvas, tf.float64)
    resized = resized_shape_of(shape, shorter_side, longer_side)
    fits = tf.cast(tf.floor(sides * tf.reduce_min(room / sides)), tf.int32)
    return tf.maximum(tf.where(tf.reduce_all(resized <= canvas), resized, tf.minimum(fits, canvas)), 1)


def padded_shape(height: int, width: int, multiple: int) -> tuple[int, int]:
    """Returns the height and width rounded up to multiples of `multiple`."""
    return -(-height // multiple) * multiple, -(-width // multiple) * multiple


def normalize_then_resize(
    image: np.ndarray | tf.Tensor,
    normalization: Normalization,
    size: tuple[int, int] | tf.Tensor,
    padded: tuple[int, int] | tf.Tensor,
) -> tf.Tensor:
    """Normalizes an image, resizes it to `size` and pads it with zeros at the right and at the bottom.

    As in torchvision, resizing is bilinear, without antialiasing even if the image is reduced. After
    normalization, zero is the mean color.

    Args:
        image: uint8 (height, width, 3), RGB.
        size: height and width of the resized image, pixels.
        padded: height and width of the result, pixels.

    Returns:
        float32 (*padded, 3).
    """
    pixels = ops.normalize(tf.cast(tf.convert_to_tensor(image), tf.float32), normalization)
    resized = tf.image.resize(pixels, size, "bilinear", antialias=False)
    missing: Any = [padded[0] - size[0], padded[1] - size[1]]
    return tf.pad(resized, [[0, missing[0]], [0, missing[1]], [0, 0]])


def rescale_boxes(
    boxes: np.ndarray, size: Sequence[int] | np.ndarray, new_size: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Converts boxes to an image of another size.

    Args:
        boxes: float32 (n, 4), x1, y1, x2, y2 in pixels of an image of `size`.
        size: height and width, pixels.
        new_size: height and width, pixels.

    Returns:
        float32 (n, 4), in pixels of an image of `new_size`.
    """
    scale = np.asarray(new_size, "float32") / np.asarray(size, "float32")
    return boxes * scale[[1, 0, 1, 0]]


def check_image(image: np.ndarray) -> None:
    """Raises `InputError` unless an image is a nonempty uint8 array (height, width, 3)."""
    is_array = isinstance(image, np.ndarray)
    found = f"{image.dtype} of shape {image.shape}" if is_array else type(image).__name__
    if not (is_array and image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 and image.size):
        raise InputError(f"an image must be a uint8 array (height, width, 3), RGB; got {found}")
