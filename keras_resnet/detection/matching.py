"""Matches anchors or proposals with ground truth boxes, and samples those that count in the loss.

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
    """Matches each anchor or proposal with the box that it overlaps most (Faster R-CNN, section 3.1.2).

    Args:
        overlaps: float32 (..., boxes, anchors), intersections over unions, for at least one box, which may be
            padding.
        valid: bool (..., boxes), False for padding and for crowd regions.
        high: anchors are positive if their highest overlap is at least this.
        low: anchors are negative if their highest overlap is below this; anchors between the two thresholds
            are ignored.
        low_quality: whether the anchors with the highest overlap of all anchors with a box, including ties,
            are positive, too. As in torchvision, such an anchor is matched with the box that it overlaps most
            itself; unlike in torchvision, a box that no anchor overlaps makes no anchor positive.

    Returns:
        Indices of the boxes, and labels, both int32 (..., anchors). Of several boxes with the same overlap,
        the first is matched. Without valid boxes, all labels are NEGATIVE.

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
    """Ignores negatives if more than 0.7 of their area lies in a crowd region, as in py-faster-rcnn.

    Args:
        labels: int32 (..., anchors), from `match`.
        anchors: (..., anchors, 4), pixels.
        regions: (..., boxes, 4), pixels.
        crowd: bool (..., boxes), which of `regions` are crowd regions.

    Returns:
        Labels, int32 (..., anchors).
    """
    inside = tf.reduce_any(
        (intersection_over_area(regions, anchors) > _MOST_IN_CROWD) & tf.expand_dims(crowd, -1), -2
    )
    return tf.where(inside & (labels == NEGATIVE), IGNORED, labels)


def sample(
    labels: tf.Tensor, count: int, positive_fraction: float, seeds: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Samples anchors or proposals of each image, positives first.

    At most `positive_fraction` of them are positives; the rest of the sample is filled with negatives. An
    image's sample depends only on its labels and its seed.

    Args:
        labels: int32 (n,) or (batch, n), with static n.
        count: number of samples per image.
        positive_fraction: maximum fraction of positives, from 0 to 1.
        seeds: integers (2,) or (batch, 2).

    Returns:
        Indices, int32 (..., count), and which of them are valid, bool (..., count). If an image has too few
        positives and negatives, the remaining indices are 0 and invalid.
    """

    def draw(labels, seed):
        numbers = tf.random.stateless_uniform(labels.shape, seed, 0, tf.int32.max, tf.int32, alg="philox")
        return _sample(labels, numbers, count, int(count * positive_fraction))

    if labels.shape.rank == 1:
        return draw(labels, seeds)
    signature = tf.TensorSpec([count], tf.int32), tf.TensorSpec([count], tf.bool)
    return tf.map_fn(lambda image: draw(*image), (labels, seeds), fn_output_signature=signature)


def _sample(labels, numbers, count, most_positives):
    """`sample` for one image; takes the elements with the largest `numbers`, nonnegative int32 (n,)."""

    def largest(label, most):
        masked = tf.where(labels == label, numbers, -1)
        values, indices = tf.math.top_k(masked, min(most, labels.shape[0]))
        return indices, values >= 0

    parts = largest(POSITIVE, most_positives), largest(NEGATIVE, count)
    indices, valid = (tf.concat(part, 0) for part in zip(*parts, strict=True))
    # `top_k` keeps the order of equal elements, so this moves the valid ones to the front.
    most = min(count, indices.shape[0])  # pyright: ignore[reportArgumentType]: known
    order = tf.math.top_k(tf.cast(valid, tf.int32), most).indices
    padding = [[0, count - most]]
    return tf.pad(tf.gather(indices, order), padding), tf.pad(tf.gather(valid, order), padding)
