"""The losses of Faster R-CNN's region proposal network and box head, and the targets they need.

All losses are float32 (batch,). The sum over the sampled anchors or regions of an image is divided by the
configured sample size, even if the sample is smaller, so that an image's loss does not depend on the other
images.
"""

from typing import Any, NamedTuple

import tensorflow as tf

from keras_resnet.detection import boxes as box_ops
from keras_resnet.detection.config import DetectorConfig
from keras_resnet.detection.data.batches import CROWD, OBJECT
from keras_resnet.detection.matching import IGNORED, POSITIVE, ignore_crowds, match, sample
from keras_resnet.detection.proposals import Proposals


class Targets(NamedTuple):
    """The targets of a sample of the anchors or regions of each image.

    Attributes:
        places: int32 (batch, n), indices of the sampled anchors or regions.
        valid: bool (batch, n), False for the padding of a sample with fewer than n elements.
        positive: bool (batch, n), whether the anchor or region is matched to an object.
        labels: int32 (batch, n), labels of the matched objects; meaningful for positives only.
        boxes: float32 (batch, n, 4), boxes of the matched objects, encoded relative to the anchors or
            regions; meaningful for positives only.
    """

    places: tf.Tensor
    valid: tf.Tensor
    positive: tf.Tensor
    labels: tf.Tensor
    boxes: tf.Tensor


def anchor_targets(
    anchors: tf.Tensor, batch: dict[str, tf.Tensor], seeds: tf.Tensor, config: DetectorConfig
) -> Targets:
    """Samples anchors and computes the region proposal network's targets (Faster R-CNN, section 3.1.2).

    Args:
        anchors: float32 (anchors, 4), pixels, of all levels.
        batch: an element of `DetectionBatches.training`.
        seeds: int64 (batch, 2), the seed of each image's sample.
    """

    def of_image(image):
        boxes, labels, kinds, size, seed = image
        overlaps = box_ops.iou(boxes, anchors)
        if config.anchors_inside:
            inside = tf.reduce_all(box_ops.clip(anchors, size) == anchors, -1)
            overlaps = tf.where(inside, overlaps, 0.0)
        matches, states = match(
            overlaps, kinds == OBJECT, config.rpn_positive_overlap, config.rpn_negative_overlap, True
        )
        if config.anchors_inside:
            states = tf.where(inside, states, IGNORED)
        states = ignore_crowds(states, anchors, boxes, kinds == CROWD)
        places, valid = sample(states, config.rpn_samples, config.rpn_positive_fraction, seed)
        return _targets(boxes, labels, anchors, matches, states, places, valid)

    images = [batch[name] for name in ("boxes", "labels", "kinds", "sizes")]
    return _each(of_image, (*images, seeds), config.rpn_samples)


def region_targets(
    proposals: Proposals, batch: dict[str, tf.Tensor], seeds: tf.Tensor, config: DetectorConfig
) -> tuple[tf.Tensor, Targets]:
    """Samples regions and computes the box head's targets (Fast R-CNN, section 2.3).

    The ground truth boxes are added to the proposals, as in py-faster-rcnn.

    Args:
        batch: an element of `DetectionBatches.training`.
        seeds: int64 (batch, 2), the seed of each image's sample.

    Returns:
        The sampled regions, float32 (batch, roi_samples, 4), pixels, and their targets.
    """
    regions = tf.concat([batch["boxes"], proposals.boxes], 1)
    usable = tf.concat([batch["kinds"] == OBJECT, proposals.valid], 1)

    def of_image(image):
        boxes, labels, kinds, regions, usable, seed = image
        overlap = config.roi_positive_overlap
        matches, states = match(box_ops.iou(boxes, regions), kinds == OBJECT, overlap, overlap)
        states = ignore_crowds(tf.where(usable, states, IGNORED), regions, boxes, kinds == CROWD)
        places, valid = sample(states, config.roi_samples, config.roi_positive_fraction, seed)
        return _targets(boxes, labels, regions, matches, states, places, valid, config.box_weights)

    images = [batch[name] for name in ("boxes", "labels", "kinds")]
    targets = _each(of_image, (*images, regions, usable, seeds), config.roi_samples)
    return tf.stop_gradient(tf.gather(regions, targets.places, batch_dims=1)), targets


def rpn_losses(
    logits: tf.Tensor, deltas: tf.Tensor, targets: Targets, config: DetectorConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the objectness loss and the box loss (Faster R-CNN, equation 1, as in py-faster-rcnn).

    Args:
        logits: (batch, anchors), of all levels.
        deltas: (batch, anchors, 4), of all levels.
    """
    chosen = tf.gather(logits, targets.places, batch_dims=1)
    is_object = tf.cast(targets.positive, tf.float32)
    losses = tf.nn.sigmoid_cross_entropy_with_logits(is_object, chosen)
    count = config.rpn_samples
    boxes = tf.gather(deltas, targets.places, batch_dims=1)
    return _masked_sum(losses, targets.valid) / count, _box_loss(boxes, targets, config.rpn_beta) / count


def roi_losses(
    logits: tf.Tensor, deltas: tf.Tensor, targets: Targets, config: DetectorConfig
) -> tuple[tf.Tensor, tf.Tensor]:
    """Computes the classification loss and the box loss of the sampled regions (Fast R-CNN, equation 1).

    Args:
        logits: (batch, n, 1 + classes).
        deltas: (batch, n, (1 + classes) * 4).
    """
    deltas = tf.reshape(deltas, [*tf.unstack(tf.shape(targets.labels)), config.classes + 1, 4])
    labels = tf.where(targets.positive, targets.labels + 1, 0)  # 0 is the background
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    count = config.roi_samples
    boxes = tf.gather(deltas, labels, batch_dims=2)
    return _masked_sum(losses, targets.valid) / count, _box_loss(boxes, targets, config.roi_beta) / count


def _targets(boxes, labels, regions, matches, states, places, valid, weights=(1.0, 1.0, 1.0, 1.0)) -> Targets:
    own = tf.gather(matches, places)
    encoded = box_ops.encode(tf.gather(boxes, own), tf.gather(regions, places), weights)
    positive = valid & (tf.gather(states, places) == POSITIVE)
    return Targets(places, valid, positive, tf.gather(labels, own), encoded)


def _each(function, images: tuple, count: int) -> Targets:
    """Computes the targets image by image, because the IoU matrices of many anchors take much memory."""
    types = (tf.int32, tf.bool, tf.bool, tf.int32, tf.float32)
    specs: Any = [tf.TensorSpec([count, 4] if dtype is tf.float32 else [count], dtype) for dtype in types]
    signature = Targets(*specs)
    found = tf.map_fn(function, images, fn_output_signature=signature, parallel_iterations=1)
    return tf.nest.map_structure(tf.stop_gradient, found)


def _masked_sum(losses: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    return tf.reduce_sum(tf.where(mask, losses, 0.0), -1)


def _box_loss(deltas: tf.Tensor, targets: Targets, beta: float) -> tf.Tensor:
    """The sum of the positives' smooth L1 losses, which are quadratic for errors below `beta`."""
    error = tf.abs(deltas - tf.where(tf.expand_dims(targets.positive, -1), targets.boxes, 0.0))
    losses = tf.where(error < beta, 0.5 * error**2 / beta, error - 0.5 * beta)
    return _masked_sum(tf.reduce_sum(losses, -1), targets.positive)
