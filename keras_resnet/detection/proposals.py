"""Selects proposals and detections from the outputs of a detector's network, with static shapes.

Boxes are float32 (x1, y1, x2, y2) in pixels of the resized images. `sizes`, int32 (batch, 2), are the heights
and widths of the resized images without padding. Results are padded to a fixed number; the valid ones come
first, by descending score.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import tensorflow as tf

from keras_resnet.detection import boxes as box_ops
from keras_resnet.detection.config import DetectorConfig
from keras_resnet.detection.nms import non_max_suppression, vote_boxes


class Proposals(NamedTuple):
    """Proposals: `boxes`, float32 (batch, n, 4), and `valid`, bool (batch, n). Invalid boxes are 0."""

    boxes: tf.Tensor
    valid: tf.Tensor


class Predictions(NamedTuple):
    """The box head's predictions for each region and class, without the background.

    `scores` are float32 (batch, n, classes); `boxes` are float32 (batch, n, classes, 4).
    """

    scores: tf.Tensor
    boxes: tf.Tensor


class RawDetections(NamedTuple):
    """Detections before they are scaled to the original images.

    `boxes` are float32 (batch, n, 4); `scores`, float32, `labels`, int32, and `valid`, bool, are (batch, n).
    Invalid elements are 0.
    """

    boxes: tf.Tensor
    scores: tf.Tensor
    labels: tf.Tensor
    valid: tf.Tensor


def propose(
    logits: Sequence[tf.Tensor],
    deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    sizes: tf.Tensor,
    config: DetectorConfig,
    suppress: Callable[..., tuple[tf.Tensor, tf.Tensor]] = non_max_suppression,
) -> Proposals:
    """Selects proposals from the outputs of the region proposal network (Faster R-CNN, section 3.3).

    Args:
        logits: (batch, height, width, anchors) of each level.
        deltas: (batch, height, width, anchors * 4) of each level.
        anchors: (height * width * anchors, 4) of each level.
        suppress: `non_max_suppression`, or a function with the same arguments and results.
    """
    parts, levels = [], []
    for level, (score, delta, anchor) in enumerate(zip(logits, deltas, anchors, strict=True)):
        values, best = _top(tf.reshape(score, [tf.shape(score)[0], -1]), config.proposal_candidates)
        parts.append((_decode_at(best, delta, anchor), values))
        levels.append(tf.fill(tf.shape(values), level))
    boxes, scores = (tf.concat(part, 1) for part in zip(*parts, strict=True))
    boxes = box_ops.clip(boxes, sizes)
    scores = _without_small(boxes, tf.sigmoid(tf.cast(scores, tf.float32)), config.proposal_side)
    selected, valid = suppress(boxes, scores, config.proposal_nms, config.proposals, tf.concat(levels, 1))
    # Approximate joint training: no gradient is propagated through the coordinates of proposals.
    boxes = tf.stop_gradient(tf.gather(boxes, selected, batch_dims=1))
    return Proposals(tf.where(tf.expand_dims(valid, -1), boxes, 0.0), valid)


def detections_of_regions(
    logits: tf.Tensor,
    deltas: tf.Tensor,
    proposals: Proposals,
    sizes: tf.Tensor,
    config: DetectorConfig,
) -> RawDetections:
    """Selects detections from the outputs of the box head.

    Args:
        logits: (batch, n, 1 + classes).
        deltas: (batch, n, (1 + classes) * 4).
    """
    predictions = decode_regions(logits, deltas, proposals.boxes, config)
    return select_detections(predictions, proposals.valid, sizes, config)


def decode_regions(
    logits: tf.Tensor, deltas: tf.Tensor, boxes: tf.Tensor, config: DetectorConfig
) -> Predictions:
    """Decodes the outputs of the box head for boxes, (batch, n, 4); see `detections_of_regions`."""
    scores: Any = tf.nn.softmax(tf.cast(logits, tf.float32))
    batch, count, classes = tf.unstack(tf.shape(scores[..., 1:]))
    deltas = tf.reshape(deltas, [batch, count, classes + 1, 4])[:, :, 1:]
    return Predictions(scores[..., 1:], box_ops.decode(deltas, boxes[:, :, None], config.box_weights))


def select_detections(
    predictions: Predictions,
    valid: tf.Tensor,
    sizes: tf.Tensor,
    config: DetectorConfig,
    vote: bool = False,
    suppress: Callable[..., tuple[tf.Tensor, tf.Tensor]] = non_max_suppression,
) -> RawDetections:
    """Selects detections from the predictions for regions.

    Args:
        valid: bool (batch, n), which regions are not padding.
        vote: whether boxes are averaged by `nms.vote_boxes` after non-maximum suppression.
        suppress: as in `propose`.
    """
    scores = tf.where(tf.expand_dims(valid, -1), predictions.scores, float("-inf"))
    batch, count, classes = tf.unstack(tf.shape(scores))
    labels = tf.broadcast_to(tf.range(classes), [batch, count, classes])
    return _suppress(
        tf.reshape(predictions.boxes, [batch, -1, 4]),
        tf.reshape(scores, [batch, -1]),
        tf.reshape(labels, [batch, -1]),
        sizes,
        config,
        vote,
        suppress,
    )


def detections_of_anchors(
    logits: Sequence[tf.Tensor],
    deltas: Sequence[tf.Tensor],
    anchors: Sequence[tf.Tensor],
    sizes: tf.Tensor,
    config: DetectorConfig,
) -> RawDetections:
    """Selects detections from the outputs of RetinaNet's heads.

    Args:
        logits: (batch, height, width, anchors * (1 + classes)) of each level.
        deltas: (batch, height, width, anchors * 4) of each level.
        anchors: (height * width * anchors, 4) of each level.
    """
    parts = []
    for score, delta, anchor in zip(logits, deltas, anchors, strict=True):
        batch = tf.shape(score)[0]
        score: Any = tf.reshape(score, [batch, -1, config.classes + 1])
        values, best = _top(tf.sigmoid(tf.reshape(score[..., 1:], [batch, -1])), config.level_candidates)
        place, label = best // config.classes, best % config.classes
        parts.append((_decode_at(place, delta, anchor), tf.cast(values, tf.float32), label))
    boxes, scores, labels = (tf.concat(part, 1) for part in zip(*parts, strict=True))
    return _suppress(boxes, scores, labels, sizes, config)


def _top(scores, count):
    """The `count` largest of `scores`, (batch, n), or all if there are fewer, and their indices."""
    number = scores.shape[1]
    return tf.math.top_k(
        scores, tf.minimum(count, tf.shape(scores)[1]) if number is None else min(count, number)
    )


def _decode_at(places, deltas, anchors):
    """The boxes of a level, (batch, n, 4), decoded at the anchors with the indices `places`, (batch, n)."""
    deltas = tf.reshape(deltas, [tf.shape(deltas)[0], -1, 4])
    return box_ops.decode(tf.gather(deltas, places, batch_dims=1), tf.gather(anchors, places))


def _without_small(boxes, scores, side):
    """Sets the scores of boxes with a side below `side` to negative infinity."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return tf.where(tf.reduce_all(sides >= side, -1), scores, float("-inf"))


def _suppress(boxes, scores, labels, sizes, config, vote=False, suppress=non_max_suppression):
    boxes = box_ops.clip(boxes, sizes)
    scores = _without_small(boxes, scores, config.box_side)
    selected, valid = suppress(
        boxes, scores, config.box_nms, config.detections, labels, config.score_threshold
    )
    candidates = boxes, scores, labels
    boxes, scores, labels = (tf.gather(each, selected, batch_dims=1) for each in candidates)
    if vote:
        boxes = _voted(boxes, labels, *candidates, config.score_threshold)
    return RawDetections(
        tf.where(tf.expand_dims(valid, -1), boxes, 0.0),
        tf.where(valid, scores, 0.0),
        tf.where(valid, labels, 0),
        valid,
    )


def _voted(boxes, labels, candidates, scores, groups, score_threshold):
    """Averages the selected boxes with the candidates of the same class above the score threshold."""
    weights = tf.where(scores > score_threshold, scores, 0.0)

    def vote(selected):
        box, label = selected
        own = tf.where(groups == label[:, None], weights, 0.0)
        return vote_boxes(box[:, None], candidates, own[:, None])[:, 0]

    # One box at a time: the candidates are all regions with the boxes of all classes.
    elements = tf.transpose(boxes, [1, 0, 2]), tf.transpose(labels)
    signature = tf.TensorSpec([boxes.shape[0], 4], tf.float32)
    voted = tf.map_fn(vote, elements, fn_output_signature=signature, parallel_iterations=1)
    return tf.transpose(voted, [1, 0, 2])
