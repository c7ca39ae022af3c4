"""Which anchors or proposals learn which boxes, and the random sample of them that counts in the loss.

Labels are POSITIVE, NEGATIVE or IGNORED. Shapes are static: boxes and proposals are padded, and the padding
is marked as invalid.
"""

import tensorflow as tf

from keras_resnet.detection.boxes import intersection_over_area
from keras_resnet.errors import require

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

_MOST_IN_CROWD = 0.7


def match(
    overlaps: tf.Tensor, valid: tf.Tensor, high: float, low: float, low_quality: bool = False
) -> tuple[tf.Tensor, tf.Tensor]:
    """Assigns each anchor or proposal to the box that it overlaps most (Faster R-CNN, section 3.1.2).

    Args:
        overlaps: float32 (..., boxes, anchors), intersections over unions; at least one box, if only padding.
        valid: bool (..., boxes), False for padding and for crowd regions.
        high: positive from this overlap on.
        low: negative below it; ignored between both.
        low_quality: also makes those anchors positive that overlap a box most of all anchors, ties included.
            As in torchvision, they learn the box that they overlap most themselves; unlike there, a box that
            no anchor overlaps makes no anchor positive.

    Returns:
        Indices of the boxes, and labels, both int32 (..., anchors). Of several boxes with the same overlap,
        the first is taken. Without valid boxes, all labels are NEGATIVE.

    Raises:
        InputError: `low` is above `high`.
    """
    require(low <= high, "the lower threshold of a matching must not be above the higher", (low, high))
    overlaps = tf.where(tf.expand_dims(valid, -1), overlaps, -1.0)
    best = tf.reduce_max(overlaps, -2)
    positive = best >= high
    if low_quality:
        of_box = tf.reduce_max(overlaps, -1, keepdims=True)
        positive |= tf.reduce_any((overlaps == of_box) & (of_box > 0.0), -2)
    labels = tf.where(positive, POSITIVE, tf.where(best < low, NEGATIVE, IGNORED))
    return tf.argmax(overlaps, -2, output_type=tf.int32), labels


def ignore_crowds(labels: tf.Tensor, anchors: tf.Tensor, regions: tf.Tensor, crowd: tf.Tensor) -> tf.Tensor:
    """Ignores negatives that lie in crowd regions with more than 0.7 of their area, as in py-faster-rcnn.

    Args:
        labels: int32 (..., anchors), from `match`.
        anchors: (..., anchors, 4), pixels.
        regions: (..., boxes, 4), pixels.
        crowd: bool (..., boxes), which of `regions` are crowd regions.
    """
    inside = tf.reduce_any(
        (intersection_over_area(regions, anchors) > _MOST_IN_CROWD) & tf.expand_dims(crowd, -1), -2
    )
    return tf.where(inside & (labels == NEGATIVE), IGNORED, labels)


def sample(
    labels: tf.Tensor, count: int, positive_fraction: float, seeds: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Draws anchors or proposals of each image, positives first.

    At most `positive_fraction` of them are positives; negatives take the places that positives leave. An
    image's sample is a function of its labels and its seed.

    Args:
        labels: int32 (n,) or (batch, n), n known.
        seeds: integers (2,) or (batch, 2).

    Returns:
        Indices, int32 (..., count), and which of them are valid, bool (..., count). The others are 0: there
        were not enough positives and negatives.
    """

    def draw(labels, seed):
        numbers = tf.random.stateless_uniform(labels.shape, seed, 0, tf.int32.max, tf.int32, alg="philox")
        return _sample(labels, numbers, count, int(count * positive_fraction))

    if labels.shape.rank == 1:
        return draw(labels, seeds)
    signature = tf.TensorSpec([count], tf.int32), tf.TensorSpec([count], tf.bool)
    return tf.map_fn(lambda image: draw(*image), (labels, seeds), fn_output_signature=signature)


def _sample(labels, numbers, count, most_positives):
    """`sample` of one image, which takes the largest of `numbers`, nonnegative int32 (n,)."""

    def largest(label, most):
        masked = tf.where(labels == label, numbers, -1)
        values, indices = tf.math.top_k(masked, min(most, labels.shape[0]))
        return indices, values >= 0

    parts = largest(POSITIVE, most_positives), largest(NEGATIVE, count)
    indices, valid = (tf.concat(part, 0) for part in zip(*parts, strict=True))
    # `top_k` takes equal elements in their order: the valid ones move to the front.
    most = min(count, indices.shape[0])  # pyright: ignore[reportArgumentType]: known
    order = tf.math.top_k(tf.cast(valid, tf.int32), most).indices
    padding = [[0, count - most]]
    return tf.pad(tf.gather(indices, order), padding), tf.pad(tf.gather(valid, order), padding)
