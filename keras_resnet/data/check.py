"""Finds the images of a dataset that cannot be used for training."""

import os
import sys
import time
from collections.abc import Iterator

import tensorflow as tf

from keras_resnet.data.examples import (
    PADDING,
    BadImages,
    Shard,
    in_order,
    prepare_batches,
    record_skipped_files,
    shard_examples,
)
from keras_resnet.data.sources import Dataset, Split, open_dataset
from keras_resnet.images.decode import decode_image
from keras_resnet.tables import markdown_table

_BATCH = 16
_SECONDS_BETWEEN_LINES = 1.0


def check(path: str | os.PathLike) -> int:
    """Decodes every image of a folder, and prints a table of the unusable ones.

    Args:
        path: a folder of images, with or without the prefix `folder:`.

    Returns:
        The exit status: 1 if there are unusable images, else 0.

    Raises:
        InputError: the path is not a folder of images.
    """
    path = os.fspath(path)
    rows, total = find_unusable(open_dataset(path if path.startswith("folder:") else f"folder:{path}"))
    if rows:
        print(markdown_table(["path", "reason"], [list(row) for row in rows]))
        print()
    print(f"{total} images, {len(rows)} cannot be used")
    return 1 if rows else 0


def find_unusable(dataset: Dataset) -> tuple[list[tuple[str, str]], int]:
    """Decodes every image of every split, printing the progress on standard error.

    Returns:
        Sorted `(path, reason)` of the unusable images, and the number of all images.
    """
    bad, total, done = BadImages(), sum(dataset.sizes.values()), 0
    begun = shown = time.monotonic()
    for name in dataset.split_names:
        for count in _decode(dataset.split(name), bad):
            done += count
            if time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                _say(f"{done} of {total} images, {bad.count} bad, {done / (shown - begun):.0f} images/s")
    _say(f"{done} of {total} images, {bad.count} bad", last=True)
    # Invalid bytes in file names are replaced.
    paths = [
        (path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), why)
        for path, _, why in bad.rows()
    ]
    return paths, total


def _decode(split: Split, bad: BadImages) -> Iterator[int]:
    """Decodes the images of a split, and yields the number of images of each batch."""
    record_skipped_files(split, bad)
    batches = prepare_batches(
        split,
        shard_examples(in_order(split, _BATCH), Shard(_BATCH)),
        _BATCH,
        lambda image, index: (tf.cast(tf.shape(decode_image(image))[0], tf.float32),),
        [()],
        lambda heights, labels, weights, indices: tf.reduce_sum(tf.cast(indices != PADDING, tf.int32)),
        bad,
    )
    for count in batches.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        yield int(count)


def _say(line: str, last: bool = False) -> None:
    """Overwrites the progress line on a terminal; elsewhere prints only the last one."""
    if sys.stderr.isatty():
        print(f"\r{line:<79}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(line, file=sys.stderr, flush=True)
