"""The table of artifact kinds, and the options of an export."""

import dataclasses
import types
from collections.abc import Collection, Iterable, Mapping

import numpy as np

from keras_resnet.errors import InputError, require, unknown_name
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.images.preprocessing import Preprocessing

_PROBABILITY_TOLERANCE = 1e-5


@dataclasses.dataclass(frozen=True)
class ArtifactKind:
    """One format in one precision.

    Attributes:
        format: a key of `FILE_FORMATS`.
        precision: precision of the weights, and in some kinds of the activations.
        tolerance: largest allowed logit difference. In float32: of any image, over the largest logit of
            all (artifacts reach 2e-6). Otherwise: the differences' root mean square over the logits'.
        probability_tolerance: largest allowed difference from the probabilities of the file's own logits.
    """

    format: str
    precision: str
    tolerance: float
    probability_tolerance: float = _PROBABILITY_TOLERANCE

    @property
    def name(self) -> str:
        """The key in `ARTIFACTS`, such as "onnx" or "onnx_int8"."""
        return self.format if self.precision == "float32" else f"{self.format}_{self.precision}"

    @property
    def file_name(self) -> str:
        """Name of the file, or of the folder, in the output folder."""
        if FILE_FORMATS[self.format].mark is None:
            return self.name
        return f"{self.name.replace(self.format, 'model', 1)}.{self.format}"


_KINDS = tuple(
    ArtifactKind(
        name, precision, tolerance, row.probability_tolerances.get(precision, _PROBABILITY_TOLERANCE)
    )
    for name, row in FILE_FORMATS.items()
    for precision, tolerance in row.tolerances.items()
)
ARTIFACTS: Mapping[str, ArtifactKind] = types.MappingProxyType({kind.name: kind for kind in _KINDS})
"""The kinds of files that can be exported, by names such as "onnx" or "onnx_int8"."""

FORMATS = ("saved_model", "tflite", "onnx")
"""The formats that are written by default."""

PRECISIONS = tuple(dict.fromkeys(kind.precision for kind in _KINDS))
IO_DTYPES = ("float32", "uint8")
LAYOUTS = ("nhwc", "nchw")
CHOICES = ("io_dtype", "opset", "layout", "dynamic_size", "batch_size")  # fields of `Options` with a flag
OPSET = 17
OLDEST_OPSET = 13  # the first whose quantization knows channels, and whose softmax has one axis
NEWEST_OPSET = 23  # tested; ONNX Runtime lags behind the newest
NEWEST_CONVERTED_OPSET = 18  # of tf2onnx
LEAST_CALIBRATION_IMAGES = 32


def precisions(format: str) -> tuple[str, ...]:
    """The precisions of a format."""
    return tuple(kind.precision for kind in _KINDS if kind.format == format)


@dataclasses.dataclass(frozen=True)
class Options:
    """The options of artifacts, besides format and precision.

    Attributes:
        io_dtype: dtype of the pixels that TFLite and ONNX files take: "float32" or "uint8". An int8 TFLite
            file then also has uint8 outputs.
        opset: ONNX operator set version.
        layout: of the images that ONNX files take: "nhwc" or "nchw".
        dynamic_size: whether ONNX files take images of any height and width.
        batch_size: number of images that TFLite files take per call; None for any number.
        metadata: strings by name to store in an artifact.
        labels: class names in the order of the logits, or empty.
        preprocessing: how the SavedModel's `classify_bytes` resizes and crops images; None resizes whole
            images bilinearly.
        calibration: float32 batches of raw pixels that "int8" files are calibrated with.
    """

    io_dtype: str = "float32"
    opset: int = OPSET
    layout: str = "nhwc"
    dynamic_size: bool = False
    batch_size: int | None = None
    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    preprocessing: Preprocessing | None = None
    calibration: Iterable[np.ndarray] | None = None

    def __post_init__(self) -> None:
        check_choice("io_dtype", self.io_dtype, IO_DTYPES)
        check_choice("layout", self.layout, LAYOUTS)
        check_opset(self.opset)
        require(
            self.batch_size is None or self.batch_size >= 1, "batch_size must be at least 1", self.batch_size
        )

    @property
    def choices(self) -> dict[str, str | int | bool | None]:
        """The values that the command line has flags for."""
        return {name: getattr(self, name) for name in CHOICES}

    @property
    def changed(self) -> dict[str, str | int | bool | None]:
        """Those of `choices` that differ from their defaults."""
        defaults = Options().choices
        return {name: value for name, value in self.choices.items() if value != defaults[name]}


def check_choice(kind: str, name: str, known: Collection[str]) -> None:
    """Raises `InputError` unless `name` is one of `known`."""
    if name not in known:
        raise unknown_name(kind, name, known)


def check_opset(opset: int, newest: int = NEWEST_OPSET) -> None:
    """Raises `InputError` for an opset that `to_onnx` does not write."""
    if opset not in range(OLDEST_OPSET, newest + 1):
        raise InputError(f"ONNX files are written with opset {OLDEST_OPSET} to {newest}; got {opset}")


def check_options_apply(changed: Iterable[str], artifacts: Iterable[str]) -> None:
    """Raises `InputError` for an option that does not apply to any of the artifacts.

    Args:
        changed: names of options that differ from their defaults, also "calibration_images".
        artifacts: keys of `ARTIFACTS`.
    """
    kinds = [ARTIFACTS[name] for name in artifacts]
    formats = {kind.format for kind in kinds}
    for name in changed:
        if name == "calibration_images":
            if all(kind.precision != "int8" for kind in kinds):
                raise InputError(f"{name} applies to int8 files, which are not among the precisions")
            continue
        # Only detectors have image_size, which is not in the table.
        rows = FILE_FORMATS.items()
        applies_to = [format for format, row in rows if name in row.options] or ["tflite"]
        if formats.isdisjoint(applies_to):
            titles = " and ".join(FILE_FORMATS[format].title for format in applies_to)
            raise InputError(f"{name} applies to {titles} files, which are not among the formats")


def check_calibration(calibration: Iterable[np.ndarray] | None, shape: tuple) -> list[np.ndarray]:
    """Returns the calibration batches, (n, height, width, channels) of raw pixels 0-255, as a list.

    Raises:
        InputError: too few images, or images that do not have the network's input `shape`, (height, width,
            channels) with None for any size.
    """
    batches = [np.asarray(batch) for batch in (() if calibration is None else calibration)]
    for batch in batches:
        sizes = zip(shape, batch.shape[1:], strict=False)
        if batch.ndim != 4 or any(wanted not in (None, size) for wanted, size in sizes):
            wanted = ", ".join(map(str, shape))
            raise InputError(f"calibration batches must be (n, {wanted}); got {batch.shape}")
    count = sum(map(len, batches))
    if count < LEAST_CALIBRATION_IMAGES:
        raise InputError(f"int8 needs at least {LEAST_CALIBRATION_IMAGES} calibration images; got {count}")
    return batches


def check_formats(
    names: str | Iterable[str],
    precisions: str | Iterable[str] = "float32",
    known: Collection[ArtifactKind] = _KINDS,
) -> tuple[str, ...]:
    """Returns every existing pair of a format and a precision as keys of `ARTIFACTS`, in its order.

    Formats and precisions are given as lists or separated by commas; `known` are the existing pairs.

    Raises:
        InputError: an unknown name, no name, or a format or precision that no pair has.
    """
    formats = _names("format", names, tuple(FILE_FORMATS))
    wanted = _names("precision", precisions, PRECISIONS)
    kinds = [kind for kind in known if kind.format in formats and kind.precision in wanted]
    for name in formats:
        if all(kind.format != name for kind in kinds):
            choices = ", ".join(kind.precision for kind in known if kind.format == name)
            if not choices:
                others = ", ".join(dict.fromkeys(kind.format for kind in known))
                raise InputError(f"this network is not exported to {name}; choose from {others}")
            raise InputError(f"{name} has no precision {' or '.join(wanted)}; choose from {choices}")
    for precision in wanted:
        if all(kind.precision != precision for kind in kinds):
            having = " and ".join(kind.format for kind in known if kind.precision == precision)
            choices = ", ".join(dict.fromkeys(kind.precision for kind in known))
            hint = f"it exists for {having}" if having else f"choose from {choices}"
            raise InputError(f"{' or '.join(formats)} in {precision} does not exist; {hint}")
    return tuple(kind.name for kind in kinds)


def _names(kind: str, names: str | Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    parts = names.split(",") if isinstance(names, str) else names
    wanted = {part.strip() for part in parts} - {""}
    for name in sorted(wanted):
        check_choice(kind, name, known)
    if not wanted:
        raise InputError(f"no {kind} given; choose from {', '.join(known)}")
    return tuple(name for name in known if name in wanted)
