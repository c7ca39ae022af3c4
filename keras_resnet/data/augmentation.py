"""What training does to an image at random, as a table of policies.

Every draw is a pure function of a seed pair, one a training example and epoch, so that an example
looks the same whichever worker prepares it and however often a run was restarted.
"""

import dataclasses

import tensorflow as tf

from keras_resnet.geometry import fit_shorter_side, resize_and_crop
from keras_resnet.preprocessing import REFERENCE_SIZE

_TOP, _LEFT, _FLIP, _SCALE = range(4)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """A policy.

    Attributes:
        shorter_side: the range (inclusive, pixels for a crop of 224) from which an image's shorter
            side is drawn before a random crop; None resizes the whole image to the crop's size.
        pad: zeros added on each side of the normalized image before a random crop of its size.
        flip: mirrors left and right with probability 1/2.
    """

    shorter_side: tuple[int, int] | None = None
    pad: int = 0
    flip: bool = False

    @property
    def random(self) -> bool:
        """Whether anything is drawn at all."""
        return self != Augmentation()


AUGMENTATIONS: dict[str, Augmentation] = {
    "none": Augmentation(),
    "pad_crop": Augmentation(pad=4),
    # Section 4.2, CIFAR-10.
    "pad_crop_flip": Augmentation(pad=4, flip=True),
    # Section 3.4, ImageNet, without the colour augmentation.
    "scale_crop_flip": Augmentation(shorter_side=(256, 480), flip=True),
}


def _uniforms(seeds: tf.Tensor) -> tf.Tensor:
    """Four numbers in [0, 1) for each seed pair: float32 (..., 4) for seeds (..., 2)."""

    def draw(seed):
        return tf.random.stateless_uniform([4], seed, alg="philox")

    return draw(seeds) if seeds.shape.rank == 1 else tf.map_fn(draw, seeds, fn_output_signature=tf.float32)


def _choose(uniform: tf.Tensor, choices: tf.Tensor | int) -> tf.Tensor:
    """An integer in [0, choices) from a number in [0, 1)."""
    return tf.cast(uniform * tf.cast(choices, tf.float32), tf.int32)


def scaled_sides(policy: Augmentation, size: int) -> tuple[int, int]:
    """The policy's range of shorter sides for crops of another size than 224."""
    low, high = policy.shorter_side
    return round(low * size / REFERENCE_SIZE), round(high * size / REFERENCE_SIZE)


def random_scale_crop(image: tf.Tensor, seed: tf.Tensor, policy: Augmentation, size: int) -> tf.Tensor:
    """Section 3.4: draws the shorter side, then the place of the crop.

    Args:
        image: uint8 (height, width, channels).
        seed: int64 (2,).
        policy: with a `shorter_side`.
        size: side of the crop, pixels.

    Returns:
        float32 (size, size, channels), 0-255.
    """
    uniforms = _uniforms(seed)
    low, high = scaled_sides(policy, size)
    resized = fit_shorter_side(image, low + _choose(uniforms[_SCALE], high - low + 1))
    corner = _choose(tf.stack([uniforms[_TOP], uniforms[_LEFT]]), resized - size + 1)
    return resize_and_crop(image, resized, corner, size)


def pad_crop_flip(images: tf.Tensor, seeds: tf.Tensor, policy: Augmentation) -> tf.Tensor:
    """Section 4.2: zero padding, a random crop of the original size, a random mirror image.

    Args:
        images: float32 (batch, size, size, channels), normalized.
        seeds: int64 (batch, 2), one pair an image.
        policy: what to do of it.

    Returns:
        float32 (batch, size, size, channels).
    """
    if not (policy.pad or policy.flip):
        return images
    uniforms = _uniforms(seeds)
    batch, size, channels = images.shape[0], images.shape[1], images.shape[3]
    pixels = tf.range(size)
    rows = tf.broadcast_to(pixels, [batch, size])
    columns = rows
    if policy.flip:
        columns = tf.where(uniforms[:, _FLIP, None] < 0.5, columns, columns[:, ::-1])
    pad = policy.pad
    if pad:
        rows += _choose(uniforms[:, _TOP, None], 2 * pad + 1)
        columns += _choose(uniforms[:, _LEFT, None], 2 * pad + 1)
        images = tf.pad(images, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
    # One gather of whole pixels for the batch: far cheaper than a crop an image.
    side = images.shape[1]
    first = tf.range(batch)[:, None, None] * side * side
    return tf.gather(
        tf.reshape(images, [-1, channels]), first + rows[:, :, None] * side + columns[:, None, :]
    )
