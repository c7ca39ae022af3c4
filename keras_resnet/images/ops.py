"""Resizes, crops and normalizes images with TensorFlow operations."""

from collections.abc import Sequence
from typing import cast

import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError
from keras_resnet.images.decode import transpose
from keras_resnet.images.preprocessing import Normalization

_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}
_WIDE = 2**23  # Pixels that resizing the heights may leave; for more, the axis that leaves less comes first.
_LARGEST_VIEW, _LARGEST_ASPECT = 2**23, 16  # pixels, for images of a larger aspect


def static_shape(tensor: tf.Tensor) -> tuple[int, ...]:
    """A tensor's shape, for callers that know its sides when the graph is traced."""
    return cast("tuple[int, ...]", tuple(tensor.shape))


def resize_and_crop(
    images: tf.Tensor,
    resized: Sequence | tf.Tensor,
    corner: tuple | tf.Tensor,
    size: int | Sequence,
    interpolation: str = "bilinear",
) -> tf.Tensor:
    """Resizes (half-pixel centers, antialiased when shrinking) and crops images; computes only the crop.

    Args:
        images: uint8 or float32 (height, width, channels) or (batch, height, width, channels).
        resized: (height, width) of the whole resized image, pixels.
        corner: (top, left) of the crop in the resized image, pixels.
        size: height and width of the crop, or side of a square.
        interpolation: "bilinear", or "bicubic" for pixels 0-255, clipped to this range.

    Returns:
        float32 (..., height, width, channels), in the units of `images`.
    """
    batched = images if images.shape.rank == 4 else images[None]
    scale = tf.cast(tf.stack(resized), tf.float32) / tf.cast(tf.shape(batched)[1:3], tf.float32)
    cut = _resample(batched, scale, -tf.cast(tf.stack(corner), tf.float32), size, _KERNELS[interpolation])
    if interpolation == "bicubic":
        cut = tf.clip_by_value(cut, 0.0, 255.0)  # bicubic overshoots at edges
    return cut if images.shape.rank == 4 else cut[0]


def resize_box(image: tf.Tensor, crop_box: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes a part of an image, (height, width, channels), to a float32 square, bilinear and antialiased.

    `crop_box` is float32 (4,): the part's top, left, height and width in pixels. Pixels around it contribute
    when shrinking.
    """
    scale = size / crop_box[2:]
    return _resample(image[None], scale, -crop_box[:2] * scale, size, _KERNELS["bilinear"])[0]


def resize_area(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes an image, (height, width, channels), to a float32 square, four times as fast as `resize_box`.

    Averages areas if both sides shrink; otherwise bilinear.
    """
    batch, sides = image[None], [size, size]
    resized = tf.cond(
        tf.reduce_all(tf.shape(image)[:2] >= size),
        lambda: tf.raw_ops.ResizeArea(images=batch, size=sides),
        lambda: tf.raw_ops.ResizeBilinear(images=batch, size=sides, half_pixel_centers=True),
    )
    return tf.ensure_shape(resized[0], (size, size, image.shape[-1]))


def _resample(images, scale, translation, size, kernel: str) -> tf.Tensor:
    """Antialiased `ScaleAndTranslate`, bit for bit, three times as fast.

    Only its loop over channels is fast, so each row is treated as the channels of one pixel; the image
    is transposed between the two axes.
    """
    channels = images.shape[-1]
    sides = (size, size) if isinstance(size, int) else size

    def resampled(part, axes):
        for axis in axes:
            count, length, others = tf.unstack(tf.shape(part)[:3])
            part = tf.raw_ops.ScaleAndTranslate(
                images=tf.reshape(part, [count, length, 1, others * channels]),
                size=[sides[axis], 1],
                scale=tf.stack([scale[axis], 1.0]),
                translation=tf.stack([translation[axis], 0.0]),
                kernel_type=kernel,
                antialias=True,
            )
            part = tf.transpose(tf.reshape(part, [count, sides[axis], others, channels]), [0, 2, 1, 3])
        return part

    def columns_first():
        return tf.transpose(resampled(tf.transpose(images, [0, 2, 1, 3]), (1, 0)), [0, 2, 1, 3])

    # Heights first, as `ScaleAndTranslate`, except if that would leave a very wide part.
    rows, columns = (tf.cast(side, tf.int64) for side in tf.unstack(tf.shape(images)[1:3]))
    wide = tf.cast(sides[0], tf.int64) * columns
    wide = (wide > _WIDE) & (wide > tf.cast(sides[1], tf.int64) * rows)
    images = tf.cond(wide, columns_first, lambda: resampled(images, (0, 1)))
    known = [side if isinstance(side, int) else None for side in sides]
    return tf.ensure_shape(images, (None, *known, channels))


def resize_shorter_side(image: tf.Tensor, resize: int, interpolation: str = "bilinear") -> tf.Tensor:
    """Resizes an image, uint8 (height, width, channels), to the shorter side `resize`.

    At run time, raises `InvalidArgumentError` for an image more than 16 times as long as wide if the result
    would have more than 2**23 pixels.
    """
    resized = _resized_shape(image, resize)
    if isinstance(resized, tf.Tensor):
        fits = tf.reduce_prod(resized) <= max(_LARGEST_VIEW, _LARGEST_ASPECT * resize**2)
        with tf.control_dependencies([tf.debugging.Assert(fits, ["too elongated", resized])]):
            resized = tf.unstack(tf.cast(resized, tf.int32))
    return resize_and_crop(image, resized, (0, 0), resized, interpolation)


def _resized_shape(image: tf.Tensor, resize: int) -> list[int] | tf.Tensor:
    """Height and width for the shorter side `resize`; the longer is truncated, as in torchvision.

    They are integers if the image's shape is known, else int64 (2,).
    """
    if image.shape[:2].is_fully_defined():
        sides = static_shape(image)[:2]
        return [side * resize // min(sides) for side in sides]
    shape = tf.shape(image, tf.int64)[:2]
    return shape * resize // tf.reduce_min(shape)


def evaluation_view(
    images: tf.Tensor,
    resize: int | None,
    size: int,
    channels: int,
    interpolation: str = "bilinear",
    transposed: tf.Tensor | None = None,
) -> tf.Tensor:
    """Resizes and crops decoded images as a `Preprocessing` of these values, without normalization.

    Args:
        images: uint8 (height, width, 3 or 1); also a batch if `resize` is None.
        channels: 3 or 1.
        transposed: whether the image is one of `decode_mirrored` that must be transposed; None if not.

    Returns:
        float32 (..., size, size, channels), 0-255.
    """
    if resize is not None:
        resized = tf.stack(_resized_shape(images, resize))
        # Rounded half to even, as in torchvision and `Preprocessing`.
        corner = tf.round(tf.cast(resized - size, tf.float32) / 2)
        images = resize_and_crop(images, resized, corner, size, interpolation)
    elif images.shape[-3:-1] == (size, size):
        images = tf.cast(images, tf.float32)
    else:
        images = resize_and_crop(images, (size, size), (0, 0), size, interpolation)
    return transpose(with_channels(images, channels), transposed)


def normalize(images: tf.Tensor, normalization: Normalization) -> tf.Tensor:
    """Normalizes images (..., height, width, channels), bit for bit as `normalization` does.

    Five times as fast: broadcasting whole rows is faster than broadcasting three numbers.
    """
    *outer, width, channels = static_shape(images)
    if normalization.shape != (channels,) or None in images.shape:
        return normalization(images)
    row = Normalization(
        *(np.resize(values, width * channels).tolist() for values in (normalization.mean, normalization.std))
    )
    return tf.reshape(row(tf.reshape(images, [*outer, width * channels])), images.shape)


def with_channels(images: tf.Tensor, channels: int) -> tf.Tensor:
    """Converts images to 3 channels or 1; cheaper after resizing, with fewer pixels."""
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 or 3, not {channels}")
    if images.shape[-1] == channels:
        return images
    return tf.image.grayscale_to_rgb(images) if channels == 3 else tf.image.rgb_to_grayscale(images)
