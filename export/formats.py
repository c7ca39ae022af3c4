"""The formats as one table: how each is written, opened, and called on the disk."""

import dataclasses
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path

import keras

from export import runtimes
from export.to_onnx import to_onnx
from export.to_saved_model import to_saved_model
from export.to_tflite import to_tflite
from keras_resnet.errors import InputError, unknown_name


@dataclasses.dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        file_name: of the artifact in its output folder; a trailing slash marks a folder.
        write: `write(model, path, metadata) -> Path`; `metadata` maps names to strings.
        open: a context manager over the artifact in its own runtime.
    """

    file_name: str
    write: Callable[[keras.Model, Path, dict], Path]
    open: Callable[[Path], AbstractContextManager[runtimes.Artifact]]


TABLE: dict[str, Format] = {
    "saved_model": Format(
        "saved_model/", lambda model, path, metadata: to_saved_model(model, path), runtimes.open_saved_model
    ),
    "tflite": Format(
        "model.tflite", lambda model, path, metadata: to_tflite(model, path), runtimes.open_tflite
    ),
    "onnx": Format("model.onnx", to_onnx, runtimes.open_onnx),
}
FORMATS = tuple(TABLE)


def check_formats(names: str | Iterable[str]) -> tuple[str, ...]:
    """Reads "saved_model,onnx" or a list of names, in the table's order and each once.

    Raises:
        InputError: an unknown name, or none at all.
    """
    parts = names.split(",") if isinstance(names, str) else names
    wanted = {part.strip() for part in parts} - {""}
    for name in sorted(wanted):
        if name not in TABLE:
            raise unknown_name("format", name, TABLE)
    if not wanted:
        raise InputError(f"no format given; choose from {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in wanted)
