"""Decodes JPEG and PNG bytes inside an artifact; an unreadable image is an error, not a crash."""

from collections.abc import Callable

import tensorflow as tf

from keras_resnet.images.decode import MAX_PIXELS, decode_mirrored, try_each
from keras_resnet.images.ops import evaluation_view


def decode_batch(image_bytes: tf.Tensor, size: int, resize: int | None, channels: int, interpolation: str):
    """Decodes and crops JPEG or PNG files, string (batch,), exactly as the evaluation does.

    The shorter side is resized to `resize` pixels before a center crop of `size`; None resizes the whole
    image. At run time, an image that cannot be read raises `InvalidArgumentError` with its position in the
    batch and the reason.

    Returns:
        float32 (batch, size, size, channels), raw pixels 0-255.
    """

    def view(encoded):
        pixels, transposed = decode_mirrored(encoded, gif=False)
        return (evaluation_view(pixels, resize, size, channels, interpolation, transposed),)

    (images,) = read_each(image_bytes, view)
    return tf.ensure_shape(images, (None, size, size, channels))


def read_each(
    image_bytes: tf.Tensor, read: Callable[[tf.Tensor], tuple[tf.Tensor, ...]]
) -> tuple[tf.Tensor, ...]:
    """Applies a function to each of several JPEG or PNG files, string (batch,); stacks the results.

    At run time, an image that cannot be read raises `InvalidArgumentError` with its position in the
    batch and the reason.

    Args:
        read: decodes a file, string (), and returns tensors of static shapes.
    """
    known = (tf.strings.substr(image_bytes, 0, 3) == b"\xff\xd8\xff") | (
        tf.strings.substr(image_bytes, 0, 8) == b"\x89PNG\r\n\x1a\n"
    )

    def checked(encoded, known):
        with tf.control_dependencies([tf.debugging.Assert(known, ["neither a JPEG nor a PNG"])]):
            encoded = tf.identity(encoded)
        return read(encoded)

    results, readable = try_each(checked, (image_bytes, known), parallel=True)
    with tf.control_dependencies([_refuse_unreadable(known, readable)]):
        return tuple(map(tf.identity, results))


def _refuse_unreadable(known, readable):
    bad = tf.where(~readable)[:, 0]

    def sentence():
        reason = tf.where(
            known[bad[0]],
            f"is damaged, or has more than {MAX_PIXELS} pixels",
            "is neither a JPEG nor a PNG",
        )
        total, amount = tf.strings.as_string(tf.size(readable)), tf.strings.as_string(tf.size(bad))
        parts = ["image_bytes[", tf.strings.as_string(bad[0]), "] ", reason]
        return tf.strings.join([*parts, "; ", amount, " of ", total, " images cannot be read"])

    message = tf.cond(tf.size(bad) > 0, sentence, lambda: tf.constant(""))
    return tf.debugging.Assert(tf.size(bad) == 0, [message])
