"""Batches of views of images, independent of the number of replicas and workers."""

import itertools
from collections.abc import Sequence

import keras
import tensorflow as tf

from keras_resnet.classification.protocols import Protocol
from keras_resnet.data import BadImages, IndexedSplit, Split
from keras_resnet.data.examples import (
    Shard,
    in_order,
    prefetched,
    prepare_batches,
    record_skipped_files,
    shard_examples,
)
from keras_resnet.images.decode import decode_mirrored
from keras_resnet.images.preprocessing import Preprocessing


def fits_batches(split: Split, protocol: Protocol) -> bool:
    """Whether the views of several images have the same sizes, so that they can be batched."""
    return not protocol.fully_convolutional or (isinstance(split, IndexedSplit) and split.decoded)


def view_batches(
    split: Split, protocol: Protocol, preprocessings: Sequence[Preprocessing], shard: Shard, bad: BadImages
) -> tf.data.Dataset:
    """The batches of one worker's replicas: step 0 replica 0, step 0 replica 1, ...

    The last step is padded with examples of weight 0, so that all replicas get the same number of
    batches. `preprocessings` has an entry for each network; `bad` records images that cannot be decoded.

    Returns:
        Elements `{"views": for each network a tuple of float32 (batch, views, height, width,
        channels), one for each size, "labels": int32 (batch,), "weights": float32 (batch,), 1 or 0}`,
        in Keras' image data format. The weight is 0 for images that cannot be decoded.
    """
    counts = [len(protocol.resizes(preprocessing)) for preprocessing in preprocessings]
    channels_first = keras.config.image_data_format() == "channels_first"

    def prepare(image, index):
        pixels, turn = decode_mirrored(image) if image.dtype == tf.string else (image, None)
        return [view for how in preprocessings for view in protocol.views(pixels, how, turn)]

    def finish(*batch):
        *views, labels, weights, _ = batch
        if channels_first:
            views = [tf.transpose(view, [0, 1, 4, 2, 3]) for view in views]
        remaining = iter(views)
        by_network = tuple(tuple(itertools.islice(remaining, count)) for count in counts)
        return {"views": by_network, "labels": labels, "weights": weights}

    record_skipped_files(split, bad)
    shape = split.images.shape[1:] if isinstance(split, IndexedSplit) and split.decoded else (None, None, 3)
    pixels = tf.TensorSpec(shape, tf.uint8)
    traced = tf.function(prepare, autograph=False).get_concrete_function(pixels, None)
    shapes = [view.shape for view in traced.structured_outputs]
    indices = shard_examples(in_order(split, shard.global_batch), shard)
    return prefetched(prepare_batches(split, indices, shard.replica_batch, prepare, shapes, finish, bad))
