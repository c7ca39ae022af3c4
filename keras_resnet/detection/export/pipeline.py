"""Exports a detector and verifies the files."""

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from keras_resnet import files
from keras_resnet.detection.data.annotations import DetectionSplit
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.detector import Detector
from keras_resnet.detection.drawing import draw_boxes, save_contact_sheet, thumbnail
from keras_resnet.detection.evaluation import labels_of_split
from keras_resnet.detection.export.comparison import detect_on_cpu
from keras_resnet.detection.export.model_card import model_card
from keras_resnet.detection.export.onnx import detector_to_onnx
from keras_resnet.detection.export.report import (
    DetectorArtifactReport,
    DetectorExportReport,
    comparison_table,
)
from keras_resnet.detection.export.request import DetectionImages, DetectorExportRequest, DetectorSource
from keras_resnet.detection.export.saved_model import detector_to_saved_model
from keras_resnet.detection.export.tflite import detector_to_tflite
from keras_resnet.detection.export.verification import (
    DetectorVerification,
    average_precision,
    has_objects,
    verify,
)
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import ARTIFACTS
from keras_resnet.export.publishing import (
    CARD,
    check_output_folder,
    missing_packages_as_input_errors,
    publish,
    tell_rejected,
    write_all,
)
from keras_resnet.export.report import PARITY
from keras_resnet.progress import ProgressBar
from keras_resnet.run_folder import open_run_folder

_PICTURE = "detections.png"
_DRAWN_IMAGES = 8
_DRAWN_SCORE = 0.5


def export_detector(
    request: DetectorExportRequest, tell: Callable[[str], None] = print
) -> DetectorExportReport:
    """Exports a detector, compares each file with it, and writes a report beside the files.

    Only what equals the detector gets its final name, a SavedModel the next number. What differs is moved to
    the hidden folder `.rejected`, until the next export.

    Args:
        tell: receives the progress, line by line, and the table at the end.

    Raises:
        InputError: the request cannot be carried out, the folder cannot be written, or another program's
            file has the name of one of ours.
    """
    if request.workdir is None:
        return _export(request, request.source(), tell)
    with open_run_folder(request.workdir, ("export",)) as folder:
        return _export(request, request.source(folder), lambda line: tell(folder.shown(line)))


def _export(
    request: DetectorExportRequest, source: DetectorSource, tell: Callable[[str], None]
) -> DetectorExportReport:
    detector, output_dir, images = source.detector, source.output_dir, source.images
    _check(detector, request, images)
    check_output_folder(output_dir, request.artifacts, [_PICTURE])
    with files.hidden_folder(output_dir / "export") as hidden:
        written = write_all(
            request.artifacts, hidden, lambda name, path: _write(name, path, source, request), tell
        )
        tell(f"detecting objects in {images.source}")
        progress = ProgressBar(len(images), "images", "detecting objects")
        expected = [detect_on_cpu(detector, [image])[0] for image in progress.track(images)]
        split, ap = images.images, None
        if isinstance(split, DetectionSplit) and has_objects(split):
            ap = average_precision(detector, split, expected)
        formats = {}
        for name, path in written.items():
            tell(f"comparing {ARTIFACTS[name].file_name} with the detector")
            formats[name] = _verified(detector, name, path, images, expected)
        equal = {name for name, found in formats.items() if found.equal}
        published = publish(written, equal, output_dir, [_PICTURE])
    report = DetectorExportReport(
        model=detector.name,
        class_names=detector.class_names,
        images=len(images),
        images_from=images.source,
        ap=ap,
        parameters=int(detector.model.count_params()),
        image_size=_tflite_size(request, images),
        files={name: path.relative_to(output_dir).as_posix() for name, path in published.items()},
        formats=formats,
    )
    files.write_json(output_dir / PARITY, report.to_json())
    _draw(detector, images, expected, output_dir / _PICTURE)
    card = model_card(source, report, request, _PICTURE)
    files.write_text(output_dir / CARD, card)
    tell(comparison_table(report, output_dir))
    tell_rejected(report.files, equal, output_dir, tell)
    return report


def _check(detector: Detector, request: DetectorExportRequest, images: DetectionImages) -> None:
    """Refuses what would fail after files are written."""
    formats = {ARTIFACTS[name].format for name in request.artifacts}
    if detector.head is None and "tflite" in formats:
        raise InputError(
            f"{detector.name} is a one-stage detector, which cannot be exported to TFLite; give"
            " --formats=saved_model,onnx"
        )
    if isinstance(images.images, DetectionSplit):
        labels_of_split(detector, images.images)


def _tflite_size(request: DetectorExportRequest, images: DetectionImages) -> tuple[int, int] | None:
    """The height and width of the images that TFLite files take; None without a TFLite file."""
    has_tflite = any(ARTIFACTS[name].format == "tflite" for name in request.artifacts)
    return (request.image_size or images.size) if has_tflite else None


def _write(name: str, path: Path, source: DetectorSource, request: DetectorExportRequest) -> Path:
    """Writes the artifact `name`; returns the path of the file, or of the SavedModel's version."""
    kind, detector, license = ARTIFACTS[name], source.detector, source.license
    with missing_packages_as_input_errors(name):
        if kind.format == "saved_model":
            return detector_to_saved_model(detector, path, license=license)
        io_dtype = request.io_dtype
        if kind.format == "onnx":
            return detector_to_onnx(detector, path, opset=request.opset, io_dtype=io_dtype, license=license)
        size = _tflite_size(request, source.images)
        assert size is not None
        calibration = source.images.calibration() if kind.precision == "int8" else None
        return detector_to_tflite(
            detector,
            path,
            image_size=size,
            precision=kind.precision,
            io_dtype=io_dtype,
            calibration=calibration,
            license=license,
        )


def _verified(
    detector: Detector, name: str, path: Path, images: DetectionImages, expected: list[Detections]
) -> DetectorArtifactReport:
    kind = ARTIFACTS[name]
    verification = verify(detector, kind.format, path, images.images, kind.precision, expected)
    openvino = None
    if kind.format == "onnx" and find_spec("openvino") is not None:
        try:
            openvino = verify(detector, "openvino", path, images.images, kind.precision, expected)
        except InputError as error:  # does not end the export: ONNX Runtime decides
            openvino = DetectorVerification(0, 0, 0.0, 0.0, (str(error),), version="openvino")
    return DetectorArtifactReport(
        kind.precision, verification, files.size(path), files.sha256(path), openvino
    )


def _draw(detector: Detector, images: DetectionImages, expected: list[Detections], path: Path) -> None:
    """Draws the detections with a score above 0.5 on a few images, spread evenly."""
    count = min(_DRAWN_IMAGES, len(images))
    chosen = [index * len(images) // count for index in range(count)]
    pictures, captions = [], []
    for index in chosen:
        found = expected[index].above(_DRAWN_SCORE)
        picture = draw_boxes(images[index], found.boxes, found.labels, detector.class_names, found.scores)
        pictures.append(thumbnail(picture))
        captions.append(f"image {index}: objects: {len(found)}")
    heading = f"{detector.name}, scores above {_DRAWN_SCORE:g}"
    with files.replacing(path, files.starts_with(b"PNG")) as temporary:
        save_contact_sheet(pictures, captions, heading, temporary)
