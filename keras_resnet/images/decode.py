"""Decodes images upright with TensorFlow operations, and describes errors in images."""

from collections.abc import Callable
from typing import cast

import tensorflow as tf

MAX_PIXELS = 89_478_485
"""Pillow's limit of the pixels of an image: a file of a few kilobytes can claim billions."""

_JPEG = b"\xff\xd8\xff"
_END_OF_JPEG = b"\xff\xd9"
# Adobe's segment with transform 0 makes the decoder treat four components as inverted CMYK.
_ADOBE = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x00"
_HEAD = 4096  # The orientation is searched in this many bytes.
_EXIF = r"\C*(?:Exif\x00\x00|eXIf)\C*"
# The directory comes first, with sorted entries of 12 bytes; few tags precede the orientation.
_ORIENTATION = (
    r"\C*?(?:Exif\x00\x00|eXIf)"
    r"(?:II\*\x00\x08\x00\x00\x00\C\C(?:\C{12}){0,16}?\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\C*"
    r"|MM\x00\*\x00\x00\x00\x08\C\C(?:\C{12}){0,16}?\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08])\C*)"
)
# Whether rows and columns are reversed, for orientations 0, 1-4 and 5-8; the latter are transposed first.
_REVERSED = [(False, False), *2 * [(False, False), (False, True), (True, True), (True, False)]]


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, GIF (first frame) or BMP (24 or 32 bits per pixel) bytes.

    The pixels equal those of Pillow's `exif_transpose` and `convert("RGB")`, up to 1 for CMYK and YCCK:
    JPEGs are decoded with the accurate DCT and smooth chroma. 16-bit images keep the upper 8 bits.

    Returns:
        uint8 (height, width, 3), upright according to the Exif tag.

    Raises:
        InvalidArgumentError: at run time, if the format is another, the file is damaged, or the image
            has more than `MAX_PIXELS`.
    """
    header = read_header(encoded)
    return apply_exif_orientation(decode_box(encoded, header, None), read_orientation(encoded))


def read_header(encoded: tf.Tensor, bounded: bool = True) -> tf.Tensor:
    """Reads an image's size without decoding it; fails for more than `MAX_PIXELS` if `bounded`.

    Returns:
        int32 (3,): height and width of the stored pixels, and number of components (3 except for JPEGs).
    """

    def numbers(first, count, kind, little_endian=True):
        part = tf.strings.substr(encoded, first, count * kind.size)
        return tf.cast(tf.io.decode_raw(part, kind, little_endian), tf.int32)

    def starts_with(*starts):
        return tf.reduce_any([tf.strings.substr(encoded, 0, len(start)) == start for start in starts])

    def others():
        sides = tf.case(
            [
                (starts_with(b"\x89PNG\r\n\x1a\n"), lambda: numbers(16, 2, tf.int32, False)[::-1]),
                (starts_with(b"GIF87a", b"GIF89a"), lambda: numbers(6, 2, tf.uint16)[::-1]),
            ],
            default=bmp,
        )
        return tf.concat([sides, [3]], 0)

    def bmp():
        bits = numbers(28, 1, tf.uint16)[0]
        readable = starts_with(b"BM") & ((bits == 24) | (bits == 32))
        with tf.control_dependencies([tf.debugging.Assert(readable, ["not an image"])]):
            # A negative height means that rows go from top to bottom.
            return tf.abs(numbers(18, 2, tf.int32)[::-1])

    header = tf.cond(starts_with(_JPEG), lambda: tf.io.extract_jpeg_shape(encoded), others)
    if not bounded:
        return tf.ensure_shape(header, (3,))
    sides = tf.cast(header[:2], tf.int64)
    fits = tf.reduce_all(sides > 0) & (tf.reduce_prod(sides) <= MAX_PIXELS)
    with tf.control_dependencies([tf.debugging.Assert(fits, ["pixels", header])]):
        return tf.ensure_shape(tf.identity(header), (3,))


def read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Reads the Exif orientation: int32 (), 1-8, or 0 without a tag."""
    head = tf.strings.substr(encoded, 0, _HEAD)

    def tag():
        value = tf.strings.regex_replace(head, _ORIENTATION, r"\1\2", replace_global=False)
        return tf.cond(
            tf.strings.length(value) == 1,
            lambda: tf.cast(tf.io.decode_raw(value, tf.uint8)[0], tf.int32),
            lambda: tf.constant(0),
        )

    return tf.cond(tf.strings.regex_full_match(head, _EXIF), tag, lambda: tf.constant(0))


def apply_exif_orientation(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Rotates and mirrors decoded pixels (height, width, channels) by the Exif orientation."""

    def turned():
        lines = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        return tf.reverse(lines, tf.boolean_mask([0, 1], tf.gather(_REVERSED, orientation)))

    return tf.ensure_shape(tf.cond(orientation > 1, turned, lambda: image), (None, None, image.shape[-1]))


def box_in_stored_pixels(box: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Converts a box in the upright image to one in the stored pixels.

    Boxes are int32 (4,): top, left, height and width; `shape` is the upright image's, int32 (2,).
    """

    def turned():
        corner = tf.where(tf.gather(_REVERSED, orientation), shape - box[:2] - box[2:], box[:2])
        boxed = tf.stack([corner, box[2:]])
        return tf.reshape(tf.cond(orientation >= 5, lambda: boxed[:, ::-1], lambda: boxed), [4])

    return tf.cond(orientation > 1, turned, lambda: box)


def decode_box(encoded: tf.Tensor, header: tf.Tensor, box: tf.Tensor | None) -> tf.Tensor:
    """Decodes an image or a box of it; for JPEGs, only what the box needs is decoded.

    Args:
        header: what `read_header` returns.
        box: int32 (4,): top, left, height and width in the stored pixels; None for the whole image.

    Returns:
        uint8 (height, width, 3). Pixels at the edges of a JPEG's box may differ by 2 from those of the
        whole image, because smoothing the chroma lacks the pixels beyond.
    """

    def cut(image):
        if box is None:
            return image
        return tf.slice(image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [3]], 0))

    def jpeg():
        # CMYK is inverted without Adobe's segment, too; a segment in the file overrides this one.
        adobe = tf.cond(
            header[2] == 4,
            lambda: tf.strings.join([_ADOBE, tf.strings.substr(encoded, 2, tf.int32.max)]),
            lambda: encoded,
        )

        def whole():
            return cut(tf.io.decode_jpeg(adobe, channels=3, dct_method="INTEGER_ACCURATE"))

        if box is None:
            return whole()

        # A box before the end of a truncated file would be decoded without an error.
        return tf.cond(
            tf.strings.substr(encoded, -2, 2) == _END_OF_JPEG,
            lambda: tf.io.decode_and_crop_jpeg(adobe, box, channels=3, dct_method="INTEGER_ACCURATE"),
            whole,
        )

    def others():
        image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
        fits = tf.reduce_all(tf.shape(image)[:2] == header[:2])
        with tf.control_dependencies([tf.debugging.Assert(fits, ["size", header])]):
            return cut(tf.ensure_shape(tf.identity(image), (None, None, 3)))

    image = tf.cond(tf.strings.substr(encoded, 0, len(_JPEG)) == _JPEG, jpeg, others)
    return tf.ensure_shape(image, (None, None, 3))


def decode_error(encoded: bytes) -> str | None:
    """Describes why bytes cannot be decoded as an image, or returns None if they can."""
    if not encoded:
        return "empty"
    if encoded.startswith(b"BM") and len(encoded) >= 30:
        bits = int.from_bytes(encoded[28:30], "little")
        if bits not in (24, 32):
            return f"a BMP image with {bits} bits per pixel; only 24 and 32 can be read"
    if not is_image(encoded):
        return "not a JPEG, PNG, GIF or BMP image"
    tensor = tf.constant(encoded)
    try:
        height, width, _ = read_header(tensor, bounded=False).numpy().tolist()
        if not 0 < height * width <= MAX_PIXELS:
            return f"{width} x {height} pixels; the limit is {MAX_PIXELS}"
        decode_image(tensor)
    # A message that quotes the file's bytes may not be valid UTF-8.
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        end = {b"\xff\xd8": _END_OF_JPEG, b"\x89P": b"IEND\xaeB`\x82"}.get(encoded[:2], b"")
        return "damaged" if encoded.endswith(end) else "truncated"
    return None


def is_image(head: bytes) -> bool:
    """Whether the first bytes of a file, at least 8, are those of an image."""
    return head.startswith((_JPEG, b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM"))


def try_each(
    function: Callable[..., tuple[tf.Tensor, ...]], elements: tuple[tf.Tensor, ...], parallel: bool = False
) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
    """Applies a function to each of several elements; a failing element does not affect the others.

    Only datasets can catch errors of TensorFlow operations.

    Args:
        function: maps an element's tensors to tensors, of static shapes if there are several elements.
        elements: tensors whose first dimension is the number of elements.

    Returns:
        The stacked results, with zeros for failed elements; and which succeeded, bool (elements,).
    """
    count = tf.size(elements[0], out_type=tf.int64)
    results = each(function, elements, parallel).ignore_errors()
    # One more at the end, so that there is always an element.
    _, *specs = cast(tuple, results.element_spec)
    blank = [tf.zeros([side or 1 for side in spec.shape], spec.dtype) for spec in specs]
    end = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), *blank))
    if elements[0].shape == (1,):
        done, *stacked = results.concatenate(end).take(1).batch(1, drop_remainder=True).get_single_element()
        return tuple(stacked), done >= 0
    done, *stacked = results.concatenate(end).batch(count + 1).get_single_element()
    done, stacked = done[:-1], [result[:-1] for result in stacked]
    succeeded = tf.scatter_nd(done[:, None], tf.ones_like(done), count[None]) > 0

    def spread():
        shapes = [tf.concat([count[None], tf.shape(a, tf.int64)[1:]], 0) for a in stacked]
        return [tf.scatter_nd(done[:, None], a, shape) for a, shape in zip(stacked, shapes, strict=True)]

    results = tf.cond(tf.reduce_all(succeeded), lambda: stacked, spread)
    several = elements[0].shape
    results = tuple(tf.ensure_shape(a, several + b.shape[1:]) for a, b in zip(results, stacked, strict=True))
    return results, tf.ensure_shape(succeeded, several)


def each(function: Callable, elements: tuple[tf.Tensor, ...], parallel: bool = False) -> tf.data.Dataset:
    """Returns a dataset of each element's position and its results."""
    count = tf.size(elements[0], out_type=tf.int64)
    places = tf.data.Dataset.from_tensor_slices((tf.range(count), *elements))
    return places.map(
        lambda place, *element: (place, *function(*element)),
        num_parallel_calls=tf.data.AUTOTUNE if parallel else None,
        deterministic=True if parallel else None,
    )
