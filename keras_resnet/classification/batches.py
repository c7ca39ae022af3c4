"""Batches of views: every image once, the same ones however many replicas and workers share them."""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.classification.protocols import Protocol
from keras_resnet.data import BadImages, IndexedSplit, Split
from keras_resnet.images.ops import with_channels
from keras_resnet.images.preprocessing import Preprocessing


def read_examples(split: Split, bad: BadImages) -> tuple[tf.data.Dataset, Callable]:
    """The examples of a split in their order, not decoded yet.

    Args:
        split: the examples.
        bad: told of those that cannot be decoded.

    Returns:
        A dataset of `(index, record)`, and what makes of these two, in a `tf.data` map, the image,
        uint8 (height, width, channels), the label, int32 (), and the weight, float32 (): 1, or 0 for
        an image that cannot be decoded, which then is a black pixel of label 0.
    """
    indexed = isinstance(split, IndexedSplit)
    if indexed:
        for path, reason in split.faults:
            bad.add(path, split.name, reason)
        indices = tf.data.Dataset.range(len(split))
        records = tf.data.Dataset.zip((indices, indices))
    else:
        records = split.records()

    def report(index, record):
        name, reason = split.fault(int(index), record)
        bad.add(name, split.name, reason or "damaged")
        return np.int32(0)

    def decode(index, record):
        def see(record):
            image, label = (split.gather if indexed else split.decode)(record)
            return image, label, tf.constant(1.0)

        def otherwise(record):
            label = tf.ensure_shape(tf.numpy_function(report, [index, record], tf.int32), ())
            return tf.zeros((1, 1, 3), tf.uint8), label, tf.constant(0.0)

        if split.decoded:
            return see(record)
        # No operation of TensorFlow catches another's error; a dataset of one element does.
        one = tf.data.Dataset.from_tensors(record)
        tried = one.map(see).ignore_errors().concatenate(one.map(otherwise))
        return tried.take(1).get_single_element()

    return records, decode


def fits_batches(split: Split, protocol: Protocol) -> bool:
    """Whether views of several images can stand in one array: not where they have sizes of their own."""
    return not protocol.fully_convolutional or (isinstance(split, IndexedSplit) and split.decoded)


def view_batches(
    split: Split,
    protocol: Protocol,
    preprocessings: Sequence[Preprocessing],
    *,
    batch_size: int,
    bad: BadImages,
    workers: int = 1,
    worker: int = 0,
    replicas: int = 1,
) -> tf.data.Dataset:
    """What the replicas of one worker see, in turn: step 0 replica 0, step 0 replica 1, ...

    The last step is filled up with images of weight 0, so that every replica of every worker sees
    the same number of batches.

    Args:
        split: the examples.
        protocol: how they are seen.
        preprocessings: of the networks that see them.
        batch_size: images a replica and step.
        bad: told of images that cannot be decoded, which have weight 0, too.
        workers: processes that share a step.
        worker: this process's number, from 0.
        replicas: devices of this process.

    Returns:
        Elements `{"views": for each network a tuple of float32 (batch, views, height, width,
        channels), one for each side, "labels": int32 (batch,), "weights": float32 (batch,), 1 or 0}`;
        channels first where Keras' image data format says so.
    """
    share = batch_size * replicas
    step = share * workers
    records, decode = read_examples(split, bad)
    real = records.map(lambda *example: (*example, 1.0))
    padding = records.repeat().take(-len(split) % step).map(lambda *example: (*example, 0.0))
    examples = real.concatenate(padding)
    if workers > 1:
        turns = examples.enumerate().filter(lambda turn, example: (turn % step) // share == worker)
        examples = turns.map(lambda turn, example: example)

    counts = [len(protocol.sides(preprocessing)) for preprocessing in preprocessings]
    channels_first = keras.config.image_data_format() == "channels_first"

    def views_of(*images: np.ndarray) -> list[np.ndarray]:
        pairs = zip(images, preprocessings, strict=True)
        views = [view for image, preprocessing in pairs for view in protocol.views(image, preprocessing)]
        # TensorFlow takes over an array as it lies in memory.
        return [np.ascontiguousarray(np.moveaxis(v, -1, 1) if channels_first else v) for v in views]

    def see(index, record, real):
        image, label, weight = decode(index, record)
        # Gray images are repeated for networks of three channels at the end, where they are smaller.
        images = [with_channels(image, 1) if _channels(p) == 1 else image for p in preprocessings]
        flat = tf.numpy_function(views_of, images, [tf.float32] * sum(counts), stateful=False)
        views, taken = [], 0
        for preprocessing, count in zip(preprocessings, counts, strict=True):
            shape = _shape_of_views(protocol, preprocessing, channels_first)
            views.append(tuple(tf.ensure_shape(view, shape) for view in flat[taken : taken + count]))
            taken += count
        return {"views": tuple(views), "labels": tf.cast(label, tf.int32), "weights": weight * real}

    options = tf.data.Options()
    options.deterministic = True
    # The division among workers is already made.
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    # Nothing here is for AutoGraph.
    see = tf.autograph.experimental.do_not_convert(see)
    batches = examples.map(see, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.batch(batch_size, drop_remainder=True).prefetch(tf.data.AUTOTUNE).with_options(options)


def _shape_of_views(protocol: Protocol, preprocessing: Preprocessing, channels_first: bool) -> tuple:
    """As far as it is known: (views, height, width, channels), or channels first."""
    size = None if protocol.fully_convolutional else preprocessing.size
    channels = _channels(preprocessing)
    return (None, channels, size, size) if channels_first else (None, size, size, channels)


def _channels(preprocessing: Preprocessing) -> int:
    return preprocessing.normalization.shape[-1]
