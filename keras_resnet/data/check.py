"""Finds the images of a dataset that cannot be used for training."""

import os

import tensorflow as tf

from keras_resnet.data.examples import (
    PADDING,
    BadImages,
    Shard,
    in_order,
    prefetched,
    prepare_batches,
    record_skipped_files,
    shard_examples,
)
from keras_resnet.data.sources import Dataset, open_dataset
from keras_resnet.errors import printable
from keras_resnet.images.decode import decode_mirrored
from keras_resnet.progress import ProgressBar
from keras_resnet.tables import markdown_table

_BATCH = 16


def check(path: str | os.PathLike) -> int:
    """Decodes every image of a folder (with or without `folder:`), and prints a table of the unusable ones.

    Returns the exit status: 1 if there are unusable images, else 0.
    """
    path = os.fspath(path)
    rows, total = find_unusable(open_dataset(path if path.startswith("folder:") else f"folder:{path}"))
    if rows:
        print(markdown_table(["path", "reason"], rows), end="\n\n")
    print(f"{total} images, {len(rows)} cannot be used")
    return 1 if rows else 0


def find_unusable(dataset: Dataset) -> tuple[list[tuple[str, str]], int]:
    """Decodes every image of every split; shows the progress.

    Returns:
        Sorted `(path, reason)` of the unusable images, and the number of all images.
    """
    bad, total = BadImages(), sum(dataset.sizes.values())
    with ProgressBar(total, "images", "decoding") as bar:
        for name in dataset.split_names:
            split = dataset.split(name)
            record_skipped_files(split, bad)
            batches = prepare_batches(
                split,
                shard_examples(in_order(split, _BATCH), Shard(_BATCH)),
                _BATCH,
                lambda image, index: (tf.cast(tf.shape(decode_mirrored(image)[0])[0], tf.float32),),
                [()],
                lambda heights, labels, weights, indices: tf.math.count_nonzero(indices != PADDING),
                bad,
            )
            for count in prefetched(batches).as_numpy_iterator():
                bar.update(int(count), f"{bad.count} bad")
    return [(printable(path), why) for path, _, why in bad.rows()], total
