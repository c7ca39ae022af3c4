"""Compares the detections of exported files, each in its own runtime, with the detector's own."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from keras_resnet.detection.data.annotations import DetectionSplit
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.detector import Detector
from keras_resnet.detection.evaluation import labels_of_split, relabeled
from keras_resnet.detection.export.check_signatures import broken_signatures
from keras_resnet.detection.export.comparison import (
    LEAST_IOU,
    SCORE_TOLERANCE,
    detect_on_cpu,
    difference,
    problem,
    read_detections,
)
from keras_resnet.detection.metrics import coco_statistics
from keras_resnet.detection.sizes import rescale_boxes
from keras_resnet.errors import InputError
from keras_resnet.export.runtimes import Artifact, RunError, open_artifact
from keras_resnet.export.serving import INPUT
from keras_resnet.progress import ProgressBar

# Share of images in which rounding may decide which of two boxes suppresses the other.
_LARGEST_ROUNDED_SHARE = 0.01
_AP_TOLERANCE, _REDUCED_AP_TOLERANCE = 0.001, 0.02  # in float32, and in lower precision
_Images = Sequence[np.ndarray] | DetectionSplit


@dataclasses.dataclass(frozen=True)
class DetectorVerification:
    """The differences between the detections of an exported file and those of the detector.

    Attributes:
        images: number of compared images.
        detections: number of the detector's detections in all images.
        least_iou: lowest IoU of a detection and its counterpart with the same label; 0 if a detection has no
            counterpart, 1 if there are no detections. The `rounded` images are left out.
        score_difference: largest absolute difference between the scores of a detection and its counterpart.
            The `rounded` images are left out.
        problems: a message for each failed check.
        ap: COCO's mean average precision of the file, IoU .50:.95, in [0, 1]; None without annotated objects.
        expected_ap: the same of the detector.
        version: of the runtime, such as "onnxruntime 1.23.0".
        rounded: number of images in which the detections of a float32 file differ, at most one in a hundred:
            rounding decides which of two boxes suppresses the other.
    """

    images: int
    detections: int
    least_iou: float
    score_difference: float
    problems: tuple[str, ...]
    ap: float | None = None
    expected_ap: float | None = None
    version: str = ""
    rounded: int = 0

    @property
    def equal(self) -> bool:
        """Whether class names, detections and the mean average precision agree within the tolerances."""
        return not self.problems


def verify(
    detector: Detector,
    format: str,
    path: str | Path,
    images: _Images,
    precision: str = "float32",
    expected: Sequence[Detections] | None = None,
) -> DetectorVerification:
    """Runs an exported file in its own process, without Keras, and compares its detections.

    In float32, each image must have the same number of detections, and each detection a counterpart of the
    same label with an IoU of at least 0.99 and a score within 1e-4. One image in a hundred may differ:
    rounding may decide which of two boxes suppresses the other. With annotated objects, COCO's mean
    average precision must be within 0.001. A file of lower precision is compared by its mean average
    precision only, which must be within 0.02. All signatures of a SavedModel are compared.

    For a file of a fixed size, the images are resized before the file and the detector get them.

    Args:
        format: "saved_model", "onnx", "tflite", or "openvino" for an ONNX file in OpenVINO.
        images: uint8 (height, width, 3), RGB, of any sizes; or a split.
        precision: of the file: "float32", "float16" or "int8".
        expected: the detector's own detections of the images, if they are known.

    Raises:
        InputError: the file does not exist or cannot be opened, its runtime is not installed, there are no
            images, or no annotated objects for a file of lower precision.
    """
    annotated = isinstance(images, DetectionSplit) and has_objects(images)
    if not len(images):
        raise InputError("there are no images to verify on")
    if precision != "float32" and not annotated:
        raise InputError(f"{precision} files are compared by their mean average precision; pass a split")
    with open_artifact(format, path) as file:
        problems = list(file.problems)
        if file.labels is not None and file.labels != detector.class_names:
            problems.append("its labels are not the detector's class names")
        if precision == "float32" and format != "tflite":
            problems += broken_signatures(file, detector, _read(images, 0))
        pairs = _compare(detector, file, images, expected, problems)
    rounded = _rounded(pairs) if precision == "float32" else set()
    compared = [pair for index, pair in enumerate(pairs) if index not in rounded]
    differences = [difference(*pair) for pair in compared]
    # NumPy's functions keep NaN, which Python's may lose.
    least = float(np.min([1.0, *(iou for iou, _ in differences)]))
    largest = float(np.max([0.0, *(score for _, score in differences)]))
    if precision == "float32":
        problems += _differences(compared, least, largest)
    figures: tuple[float | None, float | None] = (None, None)
    if isinstance(images, DetectionSplit) and annotated and len(pairs) == len(images):
        file_found, own_found = zip(*pairs, strict=True)
        figures = (
            average_precision(detector, images, file_found),
            average_precision(detector, images, own_found),
        )
        limit = _AP_TOLERANCE if precision == "float32" else _REDUCED_AP_TOLERANCE
        if precision != "float32" and not figures[1] > limit:
            problems.append(
                f"the detector's mean average precision, {figures[1]:.4f}, is too low to compare with"
            )
        if not abs(figures[0] - figures[1]) <= limit:
            problems.append(
                f"its mean average precision is {figures[0]:.4f}, the detector's {figures[1]:.4f}"
            )
    total = sum(len(own) for _, own in pairs)
    return DetectorVerification(
        len(images),
        total,
        least,
        largest,
        tuple(problems),
        *figures,
        version=file.version,
        rounded=len(rounded),
    )


def _read(images: _Images, index: int) -> np.ndarray:
    return images.read_image(index) if isinstance(images, DetectionSplit) else images[index]


def _compare(
    detector: Detector,
    file: Artifact,
    images: _Images,
    expected: Sequence[Detections] | None,
    problems: list[str],
) -> list[tuple[Detections, Detections]]:
    """Returns the detections of the file and of the detector in each image, in pixels of the image.

    Ends at the first image on which the file does not run, which becomes one of the `problems`.
    """
    pairs = []
    _, shape = file.inputs.get(INPUT, ("", (None,) * 4))
    progress = ProgressBar(len(images), "images", "comparing")
    for index in progress.track(range(len(images))):
        image = _read(images, index)
        original = image.shape[:2]
        size = tuple(fixed or side for fixed, side in zip(shape[1:3], original, strict=True))
        if size != original:
            image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        try:
            (found,) = read_detections(file.run(image[None].astype("float32")), 1)
        except (RunError, InputError) as error:
            problems.append(f"does not run on image {index}: {str(error).splitlines()[0]}")
            break
        own = expected[index] if expected and size == original else detect_on_cpu(detector, [image])[0]
        pairs.append(
            tuple(
                dataclasses.replace(each, boxes=rescale_boxes(each.boxes, size, original))
                for each in (found, own)
            )
        )
    return pairs


def _rounded(pairs: Sequence[tuple[Detections, Detections]]) -> set[int]:
    """Returns the images with differences, or none if there are more than rounding explains."""
    different = {index for index, pair in enumerate(pairs) if problem(*pair)}
    return different if len(different) <= _LARGEST_ROUNDED_SHARE * len(pairs) else set()


def _differences(pairs: Sequence[tuple[Detections, Detections]], least: float, largest: float) -> list[str]:
    """Returns the differences beyond the tolerances of float32, as sentences."""
    problems = []
    wrong = [index for index, (found, own) in enumerate(pairs) if len(found) != len(own)]
    if wrong:
        found, own = pairs[wrong[0]]
        others = f", and in {len(wrong) - 1} others another number" if wrong[1:] else ""
        problems.append(f"finds {len(found)} objects in image {wrong[0]}, not {len(own)}{others}")
    # Negated, so that NaN is a problem.
    if not least >= LEAST_IOU:
        problems.append(f"a box has an IoU of {least:.3f} with the detector's")
    if not largest <= SCORE_TOLERANCE:
        problems.append(f"a score differs by {largest:.1e}")
    return problems


def has_objects(split: DetectionSplit) -> bool:
    """Whether the mean average precision of a split is defined: crowd regions alone do not suffice."""
    return any((~objects.crowd).any() for objects in split.objects)


def average_precision(detector: Detector, split: DetectionSplit, found: Sequence[Detections]) -> float:
    """Returns COCO's mean average precision of detections in all images of a split."""
    labels = labels_of_split(detector, split)
    return coco_statistics(split, [relabeled(each, labels, detector.name) for each in found]).figures["AP"]
