"""Decodes images upright with TensorFlow operations, and describes errors in images."""

import io
import struct
from collections.abc import Callable
from typing import cast

import numpy as np
import tensorflow as tf
from PIL import Image

MAX_PIXELS = 89_478_485
"""Pillow's limit of the pixels of an image: a file of a few kilobytes can claim billions."""

_MAX_GIF_PIXELS = 2**25  # Pillow takes 14 bytes for each
# Unless a JPEG is decoded line by line, its coefficients are kept; every scan visits every block.
_MAX_BYTES = 560 * 2**20  # of a JPEG's pixels and coefficients in memory
_MAX_SCANNED = 2**30  # a JPEG's pixels times its scans
_MAX_SCANS = 128
_BYTES_PER_SCAN = 10  # at least: a marker, a length, and one component
_MAX_BITS = 24 * MAX_PIXELS  # of a PNG's pixels, which cannot be decoded at a reduced scale
_SAMPLES = [1, 1, 3, 1, 2, 1, 4, 1]  # of a pixel, by the type of a PNG's colors
_MAX_TEXTS = 32  # compressed texts in a PNG: libpng inflates each to up to 8 MB, and keeps it
_SMALL_PNG = 2**18  # bytes; smaller ones cannot hold that many texts
_MAX_MARKERS = 2**20

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_GIF = (b"GIF87a", b"GIF89a")
_END_OF_JPEG = b"\xff\xd9"
_START_OF_SCAN = b"\xff\xda\x00"  # with the upper byte of its length
_TEXT = b"TXt"  # of zTXt and iTXt
# After 0xff: the frame of three components of a progressive JPEG, and scans of one or two of them.
_KEPT_IN_MEMORY = (b"\xc2\x00\x11\x08", b"\xca\x00\x11\x08", b"\xda\x00\x08\x01", b"\xda\x00\x0a\x02")
# Adobe's segment with transform 0 makes the decoder treat four components as inverted CMYK.
_ADOBE = b"\xff\xd8\xff\xee\x00\x0eAdobe\x00d\x00\x00\x00\x00\x00"
_ORIENTATION, _SHORT, _LONG = 0x0112, 3, 4  # Exif's tag and the types of its value
_MAX_TAGS = 128
# Whether rows and columns are reversed, for orientations 0, 1-4 and 5-8; the latter are then transposed.
_REVERSED = [(False, False), (False, False), (False, True), (True, True), (True, False)]
_REVERSED += [(False, False), (True, False), (True, True), (False, True)]


def decode_image(encoded: tf.Tensor, gif: bool = True) -> tf.Tensor:
    """Decodes JPEG, PNG, GIF (first frame) or BMP (24 or 32 bits per pixel) bytes.

    The pixels equal those of Pillow's `exif_transpose` and `convert("RGB")`, up to 1 for CMYK and YCCK:
    JPEGs are decoded with the accurate DCT and smooth chroma. 16-bit images keep the upper 8 bits.

    Args:
        gif: whether GIFs are decoded, by Python code, which a SavedModel cannot hold.

    Returns:
        uint8 (height, width, 3), upright according to the Exif tag.

    Raises:
        InvalidArgumentError: at run time, if the format is another, the file is damaged, or `read_header`
            refuses it.
    """
    return transpose(*decode_mirrored(encoded, gif))


def decode_mirrored(encoded: tf.Tensor, gif: bool = True) -> tuple[tf.Tensor, tf.Tensor]:
    """As `decode_image`, but leaves the transposition of 4 of Exif's 8 orientations to the caller.

    Transposing takes longer than decoding: resized or cropped images are cheaper to transpose.

    Returns:
        uint8 (height, width, 3), and whether it must still be transposed: see `transpose`.
    """
    encoded = tf.convert_to_tensor(encoded)
    header = read_header(encoded)
    return mirror(decode_box(encoded, header, None, gif), header[3]), header[3] >= 5


def read_header(encoded: tf.Tensor) -> tf.Tensor:
    """Reads an image's size and orientation without decoding it.

    Fails for more than `MAX_PIXELS`, and for files that would take much more memory or time: JPEGs of very
    many scans, very large progressive ones, PNGs of many compressed texts or of more bits than `MAX_PIXELS`
    have in 24-bit colors, and GIFs of more than 2**25 pixels.

    Returns:
        int32 (4,): height and width of the stored pixels, number of components (3 except for JPEGs), and
        Exif's orientation, 1-8, or 0 without one.
    """
    shape = _read_shape(encoded)
    with tf.control_dependencies([tf.debugging.Assert(_is_affordable(encoded, shape), ["pixels", shape])]):
        return tf.concat([shape, _read_orientation(encoded)[None]], 0)


def _starts_with(encoded: tf.Tensor, *starts: bytes) -> tf.Tensor:
    return tf.reduce_any(tf.strings.substr(encoded, 0, len(starts[0])) == tf.constant(starts))


def _split(strings: tf.Tensor, mark: bytes | tf.Tensor, times: int) -> tf.Tensor:
    """The parts between the first `times` occurrences of `mark` in at most one string."""
    return tf.raw_ops.StringSplitV2(input=strings, sep=mark, maxsplit=times).values


def _read_shape(encoded: tf.Tensor) -> tf.Tensor:
    """Height, width and components, int32 (3,); 0 for sides if it is no image."""

    def others():
        png, gif = _starts_with(encoded, _PNG), _starts_with(encoded, *_GIF)
        sides = tf.strings.substr(encoded, tf.where(png, 16, tf.where(gif, 6, 18)), 8)
        in_png, in_bmp = (tf.io.decode_raw(sides, tf.int32, order, fixed_length=8) for order in (False, True))
        words = tf.cast(tf.io.decode_raw(encoded, tf.uint16, fixed_length=30), tf.int32)
        bmp = _starts_with(encoded, b"BM") & ((words[14] == 24) | (words[14] == 32))  # bits per pixel
        # A BMP's negative height means that rows go from top to bottom.
        width_and_height = tf.where(png, in_png, tf.where(gif, words[3:5], tf.abs(in_bmp)))
        width_and_height = tf.where(png | gif | bmp, width_and_height, 0)
        return tf.concat([width_and_height[::-1], [3]], 0)

    shape = tf.cond(_starts_with(encoded, _JPEG), lambda: tf.io.extract_jpeg_shape(encoded), others)
    return tf.ensure_shape(shape, (3,))


def _is_affordable(encoded: tf.Tensor, shape: tf.Tensor) -> tf.Tensor:
    """Whether decoding takes a bounded amount of memory and time."""
    jpeg = _starts_with(encoded, _JPEG)
    height, width, components = tf.unstack(tf.cast(shape, tf.int64))
    pixels, size = height * width, tf.cast(tf.strings.length(encoded), tf.int64)
    most = tf.where(_starts_with(encoded, *_GIF), _MAX_GIF_PIXELS, MAX_PIXELS)
    fits = (height > 0) & (width > 0) & (pixels <= tf.cast(most, tf.int64))

    head = tf.cast(tf.io.decode_raw(encoded, tf.uint8, fixed_length=26), tf.int64)
    depth, colors = tf.unstack(head[24:])
    bits = pixels * depth * tf.gather(tf.constant(_SAMPLES, tf.int64), colors & 7)
    fits &= tf.where(_starts_with(encoded, _PNG), bits, 0) <= _MAX_BITS

    # Only files that are large enough for that many scans or texts are searched.
    many = tf.where(jpeg, pixels * size > _MAX_SCANNED * _BYTES_PER_SCAN, size > _SMALL_PNG)
    parts = _split(
        encoded[None][: tf.cast(many, tf.int32)], tf.where(jpeg, _START_OF_SCAN, _TEXT), _MAX_SCANS + 1
    )
    weight = tf.where(jpeg, tf.maximum(pixels, _MAX_SCANNED // _MAX_SCANS), _MAX_SCANNED // _MAX_TEXTS)
    fits &= (tf.size(parts, tf.int64) - 1) * weight <= _MAX_SCANNED

    large = jpeg & (pixels * (3 + 2 * components) > _MAX_BYTES)
    markers = _split(encoded[None][: tf.cast(large, tf.int32)], b"\xff", _MAX_MARKERS)
    kept = tf.reduce_any(tf.strings.substr(markers, 0, 4)[:, None] == tf.constant(_KEPT_IN_MEMORY))
    kept |= (components > 3) | (tf.size(markers) > _MAX_MARKERS)
    return fits & ~(large & kept)


def _read_orientation(encoded: tf.Tensor) -> tf.Tensor:
    """Exif's orientation, int32 (), 1-8, or 0 without one; as in Pillow, the first of several."""
    jpeg = _starts_with(encoded, _JPEG)
    # Later images in a JPEG do not count.
    head = tf.where(jpeg, _split(encoded[None], _START_OF_SCAN, 1)[0], encoded)
    found = _split(head[None], tf.where(jpeg, b"Exif\x00\x00", b"eXIf"), 1)
    return tf.cond(tf.size(found) > 1, lambda: _orientation_in(found[1]), lambda: tf.constant(0))


def _orientation_in(tiff: tf.Tensor) -> tf.Tensor:
    """Reads the orientation in the first directory of Exif's data."""
    little = _starts_with(tiff, b"II*\x00")

    def numbers(data, kind, count):
        orders = (
            tf.io.decode_raw(data, kind, order, fixed_length=count * kind.size) for order in (True, False)
        )
        return tf.cast(tf.where(little, *orders), tf.int32)

    place = tf.clip_by_value(numbers(tiff, tf.int32, 2)[1], 0, tf.strings.length(tiff))
    directory = tf.strings.substr(tiff, place, 2 + 12 * _MAX_TAGS)
    count, *entries = tf.split(numbers(directory, tf.uint16, 1 + 6 * _MAX_TAGS), [1, 6 * _MAX_TAGS])
    # The halves of the count and of the value are in the file's order; the upper ones must be 0.
    tags, types, *counts, value, other = tf.unstack(tf.reshape(entries, [_MAX_TAGS, 6]), axis=1)
    value += tf.where(types == _LONG, other, 0)
    found = (tags == _ORIENTATION) & (tf.range(_MAX_TAGS) < count) & (tf.add_n(counts) == 1)
    found &= ((types == _SHORT) | (types == _LONG)) & (little | _starts_with(tiff, b"MM\x00*"))
    value = tf.concat([tf.boolean_mask(value, found), [0]], 0)[0]
    return tf.where((value >= 1) & (value <= 8), value, 0)


def mirror(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Mirrors stored pixels (height, width, channels) by the Exif orientation; 5-8 need `transpose`, too."""

    def mirrored():
        return tf.reverse(image, tf.boolean_mask([0, 1], tf.gather(_REVERSED, orientation)))

    return tf.ensure_shape(tf.cond(orientation > 1, mirrored, lambda: image), (None, None, image.shape[-1]))


def transpose(image: tf.Tensor, transposed: tf.Tensor | None) -> tf.Tensor:
    """Exchanges rows and columns of an image (height, width, channels) if `transposed`, bool ()."""
    if transposed is None:
        return image
    height, width, channels = image.shape
    turned = tf.cond(transposed, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
    return tf.ensure_shape(turned, (height, width, channels) if height == width else (None, None, channels))


def box_in_stored_pixels(box: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Converts a box in the upright image to one in the stored pixels.

    Boxes are int32 (4,): top, left, height and width; `shape` is the upright image's, int32 (2,).
    """

    def turned():
        stored = tf.where(orientation >= 5, transposed_box(box), box)
        sides = tf.where(orientation >= 5, shape[::-1], shape)
        corner = tf.where(tf.gather(_REVERSED, orientation), sides - stored[:2] - stored[2:], stored[:2])
        return tf.concat([corner, stored[2:]], 0)

    return tf.cond(orientation > 1, turned, lambda: box)


def transposed_box(box: tf.Tensor) -> tf.Tensor:
    """A box, (4,): top, left, height and width, in the transposed image."""
    return tf.gather(box, [1, 0, 3, 2])


def decode_box(encoded: tf.Tensor, header: tf.Tensor, box: tf.Tensor | None, gif: bool = True) -> tf.Tensor:
    """Decodes an image or a box of it; for JPEGs, only what the box needs is decoded.

    Args:
        header: what `read_header` returns.
        box: int32 (4,): top, left, height and width in the stored pixels; None for the whole image.
        gif: as for `decode_image`.

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
        start = tf.where(header[2] == 4, _ADOBE, _JPEG[:2])
        adobe = tf.strings.join([start, tf.strings.substr(encoded, 2, tf.int32.max)])

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

    def png_or_bmp():
        return tf.ensure_shape(
            tf.io.decode_image(encoded, channels=3, expand_animations=False), (None, None, 3)
        )

    def others():
        image = (
            png_or_bmp()
            if not gif
            else tf.cond(
                _starts_with(encoded, *_GIF),
                lambda: tf.ensure_shape(
                    tf.numpy_function(_decode_gif, [encoded[None]], tf.uint8), (None, None, 3)
                ),
                png_or_bmp,
            )
        )
        fits = tf.reduce_all(tf.shape(image)[:2] == header[:2])
        with tf.control_dependencies([tf.debugging.Assert(fits, ["size", header])]):
            return cut(tf.identity(image))

    image = tf.cond(_starts_with(encoded, _JPEG), jpeg, others)
    return tf.ensure_shape(image, (None, None, 3))


def _decode_gif(files: np.ndarray) -> np.ndarray:
    """Decodes the first frame of one GIF, uint8 (height, width, 3); without pixels if it is damaged.

    TensorFlow would decode all frames, whatever their size.
    """
    try:
        with Image.open(io.BytesIO(_first_frame(files[0]))) as image:
            return np.asarray(image.convert("RGB"))
    except (ValueError, IndexError, struct.error, OSError):
        return np.zeros((0, 0, 3), "uint8")


def _first_frame(gif: bytes) -> bytes:
    """A GIF of the first frame only, without comments; raises `ValueError` if it exceeds the screen."""

    def colors(flags):  # bytes of the table that flags announce
        return 6 << (flags & 7) if flags & 0x80 else 0

    def end_of_blocks(place):
        while gif[place]:
            place += 1 + gif[place]
        return place + 1

    start = head = 13 + colors(gif[10])
    while gif[start] == ord("!"):
        start = end_of_blocks(start + 2)
    screen_and_frame = struct.unpack_from("<HH", gif, 6) + struct.unpack_from("<4H", gif, start + 1)
    width, height, left, top, frame_width, frame_height = screen_and_frame
    if gif[start] != ord(",") or left + frame_width > width or top + frame_height > height:
        raise ValueError("not a frame within the screen")
    end = end_of_blocks(start + 11 + colors(gif[start + 9]))
    return gif[:head] + gif[start:end] + b";"


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
        shape = _read_shape(tensor)
        height, width, _ = shape.numpy().tolist()
        if min(height, width) > 0 and not _is_affordable(tensor, shape):
            most = _MAX_GIF_PIXELS if encoded.startswith(_GIF) else MAX_PIXELS
            fits = height * width <= most
            excess = "too many scans, texts or bits" if fits else f"the limit is {most}"
            return f"{width} x {height} pixels; {excess}"
        decode_box(tensor, read_header(tensor), None)  # not turned, which would take as much memory again
    # A message that quotes the file's bytes may not be valid UTF-8.
    except (tf.errors.InvalidArgumentError, UnicodeDecodeError):
        end = {b"\xff\xd8": _END_OF_JPEG, b"\x89P": b"IEND\xaeB`\x82"}.get(encoded[:2], b"")
        return "damaged" if encoded.endswith(end) else "truncated"
    return None


def is_image(head: bytes) -> bool:
    """Whether the first bytes of a file, at least 8, are those of an image."""
    return head.startswith((_JPEG, _PNG, *_GIF, b"BM"))


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
