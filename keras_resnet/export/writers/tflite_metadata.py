"""Writes TFLite's standard metadata: descriptions of the tensors, and the class names.

A TFLite file with metadata is a flatbuffer of the model, among whose buffers is a second flatbuffer, the
metadata, and behind which a ZIP archive follows with the files that the metadata refers to. Field numbers
are those of TensorFlow's metadata_schema.fbs.
"""

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export.serving import INPUT, LOGITS, PROBABILITIES
from keras_resnet.version import __version__

METADATA = "TFLITE_METADATA"
_IDENTIFIER = b"M001"
_MIN_PARSER_VERSION = "1.0.0"  # of all the fields used here
_LABELS_FILE = "labels.txt"
_METADATA_FILE = "metadata.json"

# Kernels read weights where they lie in the file, and expect them on such addresses.
_ALIGNMENT = 16

_AXIS_LABELS, _DESCRIPTIONS = 2, 1  # AssociatedFileType
_FEATURES, _IMAGE = 1, 2  # ContentProperties
_COLOR_SPACES = {1: 2, 3: 1}  # channels to ColorSpaceType: GRAYSCALE, RGB
_NORMALIZATION = 1  # ProcessUnitOptions

_DESCRIPTIONS_OF_TENSORS = {
    INPUT: "Images as raw pixels 0-255; the normalization is inside the model.",
    LOGITS: "Scores of the classes, before the softmax.",
    PROBABILITIES: "Probabilities of the classes; they sum to 1.",
}


def write_with_metadata(
    content: bytes, path: Path, metadata: Mapping[str, str] | None = None, labels: Sequence[str] = ()
) -> None:
    """Writes a converted model with metadata; the same arguments give the same bytes.

    The model is laid out anew: TensorFlow's converter removes doubled buffers with a tool that ignores
    how buffers must be aligned. Its tensors get the names that its signature gives them.

    Args:
        content: a TFLite model with one subgraph and one signature.
        path: the file to write.
        metadata: strings about the model, stored in the archive as `metadata.json`; viewers show "model"
            and "license".
        labels: names of the classes in the order of the logits, or none.
    """
    from ai_edge_litert import schema_py_generated as schema

    # Untyped: the schema's annotations say str and list where it reads and packs bytes and arrays.
    model: Any = schema.ModelT.InitFromPackedBuf(content)
    names = _name_tensors(model)
    described = _metadata_buffer(model.subgraphs[0], names, metadata or {}, labels)
    entry: Any = schema.MetadataT()
    entry.name, entry.buffer = METADATA.encode(), len(model.buffers)
    model.metadata = [*(model.metadata or []), entry]
    buffer: Any = schema.BufferT()
    buffer.data = np.frombuffer(described, np.uint8)
    model.buffers.append(buffer)
    with path.open("wb") as file:
        for piece in _layout(model):
            file.write(piece)
    _append_archive(path, metadata or {}, labels)


def check_labels(labels: Sequence[str], classes: int) -> None:
    """Checks that there is one label per class, or none, and that none has a line break.

    Raises:
        InputError: the labels do not fit.
    """
    if len(labels) not in (0, classes):
        raise InputError(f"{len(labels)} labels do not fit {classes} classes")
    for label in labels:
        if len(f"{label}|".splitlines()) > 1:
            raise InputError(f"label {label!r} has a line break; a TFLite file stores one label per line")


def read_labels(path: str | Path) -> tuple[str, ...]:
    """Reads the names of the classes from a TFLite file; needs no TensorFlow.

    Args:
        path: a TFLite file, with metadata or without.

    Returns:
        The names in the order of the logits; empty if the file has none.

    Raises:
        InputError: there is no such file.
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


def _append_archive(path: Path, metadata: Mapping[str, str], labels: Sequence[str]) -> None:
    files = {_METADATA_FILE: json.dumps(dict(metadata), indent=2) + "\n"}
    if labels:
        files[_LABELS_FILE] = "".join(f"{label}\n" for label in labels)
    with zipfile.ZipFile(path, "a") as archive:
        for name, text in files.items():
            # Stored, because TFLite's own readers do not unpack; a fixed date, so that files are equal.
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o644 << 16
            archive.writestr(entry, text.encode("utf-8"))


def _name_tensors(model) -> dict[int, str]:
    """Names the inputs and outputs as the signature does; returns the names by tensor index."""
    (subgraph,), (signature,) = model.subgraphs, model.signatureDefs
    names = {entry.tensorIndex: entry.name.decode() for entry in (*signature.inputs, *signature.outputs)}
    for index, name in names.items():
        subgraph.tensors[index].name = name.encode()
    return names


def _layout(model) -> Iterator[bytes | bytearray | memoryview]:
    """Yields the pieces of a flatbuffer: everything but the buffers' data, then the data, aligned.

    Flatbuffers are built from their end. The builder takes a negative offset for something behind what
    it builds, so the weights need not pass through it (it would hold them four times).
    """
    import flatbuffers
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
    subgraph, names: dict[int, str], metadata: Mapping[str, str], labels: Sequence[str]
) -> bytes:
    """Returns the metadata's own flatbuffer, a ModelMetadata."""
    import flatbuffers

    builder = flatbuffers.Builder(4096)
    write = _Writer(builder)
    channels = int(subgraph.tensors[subgraph.inputs[0]].shape[-1])
    inputs = [write.tensor(names[index], write.image(channels), (0, 255), []) for index in subgraph.inputs]
    outputs = []
    for index in subgraph.outputs:
        files = (
            [write.file(_LABELS_FILE, "Names of the classes, one a line.", _AXIS_LABELS)] if labels else []
        )
        ends = (0, 1) if names[index] == PROBABILITIES else None
        outputs.append(write.tensor(names[index], write.features(), ends, files))
    name = write.text(metadata.get("model", "") or "model")
    graph = write.table({2: write.tables(inputs), 3: write.tables(outputs)}, 10)
    about = write.file(_METADATA_FILE, "What the exporter knew about the model.", _DESCRIPTIONS)
    root = write.table(
        {
            0: name,
            1: write.text(_description(metadata)),
            2: write.text(__version__),
            3: write.tables([graph]),
            4: write.text("keras_resnet"),
            5: write.text(metadata.get("license", "Apache-2.0")),
            6: write.tables([about]),
            7: write.text(_MIN_PARSER_VERSION),
        },
        8,
    )
    builder.Finish(root, _IDENTIFIER)
    return bytes(builder.Output())


def _description(metadata: Mapping[str, str]) -> str:
    classes = f" into {metadata['classes']} classes" if "classes" in metadata else ""
    return f"Classifies images{classes}. Takes raw pixels 0-255; the normalization is inside."


class _Writer:
    """Writes the tables of the metadata's schema; each method returns its table's offset."""

    def __init__(self, builder):
        self._builder = builder

    def text(self, text: str) -> int:
        return self._builder.CreateString(text)

    def table(self, offsets: dict[int, int], fields: int, numbers: Mapping[int, int] | None = None) -> int:
        """A table: field number to offset of another object, and to a number of one byte."""
        self._builder.StartObject(fields)
        for field, offset in offsets.items():
            self._builder.PrependUOffsetTRelativeSlot(field, offset, 0)
        for field, number in (numbers or {}).items():
            self._builder.PrependUint8Slot(field, number, 0)
        return self._builder.EndObject()

    def tables(self, offsets: Sequence[int]) -> int:
        self._builder.StartVector(4, len(offsets), 4)
        for offset in reversed(offsets):
            self._builder.PrependUOffsetTRelative(offset)
        return self._builder.EndVector()

    def floats(self, *values: float) -> int:
        return self._builder.CreateNumpyVector(np.asarray(values, "<f4"))

    def file(self, name: str, description: str, kind: int) -> int:
        return self.table({0: self.text(name), 1: self.text(description)}, 5, {2: kind})

    def image(self, channels: int) -> int:
        color_space = _COLOR_SPACES.get(channels, 0)
        return self.table({1: self.table({}, 2, {0: color_space})}, 3, {0: _IMAGE})

    def features(self) -> int:
        return self.table({1: self.table({}, 0)}, 3, {0: _FEATURES})

    def tensor(self, name: str, content: int, ends: tuple[float, float] | None, files: list[int]) -> int:
        fields = {0: self.text(name), 1: self.text(_DESCRIPTIONS_OF_TENSORS[name]), 3: content}
        if name == INPUT:
            # TFLite's task library asks for it; nothing is left to normalize.
            unit = self.table({0: self.floats(0), 1: self.floats(1)}, 2)
            fields[4] = self.tables([self.table({1: unit}, 2, {0: _NORMALIZATION})])
        if ends is not None:
            fields[5] = self.table({0: self.floats(ends[1]), 1: self.floats(ends[0])}, 2)
        if files:
            fields[6] = self.tables(files)
        return self.table(fields, 7)
