"""mixup and cutmix of a batch, as pure functions of (seed, step, part)."""

from typing import Any

import keras
import tensorflow as tf


def mix(
    images: tf.Tensor, targets: tf.Tensor, mixup: float, cutmix: float, key: tuple
) -> tuple[tf.Tensor, tf.Tensor]:
    """Mixes a batch with itself in reverse order.

    `images` are float32 in Keras' image data format, `targets` float32 (batch, classes). `mixup` (Zhang et
    al., 2018) and `cutmix` (Yun et al., 2019) are the alphas of their Beta distributions; 0 is off, and with
    both each batch uses one. `key` is (seed, step, part), integers or integer tensors.
    """
    if not mixup and not cutmix:
        return images, targets
    seed, step, part = (tf.cast(value, tf.int32) for value in key)
    random: Any = tf.random.experimental  # pyright: ignore[reportAttributeAccessIssue]: not in the stubs
    base = random.stateless_fold_in(tf.stack([seed, step]), part)
    seeds = random.stateless_split(base, 6)
    if mixup and cutmix:
        return tf.cond(
            tf.random.stateless_uniform((), seeds[0]) < 0.5,
            lambda: _mixup(images, targets, mixup, seeds),
            lambda: _cutmix(images, targets, cutmix, seeds),
        )
    return _mixup(images, targets, mixup, seeds) if mixup else _cutmix(images, targets, cutmix, seeds)


def _share(alpha, seeds):
    # A Beta variable from two Gamma variables.
    a = tf.random.stateless_gamma((), seeds[1], alpha)
    b = tf.random.stateless_gamma((), seeds[2], alpha)
    return tf.math.divide_no_nan(a, a + b)


def _blend(a, b, share):
    return a * share + b * (1.0 - share)


def _mixup(images, targets, alpha, seeds):
    share = _share(alpha, seeds)
    return _blend(images, images[::-1], share), _blend(targets, targets[::-1], share)


def _cutmix(images, targets, alpha, seeds):
    first = 2 if keras.config.image_data_format() == "channels_first" else 1
    height, width = tf.shape(images)[first], tf.shape(images)[first + 1]
    side = tf.sqrt(1.0 - _share(alpha, seeds))
    rows, columns = _span(height, side, seeds[3]), _span(width, side, seeds[4])
    inside = tf.cast(rows[:, None] & columns[None, :], images.dtype)
    mask = inside[None, None] if first == 2 else inside[None, :, :, None]
    # The box is clipped at the border, so the targets use its actual area.
    share = 1.0 - tf.reduce_mean(inside)
    return images * (1 - mask) + images[::-1] * mask, _blend(targets, targets[::-1], share)


def _span(size, side, seed):
    length = tf.cast(tf.cast(size, tf.float32) * side, tf.int32)
    center = tf.random.stateless_uniform((), seed, 0, size, dtype=tf.int32)
    position = tf.range(size)
    return (position >= center - length // 2) & (position < center - length // 2 + length)
