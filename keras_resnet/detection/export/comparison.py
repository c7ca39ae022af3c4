"""Compares detections in one image, and reads them from the outputs of an exported file."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from keras_resnet.detection import boxes as box_ops
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.detector import Detector
from keras_resnet.detection.export.serving import BOXES, COUNT, LABELS, SCORES
from keras_resnet.errors import InputError

LEAST_IOU = 0.99
SCORE_TOLERANCE = 1e-4
_SAME_PLACE = 0.01  # pixels


def detect_on_cpu(detector: Detector, images: Sequence[np.ndarray]) -> list[Detections]:
    """Returns the detector's own detections. The files run on the CPU; a GPU may round float32 to TF32."""
    with tf.device("CPU:0"):
        return detector.detect(images)


def read_detections(outputs: dict[str, np.ndarray], images: int) -> list[Detections]:
    """Returns the valid detections of each image of a batch, from the outputs of a file.

    Raises:
        InputError: an output is missing, or its shape, its dtype or a value is wrong.
    """
    missing = [name for name in (BOXES, SCORES, LABELS, COUNT) if name not in outputs]
    if missing:
        raise InputError(f"it has no output {missing[0]}")
    boxes, scores, labels, count = (outputs[name] for name in (BOXES, SCORES, LABELS, COUNT))
    rows = scores.shape[-1] if scores.ndim else 0
    shapes = {BOXES: (images, rows, 4), SCORES: (images, rows), LABELS: (images, rows), COUNT: (images,)}
    for name, shape in shapes.items():
        if outputs[name].shape != shape:
            raise InputError(f"its output {name} has the shape {outputs[name].shape}, not {shape}")
    if labels.dtype != np.int32 or count.dtype != np.int32:
        raise InputError(f"its outputs {LABELS} and {COUNT} are {labels.dtype} and {count.dtype}, not int32")
    if images and not 0 <= count.min() <= count.max() <= rows:
        raise InputError(f"its output {COUNT} is {count.tolist()} for {rows} rows")
    if not (np.isfinite(boxes).all() and np.isfinite(scores).all()):
        raise InputError("boxes or scores are not numbers")
    valid = np.arange(rows) < count[:, None]
    if (np.diff(np.where(valid, scores, 0.0), axis=1) > 0).any():
        raise InputError(f"its output {SCORES} is not in descending order")
    if any(outputs[name][~valid].any() for name in (BOXES, SCORES, LABELS)):
        raise InputError(f"rows after {COUNT} are not 0")
    return [
        Detections(boxes[index, :own], scores[index, :own], labels[index, :own])
        for index, own in enumerate(count.tolist())
    ]


def difference(found: Detections, expected: Detections) -> tuple[float, float]:
    """Returns the lowest IoU of a detection and its counterpart, and the largest difference of their scores.

    The counterpart is the box with the highest IoU of the same label, because equal scores may be in another
    order. The IoU is 0 for a detection without counterpart, and 1 for boxes without area, which RetinaNet
    keeps, at the same place.
    """
    if not len(expected) or not len(found):
        return float(len(found) == len(expected)), 0.0
    overlaps = box_ops.iou(tf.constant(expected.boxes), tf.constant(found.boxes)).numpy()
    shifts = np.abs(expected.boxes[:, None] - found.boxes).max(-1)
    overlaps[shifts <= _SAME_PLACE] = 1.0
    overlaps[expected.labels[:, None] != found.labels] = 0.0
    best = overlaps.argmax(1)
    return float(overlaps.max(1).min()), float(np.abs(found.scores[best] - expected.scores).max())


def problem(found: Detections, expected: Detections) -> str | None:
    """Returns how the detections of an image differ; None if they are equal within the tolerances."""
    if len(found) != len(expected):
        return f"finds {len(found)} objects, not {len(expected)}"
    iou, score = difference(found, expected)
    # Negated, so that NaN is a problem.
    if not iou >= LEAST_IOU:
        return f"finds a box that has an IoU of {iou:.3f} with the detector's"
    if not score <= SCORE_TOLERANCE:
        return f"returns a score that differs by {score:.1e}"
    return None
