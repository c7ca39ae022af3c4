"""Writes TFLite's standard metadata: descriptions of the tensors, and the class names.

A TFLite file with metadata is a flatbuffer of the model, among whose buffers is a second flatbuffer, the
metadata, and behind which a ZIP archive follows with the files that the metadata refers to. Field numbers
are those of TensorFlow's metadata_schema.fbs.
"""

import dataclasses
import json
import reprlib
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import flatbuffers
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export.serving import INPUT
from keras_resnet.version import __version__

_LABELS_FILE = "labels.txt"
_METADATA_FILE = "metadata.json"
_ALIGNMENT = 16  # kernels read weights where they lie in the file, and expect them on such addresses

_DESCRIPTIONS = np.uint8(1)  # AssociatedFileType
_LABELS = {"axis": np.uint8(2), "values": np.uint8(3)}
_IMAGE, _CONTENTS = np.uint8(2), {"features": np.uint8(1), "boxes": np.uint8(3)}  # ContentProperties
# BoundingBoxProperties: left, top, right and bottom (BoundingBoxType), in pixels (CoordinateType).
_BOXES = {1: np.uint8(1), 2: np.uint8(1)}
_COLOR_SPACES = {1: np.uint8(2), 3: np.uint8(1)}  # channels to ColorSpaceType: GRAYSCALE, RGB
_NORMALIZATION = np.uint8(1)  # ProcessUnitOptions


@dataclasses.dataclass(frozen=True)
class OutputMetadata:
    """How the metadata describes an output.

    Attributes:
        description: a sentence.
        content: "features", or "boxes" for left, top, right and bottom in pixels.
        limits: the largest and the smallest value, or None.
        labels: "axis" if the last axis enumerates the classes, "values" if the values are class indices.
    """

    description: str
    content: Literal["features", "boxes"] = "features"
    limits: tuple[float, float] | None = None
    labels: Literal["axis", "values"] | None = None


def read_model(content: bytes) -> Any:
    """Returns the `ModelT` of TFLite's schema that a converted model holds."""
    from ai_edge_litert import schema_py_generated as schema

    # Untyped: the schema's annotations say str and list where it reads and packs bytes and arrays.
    return schema.ModelT.InitFromPackedBuf(content)


def write_with_metadata(
    model: Any,
    path: Path,
    metadata: Mapping[str, str],
    labels: Sequence[str],
    outputs: Mapping[str, OutputMetadata],
    task: str,
) -> None:
    """Writes a converted model with metadata; the same arguments give the same bytes.

    The model's buffers are laid out again, because TensorFlow's converter removes duplicates with a tool
    that ignores their alignment. The tensors get the names that the signature gives them.

    Args:
        model: of `read_model`, with one subgraph and one signature; it is changed.
        path: the file to write.
        metadata: strings about the model, stored in the archive as `metadata.json`; viewers show "model"
            and "license".
        labels: names of the classes in the order of the logits, or none.
        outputs: descriptions of the outputs, by name.
        task: what the model does, such as "Classifies images into 10 classes".
    """
    from ai_edge_litert import schema_py_generated as schema

    (subgraph,), (signature,) = model.subgraphs, model.signatureDefs
    names = {entry.tensorIndex: entry.name.decode() for entry in (*signature.inputs, *signature.outputs)}
    for index, name in names.items():
        subgraph.tensors[index].name = name.encode()
    entry: Any = schema.MetadataT()
    entry.name, entry.buffer = b"TFLITE_METADATA", len(model.buffers)
    model.metadata = [*(model.metadata or []), entry]
    buffer: Any = schema.BufferT()
    described = {names[index]: outputs[names[index]] for index in subgraph.outputs}
    buffer.data = np.frombuffer(_metadata_buffer(subgraph, described, metadata, labels, task), np.uint8)
    model.buffers.append(buffer)
    with path.open("wb") as file:
        for piece in _layout(model):
            file.write(piece)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in text_files(metadata, labels).items():
            # Stored, because TFLite's own readers do not unpack; a fixed date, so that files are equal.
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o644 << 16
            archive.writestr(info, text.encode("utf-8"))


def text_files(metadata: Mapping[str, str], labels: Sequence[str]) -> dict[str, str]:
    """Returns the files that a SavedModel's assets and a TFLite file's archive hold, by name."""
    files = {_METADATA_FILE: json.dumps(dict(metadata), indent=2) + "\n"}
    if labels:
        files[_LABELS_FILE] = "".join(f"{label}\n" for label in labels)
    return files


def check_labels(labels: Sequence[str], classes: int) -> None:
    """Raises `InputError` unless there is one string per class, or none, and none has a line break."""
    is_list = isinstance(labels, Iterable) and not isinstance(labels, str)
    if not is_list or not all(isinstance(label, str) for label in labels):
        raise InputError(f"labels must be strings, one per class; got {reprlib.repr(labels)}")
    if len(labels) not in (0, classes):
        raise InputError(f"{len(labels)} labels do not fit {classes} classes")
    for label in labels:
        if len(f"{label}|".splitlines()) > 1:
            raise InputError(f"label {label!r} has a line break; a TFLite file stores one label per line")


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Reads the names of the classes, in the order of the logits, from a TFLite file; needs no TensorFlow.

    Returns no names for a file without metadata. Raises `InputError` if the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            if not zipfile.is_zipfile(file):
                return ()
            with zipfile.ZipFile(file) as archive:
                if _LABELS_FILE not in archive.namelist():
                    return ()
                return tuple(archive.read(_LABELS_FILE).decode("utf-8").split("\n")[:-1])
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def _layout(model) -> Iterator[bytes | bytearray | memoryview]:
    """Yields the pieces of a flatbuffer: everything but the buffers' data, then the data, aligned.

    Flatbuffers are built from their end. The builder takes a negative offset for something behind what
    it builds, so the weights need not pass through it (it would hold them four times).
    """
    from ai_edge_litert import schema_py_generated as schema

    class Elsewhere(schema.BufferT):
        def __init__(self, position):
            super().__init__()
            self.position = position

        def Pack(self, builder):
            schema.BufferStart(builder)
            schema.BufferAddData(builder, -self.position)
            return schema.BufferEnd(builder)

    data, size = [], 0
    for index, buffer in enumerate(model.buffers):
        if buffer.data is None or not len(buffer.data):
            continue
        # A vector is its length, four bytes, and its elements; these are what must be aligned.
        padding = -(size + 4) % _ALIGNMENT
        length = len(buffer.data)
        data += [bytes(padding) + length.to_bytes(4, "little"), memoryview(buffer.data)]
        model.buffers[index] = Elsewhere(size + padding)
        size += padding + 4 + length
    builder = flatbuffers.Builder(1 << 16)
    builder.Prep(_ALIGNMENT, 0)  # what is built becomes a multiple of this long
    builder.Finish(model.Pack(builder), b"TFL3")
    yield builder.Output()
    yield from data


def _metadata_buffer(
    subgraph,
    described: Mapping[str, OutputMetadata],
    metadata: Mapping[str, str],
    labels: Sequence[str],
    task: str,
) -> bytes:
    """Returns the metadata's own flatbuffer, a ModelMetadata; tables are {field number: value}."""
    builder = flatbuffers.Builder(4096)
    color_space = _COLOR_SPACES.get(int(subgraph.tensors[subgraph.inputs[0]].shape[-1]))
    images = {
        3: {1: {0: color_space}, 0: _IMAGE},
        0: INPUT,
        1: "Images as raw pixels 0-255; the normalization is inside the model.",
        # TFLite's task library asks for it; nothing is left to normalize.
        4: [{1: {0: (0.0,), 1: (1.0,)}, 0: _NORMALIZATION}],
        5: {0: (255.0,), 1: (0.0,)},  # the largest and the smallest value
    }
    inputs, outputs = [_write(builder, images)], []
    for name, output in described.items():
        files = None
        if labels and output.labels:
            file = {0: _LABELS_FILE, 1: "Names of the classes, one per line.", 2: _LABELS[output.labels]}
            files = [_write(builder, file)]
        content = {1: _BOXES if output.content == "boxes" else {}, 0: _CONTENTS[output.content]}
        limits = {0: output.limits[:1], 1: output.limits[1:]} if output.limits else None
        table = {3: content, 0: name, 1: output.description, 5: limits, 6: files}
        outputs.append(_write(builder, table))
    model = _write(builder, metadata.get("model") or "model")
    graph = _write(builder, {2: inputs, 3: outputs})
    file = {0: _METADATA_FILE, 1: "What the exporter knew about the model.", 2: _DESCRIPTIONS}
    files = [_write(builder, file)]
    description = f"{task}. Takes raw pixels 0-255; the normalization is inside."
    license_name = metadata.get("license", "Apache-2.0")
    oldest_parser = "1.0.0"  # that knows all the fields used here
    root = {0: model, 1: description, 2: __version__, 3: [graph], 4: "keras_resnet", 5: license_name}
    builder.Finish(_write(builder, root | {6: files, 7: oldest_parser}), b"M001")
    return bytes(builder.Output())


def _write(builder: flatbuffers.Builder, value: Any) -> int:
    """Writes a string, a tuple of floats, a list of tables, or a table; returns its offset.

    An integer is the offset of something that is written already. A table is written in the order of its
    dictionary; in it, an `np.uint8` is a number of one byte, and None leaves a field out.
    """
    if isinstance(value, int):
        return value
    if isinstance(value, str):
        return builder.CreateString(value)
    if isinstance(value, tuple):
        return builder.CreateNumpyVector(np.asarray(value, "<f4"))
    if isinstance(value, list):
        offsets = [_write(builder, table) for table in value]
        builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            builder.PrependUOffsetTRelative(offset)
        return builder.EndVector()
    fields = {field: part for field, part in value.items() if part is not None}
    numbers = {field: part for field, part in fields.items() if isinstance(part, np.generic)}
    offsets = {field: _write(builder, part) for field, part in fields.items() if field not in numbers}
    builder.StartObject(10)  # no table of the schema has more fields; unused ones take no space
    for field in sorted(offsets):
        builder.PrependUOffsetTRelativeSlot(field, offsets[field], 0)
    for field, number in numbers.items():
        builder.PrependUint8Slot(field, number, 0)
    return builder.EndObject()
