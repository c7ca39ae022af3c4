"""The artifacts as one table: how each is written, opened, and called on the disk."""

import dataclasses
import json
import types
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import keras
import numpy as np

from keras_resnet.errors import InputError, unknown_name
from keras_resnet.export import runtimes
from keras_resnet.export.serving import INPUT, OUTPUTS
from keras_resnet.export.writers.onnx import IO_DTYPES, LAYOUTS, check_opset, to_onnx
from keras_resnet.export.writers.saved_model import to_saved_model
from keras_resnet.export.writers.tflite import to_tflite
from keras_resnet.images.preprocessing import INTERPOLATIONS

Tensors = dict[str, tuple[str, tuple]]


@dataclasses.dataclass(frozen=True)
class Options:
    """What a person may choose about artifacts, besides format and precision.

    Attributes:
        metadata: strings by name that travel inside an artifact.
        labels: class names in the order of the logits, or empty.
        evaluation_side: pixels to which the evaluation resizes an image's shorter side before it cuts
            out the centre; None where it resizes whole images.
        interpolation: of that resizing, "bilinear" or "bicubic".
        io_dtype: of the pixels that TFLite and ONNX files take: "float32" or "uint8". An int8 TFLite
            file then also answers in uint8.
        opset: of ONNX files.
        layout: of the images that ONNX files take: "nhwc" or "nchw".
        dynamic_size: whether ONNX files take images of any height and width.
        calibration: float32 batches of raw pixels that "int8" files are calibrated with.
    """

    metadata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: tuple[str, ...] = ()
    evaluation_side: int | None = None
    interpolation: str = "bilinear"
    io_dtype: str = "float32"
    opset: int = 17
    layout: str = "nhwc"
    dynamic_size: bool = False
    calibration: Iterable[np.ndarray] | None = None

    def __post_init__(self):
        for kind, value, known in (
            ("io_dtype", self.io_dtype, IO_DTYPES),
            ("layout", self.layout, LAYOUTS),
            ("interpolation", self.interpolation, INTERPOLATIONS),
        ):
            if value not in known:
                raise unknown_name(kind, value, known)
        check_opset(self.opset)


@dataclasses.dataclass(frozen=True)
class Format:
    """One format in one precision.

    Attributes:
        name: of the format, one of `FORMATS`.
        precision: one of `PRECISIONS`.
        file_name: of the artifact in its output folder; a trailing slash marks a folder.
        write: `write(model, path, options) -> Path`, the path of what was written.
        open: a context manager over the artifact in its own runtime.
        promise: `promise(model, options) -> (inputs, outputs)`: name to dtype and shape, as
            `runtimes.Artifact` has them.
        tolerance: largest allowed logit difference, relative: see `verify`.
        probability_tolerance: largest allowed difference from the softmax of the file's own logits.
    """

    name: str
    precision: str
    file_name: str
    write: Callable[[keras.Model, Path, Options], Path]
    open: Callable[[Path], AbstractContextManager[runtimes.Artifact]]
    promise: Callable[[keras.Model, Options], tuple[Tensors, Tensors]]
    tolerance: float
    probability_tolerance: float = 1e-5


def _promise(model, dtype="float32", shape=None, output_dtype="float32") -> tuple[Tensors, Tensors]:
    outputs = {name: (output_dtype, tuple(model.output[name].shape)) for name in OUTPUTS}
    return {INPUT: (dtype, tuple(shape or model.input_shape))}, outputs


def _saved_model(precision: str) -> Format:
    def write(model, path, options):
        return to_saved_model(
            model,
            path,
            options.metadata,
            precision=precision,
            labels=options.labels,
            evaluation_side=options.evaluation_side,
            interpolation=options.interpolation,
        )

    return Format(
        "saved_model",
        precision,
        f"saved_model{_suffix(precision)}/",
        write,
        runtimes.open_saved_model,
        lambda model, options: _promise(model),
        TOLERANCES[precision],
    )


def _tflite(precision: str) -> Format:
    def write(model, path, options):
        return to_tflite(
            model,
            path,
            options.metadata,
            precision=precision,
            io_dtype=options.io_dtype,
            calibration=options.calibration if precision == "int8" else None,
            labels=options.labels,
        )

    def promise(model, options):
        output_dtype = options.io_dtype if precision == "int8" else "float32"
        return _promise(model, options.io_dtype, output_dtype=output_dtype)

    name = f"model{_suffix(precision)}.tflite"
    # An int8 file rounds its probabilities, and the logits that they come from, to 8 bits.
    of_probabilities = {"probability_tolerance": 1 / 64} if precision == "int8" else {}
    return Format(
        "tflite",
        precision,
        name,
        write,
        runtimes.open_tflite,
        promise,
        TOLERANCES[precision],
        **of_probabilities,
    )


def _onnx(precision: str) -> Format:
    def write(model, path, options):
        labels = {"labels": json.dumps(list(options.labels)), "layout": options.layout}
        return to_onnx(
            model,
            path,
            {**options.metadata, **labels},
            precision=precision,
            opset=options.opset,
            layout=options.layout,
            dynamic_size=options.dynamic_size,
            io_dtype=options.io_dtype,
            calibration=options.calibration if precision == "int8" else None,
        )

    def promise(model, options):
        batch, height, width, channels = model.input_shape
        if options.dynamic_size:
            height = width = None
        first = options.layout == "nchw"
        shape = (batch, channels, height, width) if first else (batch, height, width, channels)
        return _promise(model, options.io_dtype, shape)

    name = f"model{_suffix(precision)}.onnx"
    return Format("onnx", precision, name, write, runtimes.open_onnx, promise, TOLERANCES[precision])


def _suffix(precision: str) -> str:
    return "" if precision == "float32" else f"_{precision}"


# The largest logit difference of any image over the largest logit of all for float32, whose artifacts
# reach 2e-6; for the others the root mean square of all differences over that of all logits.
TOLERANCES = {"float32": 1e-5, "float16": 0.002, "bfloat16": 0.02, "dynamic": 0.03, "int8": 0.1}

_PRECISIONS = {
    "saved_model": (_saved_model, ("float32", "bfloat16")),
    "tflite": (_tflite, ("float32", "float16", "dynamic", "int8")),
    "onnx": (_onnx, ("float32", "float16", "int8")),
}
FORMATS = tuple(_PRECISIONS)
PRECISIONS = tuple(TOLERANCES)

TABLE: types.MappingProxyType[str, Format] = types.MappingProxyType(
    {
        f"{name}{_suffix(precision)}": make(precision)
        for name, (make, precisions) in _PRECISIONS.items()
        for precision in precisions
    }
)


def check_formats(names: str | Iterable[str], precisions: str | Iterable[str] = "float32") -> tuple[str, ...]:
    """Reads "saved_model,onnx" and "float32,int8", or lists of names.

    Returns:
        Keys of `TABLE`, in its order: every pair of a format and a precision that there is.

    Raises:
        InputError: an unknown name, none at all, or one that has no partner.
    """
    formats = _names("format", names, FORMATS)
    wanted = _names("precision", precisions, PRECISIONS)
    for name in formats:
        known = _PRECISIONS[name][1]
        if not set(known) & set(wanted):
            raise InputError(f"{name} has no precision {' or '.join(wanted)}; it has {', '.join(known)}")
    for precision in wanted:
        having = [name for name in FORMATS if precision in _PRECISIONS[name][1]]
        if not set(having) & set(formats):
            raise InputError(
                f"{' or '.join(formats)} in {precision} does not exist; {' and '.join(having)} have it"
            )
    return tuple(
        f"{name}{_suffix(precision)}"
        for name in formats
        for precision in _PRECISIONS[name][1]
        if precision in wanted
    )


def _names(kind: str, names: str | Iterable[str], known: tuple[str, ...]) -> tuple[str, ...]:
    parts = names.split(",") if isinstance(names, str) else names
    wanted = {part.strip() for part in parts} - {""}
    for name in sorted(wanted):
        if name not in known:
            raise unknown_name(kind, name, known)
    if not wanted:
        raise InputError(f"no {kind} given; choose from {', '.join(known)}")
    return tuple(name for name in known if name in wanted)
