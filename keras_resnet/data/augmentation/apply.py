"""Applies an augmentation policy to a batch, before and after normalization.

Unlike Keras' augmentation layers, these are pure functions of (seed, epoch, example).
"""

import functools
from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.data.augmentation import color, draws
from keras_resnet.data.augmentation.crop import pad_crop_flip, random_box
from keras_resnet.data.augmentation.policies import Augmentation
from keras_resnet.images.ops import static_shape

_ERASED_AREA = (0.02, 0.33)
_ERASED_ASPECT = (1 / 3.3, 1 / 0.3)


def adjust(images: tf.Tensor, seeds: tf.Tensor, policy: Augmentation, mirrored: bool = False) -> tf.Tensor:
    """Applies the steps before normalization: mirroring, RandAugment, color jitter, PCA.

    Policies with padding mirror in `pad_crop_erase`.

    Args:
        images: float32 (batch, size, size, channels), 0-255, with 3 channels or 1. In the result, `pca`
            may exceed this range, as published.
        seeds: int64 (batch, 2), one pair per image.
        mirrored: whether mirroring was already done with the crop.
    """
    if policy.flip and not policy.pad and not mirrored:
        images = pad_crop_flip(images, seeds, 0, True)
    if policy.randaugment or policy.jitter:

        def recolor(example):
            image, seed = example
            if policy.randaugment:
                image = _randaugment(image, seed, *policy.randaugment)
            return _jitter(image, seed, policy.jitter) if policy.jitter else image

        images = tf.map_fn(recolor, (images, seeds), fn_output_signature=images.dtype)
    return _pca_shift(images, seeds, policy.pca) if policy.pca else images


def _randaugment(image: tf.Tensor, seed: tf.Tensor, layers: int, magnitude: int) -> tf.Tensor:
    """Applies operations drawn with replacement, to integers."""
    operations = list(color.randaugment_operations(static_shape(image)[0], magnitude).values())
    uniforms = draws.uniforms(seed, draws.OPERATIONS, 2 * layers)
    chosen = draws.choose(uniforms[:layers], len(operations))
    signs = tf.where(uniforms[layers:] < 0.5, -1.0, 1.0)
    image = tf.round(image)
    for layer in range(layers):
        branches = [functools.partial(operation, image, signs[layer]) for operation in operations]
        image = tf.floor(tf.ensure_shape(tf.switch_case(chosen[layer], branches), image.shape))
    return image


def _jitter(image: tf.Tensor, seed: tf.Tensor, strengths: Sequence[float]) -> tf.Tensor:
    """Changes brightness, contrast and saturation in random order."""
    operations = (color.brightness, color.contrast, color.saturation)
    uniforms = draws.uniforms(seed, draws.JITTER, 2 * len(operations))
    lows = tf.constant([max(0.0, 1.0 - strength) for strength in strengths])
    highs = tf.constant([1.0 + strength for strength in strengths])
    factors = tf.unstack(lows + uniforms[: len(operations)] * (highs - lows))
    order = tf.argsort(uniforms[len(operations) :])
    for turn in range(len(operations)):
        pairs = zip(operations, factors, strict=True)
        branches = [functools.partial(operation, image, factor) for operation, factor in pairs]
        image = tf.ensure_shape(tf.switch_case(order[turn], branches), image.shape)
    return image


def _pca_shift(images: tf.Tensor, seeds: tf.Tensor, deviation: float) -> tf.Tensor:
    """AlexNet's color augmentation: shifts the colors along their principal components."""
    vectors = np.array(color.EIGENVECTORS)
    if images.shape[3] == 1:
        vectors = np.array([color.GRAY]) @ vectors
    # One constant: graphs and eager mode would multiply several in different orders.
    vectors = tf.constant(255.0 * deviation * np.array(color.EIGENVALUES) * vectors, tf.float32)

    def draw(seed):
        normal = tf.random.stateless_normal([3], draws.stream(seed, draws.PCA), alg="philox")
        return tf.reduce_sum(vectors * normal, 1)

    shifts = tf.map_fn(draw, seeds, fn_output_signature=tf.float32)
    # Whole rows: TensorFlow is slow where the last axis of a broadcast is short.
    batch, height, width, _ = static_shape(images)
    rows = tf.reshape(images, [batch, height, -1]) + tf.tile(shifts, [1, width])[:, None]
    return tf.reshape(rows, images.shape)


def pad_crop_erase(images: tf.Tensor, seeds: tf.Tensor, policy: Augmentation) -> tf.Tensor:
    """Applies the steps after normalization: padding, cropping and mirroring (section 4.2), and erasing.

    Images and seeds are as in `adjust`, but normalized. The padding and the erased rectangles are zeros,
    the mean color.
    """
    if policy.pad:
        images = pad_crop_flip(images, seeds, policy.pad, policy.flip)
    return _erase(images, seeds, policy.erasing) if policy.erasing else images


def _erase(images: tf.Tensor, seeds: tf.Tensor, probability: float) -> tf.Tensor:
    """Sets a rectangle to zero, with torchvision's ranges of area and aspect."""
    batch, size, _, channels = static_shape(images)
    shape = tf.constant([size, size])

    def draw(seed):
        key = draws.stream(seed, draws.ERASED_BOX)
        box, fits = random_box(key, shape, _ERASED_AREA, _ERASED_ASPECT, shape - 1)
        erased = fits & (draws.uniforms(seed, draws.ERASED)[0] < probability)
        return tf.where(erased, box, tf.zeros_like(box))

    boxes = tf.map_fn(draw, seeds, fn_output_signature=tf.int32)
    pixels = tf.range(size)
    inside = [
        (pixels >= boxes[:, axis, None]) & (pixels < boxes[:, axis, None] + boxes[:, axis + 2, None])
        for axis in (0, 1)
    ]
    erased = inside[0][:, :, None] & tf.repeat(inside[1], channels, axis=1)[:, None]
    rows = tf.where(erased, 0.0, tf.reshape(images, [batch, size, -1]))
    return tf.reshape(rows, images.shape)
