"""The results of an export, and the table that the terminal shows."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from keras_resnet.export.formats import FLOAT32_TOLERANCE
from keras_resnet.tables import markdown_table

# Files of an export.
PARITY = "parity.json"
SAMPLES = "samples.png"  # the first images that it was verified on, side by side


@dataclasses.dataclass(frozen=True)
class ArtifactReport:
    """One artifact, compared with the Keras model.

    Shares are between 0 and 1; top-1 is None without labels. A difference that is not finite is None, and
    the artifact is then not equal.

    Attributes:
        max_relative_difference: `max_abs_logit_difference` over the largest logit of the Keras model.
        rms_relative_difference: root mean square of the differences over that of the logits.
        tolerance: limit of `max_relative_difference` in float32, else of `rms_relative_difference`.
        max_probability_error: largest difference from the softmax, or sigmoid, of the artifact's own logits.
        top1_agreement: share of the images for which the Keras model predicts the same class.
        top1_drop: the Keras model's top-1 minus the artifact's.
        max_top1_drop: the `top1_drop` above which a less precise artifact is "worse"; None never calls it so.
        problems: the checks that failed, as sentences.
        bytes: size of the file, or of all files in the folder.
        latency: median milliseconds of a call, by batch size; empty if not measured.
        peak_memory: bytes of the process that measured the latency.
    """

    max_abs_logit_difference: float | None
    max_relative_difference: float | None
    rms_relative_difference: float | None
    tolerance: float
    max_probability_error: float | None
    top1_agreement: float
    top1: float | None
    top1_drop: float | None
    images: int
    equal: bool
    problems: tuple[str, ...]
    bytes: int
    sha256: str
    max_top1_drop: float | None = None
    latency: Mapping[str, float] = dataclasses.field(default_factory=dict)
    peak_memory: int | None = None

    @property
    def verdict(self) -> str:
        """ "equal" (in float32), "close" or "worse" (in less precise formats), or "DIFFERENT"."""
        if not self.equal:
            return "DIFFERENT"
        if self.tolerance == FLOAT32_TOLERANCE:
            return "equal"
        drop, limit = self.top1_drop, self.max_top1_drop
        # A drop of exactly the limit can be more by a rounding error.
        return "worse" if drop is not None and limit is not None and drop > limit + 1e-9 else "close"

    @property
    def difference_text(self) -> str:
        """The largest difference, and the measure that decides whether the artifact is equal."""
        absolute, relative = self.max_abs_logit_difference, self.max_relative_difference
        if absolute is None or relative is None:
            return "not finite"
        if self.tolerance == FLOAT32_TOLERANCE:
            return f"{absolute:.1e} ({relative:.1e} relative)"
        return f"{absolute:.1e} ({self.rms_relative_difference:.1e} rms)"

    @property
    def latency_texts(self) -> tuple[str, str, str]:
        """Milliseconds for one image and for 32, and the peak memory."""
        if not self.latency or self.peak_memory is None:
            return ("-", "-", "-")
        one, many = (f"{self.latency[batch]:.1f} ms" for batch in ("1", "32"))
        return one, many, f"{self.peak_memory / 2**20:,.0f} MiB"


@dataclasses.dataclass(frozen=True)
class ExportReport:
    """An export, as `parity.json` stores it. `files`, `formats` and `versions` have the keys of `ARTIFACTS`.

    Attributes:
        images: number of images.
        activation: from logits to probabilities: "softmax" or "sigmoid".
        keras_layers: layers, such as "norm (LayerNormalization)", that the exporter does not fold. Keras' own
            code computes them, and tf2onnx converts the ONNX file.
        top1: of the Keras model, between 0 and 1; None without labels.
        versions: of the runtimes, and of Keras under "keras".
        overrides: fields of the network's config that differ from the zoo's.
        multiply_adds: per image.
        input_shape: (height, width, channels) of the images.
        images_from: description of the images.
        resize: length to which the shorter side of an image is resized, in pixels; None resizes the whole
            image to the input size.
        sample_labels: the classes of the images in `samples.png`, from left to right; empty if unknown.
        cores: number of CPU cores that the latency was measured on.
        options: the values of `Options.choices`.
        files: paths relative to the output folder.
    """

    model: str
    images: int
    top1: float | None
    versions: Mapping[str, str]
    formats: Mapping[str, ArtifactReport]
    overrides: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    classes: int | None = None
    parameters: int | None = None
    multiply_adds: int | None = None
    input_shape: Sequence[int] | None = None
    images_from: str = "images"
    resize: int | None = None
    interpolation: str = "bilinear"
    sample_labels: Sequence[int] = ()
    cores: int | None = None
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)
    activation: str = "softmax"
    keras_layers: Sequence[str] = ()

    @property
    def equal(self) -> bool:
        """Whether no artifact is DIFFERENT from the Keras model."""
        return all(artifact.equal for artifact in self.formats.values())

    def passes(self, strict: bool) -> bool:
        """Whether no artifact is DIFFERENT or, if `strict`, worse."""
        failures = ("DIFFERENT", "worse") if strict else ("DIFFERENT",)
        return all(artifact.verdict not in failures for artifact in self.formats.values())

    def to_json(self) -> dict[str, Any]:
        """Returns JSON values with the keys of the attributes, "equal", and "verdict" of each artifact."""
        values: dict[str, Any] = dataclasses.asdict(self) | {"equal": self.equal}
        for name, entry in values["formats"].items():
            entry["verdict"] = self.formats[name].verdict
            if not entry["latency"]:
                del entry["latency"], entry["peak_memory"]
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "ExportReport":
        """Reads the output of `to_json` or of the first edition; ignores other keys.

        Raises:
            KeyError, TypeError: the values are not a report.
        """
        values = {"resize": values.get("evaluation_side"), **values}
        artifacts = {name: _of_fields(ArtifactReport, entry) for name, entry in values["formats"].items()}
        return _of_fields(cls, {**values, "formats": artifacts})


def _of_fields(kind: type, values: Mapping[str, Any]) -> Any:
    names = {field.name for field in dataclasses.fields(kind)}
    return kind(**{name: value for name, value in values.items() if name in names})


def parity_table(report: ExportReport, output_dir: str | Path = "") -> str:
    """Returns a table of the Keras model and the artifacts, by their paths in `output_dir`."""
    timed = any(artifact.latency for artifact in report.formats.values())
    header = ["", "size", "top-1", "largest logit difference", ""]
    header += ["batch 1", "batch 32", "memory"] if timed else []
    rows = [[f"{report.model} (Keras)", "", percent(report.top1), *[""] * (len(header) - 3)]]
    for name, artifact in report.formats.items():
        row = [
            str(Path(output_dir) / report.files.get(name, name)),
            f"{artifact.bytes / 1e6:.2f} MB",
            percent(artifact.top1),
            artifact.difference_text,
            artifact.verdict,
        ]
        rows.append([*row, *(artifact.latency_texts if timed else ())])
    lines = [f"{report.model} on {report.images} images, {report.images_from}", markdown_table(header, rows)]
    if report.keras_layers:
        lines.append(f"  not folded, computed by Keras' own code: {', '.join(report.keras_layers)}")
    for name, artifact in report.formats.items():
        lines += [f"  {name}: {problem}" for problem in artifact.problems]
        if artifact.verdict == "worse":
            drop, limit = (
                f"{100 * (share or 0):.4g}" for share in (artifact.top1_drop, artifact.max_top1_drop)
            )
            lines.append(f"  {name}: its top-1 is {drop} points below the Keras model's; {limit} are allowed")
    return "\n".join(lines)


def percent(share: float | None) -> str:
    """Returns "12.34 %", or "-" for None."""
    return "-" if share is None else f"{100 * share:.2f} %"
