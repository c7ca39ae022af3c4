"""Batches of normalized images for training and evaluation, the same bytes wherever they are made."""

import dataclasses
import functools
from collections.abc import Callable, Iterator

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data import augmentation
from keras_resnet.data.augmentation import AUGMENTATIONS, Augmentation, get_augmentation
from keras_resnet.data.decoding import BadImages, attempt_each, cut_window, decode_window
from keras_resnet.data.sources import IndexedSplit, Split
from keras_resnet.errors import InputError
from keras_resnet.images import ops as geometry
from keras_resnet.images.ops import decode_image, with_channels
from keras_resnet.images.preprocessing import Normalization, Preprocessing

_RAW_BATCH = 64
_AT_A_TIME = 8  # examples that one thread prepares in turn
_PADDING = -1  # the index of an example that only fills up a batch
_ORDER, _DRAWS = range(2)  # what a key is for


@dataclasses.dataclass(frozen=True)
class Transform:
    """How a stored image becomes a network's input in training.

    Attributes:
        preprocessing: what is done in evaluation; training replaces its resizing and center crop if
            the augmentation crops.
        augmentation: a name of `AUGMENTATIONS`.

    Raises:
        InputError: for an unknown augmentation, or a number of channels other than 1 and 3.
    """

    preprocessing: Preprocessing
    augmentation: str = "none"

    def __post_init__(self):
        get_augmentation(self.augmentation)
        if self.preprocessing.channels not in (1, 3):
            raise InputError(f"channels must be 1 or 3, not {self.preprocessing.channels}")

    @classmethod
    def create(cls, size: int, normalization: Normalization, augmentation: str = "none") -> "Transform":
        """Creates a transform whose evaluation resizes images as is usual for the augmentation."""
        resize = get_augmentation(augmentation).evaluation_resize(size)
        return cls(Preprocessing(size, resize, "bilinear", normalization), augmentation)

    @property
    def policy(self) -> Augmentation:
        """The augmentation itself."""
        return AUGMENTATIONS[self.augmentation]

    def for_size(self, size: int) -> "Transform":
        """Returns the same transform for another input size."""
        return Transform(self.preprocessing.for_size(size), self.augmentation)


def steps_per_epoch(split: Split, global_batch: int) -> int:
    """The training steps of one epoch; examples that fill no batch are left out of it.

    Raises:
        InputError: for a batch below 1 or larger than the split.
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

    A step's global batch holds the same examples in the same order however it is divided: worker
    `w` takes its `w`-th part, and the worker's replica `r` the `r`-th part of that. The batches
    come as step 0 replica 0, step 0 replica 1, ..., step 1 replica 0, ...

    Args:
        split: the examples.
        transform: what to make of them.
        global_batch: examples a step, over all workers and replicas.
        seed: of the run; not negative.
        epoch: counted from 0; another epoch has another order and other draws.
        first_step: steps of the epoch to leave out; nothing is decoded for them.
        workers: processes that share a step.
        worker: this process's number, from 0.
        replicas: devices of this process.
        bad: told of images that cannot be decoded, which then are black, of label 0 and weight 0.
            With None the first of them is an error where the batches are read.

    Returns:
        Elements `{"images": float32 (batch, height, width, channels), "labels": int32 (batch,),
        "weights": float32 (batch,)}`, with static shapes; channels first where Keras' image data format
        says so.

    Raises:
        InputError: if the batch cannot be divided, or does not fit the split.
    """
    steps = steps_per_epoch(split, global_batch)
    part = _Part(global_batch, workers, worker, replicas)
    if isinstance(split, IndexedSplit):
        ranks = np.random.Philox(_key(seed, epoch, _ORDER)).random_raw(len(split))
        examples = np.argsort(ranks, kind="stable")[: steps * global_batch]
    else:
        examples = split.records(np.random.Generator(np.random.Philox(_key(seed, epoch, _ORDER))))
        examples = examples.take(steps * global_batch)
    draws = int(_key(seed, epoch, _DRAWS).generate_state(1, np.uint64)[0] >> 1)
    return _batches(split, transform, examples, part, first_step, draws, bad)


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

    The last step is filled up with black images of label 0 and weight 0, so that all batches have
    one shape and every replica of every worker sees the same number of them.

    Args:
        split: the examples.
        preprocessing: from their pixels to the network's input.
        global_batch: examples a step, over all workers and replicas.
        workers: processes that share a step.
        worker: this process's number, from 0.
        replicas: devices of this process.
        bad: as for `training_batches`.

    Returns:
        Elements as those of `training_batches`.

    Raises:
        InputError: if the batch cannot be divided.
    """
    if global_batch < 1:
        raise InputError(f"the batch size must be at least 1, not {global_batch}")
    part = _Part(global_batch, workers, worker, replicas)
    missing = -len(split) % global_batch
    if isinstance(split, IndexedSplit):
        examples = np.append(np.arange(len(split)), np.full(missing, _PADDING))
    else:
        padding = tf.data.Dataset.from_tensors((np.int64(_PADDING), b"")).repeat(missing)
        examples = split.records().concatenate(padding)
    return _batches(split, Transform(preprocessing), examples, part, 0, None, bad)


def raw_images(
    split: Split, preprocessing: Preprocessing, limit: int | None = None, bad: BadImages | None = None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The images of `evaluation_batches` before their normalization.

    Args:
        split: the examples.
        preprocessing: from their pixels to the network's input.
        limit: the most examples to yield, spread evenly where examples are found by their number
            (a folder's are sorted by class), else the first; None for all.
        bad: told of images that cannot be decoded; they are left out, with None, too.

    Yields:
        Images, float32 (batch, height, width, channels) in 0-255 and always channels last, and
        labels, int32 (batch,). The last batch may be smaller.
    """
    count = len(split) if limit is None else min(limit, len(split))
    if isinstance(split, IndexedSplit):
        indices = np.arange(count, dtype="int64") * len(split) // max(count, 1)
        examples = tf.data.Dataset.from_tensor_slices((indices, indices))
    else:
        examples = split.records().take(count)
    see = _viewer(split, preprocessing, lambda image, index: _evaluation_view(image, preprocessing))
    report = reporter(split, BadImages() if bad is None else bad)
    views = _parallel(examples.batch(_AT_A_TIME), lambda *some: tuple(attempt_each(see, some, report)))
    views = views.unbatch().filter(lambda image, label, weight: weight > 0)
    batches = views.map(lambda image, label, weight: (image, label)).batch(_RAW_BATCH)
    yield from batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def dataset_statistics(
    split: Split,
    size: int,
    channels: int = 3,
    *,
    resize: int | None = None,
    per_pixel: bool = False,
    bad: BadImages | None = None,
) -> Normalization:
    """The normalization of a split's own pixels, after the evaluation's geometry.

    Args:
        split: usually the training split.
        size: height and width of the network's input, pixels.
        channels: 3 or 1.
        resize: see `Preprocessing`.
        per_pixel: the mean of every pixel, and ones for std (section 4.2); otherwise mean and
            standard deviation of each channel.
        bad: told of images that cannot be decoded; they are left out.

    Returns:
        Means and deviations in 0-255 units; a channel that never varies gets deviation 1.

    Raises:
        InputError: no image can be decoded.
    """
    preprocessing = Preprocessing(size, resize, "bilinear", Normalization.identity(channels))
    total = np.zeros((size, size, channels), "float64")
    squares, count = np.zeros_like(total), 0
    for images, _ in raw_images(split, preprocessing, bad=bad):
        images = images.astype("float64")
        total += images.sum(0)
        squares += np.square(images).sum(0)
        count += len(images)
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


@dataclasses.dataclass(frozen=True)
class _Part:
    """The part of every global batch that one worker makes."""

    global_batch: int
    workers: int
    worker: int
    replicas: int

    def __post_init__(self):
        if self.workers < 1 or self.replicas < 1 or not 0 <= self.worker < self.workers:
            raise InputError(
                f"there is no worker {self.worker} of {self.workers} with {self.replicas} replicas"
            )
        if self.global_batch % (self.workers * self.replicas):
            raise InputError(
                f"the batch size {self.global_batch} cannot be divided among {self.workers * self.replicas}"
                f" replicas ({self.workers} workers x {self.replicas})"
            )

    @property
    def start(self) -> int:
        return self.worker * self.size

    @property
    def size(self) -> int:
        return self.global_batch // self.workers

    @property
    def replica_batch(self) -> int:
        return self.size // self.replicas


def _key(seed: int, epoch: int, purpose: int) -> np.random.SeedSequence:
    """Independent randomness for each (seed, epoch, purpose)."""
    if seed < 0 or epoch < 0:
        raise InputError(f"seed and epoch must not be negative: {seed}, {epoch}")
    return np.random.SeedSequence([seed, epoch, purpose])


def _batches(split, transform, examples, part, first_step, draws, bad) -> tf.data.Dataset:
    """Divides examples among workers and replicas and prepares them.

    Args:
        split: the examples' split.
        transform: what to make of them.
        examples: indices (array), or a dataset of (index, record); whole global batches.
        part: this worker's.
        first_step: global batches to skip.
        draws: the epoch's key, or None for no augmentation.
        bad: told of images that cannot be decoded, or None.
    """
    batch, policy, preprocessing = part.replica_batch, transform.policy, transform.preprocessing
    size = preprocessing.size

    def seeds(indices):
        # A pair of (epoch, example): no two examples share a draw, nor do two epochs of one.
        return tf.stack([tf.fill(tf.shape(indices), tf.constant(draws, tf.int64)), indices], -1)

    def view(image, index):
        """The unnormalized input from pixels or encoded ones."""
        if draws is None or not policy.cuts:
            return _evaluation_view(image, preprocessing)
        cut = functools.partial(decode_window if image.dtype == tf.string else cut_window, image)
        chosen = cut(
            lambda shape: augmentation.window(shape, seeds(index), policy, size),
            size,
            whole_pixels=policy.area is not None,
        )
        if policy.flip:
            # Here and not in `adjust`: one image's columns are turned round in a tenth of the time that
            # a choice among a batch's takes.
            chosen = tf.cond(
                augmentation.is_mirrored(seeds(index)),
                lambda: tf.reverse(chosen, [1]),
                lambda: chosen,
            )
        return with_channels(chosen, preprocessing.channels)

    def finish(images, labels, weights, indices):
        if draws is not None:
            adjusted = dataclasses.replace(policy, flip=policy.flip and not policy.cuts)
            images = augmentation.adjust(images, seeds(indices), adjusted)
        images = _normalized(images, preprocessing.normalization)
        if draws is not None:
            images = augmentation.pad_crop_erase(images, seeds(indices), policy)
        images = tf.cond(
            tf.reduce_all(weights > 0),
            lambda: images,
            lambda: tf.where(weights[:, None, None, None] > 0, images, tf.zeros_like(images)),
        )
        if keras.config.image_data_format() == "channels_first":
            images = tf.transpose(images, [0, 3, 1, 2])
        return {"images": images, "labels": tf.where(weights > 0, labels, 0), "weights": weights}

    if bad is not None and isinstance(split, IndexedSplit) and part.worker == 0:
        for path, reason in split.faults:
            bad.add(path, split.name, reason)
    if isinstance(split, IndexedSplit):
        examples = examples.astype("int64").reshape(-1, part.global_batch)
        examples = examples[first_step:, part.start : part.start + part.size].reshape(-1)
        if split.decoded and not policy.cuts and preprocessing.resize is None:

            def prepare_batch(indices):
                images, labels = split.gather(tf.maximum(indices, 0))
                weights = tf.cast(indices != _PADDING, tf.float32)
                return finish(view(images, indices), labels, weights, indices)

            batches = tf.data.Dataset.from_tensor_slices(examples.reshape(-1, batch))
            return _configured(_parallel(batches, prepare_batch))
        records = tf.data.Dataset.from_tensor_slices((examples, examples))
    else:
        records = examples.skip(first_step * part.global_batch)
        if part.workers > 1:
            # Records of other workers are read, in order to keep count, but never decoded.
            turns = records.enumerate().filter(
                lambda turn, record: (turn % part.global_batch) // part.size == part.worker
            )
            records = turns.map(lambda turn, record: record)
    see = _viewer(split, preprocessing, view)
    report = None if bad is None or split.decoded else reporter(split, bad)
    count = max(number for number in range(1, _AT_A_TIME + 1) if batch % number == 0)

    def prepare(indices, records):
        return *attempt_each(see, (indices, records), report), indices

    def join(*parts):
        return finish(*(tf.reshape(part, [batch, *part.shape[2:]]) for part in parts))

    prepared = _parallel(records.batch(count, drop_remainder=True), prepare)
    return _configured(_parallel(prepared.batch(batch // count, drop_remainder=True), join))


def _parallel(dataset: tf.data.Dataset, function: Callable) -> tf.data.Dataset:
    # Nothing here is for AutoGraph, which would take most of the time until the first batch.
    function = tf.autograph.experimental.do_not_convert(function)
    return dataset.map(function, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)


def _evaluation_view(image: tf.Tensor, preprocessing: Preprocessing) -> tf.Tensor:
    """The unnormalized input of pixels or of an encoded image."""
    pixels = decode_image(image) if image.dtype == tf.string else image
    return geometry.evaluation_view(
        pixels, preprocessing.resize, preprocessing.size, preprocessing.channels, preprocessing.interpolation
    )


def _normalized(images: tf.Tensor, normalization: Normalization) -> tf.Tensor:
    """A batch normalized, to the same bits as by `normalization` itself, in a fifth of the time.

    Three numbers are too few to repeat quickly along each pixel; a row of them is not.
    """
    batch, height, width, channels = images.shape
    if normalization.shape != (channels,):
        return normalization(images)
    row = Normalization(tuple(normalization.mean) * width, tuple(normalization.std) * width)
    return tf.reshape(row(tf.reshape(images, [batch, height, width * channels])), images.shape)


def _viewer(split: Split, preprocessing: Preprocessing, view: Callable) -> Callable:
    """From (index, record) to the unnormalized input, its label and its weight.

    Args:
        split: of which `record` is an example; the index again where the split is indexed.
        preprocessing: has the input's shape.
        view: from (pixels or encoded image, index) to the input.
    """
    shape = (preprocessing.size, preprocessing.size, preprocessing.channels)

    def see(index, record):
        def real():
            image, label = (split.gather if split.decoded else split.fetch)(record)
            return tf.ensure_shape(view(image, index), shape), label, tf.constant(1.0)

        def padding():
            return tf.zeros(shape), tf.constant(0), tf.constant(0.0)

        return tf.cond(index == _PADDING, padding, real)

    return see


def reporter(split: Split, bad: BadImages) -> Callable[[np.ndarray, np.ndarray], None]:
    """What puts examples that failed into `bad`."""

    def report(indices, records):
        for index, record in zip(indices.tolist(), records.tolist(), strict=True):
            name, reason = split.fault(index, record)
            if reason is None:
                raise RuntimeError(f"{name} of {split.name} can be decoded, but could not be prepared")
            bad.add(name, split.name, reason)

    return report


def _configured(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    # The division among workers is already made.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)
