"""The geometry of images outside training, as TensorFlow operations: resizing and cutting out."""

import tensorflow as tf

_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}


def resize_and_crop(
    images: tf.Tensor,
    resized: tuple | tf.Tensor,
    corner: tuple | tf.Tensor,
    size: int,
    interpolation: str = "bilinear",
) -> tf.Tensor:
    """Resizes (half-pixel centres, antialiased where it shrinks) and cuts out a square.

    Only the pixels of the square are computed.

    Args:
        images: uint8 or float32 (height, width, channels) or (batch, height, width, channels).
        resized: (height, width) of the whole resized image, pixels.
        corner: (top, left) of the square in the resized image, pixels.
        size: side of the square.
        interpolation: "bilinear"; or "bicubic", for pixels 0-255, to which it is clipped.

    Returns:
        float32 (..., size, size, channels), in the units of `images`.
    """
    batched = images if images.shape.rank == 4 else images[None]
    scale = tf.cast(tf.stack(resized), tf.float32) / tf.cast(tf.shape(batched)[1:3], tf.float32)
    cut = tf.raw_ops.ScaleAndTranslate(
        images=batched,
        size=[size, size],
        scale=scale,
        translation=-tf.cast(tf.stack(corner), tf.float32),
        kernel_type=_KERNELS[interpolation],
        antialias=True,
    )
    if interpolation == "bicubic":
        cut = tf.clip_by_value(cut, 0.0, 255.0)  # beside an edge it overshoots
    return cut if images.shape.rank == 4 else cut[0]


def resize_whole(images: tf.Tensor, size: int, interpolation: str = "bilinear") -> tf.Tensor:
    """Resizes images of any proportions to a square: float32 (..., size, size, channels)."""
    if images.shape[-3] == size and images.shape[-2] == size:
        return tf.cast(images, tf.float32)
    return resize_and_crop(images, (size, size), (0, 0), size, interpolation)


def fit_shorter_side(image: tf.Tensor, side: tf.Tensor | int) -> tf.Tensor:
    """(height, width) of an image whose shorter side becomes `side`, its proportions kept."""
    shape = tf.cast(tf.shape(image)[:2], tf.float64)
    factor = tf.cast(side, tf.float64) / tf.reduce_min(shape)
    return tf.cast(tf.round(shape * factor), tf.int32)


def center_crop(image: tf.Tensor, side: int, size: int, interpolation: str = "bilinear") -> tf.Tensor:
    """Resizes an image's shorter side to `side` and cuts out the centre.

    Args:
        image: uint8 (height, width, channels).
        side: pixels, at least `size`.
        size: side of the crop, pixels.
        interpolation: "bilinear" or "bicubic".

    Returns:
        float32 (size, size, channels), 0-255.
    """
    resized = fit_shorter_side(image, side)
    return resize_and_crop(image, resized, (resized - size) // 2, size, interpolation)


def evaluation_view(
    images: tf.Tensor, side: int | None, size: int, channels: int, interpolation: str = "bilinear"
) -> tf.Tensor:
    """What the evaluation shows a network of a decoded image, before the normalization.

    Args:
        images: uint8 (height, width, 3 or 1); with `side` None also a batch of them.
        side: pixels to which the shorter side is resized before the centre is cut out; None
            resizes the whole image to the input's size.
        size: height and width of the input.
        channels: 3 repeats gray; 1 turns colours gray.
        interpolation: "bilinear" or "bicubic".

    Returns:
        float32 (..., size, size, channels), 0-255.
    """
    if side is None:
        images = resize_whole(images, size, interpolation)
    else:
        images = center_crop(images, side, size, interpolation)
    return with_channels(images, channels)


def with_channels(images: tf.Tensor, channels: int) -> tf.Tensor:
    """Repeats gray, or turns colours gray; after the resizing, where fewer pixels are left."""
    if images.shape[-1] == channels:
        return images
    return tf.image.grayscale_to_rgb(images) if channels == 3 else tf.image.rgb_to_grayscale(images)


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, GIF (its first frame) or BMP bytes to uint8 (height, width, 3)."""
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    return tf.ensure_shape(image, (None, None, 3))
