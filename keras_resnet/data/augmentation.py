"""What training does to an image at random, as a table of policies.

Every draw is a pure function of a seed pair, one a training example and epoch, so that an example
looks the same whichever worker prepares it and however often a run was restarted. Where several
numbers follow from a draw they are computed one image at a time: in a batch, the last bit of a number
could depend on the batch's size.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.data import color as colour
from keras_resnet.errors import unknown_name
from keras_resnet.images.preprocessing import REFERENCE_SIZE, usual_resize

_TOP, _LEFT, _FLIP, _SCALE = range(4)  # of the first stream's four numbers
# The other streams.
_BOX, _OPERATIONS, _JITTER, _PCA, _ERASED, _ERASED_BOX = range(1, 7)

_TRIES = 10
_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (1 / 3.3, 1 / 0.3)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A policy.

    Attributes:
        shorter_side: the range (inclusive, pixels for a crop of 224) from which an image's shorter
            side is drawn before a random crop.
        area: the range from which the share of the image's area is drawn that is resized to the
            input. With neither this nor `shorter_side` the whole image is resized.
        aspect: with `area`: the range of width / height, of which the logarithm is uniform.
        pad: zeros added on each side of the normalized image before a random crop of its size.
        flip: mirrors left and right with probability 1/2.
        randaugment: how many of RandAugment's operations are applied, and their magnitude, 0-30.
        jitter: how far the factors of brightness, contrast and saturation may be from 1; their
            order is random.
        pca: the standard deviation of the colour shift along ImageNet's principal components, as a
            share of their eigenvalues.
        erasing: the probability with which a rectangle of the normalized image becomes zero.
    """

    shorter_side: tuple[int, int] | None = None
    area: tuple[float, float] | None = None
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 0
    flip: bool = False
    randaugment: tuple[int, int] | None = None
    jitter: tuple[float, float, float] | None = None
    pca: float = 0.0
    erasing: float = 0.0

    @property
    def cuts(self) -> bool:
        """Whether the input is a part of the image: see `window`."""
        return self.shorter_side is not None or self.area is not None

    def evaluation_resize(self, size: int) -> int | None:
        """The evaluation's `Preprocessing.resize`: a center crop only if training crops, too."""
        return usual_resize(size) if self.cuts else None


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "pad_crop": Augmentation(pad=4),
    # The paper's section 4.2, CIFAR-10.
    "pad_crop_flip": Augmentation(pad=4, flip=True),
    # Section 3.4, ImageNet, without and with the colour augmentation.
    "scale_crop_flip": Augmentation(shorter_side=(256, 480), flip=True),
    "scale_crop_flip_pca": Augmentation(shorter_side=(256, 480), flip=True, pca=0.1),
    # Szegedy et al. 2015, section 6; torchvision's published weights (V1).
    "inception": Augmentation(area=(0.08, 1.0), flip=True),
    # fb.resnet.torch, datasets/imagenet.lua.
    "inception_jitter": Augmentation(area=(0.08, 1.0), flip=True, jitter=(0.4, 0.4, 0.4), pca=0.1),
    # Cubuk et al. 2020, for ResNet-50 on ImageNet.
    "randaugment": Augmentation(area=(0.08, 1.0), flip=True, randaugment=(2, 9)),
    # Erasing (Zhong et al. 2020) as often as torchvision's later weights (V2) were trained with it.
    "randaugment_erasing": Augmentation(area=(0.08, 1.0), flip=True, randaugment=(2, 9), erasing=0.1),
}


def get_augmentation(name: str) -> Augmentation:
    """Returns a policy of `AUGMENTATIONS`; raises `InputError` for an unknown name."""
    if name not in AUGMENTATIONS:
        raise unknown_name("augmentation", name, AUGMENTATIONS)
    return AUGMENTATIONS[name]


def _stream(seeds: tf.Tensor, purpose: int) -> tf.Tensor:
    """Seed pairs (..., 2) of an independent stream of numbers; stream 0 is the seeds' own."""
    key = purpose * 0x9E3779B97F4A7C15 % 2**63
    return tf.bitwise.bitwise_xor(seeds, tf.constant([key, 0], tf.int64))


def _uniforms(seeds: tf.Tensor, purpose: int = 0, count: int = 4) -> tf.Tensor:
    """Numbers in [0, 1) for each seed pair: float32 (..., count) for seeds (..., 2)."""

    def draw(seed):
        return tf.random.stateless_uniform([count], seed, alg="philox")

    seeds = _stream(seeds, purpose)
    return draw(seeds) if seeds.shape.rank == 1 else tf.map_fn(draw, seeds, fn_output_signature=tf.float32)


def _choose(uniform: tf.Tensor, choices: tf.Tensor | int) -> tf.Tensor:
    """An integer in [0, choices) from a number in [0, 1)."""
    return tf.cast(uniform * tf.cast(choices, tf.float32), tf.int32)


def is_mirrored(seed: tf.Tensor) -> tf.Tensor:
    """Whether an image is mirrored: bool (), for a seed pair int64 (2,)."""
    return _uniforms(seed)[_FLIP] >= 0.5


def scaled_sides(policy: Augmentation, size: int) -> tuple[int, int]:
    """The policy's range of shorter sides for crops of another size than 224."""
    low, high = policy.shorter_side
    return round(low * size / REFERENCE_SIZE), round(high * size / REFERENCE_SIZE)


def window(shape: tf.Tensor, seed: tf.Tensor, policy: Augmentation, size: int) -> tf.Tensor:
    """The part of an image that becomes the input, drawn before the image is decoded.

    With a `shorter_side` as in section 3.4: that side, then the place of a square of `size` in the
    resized image. With an `area` as torchvision's RandomResizedCrop: whole pixels.

    Args:
        shape: int32 (2,), the image's height and width.
        seed: int64 (2,).
        policy: one that `cuts`.
        size: height and width of the input, pixels.

    Returns:
        float32 (4,): top, left, height and width, in the image's own pixels.
    """
    if policy.shorter_side is not None:
        uniforms = _uniforms(seed)
        low, high = scaled_sides(policy, size)
        resized = _fit_shorter_side(shape, low + _choose(uniforms[_SCALE], high - low + 1))
        corner = _choose(tf.stack([uniforms[_TOP], uniforms[_LEFT]]), resized - size + 1)
        scale = tf.cast(resized, tf.float32) / tf.cast(shape, tf.float32)
        return tf.concat([tf.cast(corner, tf.float32) / scale, size / scale], 0)
    box, fits = _random_box(_stream(seed, _BOX), shape, policy.area, policy.aspect, shape)
    return tf.cast(tf.where(fits, box, _central_box(shape, policy.aspect)), tf.float32)


def _fit_shorter_side(shape: tf.Tensor, side: tf.Tensor) -> tf.Tensor:
    """Height and width, int32 (2,), of an image whose shorter side becomes `side`."""
    sides = tf.cast(shape, tf.float64)
    return tf.cast(tf.round(sides * (tf.cast(side, tf.float64) / tf.reduce_min(sides))), tf.int32)


def _random_box(
    seed: tf.Tensor, shape: tf.Tensor, area: tuple, aspect: tuple, largest: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws boxes until one fits, ten at most.

    Args:
        seed: int64 (2,).
        shape: int32 (2,): height and width of what the box is in.
        area: range of its share of that.
        aspect: range of its width / height, drawn log-uniformly.
        largest: int32 (2,): the largest height and width that fit.

    Returns:
        int32 (4,), top, left, height and width; and whether this box fits.
    """
    uniforms = tf.random.stateless_uniform([4, _TRIES], seed, alg="philox")
    logs = [math.log(bound) for bound in aspect]
    pixels = tf.cast(tf.reduce_prod(shape), tf.float32) * (area[0] + uniforms[0] * (area[1] - area[0]))
    ratio = tf.exp(logs[0] + uniforms[1] * (logs[1] - logs[0]))
    sides = tf.cast(tf.round(tf.sqrt(tf.stack([pixels / ratio, pixels * ratio]))), tf.int32)
    fits = tf.reduce_all((sides > 0) & (sides <= largest[:, None]), 0)
    first = tf.argmax(fits)
    sides = sides[:, first]
    return tf.concat([_choose(uniforms[2:, first], shape - sides + 1), sides], 0), fits[first]


def _central_box(shape: tf.Tensor, aspect: tuple) -> tf.Tensor:
    """The largest box in the middle whose width / height is in the range: int32 (4,)."""
    height, width = (tf.cast(side, tf.float32) for side in tf.unstack(shape))
    sides = tf.stack([tf.minimum(height, width / aspect[0]), tf.minimum(width, height * aspect[1])])
    sides = tf.cast(tf.round(sides), tf.int32)
    return tf.concat([(shape - sides) // 2, sides], 0)


def adjust(images: tf.Tensor, seeds: tf.Tensor, policy: Augmentation) -> tf.Tensor:
    """What is done before the normalization: mirror images, RandAugment, jitter, PCA.

    A policy that pads mirrors afterwards: see `pad_crop_erase`.

    Args:
        images: float32 (batch, size, size, channels), 0-255; 3 channels, or 1.
        seeds: int64 (batch, 2), one pair an image.
        policy: what to do of it.

    Returns:
        float32 (batch, size, size, channels), 0-255; with `pca` a little beyond, as published.
    """
    if policy.flip and not policy.pad:
        images = _cut_and_mirror(images, seeds, 0, True)
    if policy.randaugment or policy.jitter:

        def recolour(example):
            image, seed = example
            if policy.randaugment:
                image = _randaugment(image, seed, *policy.randaugment)
            return _jitter(image, seed, policy.jitter) if policy.jitter else image

        images = tf.map_fn(recolour, (images, seeds), fn_output_signature=images.dtype)
    return _pca_shift(images, seeds, policy.pca) if policy.pca else images


def _randaugment(image: tf.Tensor, seed: tf.Tensor, layers: int, magnitude: int) -> tf.Tensor:
    """Operations drawn with replacement; they work on whole numbers."""
    operations = list(colour.randaugment_operations(image.shape[0], magnitude).values())
    uniforms = _uniforms(seed, _OPERATIONS, 2 * layers)
    chosen = _choose(uniforms[:layers], len(operations))
    signs = tf.where(uniforms[layers:] < 0.5, -1.0, 1.0)
    image = tf.round(image)
    for layer in range(layers):
        branches = [
            lambda operation=operation, image=image, sign=signs[layer]: tf.floor(operation(image, sign))
            for operation in operations
        ]
        image = tf.ensure_shape(tf.switch_case(chosen[layer], branches), image.shape)
    return image


def _jitter(image: tf.Tensor, seed: tf.Tensor, strengths: Sequence[float]) -> tf.Tensor:
    """Brightness, contrast and saturation, in random order."""
    operations = (colour.brightness, colour.contrast, colour.saturation)
    uniforms = _uniforms(seed, _JITTER, 2 * len(operations))
    lows = tf.constant([max(0.0, 1.0 - strength) for strength in strengths])
    highs = tf.constant([1.0 + strength for strength in strengths])
    factors = lows + uniforms[: len(operations)] * (highs - lows)
    order = tf.argsort(uniforms[len(operations) :])
    for turn in range(len(operations)):
        branches = [
            lambda operation=operation, image=image, factor=factors[kind]: operation(image, factor)
            for kind, operation in enumerate(operations)
        ]
        image = tf.ensure_shape(tf.switch_case(order[turn], branches), image.shape)
    return image


def _pca_shift(images: tf.Tensor, seeds: tf.Tensor, deviation: float) -> tf.Tensor:
    """AlexNet's: all pixels of an image become a little redder, yellower, lighter ..."""
    vectors = np.array(colour.EIGENVECTORS)
    if images.shape[3] == 1:
        vectors = np.array([colour.GRAY]) @ vectors
    # One constant: TensorFlow's graphs would multiply several in another order than its eager mode.
    vectors = tf.constant(255.0 * deviation * np.array(colour.EIGENVALUES) * vectors, tf.float32)

    def draw(seed):
        return tf.reduce_sum(vectors * tf.random.stateless_normal([3], _stream(seed, _PCA), alg="philox"), 1)

    shifts = tf.map_fn(draw, seeds, fn_output_signature=tf.float32)
    # As whole rows: TensorFlow is slow where the last axis of a broadcast is short.
    rows = _as_rows(images) + tf.tile(shifts, [1, images.shape[2]])[:, None]
    return tf.reshape(rows, images.shape)


def _as_rows(images: tf.Tensor) -> tf.Tensor:
    """(batch, height, width * channels)."""
    batch, height, width, channels = images.shape
    return tf.reshape(images, [batch, height, width * channels])


def pad_crop_erase(images: tf.Tensor, seeds: tf.Tensor, policy: Augmentation) -> tf.Tensor:
    """What is done after the normalization, whose zeros are the mean colour.

    Section 4.2: zero padding, a random crop of the original size, a random mirror image. And random
    erasing.

    Args:
        images: float32 (batch, size, size, channels), normalized.
        seeds: int64 (batch, 2), one pair an image.
        policy: what to do of it.

    Returns:
        float32 (batch, size, size, channels).
    """
    if policy.pad:
        images = _cut_and_mirror(images, seeds, policy.pad, policy.flip)
    if policy.erasing:
        images = _erase(images, seeds, policy.erasing)
    return images


def _cut_and_mirror(images: tf.Tensor, seeds: tf.Tensor, pad: int, flip: bool) -> tf.Tensor:
    """A random crop of the images' own size after zero padding; a random mirror image."""
    uniforms = _uniforms(seeds)
    batch, size, channels = images.shape[0], images.shape[1], images.shape[3]
    pixels = tf.range(size)
    rows = tf.broadcast_to(pixels, [batch, size])
    columns = rows
    if flip:
        columns = tf.where(uniforms[:, _FLIP, None] < 0.5, columns, columns[:, ::-1])
    if pad:
        rows += _choose(uniforms[:, _TOP, None], 2 * pad + 1)
        columns += _choose(uniforms[:, _LEFT, None], 2 * pad + 1)
        images = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    # One gather of whole pixels for the batch: far cheaper than a crop or a mirror image each.
    side = images.shape[1]
    first = tf.range(batch)[:, None, None] * side * side
    return tf.gather(
        tf.reshape(images, [-1, channels]), first + rows[:, :, None] * side + columns[:, None, :]
    )


def _erase(images: tf.Tensor, seeds: tf.Tensor, probability: float) -> tf.Tensor:
    """Zeros in a rectangle, with torchvision's ranges of area and aspect."""
    size = images.shape[1]
    shape = tf.constant([size, size])

    def draw(seed):
        box, fits = _random_box(_stream(seed, _ERASED_BOX), shape, _ERASED_AREA, _ERASED_ASPECT, shape - 1)
        erased = fits & (_uniforms(seed, _ERASED)[0] < probability)
        return tf.where(erased, box, tf.zeros_like(box))

    boxes = tf.map_fn(draw, seeds, fn_output_signature=tf.int32)
    pixels = tf.range(size)
    inside = [
        (pixels >= boxes[:, axis, None]) & (pixels < boxes[:, axis, None] + boxes[:, axis + 2, None])
        for axis in (0, 1)
    ]
    columns = tf.repeat(inside[1], images.shape[3], axis=1)
    rows = tf.where(inside[0][:, :, None] & columns[:, None], 0.0, _as_rows(images))
    return tf.reshape(rows, images.shape)
