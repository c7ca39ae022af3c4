"""Finds the images of a dataset that cannot be used, before a training run does."""

import os
import sys
import time

import numpy as np
import tensorflow as tf

from keras_resnet.data.decoding import BadImages, attempt_each
from keras_resnet.data.pipeline import reporter
from keras_resnet.data.sources import Dataset, IndexedSplit, Split, open_dataset
from keras_resnet.images.ops import decode_image
from keras_resnet.tables import markdown_table

_AT_A_TIME = 16
_SECONDS_BETWEEN_LINES = 1.0


def check(path_or_dataset: str | os.PathLike | Dataset) -> list[tuple[str, str]]:
    """Decodes every image of every split, with a line of progress on standard error.

    Args:
        path_or_dataset: a folder of images as `folder:PATH` takes it, or a dataset.

    Returns:
        `(path, reason)` of the unusable, sorted; for a dataset that has no files, `split, record number`
        instead of a path.

    Raises:
        InputError: the path is no such folder.
    """
    return _check(_opened(path_or_dataset))[0]


def main_check(path: str) -> int:
    """Prints a folder's unusable images as a table, and how many there are.

    Returns:
        The exit status: 1 if there are any, else 0.

    Raises:
        InputError: the path is no such folder.
    """
    rows, total = _check(_opened(path))
    if rows:
        print(markdown_table(["path", "reason"], [list(row) for row in rows]))
        print()
    print(f"{total} images, {len(rows)} cannot be used")
    return 1 if rows else 0


def _opened(path_or_dataset) -> Dataset:
    if isinstance(path_or_dataset, Dataset):
        return path_or_dataset
    path = os.fspath(path_or_dataset)
    return open_dataset(path if path.startswith("folder:") else f"folder:{path}")


def _check(dataset: Dataset) -> tuple[list[tuple[str, str]], int]:
    """The unusable images, and how many images there are."""
    bad, total, done = BadImages(), sum(dataset.sizes.values()), 0
    named = True
    begun = shown = time.monotonic()
    for name in dataset.split_names:
        split = dataset.split(name)
        named = isinstance(split, IndexedSplit) and split.files
        for count in _decoded(split, bad):
            done += count
            if time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
                shown = time.monotonic()
                _say(f"{done} of {total} images, {bad.count} bad, {done / (shown - begun):.0f} images/s")
    _say(f"{done} of {total} images, {bad.count} bad", last=True)
    # A file name that is not text is shown, not printed as it is.
    rows = [
        (path.encode("utf-8", "surrogateescape").decode("utf-8", "replace"), split, reason)
        for path, split, reason in bad.rows()
    ]
    return [(path if named else f"{split}, {path}", reason) for path, split, reason in rows], total


def _decoded(split: Split, bad: BadImages):
    """Decodes a split's images, and yields how many more were looked at."""
    if isinstance(split, IndexedSplit):
        for path, reason in split.faults:
            bad.add(path, split.name, reason)
        if split.decoded:
            yield len(split)
            return
        indices = np.arange(len(split), dtype="int64")
        examples = tf.data.Dataset.from_tensor_slices((indices, indices))
    else:
        examples = split.records()

    def decode(index, record):
        del index
        encoded, _ = split.fetch(record)
        return (tf.shape(decode_image(encoded))[0],)

    def look(*some):
        return tf.size(attempt_each(decode, some, reporter(split, bad))[0])

    looked = examples.batch(_AT_A_TIME).map(
        tf.autograph.experimental.do_not_convert(look), num_parallel_calls=tf.data.AUTOTUNE
    )
    for count in looked.prefetch(tf.data.AUTOTUNE).as_numpy_iterator():
        yield int(count)


def _say(line: str, last: bool = False) -> None:
    """One line that is written over where someone watches; only the last of them elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{line:<79}", end="\n" if last else "", file=sys.stderr, flush=True)
    elif last:
        print(line, file=sys.stderr, flush=True)
