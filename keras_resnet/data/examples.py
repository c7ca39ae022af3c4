"""Reads examples: sharding, loading, preparation, and handling of images that cannot be decoded."""

import csv
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.data.sources import IndexedSplit, Split
from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path
from keras_resnet.images.decode import each, try_each
from keras_resnet.processes import cores

PADDING = -1
"""Index of the padding examples that fill up a batch."""

_GROUP = 8  # maximum number of examples that a thread prepares at once
# Maximum number of batches that are joined and augmented at once: each of 256 photographs takes 150 MB
# and, with RandAugment, a third of a second.
_JOINS = 16
_COLUMNS = ("path", "split", "reason")


class BadImages:
    """Records images that cannot be decoded, once per (path, split).

    Pipelines add to it from their threads while the run reads it.
    """

    def __init__(self):
        self._reasons: dict[tuple[str, str], str] = {}
        self._lock = threading.Lock()

    @property
    def count(self) -> int:
        """The number of recorded images."""
        return len(self._reasons)

    def add(self, path: str, split: str, reason: str) -> None:
        """Records an image by its path, or another unique name of the example in its split."""
        with self._lock:
            self._reasons[path, split] = reason

    def rows(self) -> list[tuple[str, str, str]]:
        """Sorted `(path, split, reason)` of all images."""
        with self._lock:
            return sorted((*key, reason) for key, reason in self._reasons.items())

    def check(self, limit: int) -> None:
        """Raises `InputError` if there are more than `limit`."""
        if self.count > limit:
            path, _, reason = self.rows()[0]
            raise InputError(
                f"{self.count} images cannot be used, {limit} are allowed (--max_bad_images);"
                f" one of them: {path!r} is {reason}"
            )

    def write(self, path: str | os.PathLike) -> None:
        """Replaces a CSV file with `rows`, atomically; raises `OSError` if it cannot be written."""
        # File names may not be valid text.
        with (
            atomic_path(path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file,
        ):
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(_COLUMNS)
            writer.writerows(self.rows())

    def read(self, path: str | os.PathLike) -> None:
        """Adds the rows of a file that `write` wrote, if it exists; raises `InputError` for another file.

        A run that resumes within an epoch does not read the earlier examples again.
        """
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as file:
                header, *rows = csv.reader(file)
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}") from None
        if tuple(header) != _COLUMNS or any(len(row) != len(_COLUMNS) for row in rows):
            raise InputError(f"{path} is not a list of bad images; its columns are {', '.join(_COLUMNS)}")
        for row in rows:
            self.add(*row)


@dataclasses.dataclass(frozen=True)
class Shard:
    """The part of every global batch that one worker prepares."""

    global_batch: int
    workers: int = 1
    worker: int = 0
    replicas: int = 1

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
    def size(self) -> int:
        """The worker's number of examples per global batch."""
        return self.global_batch // self.workers

    @property
    def replica_batch(self) -> int:
        """The number of examples per replica."""
        return self.size // self.replicas


def in_order(split: Split, multiple: int, limit: int | None = None) -> np.ndarray:
    """The indices of all examples, in order, padded to a multiple of `multiple`, for `shard_examples`.

    With a `limit`, at most so many, spread evenly over the split (folders are sorted by class).
    """
    count = len(split) if limit is None else min(limit, len(split))
    indices = np.arange(count, dtype="int64") * len(split) // max(count, 1)
    return np.append(indices, np.full(-count % multiple, PADDING))


def shard_examples(indices: np.ndarray, shard: Shard, first_step: int = 0) -> tf.data.Dataset:
    """The indices of one worker's examples, int64 (), of each global batch from `first_step`.

    `indices` are those of whole global batches.
    """
    steps = indices.astype("int64").reshape(-1, shard.workers, shard.size)
    return tf.data.Dataset.from_tensor_slices(steps[first_step:, shard.worker].reshape(-1))


def prepare_batches(
    split: Split,
    indices: tf.data.Dataset,
    batch: int,
    prepare: Callable[[tf.Tensor, tf.Tensor], Sequence[tf.Tensor]],
    shapes: Sequence[tuple],
    finish: Callable,
    bad: BadImages | None,
) -> tf.data.Dataset:
    """Loads and prepares each example, and batches them.

    Args:
        indices: what `shard_examples` returns, of the split.
        batch: examples per batch.
        prepare: converts an image, decoded or encoded, and its index to float32 tensors.
        shapes: shapes of these tensors; sides may be unknown only if `batch` is 1.
        finish: converts a batch of each tensor, the labels, weights and indices to an element. The
            weight is 0 for padding and for images that cannot be decoded; their tensors are zeros.
        bad: records images that cannot be decoded; if None, the first of them is an error.
    """
    group = max(number for number in range(1, _GROUP + 1) if batch % number == 0)

    def load(index):
        def example():
            image, label = split.fetch(index)
            tensors = prepare(image, index)
            return *(tf.ensure_shape(*pair) for pair in zip(tensors, shapes, strict=True)), label

        def padding():
            return *(tf.zeros([side or 1 for side in shape]) for shape in shapes), tf.constant(0)

        return tf.cond(index == PADDING, padding, example)

    def load_group(indices):
        if bad is None or split.decoded:
            results = each(load, (indices,)).batch(group, drop_remainder=True)
            _, *results = results.get_single_element()
            succeeded = tf.fill([group], True)
        else:
            results, succeeded = _try_twice(load, indices, shapes)
            succeeded = _report(split, bad, succeeded, indices)
        return *results, tf.cast(succeeded & (indices != PADDING), tf.float32), indices

    def join(*groups):
        *tensors, labels, weights, indices = (_concatenate(some, batch) for some in groups)
        return finish(*tensors, labels, weights, indices)

    groups = parallel_map(indices.batch(group, drop_remainder=True), load_group)
    return parallel_map(groups.batch(batch // group, drop_remainder=True), join, _JOINS)


def _try_twice(
    load: Callable, indices: tf.Tensor, shapes: Sequence[tuple]
) -> tuple[Sequence[tf.Tensor], tf.Tensor]:
    """`try_each` of a group of examples, twice if any fails: an error of a file system may pass.

    A loop, because the graph of two calls would take twice as long to trace.
    """
    group = indices.shape
    specs = [*(tf.TensorSpec(group + shape) for shape in shapes), tf.TensorSpec(group, tf.int32)]
    empty = [tf.zeros(group + (0,) * (spec.shape.rank - 1), spec.dtype) for spec in specs]
    succeeded, results = tf.while_loop(
        lambda succeeded, results: ~tf.reduce_all(succeeded),
        lambda succeeded, results: try_each(load, (indices,))[::-1],
        (tf.fill(group, False), tuple(empty)),
        shape_invariants=(group, tuple(group + (None,) * (spec.shape.rank - 1) for spec in specs)),
        maximum_iterations=2,
    )
    return [
        tf.ensure_shape(*pair) for pair in zip(results, (spec.shape for spec in specs), strict=True)
    ], succeeded


def parallel_map(dataset: tf.data.Dataset, function: Callable, limit: int = sys.maxsize) -> tf.data.Dataset:
    """Maps a dataset, in order, with a thread for each core, at most `limit`."""
    # AutoGraph is not needed, and would take most of the time until the first batch.
    function = tf.autograph.experimental.do_not_convert(function)
    # `AUTOTUNE` would stand for at most 16 threads, see `prefetched`.
    threads = min(len(cores()), limit)
    return dataset.map(function, num_parallel_calls=threads, deterministic=True)


def prefetched(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """Prefetches a dataset: deterministic, without autotuning, and not sharded again."""
    options = tf.data.Options()
    # The end of an iterator can wait a minute for the autotuner's thread, which is not always woken.
    options.autotune.enabled = False
    options.deterministic = True
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    return dataset.prefetch(tf.data.AUTOTUNE).with_options(options)


def record_skipped_files(split: Split, bad: BadImages | None, worker: int = 0) -> None:
    """Records the entries of a folder that are not examples, on the first worker only."""
    if bad is not None and isinstance(split, IndexedSplit) and worker == 0:
        for path, reason in split.skipped_files:
            bad.add(path, split.name, reason)


def _concatenate(groups: tf.Tensor, batch: int) -> tf.Tensor:
    """Reshapes (groups, examples per group, ...) to (batch, ...)."""
    merged = tf.reshape(groups, tf.concat([[batch], tf.shape(groups)[2:]], 0))
    return tf.ensure_shape(merged, (batch, *groups.shape[2:]))


def _report(split: Split, bad: BadImages, succeeded: tf.Tensor, indices: tf.Tensor) -> tf.Tensor:
    """Records the examples that failed, and returns `succeeded`."""

    def record_failures(succeeded, indices):
        for index in indices[~succeeded].tolist():
            name, reason = split.decode_error(index)
            if reason is None:
                reason = "an image that can be decoded, but two attempts to read and prepare it failed"
            bad.add(name, split.name, reason)
        return succeeded

    def failed():
        reported = tf.numpy_function(record_failures, [succeeded, indices], tf.bool)
        return tf.ensure_shape(reported, succeeded.shape)

    return tf.cond(tf.reduce_all(succeeded), lambda: succeeded, failed)
