"""Decodes images with TensorFlow operations, upright, and says what is wrong with those it cannot decode."""

from collections.abc import Callable
from typing import cast

import tensorflow as tf

MAX_PIXELS = 89_478_485
"""Images with more pixels are not decoded: a file of a few kilobytes can claim billions. Pillow's limit."""

_JPEG = b"\xff\xd8\xff"
_END_OF_JPEG = b"\xff\xd9"
# Adobe's segment, transform 0: with it, four components are taken as inverted CMYK.
_ADOBE = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x00"
_HEAD = 4096  # Bytes at a file's start in which its orientation is looked for.
_EXIF = r"\C*(?:Exif\x00\x00|eXIf)\C*"
# The directory comes first, its entries have 12 bytes each, and few tags are less than this one.
_ORIENTATION = (
    r"\C*?(?:Exif\x00\x00|eXIf)"
    r"(?:II\*\x00\x08\x00\x00\x00\C\C(?:\C{12}){0,16}?\x12\x01\x03\x00\x01\x00\x00\x00([\x01-\x08])\C*"
    r"|MM\x00\*\x00\x00\x00\x08\C\C(?:\C{12}){0,16}?\x01\x12\x00\x03\x00\x00\x00\x01\x00([\x01-\x08])\C*)"
)
# For orientations 0-8, of which those from 5 are transposed first: whether rows and columns are reversed.
_REVERSED = [
    *[(False, False), (False, False), (False, True), (True, True), (True, False)],
    *[(False, False), (False, True), (True, True), (True, False)],
]


def decode_image(encoded: tf.Tensor) -> tf.Tensor:
    """Decodes JPEG, PNG, GIF (its first frame) or BMP (24 or 32 bits a pixel) bytes.

    The pixels are those of Pillow's `exif_transpose` and `convert("RGB")`: JPEGs are decoded with the
    accurate DCT and smooth chroma, CMYK and YCCK within 1. Of 16 bits the upper 8 are kept, gray, too.

    Args:
        encoded: string ().

    Returns:
        uint8 (height, width, 3), upright as its Exif tag says.

    Raises:
        InvalidArgumentError: when it is run, for anything else, for a damaged file, and for one of more
            than `MAX_PIXELS`.
    """
    header = read_header(encoded)
    return apply_exif_orientation(decode_box(encoded, header, None), read_orientation(encoded))


def read_header(encoded: tf.Tensor, bounded: bool = True) -> tf.Tensor:
    """Reads an image's size without decoding it.

    Args:
        encoded: string ().
        bounded: whether more than `MAX_PIXELS` are an error.

    Returns:
        int32 (3,): height and width as the pixels are stored, and components, 3 for all but JPEGs.
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
            # A negative height stands for rows from top to bottom.
            return tf.abs(numbers(18, 2, tf.int32)[::-1])

    header = tf.cond(starts_with(_JPEG), lambda: tf.io.extract_jpeg_shape(encoded), others)
    if not bounded:
        return tf.ensure_shape(header, (3,))
    sides = tf.cast(header[:2], tf.int64)
    fits = tf.reduce_all(sides > 0) & (tf.reduce_prod(sides) <= MAX_PIXELS)
    with tf.control_dependencies([tf.debugging.Assert(fits, ["pixels", header])]):
        return tf.ensure_shape(tf.identity(header), (3,))


def read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """The Exif tag's value, 1-8, or 0 without one: int32 ()."""
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
    """Turns and mirrors decoded pixels (height, width, channels) as the Exif orientation says."""

    def turned():
        lines = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        return tf.reverse(lines, tf.boolean_mask([0, 1], tf.gather(_REVERSED, orientation)))

    return tf.ensure_shape(tf.cond(orientation > 1, turned, lambda: image), (None, None, image.shape[-1]))


def box_in_stored_pixels(box: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Where a box of the upright image lies in the pixels as they are stored.

    Args:
        box: int32 (4,): top, left, height and width.
        shape: int32 (2,), height and width of the upright image.
        orientation: int32 ().

    Returns:
        int32 (4,).
    """

    def turned():
        corner = tf.where(tf.gather(_REVERSED, orientation), shape - box[:2] - box[2:], box[:2])
        boxed = tf.stack([corner, box[2:]])
        return tf.reshape(tf.cond(orientation >= 5, lambda: boxed[:, ::-1], lambda: boxed), [4])

    return tf.cond(orientation > 1, turned, lambda: box)


def decode_box(encoded: tf.Tensor, header: tf.Tensor, box: tf.Tensor | None) -> tf.Tensor:
    """Decodes the whole of an image or, of a JPEG, no more than a box needs.

    Args:
        encoded: string ().
        header: what `read_header` says of it.
        box: int32 (4,): top, left, height and width in the pixels as they are stored; None for all.

    Returns:
        uint8 (height, width, 3), the box's pixels. Along its edges those of a JPEG may differ by 2 from
        the whole image's: to smooth the chroma, pixels beyond the edge are missing.
    """

    def cut(image):
        if box is None:
            return image
        return tf.slice(image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [3]], 0))

    def jpeg():
        # Of those without Adobe's segment, too, the inks are inverted; one that is there overrules ours.
        adobe = tf.cond(
            header[2] == 4,
            lambda: tf.strings.join([_ADOBE, tf.strings.substr(encoded, 2, tf.int32.max)]),
            lambda: encoded,
        )

        def whole():
            return cut(tf.io.decode_jpeg(adobe, channels=3, dct_method="INTEGER_ACCURATE"))

        if box is None:
            return whole()

        # Above the place where a file breaks off, a box would be found whole.
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
    """What makes bytes unusable as an image, in a few words, or None."""
    if not encoded:
        return "empty"
    if encoded.startswith(b"BM") and len(encoded) >= 30:
        bits = int.from_bytes(encoded[28:30], "little")
        if bits not in (24, 32):
            return f"a BMP image with {bits} bits a pixel; only 24 and 32 can be read"
    if not is_image(encoded):
        return "not a JPEG, PNG, GIF or BMP image"
    tensor = tf.constant(encoded)
    try:
        height, width, _ = read_header(tensor, bounded=False).numpy().tolist()
        if not 0 < height * width <= MAX_PIXELS:
            return f"of {width} x {height} pixels; {MAX_PIXELS} are the most"
        decode_image(tensor)
    except tf.errors.InvalidArgumentError:
        ends = {b"\xff\xd8": b"\xff\xd9", b"\x89P": b"IEND\xaeB`\x82"}
        end = ends.get(encoded[:2], b"")
        return "damaged" if encoded.endswith(end) else "truncated"
    return None


def is_image(head: bytes) -> bool:
    """Whether a file of which these are the first bytes, 8 or more, claims to be an image."""
    return head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"BM"))


def try_each(
    function: Callable[..., tuple[tf.Tensor, ...]], elements: tuple[tf.Tensor, ...], parallel: bool = False
) -> tuple[tuple[tf.Tensor, ...], tf.Tensor]:
    """Applies a function to each of several elements; a failing element does not affect the others.

    No operation of TensorFlow catches another's error; a dataset does.

    Args:
        function: from an element's tensors to others, of static shapes if there are several elements.
        elements: tensors with a common first dimension, the number of elements.
        parallel: whether elements are worked on at the same time.

    Returns:
        The stacked results, with zeros where the function failed; and where it did not, bool (elements,).
    """
    count = tf.size(elements[0], out_type=tf.int64)
    results = each(function, elements, parallel).ignore_errors()
    # With one more at the end there is always an element.
    _, *specs = cast(tuple, results.element_spec)
    blank = [tf.zeros([side or 1 for side in spec.shape], spec.dtype) for spec in specs]
    end = tf.data.Dataset.from_tensors((tf.constant(-1, tf.int64), *blank))
    if elements[0].shape == (1,):
        done, *stacked = results.concatenate(end).take(1).batch(1).get_single_element()
        return tuple(tf.ensure_shape(a, (1, *a.shape[1:])) for a in stacked), tf.ensure_shape(done >= 0, (1,))
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
    """A dataset of each element's place and what the function makes of it."""
    count = tf.size(elements[0], out_type=tf.int64)
    places = tf.data.Dataset.from_tensor_slices((tf.range(count), *elements))
    return places.map(
        lambda place, *element: (place, *function(*element)),
        num_parallel_calls=tf.data.AUTOTUNE if parallel else None,
        deterministic=True if parallel else None,
    )
