"""The image operations of color jitter and RandAugment.

Images are float32 (height, width, channels) in 0-255, with 3 channels or 1 (gray). The
operations are deterministic, and those of Pillow (`ImageEnhance`, `ImageOps`, `Image.transform`), which
torchvision and the published results of RandAugment used.
"""

from collections.abc import Callable

import tensorflow as tf

from keras_resnet.images.ops import static_shape

GRAY = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in gray (ITU-R BT.601)."""

EIGENVALUES = (0.2175, 0.0188, 0.0045)
"""Eigenvalues of the covariance of ImageNet's colors, for pixels 0-1, in the order of `EIGENVECTORS`.

AlexNet (Krizhevsky et al. 2012, section 4.1) describes the analysis without numbers; these
were published by fb.resnet.torch (datasets/imagenet.lua).
"""

EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)
"""Principal components of the colors, in columns; the rows are red, green and blue."""

BINS = 30
"""RandAugment's largest magnitude, of 31."""

_SMOOTH = (1.0, 1.0, 1.0, 1.0, 5.0, 1.0, 1.0, 1.0, 1.0)  # Pillow's filter of that name, over 13


def _gray(image: tf.Tensor, channels: int) -> tf.Tensor:
    """Converts to gray, rounded as in Pillow, and repeats it: (height, width, channels)."""
    if image.shape[-1] == 1:
        return tf.round(image)
    # As a product of matrices: TensorFlow is slow where the last axis of a broadcast is short.
    return tf.round(tf.tensordot(image, tf.constant([[share] * channels for share in GRAY]), 1))


def _blend(degenerate: tf.Tensor | float, image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Blends two images, clipped: 0 is the degenerate image, 1 is `image`, more extrapolates."""
    return tf.clip_by_value(degenerate + factor * (image - degenerate), 0.0, 255.0)


def brightness(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Blends with black."""
    return _blend(0.0, image, factor)


def contrast(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Blends with the rounded mean of the gray image."""
    # Unlike a sum of floats, a sum of integers does not depend on the number of threads.
    gray = tf.cast(_gray(image, 1), tf.int32)
    mean = tf.reduce_sum(gray) / tf.size(gray)
    return _blend(tf.cast(tf.floor(mean + 0.5), tf.float32), image, factor)


def saturation(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Blends with the gray image."""
    return _blend(_gray(image, static_shape(image)[-1]), image, factor)


def sharpness(image: tf.Tensor, factor: tf.Tensor | float) -> tf.Tensor:
    """Blends with the smoothed image; the outermost pixels stay as they are."""
    height, width, channels = static_shape(image)
    kernel = tf.tile(tf.reshape(tf.constant(_SMOOTH) / 13.0, [3, 3, 1, 1]), [1, 1, channels, 1])
    inner = tf.nn.depthwise_conv2d(image[None], kernel, [1, 1, 1, 1], "VALID")[0]
    is_inner = tf.pad(tf.ones([height - 2, width - 2, 1], tf.bool), [[1, 1], [1, 1], [0, 0]])
    smooth = tf.where(is_inner, tf.pad(tf.round(inner), [[1, 1], [1, 1], [0, 0]]), image)
    return _blend(smooth, image, factor)


def posterize(image: tf.Tensor, bits: int) -> tf.Tensor:
    """Keeps the highest bits of each pixel."""
    step = 2.0 ** (8 - bits)
    return tf.floor(image / step) * step


def solarize(image: tf.Tensor, threshold: float) -> tf.Tensor:
    """Inverts the pixels from the threshold upwards."""
    return tf.where(image < threshold, image, 255.0 - image)


def autocontrast(image: tf.Tensor) -> tf.Tensor:
    """Stretches each channel to 0-255."""
    low = tf.reduce_min(image, [0, 1])
    span = tf.reduce_max(image, [0, 1]) - low
    return tf.where(span > 0.0, (image - low) * 255.0 / tf.maximum(span, 1.0), image)


def equalize(image: tf.Tensor) -> tf.Tensor:
    """Equalizes each channel's histogram with a table of integers."""
    channels = static_shape(image)[-1]
    places = tf.cast(image, tf.int32) + 256 * tf.range(channels)
    counts = tf.reshape(
        tf.math.bincount(tf.reshape(places, [-1]), minlength=256 * channels, maxlength=256 * channels),
        [channels, 256],
    )
    brightest = tf.reduce_max(tf.where(counts > 0, tf.range(256), 0), 1)
    step = (tf.reduce_sum(counts, 1) - tf.gather(counts, brightest, batch_dims=1))[:, None] // 255
    table = (step // 2 + tf.cumsum(counts, axis=1, exclusive=True)) // tf.maximum(step, 1)
    table = tf.where(step > 0, tf.minimum(table, 255), tf.range(256))
    return tf.cast(tf.gather(tf.reshape(table, [-1]), places), tf.float32)


def rotate(image: tf.Tensor, degrees: tf.Tensor | float) -> tf.Tensor:
    """Turns the image about its center, counterclockwise."""
    angle = tf.convert_to_tensor(degrees, tf.float32) * (3.141592653589793 / 180)
    cosine, sine = tf.cos(angle), tf.sin(angle)
    y, x = (side / 2 for side in static_shape(image)[:2])
    return affine(
        image, (cosine, -sine, x - cosine * x + sine * y), (sine, cosine, y - sine * x - cosine * y)
    )


def affine(image: tf.Tensor, x: tuple = (1.0, 0.0, 0.0), y: tuple = (0.0, 1.0, 0.0)) -> tf.Tensor:
    """Applies an affine transform with nearest neighbors; black outside.

    With `x` = (a, b, c), the source column is a * column + b * row + c, where the center of the first pixel
    is 0.5; `y` gives the source row likewise.
    """
    # The operation counts from the center of the first pixel.
    rows = [[a, b, c + (a + b - 1.0) / 2.0] for a, b, c in (x, y)]
    transform = tf.stack([tf.cast(value, tf.float32) for value in (*rows[0], *rows[1], 0.0, 0.0)])
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=image[None],
        transforms=transform[None],
        output_shape=image.shape[:2],
        fill_value=0.0,
        interpolation="NEAREST",
        fill_mode="CONSTANT",
    )[0]


def randaugment_operations(size: int, magnitude: int) -> dict[str, Callable]:
    """RandAugment's fourteen operations (Cubuk et al. 2020), with torchvision's ranges.

    For images of `size` x `size` pixels and a magnitude of 0-`BINS`, returns functions of an image of
    integers and a sign (1.0 or -1.0). Their results must be rounded down, as in Pillow.
    """
    share = magnitude / BINS
    pixels = int(150 / 331 * size * share)
    return {
        "Identity": lambda image, sign: image,
        "ShearX": lambda image, sign: affine(image, x=(1.0, sign * (0.3 * share), 0.0)),
        "ShearY": lambda image, sign: affine(image, y=(sign * (0.3 * share), 1.0, 0.0)),
        "TranslateX": lambda image, sign: affine(image, x=(1.0, 0.0, -sign * pixels)),
        "TranslateY": lambda image, sign: affine(image, y=(0.0, 1.0, -sign * pixels)),
        "Rotate": lambda image, sign: rotate(image, sign * (30.0 * share)),
        "Brightness": lambda image, sign: brightness(image, 1.0 + sign * (0.9 * share)),
        "Color": lambda image, sign: saturation(image, 1.0 + sign * (0.9 * share)),
        "Contrast": lambda image, sign: contrast(image, 1.0 + sign * (0.9 * share)),
        "Sharpness": lambda image, sign: sharpness(image, 1.0 + sign * (0.9 * share)),
        "Posterize": lambda image, sign: posterize(image, 8 - round(4 * share)),
        "Solarize": lambda image, sign: solarize(image, 255.0 * (1.0 - share)),
        "AutoContrast": lambda image, sign: autocontrast(image),
        "Equalize": lambda image, sign: equalize(image),
    }
