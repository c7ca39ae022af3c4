"""Non-maximum suppression with static shapes, and box voting."""

import tensorflow as tf

from keras_resnet.detection import boxes as box_ops

_VOTING_OVERLAP = 0.5


def non_max_suppression(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    iou_threshold: float,
    count: int,
    groups: tf.Tensor | None = None,
    score_threshold: float = float("-inf"),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Greedily selects the boxes with the highest scores that do not overlap a box selected before.

    Boxes overlap if their intersection over union is above `iou_threshold`; a box without area overlaps no
    other. Among boxes with the same score, the one with the lowest index is selected first, as in ONNX
    Runtime.

    Args:
        boxes: (n, 4) or (batch, n, 4), pixels; computed in float32.
        scores: (n,) or (batch, n); negative infinity for padding.
        count: number of results per image.
        groups: integers (n,) or (batch, n), such as classes or pyramid levels; a box suppresses only boxes of
            its own group. As in torchvision, the boxes of each group are shifted by a multiple of the extent
            of all boxes, which rounds the coordinates: to 0.008 pixels for 90 groups and 1,333 pixels.
        score_threshold: only boxes with scores above it are selected.

    Returns:
        Indices, int32 (..., count), by descending score, and which of them are valid, bool (..., count).
        Invalid indices are 0.

    Raises:
        tf.errors.InvalidArgumentError: `iou_threshold` is not between 0 and 1.
    """
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    if groups is not None:
        boxes += group_offsets(boxes, scores > score_threshold, tf.cast(groups, tf.float32))

    def select(boxes, scores):
        selected = tf.raw_ops.NonMaxSuppressionV5(
            boxes=boxes,
            scores=scores,
            max_output_size=count,
            iou_threshold=iou_threshold,
            score_threshold=score_threshold,
            soft_nms_sigma=0.0,
        ).selected_indices
        found = tf.size(selected)
        padded = tf.pad(selected, [[0, count - found]])
        return tf.ensure_shape(padded, [count]), tf.range(count) < found

    if boxes.shape.rank == 2:
        return select(boxes, scores)
    signature = tf.TensorSpec([count], tf.int32), tf.TensorSpec([count], tf.bool)
    return tf.map_fn(lambda image: select(*image), (boxes, scores), fn_output_signature=signature)


def vote_boxes(kept: tf.Tensor, boxes: tf.Tensor, weights: tf.Tensor) -> tf.Tensor:
    """Replaces each kept box by the weighted mean of the boxes with which its IoU is at least 0.5.

    This is the box voting of Gidaris and Komodakis ("Object detection via a multi-region & semantic
    segmentation-aware CNN model", section 5), which follows non-maximum suppression.

    Args:
        kept: (..., n, 4), pixels.
        boxes: (..., m, 4), all boxes before suppression.
        weights: (..., n, m), the weight of each box's vote for each kept box: the box's score if both are of
            the same class, otherwise 0.

    Returns:
        float32 (..., n, 4). A kept box without votes is unchanged.
    """
    kept, weights = tf.cast(kept, tf.float32), tf.cast(weights, tf.float32)
    votes = tf.where(box_ops.iou(kept, boxes) >= _VOTING_OVERLAP, weights, 0.0)
    total = tf.reduce_sum(votes, -1, keepdims=True)
    mean = tf.math.divide_no_nan(tf.matmul(votes, tf.cast(boxes, tf.float32)), total)
    return tf.where(total > 0, mean, kept)


def group_offsets(boxes: tf.Tensor, valid: tf.Tensor, groups: tf.Tensor) -> tf.Tensor:
    """Returns the shift of each box, a multiple of more than the extent of its image's valid boxes.

    Args:
        boxes: float32 (..., n, 4), pixels.
        valid: bool (..., n).
        groups: float32 (..., n), integers.

    Returns:
        float32 (..., n, 1), pixels.
    """
    known = tf.where(tf.expand_dims(valid, -1), boxes, 0.0)
    extent = tf.reduce_max(known, [-2, -1]) - tf.reduce_min(known, [-2, -1]) + 1.0
    return tf.expand_dims(groups * tf.expand_dims(extent, -1), -1)
