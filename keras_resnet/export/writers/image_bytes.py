"""JPEG and PNG bytes to a network's pixels, inside an artifact: a bad image is an answer, not a crash."""

from keras_resnet.images.ops import decode_image, evaluation_view

# So many pixels take 200 MB when decoded; a file of a few kilobytes can claim billions.
MAX_PIXELS = 2**26


def decode_batch(image_bytes, size: int, side: int | None, channels: int, interpolation: str):
    """Decodes and cuts out every image of a batch exactly as the evaluation does.

    Args:
        image_bytes: string tensor (batch,): JPEG or PNG files.
        size: height and width of the network's input.
        side: pixels to which the shorter side is resized before the centre is cut out; None resizes
            the whole image to the input's size.
        channels: of the network's input.
        interpolation: of the resizing, "bilinear" or "bicubic".

    Returns:
        float32 (batch, size, size, channels), raw pixels 0-255. When it is run, an image that cannot be
        read raises `InvalidArgumentError` with its position in the batch and the reason.
    """
    import tensorflow as tf

    count = tf.size(image_bytes, out_type=tf.int64)
    known = (tf.strings.substr(image_bytes, 0, 3) == b"\xff\xd8\xff") | (
        tf.strings.substr(image_bytes, 0, 8) == b"\x89PNG\r\n\x1a\n"
    )

    def view(index, encoded):
        with tf.control_dependencies([_refuse_too_many_pixels(encoded)]):
            return index, evaluation_view(decode_image(encoded), side, size, channels, interpolation)

    # A data pipeline, because there an image that fails does not take the call with it.
    positions = tf.where(known)[:, 0]
    views = tf.data.Dataset.from_tensor_slices((positions, tf.gather(image_bytes, positions)))
    views = views.map(view, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    end = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), tf.zeros((size, size, channels))))
    decoded, images = views.concatenate(end).batch(count + 1).get_single_element()

    readable = tf.scatter_nd(decoded[:-1, None], tf.ones_like(decoded[:-1]), count[None]) > 0
    with tf.control_dependencies([_refuse_unreadable(known, readable)]):
        return tf.ensure_shape(images[:-1], (None, size, size, channels))


def _refuse_too_many_pixels(encoded):
    import tensorflow as tf

    def of_png():
        # Width and height open every PNG, and are below 2^31.
        sides = tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)
        return tf.cast(sides, tf.int64)

    def of_jpeg():
        return tf.io.extract_jpeg_shape(encoded, tf.int64)[:2]

    sides = tf.cond(tf.strings.substr(encoded, 0, 1) == b"\x89", of_png, of_jpeg)
    return tf.debugging.assert_less_equal(tf.reduce_prod(sides), tf.constant(MAX_PIXELS, tf.int64))


def _refuse_unreadable(known, readable):
    import tensorflow as tf

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

    message = tf.cond(tf.size(bad) > 0, sentence, lambda: tf.constant("image_bytes holds no image"))
    return tf.debugging.Assert((tf.size(bad) == 0) & (tf.size(readable) > 0), [message])
