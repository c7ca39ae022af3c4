"""Non-maximum suppression with static shapes."""

import tensorflow as tf


def non_max_suppression(
    boxes: tf.Tensor,
    scores: tf.Tensor,
    iou_threshold: float,
    count: int,
    groups: tf.Tensor | None = None,
    score_threshold: float = float("-inf"),
) -> tuple[tf.Tensor, tf.Tensor]:
    """Selects the boxes with the highest scores that do not overlap a selected box.

    Overlap is an intersection over union above `iou_threshold`; a box without area overlaps none. Of several
    boxes with the same score, the first is selected first, as in ONNX Runtime.

    Args:
        boxes: (n, 4) or (batch, n, 4), pixels; computed in float32.
        scores: (n,) or (batch, n); negative infinity for padding.
        count: the number of results for each image.
        groups: integers (n,) or (batch, n), such as classes or pyramid levels: boxes suppress only boxes of
            their group. As in torchvision, groups are moved apart by the extent of all boxes, which
            rounds the coordinates: for 90 groups of 1,333 pixels to 0.008 pixels.
        score_threshold: only scores above it are selected.

    Returns:
        Indices, int32 (..., count), by descending score, and which of them are valid, bool (..., count). The
        others are 0.

    Raises:
        tf.errors.InvalidArgumentError: `iou_threshold` is not between 0 and 1.
    """
    boxes, scores = tf.cast(boxes, tf.float32), tf.cast(scores, tf.float32)
    if groups is not None:
        boxes += _offsets(boxes, scores > score_threshold, tf.cast(groups, tf.float32))

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


def _offsets(boxes, valid, groups):
    """Moves each group by more than the extent of the valid boxes of its image: float32 (..., n, 1)."""
    known = tf.where(tf.expand_dims(valid, -1), boxes, 0.0)
    extent = tf.reduce_max(known, [-2, -1]) - tf.reduce_min(known, [-2, -1]) + 1.0
    return (groups * tf.expand_dims(extent, -1))[..., None]
