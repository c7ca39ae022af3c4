"""Random crops and mirroring, decoding only the part of an image that a crop needs."""

import math
from collections.abc import Callable

import tensorflow as tf

from keras_resnet.data.augmentation import draws
from keras_resnet.data.augmentation.policies import Augmentation
from keras_resnet.images import decode, ops

_TRIES = 10


def random_crop(image: tf.Tensor, seed: tf.Tensor, policy: Augmentation, size: int) -> tf.Tensor:
    """Crops an image with a policy that `crops`, and mirrors it if the policy flips.

    `image` and the result are those of `resized_crop`; `seed` is int64 (2,).
    """
    cropped = resized_crop(
        image, lambda shape: crop_box(shape, seed, policy, size), size, policy.area is not None
    )
    if not policy.flip:
        return cropped
    mirrored = draws.uniforms(seed)[draws.FLIP] >= 0.5
    # Ten times as fast as choosing for each image of a batch.
    return tf.cond(mirrored, lambda: tf.reverse(cropped, [1]), lambda: cropped)


def crop_box(shape: tf.Tensor, seed: tf.Tensor, policy: Augmentation, size: int) -> tf.Tensor:
    """Draws the part of an image to use as input, before the image is decoded.

    With `policy.resize`, as in section 3.4, draws the shorter side and then the position of a square of
    `size` in the resized image. With `policy.area`, draws whole pixels as torchvision's RandomResizedCrop.

    Args:
        shape: int32 (2,), the image's height and width.
        seed: int64 (2,).

    Returns:
        float32 (4,): top, left, height and width in pixels of the image.
    """
    if policy.resize is not None:
        uniforms = draws.uniforms(seed)
        low, high = policy.resize_range(size)
        shorter = tf.cast(low + draws.choose(uniforms[draws.RESIZE], high - low + 1), tf.float64)
        sides = tf.cast(shape, tf.float64)
        resized = tf.cast(tf.round(sides * (shorter / tf.reduce_min(sides))), tf.int32)
        corner = draws.choose(tf.stack([uniforms[draws.TOP], uniforms[draws.LEFT]]), resized - size + 1)
        scale = tf.cast(resized, tf.float32) / tf.cast(shape, tf.float32)
        return tf.concat([tf.cast(corner, tf.float32) / scale, size / scale], 0)
    assert policy.area is not None
    box, fits = random_box(draws.stream(seed, draws.BOX), shape, policy.area, policy.aspect, shape)
    return tf.cast(tf.where(fits, box, _central_box(shape, policy.aspect)), tf.float32)


def random_box(
    seed: tf.Tensor, shape: tf.Tensor, area: tuple, aspect: tuple, largest: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws up to ten boxes until one fits.

    Args:
        seed: int64 (2,).
        shape: int32 (2,), height and width of the image.
        area: range of the box's share of the image area.
        aspect: range of the box's width / height, drawn log-uniformly.
        largest: int32 (2,), maximum height and width.

    Returns:
        The box, int32 (4,): top, left, height and width; and whether it fits.
    """
    uniforms = tf.random.stateless_uniform([4, _TRIES], seed, alg="philox")
    logs = [math.log(bound) for bound in aspect]
    pixels = tf.cast(tf.reduce_prod(shape), tf.float32) * (area[0] + uniforms[0] * (area[1] - area[0]))
    ratio = tf.exp(logs[0] + uniforms[1] * (logs[1] - logs[0]))
    sides = tf.cast(tf.round(tf.sqrt(tf.stack([pixels / ratio, pixels * ratio]))), tf.int32)
    fits = tf.reduce_all((sides > 0) & (sides <= largest[:, None]), 0)
    first = tf.argmax(fits)
    sides = sides[:, first]
    return tf.concat([draws.choose(uniforms[2:, first], shape - sides + 1), sides], 0), fits[first]


def _central_box(shape: tf.Tensor, aspect: tuple) -> tf.Tensor:
    """The largest centered box with width / height in the range: int32 (4,)."""
    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(shape))
    sides = tf.stack([tf.minimum(height, width / aspect[0]), tf.minimum(width, height * aspect[1])])
    sides = tf.cast(tf.round(sides), tf.int32)
    return tf.concat([(shape - sides) // 2, sides], 0)


def pad_crop_flip(images: tf.Tensor, seeds: tf.Tensor, pad: int, flip: bool) -> tf.Tensor:
    """Crops at random after zero padding, keeping the size, and mirrors at random."""
    uniforms = draws.uniforms(seeds)
    batch, size, channels = images.shape[0], images.shape[1], images.shape[3]
    rows = columns = tf.broadcast_to(tf.range(size), [batch, size])
    if flip:
        columns = tf.where(uniforms[:, draws.FLIP, None] < 0.5, columns, columns[:, ::-1])
    if pad:
        rows += draws.choose(uniforms[:, draws.TOP, None], 2 * pad + 1)
        columns += draws.choose(uniforms[:, draws.LEFT, None], 2 * pad + 1)
        images = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    # One gather of pixels for the batch is far cheaper than cropping and mirroring each image.
    side = images.shape[1]
    first = tf.range(batch)[:, None, None] * side * side
    return tf.gather(
        tf.reshape(images, [-1, channels]), first + rows[:, :, None] * side + columns[:, None, :]
    )


def resized_crop(
    image: tf.Tensor, choose: Callable[[tf.Tensor], tf.Tensor], size: int, whole_pixels: bool
) -> tf.Tensor:
    """Resizes a crop of an image to a square; of an encoded JPEG, little more than the crop is decoded.

    Args:
        image: uint8 (height, width, channels), or JPEG, PNG, GIF or BMP bytes, string ().
        choose: converts height and width of the upright image, int32 (2,), to the crop, float32 (4,):
            top, left, height and width in pixels.
        size: side of the result.
        whole_pixels: whether to crop whole pixels and resize these with the fast `ops.resize_area`;
            otherwise the result is as if cropped from the resized image.

    Returns:
        float32 (size, size, channels), 0-255. Encoded and decoded images give the same up to rounding, or
        with `whole_pixels` up to 2 along the edges.
    """
    if image.dtype == tf.string:
        header = decode.read_header(image)
        orientation = header[3]
        shape = tf.where(orientation >= 5, header[1::-1], header[:2])
        crop = choose(shape)
        box = _needed_pixels(crop, shape, size, whole_pixels)
        part = decode.decode_box(image, header, decode.box_in_stored_pixels(box, shape, orientation))
        part, transposed = decode.mirror(part, orientation), orientation >= 5
    else:
        transposed = None
        shape = tf.shape(image)[:2]
        crop = choose(shape)
        box = _needed_pixels(crop, shape, size, whole_pixels)
        part = tf.slice(image, tf.concat([box[:2], [0]], 0), tf.concat([box[2:], [-1]], 0))
        part = tf.ensure_shape(part, (None, None, image.shape[-1]))
    if whole_pixels:
        return decode.transpose(ops.resize_area(part, size), transposed)
    crop -= tf.cast(tf.concat([box[:2], [0, 0]], 0), tf.float32)
    if transposed is not None:
        crop = tf.where(transposed, decode.transposed_box(crop), crop)
    return decode.transpose(ops.resize_box(part, crop, size), transposed)


def _needed_pixels(crop: tf.Tensor, shape: tf.Tensor, size: int, whole_pixels: bool) -> tf.Tensor:
    """The box of pixels that contribute to a resized crop, int32 (4,): top, left, height and width."""
    if whole_pixels:
        return tf.cast(crop, tf.int32)
    reach = tf.maximum(crop[2:] / size, 1.0) + 2.0  # 2: the edges of a decoded part are not exact
    low = tf.maximum(tf.cast(tf.floor(crop[:2] - reach), tf.int32), 0)
    high = tf.minimum(tf.cast(tf.math.ceil(crop[:2] + crop[2:] + reach), tf.int32), shape)
    return tf.concat([low, high - low], 0)
