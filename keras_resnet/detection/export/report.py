"""The results of a detector's export, and the table that the terminal shows."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from keras_resnet.detection.export.verification import DetectorVerification
from keras_resnet.export.report import percent
from keras_resnet.tables import markdown_table

NOTHING_FOUND = (
    "The detector finds no object in these images, so the comparison says little about the weights; choose "
    "images with --dataset."
)

_DIFFERENT = "DIFFERENT"


@dataclasses.dataclass(frozen=True)
class DetectorArtifactReport:
    """One exported file, compared with the detector.

    Attributes:
        precision: "float32", "float16" or "int8".
        verification: the comparison in the runtime of the file's format.
        openvino: the comparison of an ONNX file in OpenVINO, which does not decide whether the file is equal;
            None if OpenVINO is not installed, and for other formats.
        bytes: size of the file, or of all files in the folder.
    """

    precision: str
    verification: DetectorVerification
    bytes: int
    sha256: str
    openvino: DetectorVerification | None = None

    @property
    def equal(self) -> bool:
        """Whether the file may be published."""
        return self.verification.equal

    @property
    def verdict(self) -> str:
        """ "equal" (in float32), "close" (in lower precision) or "DIFFERENT"."""
        return verdict(self.verification, self.precision)

    @property
    def runs(self) -> list[tuple[str, DetectorVerification]]:
        """The comparisons, each with a note on the runtime: "" or " in OpenVINO"."""
        runs = [("", self.verification)]
        return runs if self.openvino is None else [*runs, (" in OpenVINO", self.openvino)]


def verdict(verification: DetectorVerification, precision: str) -> str:
    """Returns the verdict on one comparison; see `DetectorArtifactReport.verdict`."""
    if not verification.equal:
        return _DIFFERENT
    return "equal" if precision == "float32" else "close"


@dataclasses.dataclass(frozen=True)
class DetectorExportReport:
    """An export of a detector, as `parity.json` stores it. `files` and `formats` have keys of `ARTIFACTS`.

    Attributes:
        images: number of images.
        images_from: description of the images.
        ap: the detector's mean average precision of COCO, IoU .50:.95, in [0, 1]; None without annotated
            objects.
        parameters: number of weights.
        image_size: height and width of the images that TFLite files take; None without a TFLite file.
        files: paths relative to the output folder.
    """

    model: str
    class_names: tuple[str, ...]
    images: int
    images_from: str
    ap: float | None
    parameters: int
    image_size: tuple[int, int] | None
    files: Mapping[str, str]
    formats: Mapping[str, DetectorArtifactReport]

    @property
    def equal(self) -> bool:
        """Whether no file is DIFFERENT from the detector."""
        return all(file.equal for file in self.formats.values())

    @property
    def nothing_found(self) -> bool:
        """Whether a file is equal only because it detects nothing, as the detector does."""
        return any(file.equal and not file.verification.detections for file in self.formats.values())

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values with the keys of the attributes, "equal", and "verdict" of each file."""
        values: dict[str, Any] = dataclasses.asdict(self) | {"equal": self.equal}
        for name, entry in values["formats"].items():
            entry["verdict"] = self.formats[name].verdict
        return values


def comparison_rows(report: DetectorExportReport, output_dir: str | Path = "") -> list[list[str]]:
    """Returns for each file and runtime its path, size, differences, mean average precision and verdict."""
    rows = []
    for name, file in report.formats.items():
        for note, found in file.runs:
            rows.append(
                [
                    f"{Path(output_dir) / report.files[name]}{note}",
                    "" if note else f"{file.bytes / 1e6:.2f} MB",
                    str(found.detections),
                    f"{found.least_iou:.4f}",
                    f"{found.score_difference:.1e}",
                    percent(found.ap),
                    verdict(found, file.precision),
                ]
            )
    return rows


COMPARISON = ["file", "size", "detections", "least IoU", "largest score difference", "mAP", ""]


def comparison_table(report: DetectorExportReport, output_dir: str | Path = "") -> str:
    """Returns a table of the detector and its files, by their paths in `output_dir`."""
    first = [f"{report.model} (Keras)", "", "", "", "", percent(report.ap), ""]
    lines = [f"{report.model} on {report.images} images, {report.images_from}"]
    lines.append(markdown_table(COMPARISON, [first, *comparison_rows(report, output_dir)]))
    for name, file in report.formats.items():
        lines += [
            f"  {name}{note}: images in which rounding decides which boxes suppress others: {found.rounded}"
            for note, found in file.runs
            if found.rounded
        ]
        lines += [f"  {name}{note}: {problem}" for note, found in file.runs for problem in found.problems]
    if report.nothing_found:
        lines.append(f"  {NOTHING_FOUND}")
    return "\n".join(lines)
