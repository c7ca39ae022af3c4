"""The geometry of images, as TensorFlow operations: resizing, cutting out, decoding."""

import tensorflow as tf

from keras_resnet.errors import InputError

MAX_PIXELS = 89_478_485
"""An image of more pixels is not decoded: a file of a few kilobytes can claim billions. Pillow's bound."""

_KERNELS = {"bilinear": "triangle", "bicubic": "keyscubic"}

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
    cut = _resample(batched, scale, -tf.cast(tf.stack(corner), tf.float32), size, _KERNELS[interpolation])
    if interpolation == "bicubic":
        cut = tf.clip_by_value(cut, 0.0, 255.0)  # beside an edge it overshoots
    return cut if images.shape.rank == 4 else cut[0]


def resize_window(image: tf.Tensor, window: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes a part of an image to a square, bilinear and antialiased.

    Args:
        image: uint8 or float32 (height, width, channels).
        window: float32 (4,), the part's top, left, height and width in pixels. What lies around it
            is looked at where the part shrinks.
        size: side of the square.

    Returns:
        float32 (size, size, channels), in the units of `image`.
    """
    scale = size / window[2:]
    return _resample(image[None], scale, -window[:2] * scale, size, _KERNELS["bilinear"])[0]


def resize_quickly(image: tf.Tensor, size: int) -> tf.Tensor:
    """Resizes a whole image to a square in a quarter of the time that `resize_whole` takes.

    Each new pixel is the mean of the area that it covers, where both sides shrink; otherwise bilinear.

    Args:
        image: uint8 or float32 (height, width, channels).
        size: side of the square.

    Returns:
        float32 (size, size, channels), in the units of `image`.
    """
    batch, sides = image[None], [size, size]
    resized = tf.cond(
        tf.reduce_all(tf.shape(image)[:2] >= size),
        lambda: tf.raw_ops.ResizeArea(images=batch, size=sides),
        lambda: tf.raw_ops.ResizeBilinear(images=batch, size=sides, half_pixel_centers=True),
    )
    return tf.ensure_shape(resized[0], (size, size, image.shape[-1]))


def _resample(images, scale, translation, size: int, kernel: str) -> tf.Tensor:
    """`ScaleAndTranslate`, antialiased, in a third of its time and to the same bits.

    Its loop over channels is the only fast one. So all pixels of a row are taken as the channels of
    one, and when the heights are done the image is turned for its widths.
    """
    channels = images.shape[-1]
    for axis in (0, 1):
        count, length, others = tf.unstack(tf.shape(images)[:3])
        images = tf.raw_ops.ScaleAndTranslate(
            images=tf.reshape(images, [count, length, 1, others * channels]),
            size=[size, 1],
            scale=tf.stack([scale[axis], 1.0]),
            translation=tf.stack([translation[axis], 0.0]),
            kernel_type=kernel,
            antialias=True,
        )
        images = tf.transpose(tf.reshape(images, [count, size, others, channels]), [0, 2, 1, 3])
    return tf.ensure_shape(images, (None, size, size, channels))


def resize_whole(images: tf.Tensor, size: int, interpolation: str = "bilinear") -> tf.Tensor:
    """Resizes images of any proportions to a square: float32 (..., size, size, channels)."""
    if images.shape[-3] == size and images.shape[-2] == size:
        return tf.cast(images, tf.float32)
    return resize_and_crop(images, (size, size), (0, 0), size, interpolation)


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
    shape = tf.shape(image)[:2]
    # torchvision truncates the longer side, and rounds the corner half to even; so does `Preprocessing`.
    resized = shape * side // tf.reduce_min(shape)
    corner = tf.cast(tf.round(tf.cast(resized - size, tf.float32) / 2), tf.int32)
    return resize_and_crop(image, resized, corner, size, interpolation)


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
    if channels not in (1, 3):
        raise InputError(f"channels must be 1 or 3, not {channels}")
    if images.shape[-1] == channels:
        return images
    return tf.image.grayscale_to_rgb(images) if channels == 3 else tf.image.rgb_to_grayscale(images)


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
    return upright(decode_part(encoded, header, None), read_orientation(encoded))


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


def upright(image: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Turns and mirrors decoded pixels (height, width, channels) as the Exif orientation says."""

    def turned():
        lines = tf.cond(orientation >= 5, lambda: tf.transpose(image, [1, 0, 2]), lambda: image)
        return tf.reverse(lines, tf.boolean_mask([0, 1], tf.gather(_REVERSED, orientation)))

    return tf.ensure_shape(tf.cond(orientation > 1, turned, lambda: image), (None, None, image.shape[-1]))


def stored_box(box: tf.Tensor, shape: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
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


def decode_part(encoded: tf.Tensor, header: tf.Tensor, box: tf.Tensor | None) -> tf.Tensor:
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
