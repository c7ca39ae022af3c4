"""Reproducible batches of normalized images for training and evaluation."""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, cast

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data.augmentation import AUGMENTATIONS, Augmentation, get_augmentation
from keras_resnet.data.augmentation.apply import adjust, pad_crop_erase
from keras_resnet.data.augmentation.crop import random_crop
from keras_resnet.data.examples import (
    PADDING,
    BadImages,
    Shard,
    in_order,
    parallel_map,
    prefetched,
    prepare_batches,
    record_skipped_files,
    shard_examples,
)
from keras_resnet.data.sources import Split, pipeline_errors
from keras_resnet.errors import InputError
from keras_resnet.images.decode import decode_mirrored
from keras_resnet.images.ops import evaluation_view, normalize, with_channels
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.progress import ProgressBar

_RAW_BATCH, _RAW_GROUP = 64, 8
_ORDER, _AUGMENTATION = range(2)  # purposes of random keys


@dataclasses.dataclass(frozen=True)
class Transform:
    """Converts stored images to a network's input in training.

    If the augmentation crops, training replaces the resizing and center crop of `preprocessing`.

    Raises:
        InputError: the augmentation is not in `AUGMENTATIONS`, or the number of channels is not 1 or 3.
    """

    preprocessing: Preprocessing
    augmentation: str = "none"

    def __post_init__(self):
        get_augmentation(self.augmentation)
        if self.preprocessing.channels not in (1, 3):
            raise InputError(f"channels must be 1 or 3, not {self.preprocessing.channels}")

    @classmethod
    def create(cls, size: int, normalization: Normalization, augmentation: str = "none") -> "Transform":
        """Creates a transform with the usual evaluation resizing for the augmentation."""
        resize = get_augmentation(augmentation).evaluation_resize(size)
        return cls(Preprocessing(size, resize, "bilinear", normalization), augmentation)

    @property
    def policy(self) -> Augmentation:
        """The augmentation policy."""
        return AUGMENTATIONS[self.augmentation]

    def for_size(self, size: int) -> "Transform":
        """Returns the same transform for another input size."""
        return Transform(self.preprocessing.for_size(size), self.augmentation)


def steps_per_epoch(split: Split, global_batch: int) -> int:
    """The number of training steps per epoch, without the last incomplete batch.

    Raises:
        InputError: the batch size is below 1 or larger than the split.
    """
    if global_batch < 1:
        raise InputError(f"the batch size must be at least 1, not {global_batch}")
    if global_batch > len(split):
        raise InputError(
            f"the batch size {global_batch} is larger than the split {split.name!r}, {len(split)} examples"
        )
    return len(split) // global_batch


def training_batches(
    split: Split,
    transform: Transform,
    *,
    global_batch: int,
    seed: int,
    epoch: int,
    first_step: int = 0,
    workers: int = 1,
    worker: int = 0,
    replicas: int = 1,
    bad: BadImages | None = None,
) -> tf.data.Dataset:
    """One epoch of shuffled, augmented batches, each for one replica.

    A global batch holds the same examples in the same order for any number of workers and replicas:
    worker `w` gets its `w`-th part, and the worker's replica `r` the `r`-th part of that. The order of
    the batches is step 0 replica 0, step 0 replica 1, ..., step 1 replica 0, ...

    Args:
        global_batch: examples per step, over all workers and replicas.
        epoch: counted from 0; each epoch has its own order and augmentation.
        first_step: number of steps to skip; nothing is decoded for them.
        replicas: devices of this worker.
        bad: records images that cannot be decoded, which become black with label 0 and weight 0.
            If None, the first of them is an error when the batches are read.

    Returns:
        Elements `{"images": float32 (batch, height, width, channels), "labels": int32 (batch,),
        "weights": float32 (batch,)}`, with static shapes, in Keras' image data format.

    Raises:
        InputError: the batch cannot be divided or is larger than the split, or `seed` is negative.
    """
    steps = steps_per_epoch(split, global_batch)
    shard = Shard(global_batch, workers, worker, replicas)
    order = np.argsort(epoch_order(seed, epoch).random_raw(len(split)), kind="stable")
    examples = order[: steps * global_batch]
    return _batches(split, transform, examples, shard, first_step, augmentation_seed(seed, epoch), bad)


def evaluation_batches(
    split: Split,
    preprocessing: Preprocessing,
    *,
    global_batch: int,
    workers: int = 1,
    worker: int = 0,
    replicas: int = 1,
    bad: BadImages | None = None,
) -> tf.data.Dataset:
    """Every example exactly once, in order, without augmentation.

    Arguments and elements are those of `training_batches`. The last step is padded with black images of
    label 0 and weight 0, so that all batches have the same shape and all replicas get the same number
    of batches.

    Raises:
        InputError: the batch cannot be divided.
    """
    if global_batch < 1:
        raise InputError(f"the batch size must be at least 1, not {global_batch}")
    shard = Shard(global_batch, workers, worker, replicas)
    examples = in_order(split, global_batch)
    return _batches(split, Transform(preprocessing), examples, shard, 0, None, bad)


def raw_images(
    split: Split, preprocessing: Preprocessing, limit: int | None = None, bad: BadImages | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images of `evaluation_batches` before their normalization; `limit` is that of `in_order`.

    Yields:
        Images, float32 (batch, height, width, channels), 0-255, always channels last, and
        labels, int32 (batch,). The last batch may be smaller; images that cannot be decoded are skipped.
    """
    indices = shard_examples(in_order(split, _RAW_GROUP, limit), Shard(_RAW_GROUP))
    groups = prepare_batches(
        split,
        indices,
        _RAW_GROUP,
        lambda image, index: (_evaluation_view(image, preprocessing),),
        [preprocessing.input_shape],
        lambda images, labels, weights, indices: (images, labels, weights),
        bad or BadImages(),
    )
    images = cast(Any, groups.unbatch())  # annotated for functions of one argument only
    usable = images.filter(lambda image, label, weight: weight > 0)
    batches = usable.map(lambda image, label, weight: (image, label)).batch(_RAW_BATCH)
    with pipeline_errors():
        yield from cast(Any, prefetched(batches)).as_numpy_iterator()


def dataset_statistics(
    split: Split,
    size: int,
    channels: int = 3,
    *,
    resize: int | None = None,
    per_pixel: bool = False,
    bad: BadImages | None = None,
    show_progress: bool = True,
) -> Normalization:
    """Computes the normalization of a split, resized to `size` and cropped as in evaluation.

    With `per_pixel`, it has the mean of each pixel and std 1 (section 4.2), otherwise the mean and standard
    deviation of each channel; the deviation of a constant channel is 1.

    Raises:
        InputError: no image can be decoded.
    """
    preprocessing = Preprocessing(size, resize, "bilinear", Normalization.identity(channels))
    total = np.zeros((size, size, channels), "float64")
    squares, count = np.zeros_like(total), 0
    about = "mean and standard deviation of the pixels"
    with ProgressBar(len(split), "images", about, visible=show_progress) as bar:
        for images, _ in raw_images(split, preprocessing, bad=bad):
            images = images.astype("float64")
            total += images.sum(0)
            squares += np.square(images).sum(0)
            count += len(images)
            bar.update(len(images))
    if not count:
        raise InputError(f"not one image of the split {split.name!r} can be decoded")
    mean = total / count
    if per_pixel:
        return Normalization(mean.tolist(), (1.0,) * channels)
    mean, square = mean.mean((0, 1)), (squares / count).mean((0, 1))
    variance = np.maximum(square - np.square(mean), 0)
    # Rounding leaves a little variance in a constant channel.
    std = np.where(variance > 1e-6, np.sqrt(variance), 1.0)
    return Normalization(tuple(mean.tolist()), tuple(std.tolist()))


def _key(seed: int, epoch: int, purpose: int) -> np.random.SeedSequence:
    """An independent random key for each (seed, epoch, purpose)."""
    if seed < 0 or epoch < 0:
        raise InputError(f"seed and epoch must not be negative: {seed}, {epoch}")
    return np.random.SeedSequence([seed, epoch, purpose])


def epoch_order(seed: int, epoch: int) -> np.random.Philox:
    """The random numbers that decide the order of an epoch's examples."""
    return np.random.Philox(_key(seed, epoch, _ORDER))


def augmentation_seed(seed: int, epoch: int) -> int:
    """The first number of the seed pairs of an epoch's augmentations; the second is the example's index."""
    return int(_key(seed, epoch, _AUGMENTATION).generate_state(1, np.uint64)[0]) >> 1


def _batches(split, transform, examples, shard, first_step, seed, bad) -> tf.data.Dataset:
    """Shards, prepares and batches examples; without an augmentation seed, as in evaluation."""
    record_skipped_files(split, bad, shard.worker)
    preprocessing, batch = transform.preprocessing, shard.replica_batch
    indices = shard_examples(examples, shard, first_step)
    crops = seed is not None and transform.policy.crops
    finish = functools.partial(_finish, transform=transform, seed=seed)

    def prepare(image, index):
        if seed is None or not crops:
            return (_evaluation_view(image, preprocessing),)
        image = random_crop(image, _seed_pairs(seed, index), transform.policy, preprocessing.size)
        return (with_channels(image, preprocessing.channels),)

    def prepare_batch(indices):
        images, labels = split.fetch(tf.maximum(indices, 0))
        weights = tf.cast(indices != PADDING, tf.float32)
        return finish(_evaluation_view(images, preprocessing), labels, weights, indices)

    if split.decoded and not crops and preprocessing.resize is None:
        batches = parallel_map(indices.batch(batch, drop_remainder=True), prepare_batch)
    else:
        batches = prepare_batches(split, indices, batch, prepare, [preprocessing.input_shape], finish, bad)
    return prefetched(batches)


def _finish(images, labels, weights, indices, transform: Transform, seed: int | None) -> dict:
    """Augments and normalizes a batch of cropped images; images of weight 0 become zeros."""
    policy = transform.policy
    if seed is not None:
        images = adjust(images, _seed_pairs(seed, indices), policy, mirrored=policy.crops)
    images = normalize(images, transform.preprocessing.normalization)
    if seed is not None:
        images = pad_crop_erase(images, _seed_pairs(seed, indices), policy)
    images = tf.cond(
        tf.reduce_all(weights > 0),
        lambda: images,
        lambda: tf.where(weights[:, None, None, None] > 0, images, tf.zeros_like(images)),
    )
    if keras.config.image_data_format() == "channels_first":
        images = tf.transpose(images, [0, 3, 1, 2])
    return {"images": images, "labels": tf.where(weights > 0, labels, 0), "weights": weights}


def _seed_pairs(seed: int, indices: tf.Tensor) -> tf.Tensor:
    """The seed pair (epoch, example) of each example."""
    return tf.stack([tf.fill(tf.shape(indices), tf.constant(seed, tf.int64)), indices], -1)


def _evaluation_view(image: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """The unnormalized input for a decoded or encoded image."""
    pixels, transposed = decode_mirrored(image) if image.dtype == tf.string else (image, None)
    return evaluation_view(
        pixels,
        preprocessing.resize,
        preprocessing.size,
        preprocessing.channels,
        preprocessing.interpolation,
        transposed,
    )
