"""Compares the detections of a detector's ONNX file with the detector's own, on given images."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_resnet.detection import boxes as box_ops
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.detector import Detector
from keras_resnet.export.runtimes import RunError, open_artifact

_LEAST_IOU = 0.99
_SCORE_TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class DetectorVerification:
    """The differences between the detections of an ONNX file and those of the detector.

    Attributes:
        images: number of compared images.
        detections: number of the detector's detections in all images.
        least_iou: lowest IoU of a detection and its counterpart with the same label; 0 if a detection has no
            counterpart, 1 if there are no detections.
        score_difference: largest absolute difference between the scores of a detection and its counterpart.
        problems: a message for each failed check.
    """

    images: int
    detections: int
    least_iou: float
    score_difference: float
    problems: tuple[str, ...]

    @property
    def equal(self) -> bool:
        """Whether class names, numbers of detections, boxes and scores agree within the tolerances."""
        return not self.problems


def verify_onnx_file(
    detector: Detector, path: str | Path, images: Sequence[np.ndarray]
) -> DetectorVerification:
    """Runs a file of `detector_to_onnx` in ONNX Runtime and compares its detections with the detector's.

    Boxes agree if the IoU of each detection and its counterpart is at least 0.99, scores within 1e-4.

    Args:
        images: uint8 (height, width, 3), RGB, of any sizes.

    Raises:
        InputError: the file does not exist, or ONNX Runtime cannot load it or is not installed.
    """
    ious, differences, problems = [1.0], [0.0], []
    expected = detector.detect(images)
    with open_artifact("onnx", path) as file:
        if file.labels != detector.class_names:
            problems.append("its labels are not the detector's class names")
        for index, (image, reference) in enumerate(zip(images, expected, strict=True)):
            try:
                found = _detections(file.run(image[None].astype("float32")))
            except RunError as error:
                problems.append(f"does not run on image {index}: {str(error).splitlines()[0]}")
                break
            if len(found) != len(reference):
                problems.append(f"finds {len(found)} objects in image {index}, not {len(reference)}")
            iou, difference = _compare(found, reference)
            ious.append(iou)
            differences.append(difference)
    # NumPy's keep NaN, which Python's may lose.
    least, largest = float(np.min(ious)), float(np.max(differences))
    if not least >= _LEAST_IOU:
        problems.append(f"a box has an IoU of {least:.3f} with the detector's")
    if not largest <= _SCORE_TOLERANCE:
        problems.append(f"a score differs by {largest:.1e}")
    total = sum(map(len, expected))
    return DetectorVerification(len(expected), total, least, largest, tuple(problems))


def _detections(outputs: dict[str, np.ndarray]) -> Detections:
    """The valid detections of the first image."""
    (count,) = outputs["count"]
    return Detections(*(outputs[name][0, :count] for name in ("boxes", "scores", "labels")))


def _compare(found: Detections, expected: Detections) -> tuple[float, float]:
    """The lowest IoU of a detection and its counterpart, and the largest difference of their scores.

    The counterpart is the box with the highest IoU of the same label, because equal scores may be in another
    order.
    """
    if not len(expected) or not len(found):
        return float(len(found) == len(expected)), 0.0
    overlaps = box_ops.iou(tf.constant(expected.boxes), tf.constant(found.boxes)).numpy()
    overlaps[expected.labels[:, None] != found.labels] = 0.0
    best = overlaps.argmax(1)
    return float(overlaps.max(1).min()), float(np.abs(found.scores[best] - expected.scores).max())
