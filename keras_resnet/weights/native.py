"""Our own `.weights.h5`: Keras' format, described, written whole or not at all, and read safely."""

import contextlib
import math
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import keras
import ml_dtypes
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path
from keras_resnet.weights.spec import ModelSpec
from keras_resnet.weights.transfer import (
    HEAD,
    adapt_stem,
    differs_in_channels,
    differs_in_classes,
    own_layers,
    stem_of,
)

_SPEC = "keras_resnet"

# Of HDF5's format specification, "Global Heap".
_HEAP = int.from_bytes(b"GCOL", "little")
_HEAP_HEADER = _OBJECT_HEADER = 16
_SCANNED_BYTES = 2**20


def save_weights(model: keras.Model, path: str | os.PathLike, spec: ModelSpec | None = None) -> Path:
    """Writes a model's weights as `model.save_weights` would, with what they belong to beside them.

    `model.load_weights` reads the file too. Equal weights give equal bytes.

    Args:
        model: any Keras model.
        path: ends with `.weights.h5`.
        spec: the network, its input and its labels, kept as an attribute of the file.

    Raises:
        OSError: the file cannot be written; an older one is untouched.
    """
    with atomic_path(path, suffix=".weights.h5") as temporary:
        # On a full disk the HDF5 library crashes; asking for the space first raises OSError.
        size = 4 * model.count_params() + 4096 * len(model.layers)
        with open(temporary, "rb+") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        temporary.unlink()  # Keras asks before it overwrites
        model.save_weights(temporary)
        if spec is not None:
            with h5py.File(temporary, "r+") as file:
                file.attrs[_SPEC] = spec.to_json()
    return Path(path)


@contextlib.contextmanager
def open_hdf5(path: str | os.PathLike) -> Iterator[h5py.File]:
    """Opens an HDF5 file for reading; every way it can be broken becomes one line."""
    path = Path(path)
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"weight file {path} {wrong}")
    try:
        if not h5py.is_hdf5(path):
            raise InputError(f"{path} is not an HDF5 file")
        _check_heaps(path)
        with h5py.File(path, "r") as file:
            yield file
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is truncated or damaged ({one_line(error)})") from None


def _check_heaps(path: Path) -> None:
    """Refuses heaps of strings over which the HDF5 library (1.14) would walk for ever.

    A free object of size 0 is its own successor there. Heaps are looked for at multiples of four bytes, where
    the library puts heaps between float32 tensors: to look everywhere costs a third of the loading.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for start in range(0, len(content) - 3, _SCANNED_BYTES):
            count = min(_SCANNED_BYTES, len(content) - start) // 4
            words = np.frombuffer(content, "<u4", count, start) == _HEAP
            for position in np.flatnonzero(words) if words.any() else ():
                if _is_endless(content, start + 4 * int(position)):
                    raise InputError(f"{path} is truncated or damaged (its heap of strings has no end)")


def _is_endless(content: mmap.mmap, heap: int) -> bool:
    def integer(position, size):
        return int.from_bytes(content[position : position + size], "little")

    end = min(heap + integer(heap + 8, 8), len(content))
    position = heap + _HEAP_HEADER
    while position + _OBJECT_HEADER <= end:
        index, size = integer(position, 2), integer(position + 8, 8)
        if index == size == 0:
            return True
        position += _OBJECT_HEADER + -(-size // 8) * 8 if index else size
    return False


def read_spec(path: str | os.PathLike) -> ModelSpec | None:
    """What a weight file belongs to, or None where the file does not say.

    Raises:
        InputError: the file is missing, not HDF5, or damaged.
    """
    with open_hdf5(path) as file:
        text = read_attribute(file)
        return None if text is None else ModelSpec.from_json(text)


def read_attribute(file: h5py.File) -> str | None:
    """The JSON in which a file of ours says what it belongs to."""
    return file.attrs.get(_SPEC)


def load_weights(model: keras.Model, path: str | os.PathLike, *, transfer: bool = False) -> None:
    """Loads a `.weights.h5` file into a model that was built here; all of it or nothing.

    Every tensor of the model must be in the file with its shape, and every tensor of the file in
    the model. Nothing in the file is executed, and links out of it are refused.

    Args:
        model: of `build_resnet`.
        path: the file.
        transfer: whether the model may lack the file's classifier or have one of other classes, which
            stays as it is then, may take another number of channels (see `transfer.adapt_stem`), and may
            have layers of others before it.

    Raises:
        InputError: the file is missing, not HDF5, damaged, or of another network; the message names
            the first layer that differs, with both shapes.
    """
    stem = stem_of(model) if transfer else None
    with open_hdf5(path) as file:
        groups = _layer_groups(file, path)
        values = []
        for layer in own_layers(model) if transfer else model.layers:
            stored = groups.pop(layer.name, [])
            if layer.weights and not stored:
                raise InputError(f"{path} has no weights for layer {layer.name} of {model.name}")
            theirs = [dataset.shape for dataset in stored]
            shapes = [tuple(weight.shape) for weight in layer.weights]
            if transfer and layer.name == HEAD and differs_in_classes(theirs[0], shapes[0]):
                continue
            adapts = layer.name == stem and differs_in_channels(theirs[0], shapes[0])
            if theirs[adapts:] != shapes[adapts:]:
                raise InputError(
                    f"{path} is of another network: layer {layer.name} has shapes "
                    f"{_spell(theirs)} in the file, {_spell(shapes)} in {model.name}"
                )
            arrays = [_read(dataset) for dataset in stored]
            if adapts:
                arrays[0] = adapt_stem(arrays[0], shapes[0][2])
            values += zip(layer.weights, arrays, strict=True)
        if transfer:
            groups.pop(HEAD, None)
        if left := [name for name, stored in groups.items() if stored]:
            raise InputError(
                f"{path} is of another network: its layer {one_line(left[0])} "
                f"({len(left)} in all) is not in {model.name}"
            )
    for weight, value in values:
        weight.assign(value)


def _is_weight(dataset: object) -> bool:
    """Whether it is a dataset of floats whose data lie in the file itself."""
    if not isinstance(dataset, h5py.Dataset):
        return False
    # h5py's own properties ask the library anew each time, and networks have a thousand of them.
    layout = dataset.id.get_create_plist()
    elsewhere = layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count()
    return not elsewhere and (dataset.dtype.kind == "f" or _is_bfloat16(dataset))


def _layer_groups(file: h5py.File, path) -> dict[str, list[h5py.Dataset]]:
    """The datasets of each layer, by the layer's name, which Keras keeps as an attribute."""
    layers = _hard(file, "layers", path)
    groups = {}
    for key in layers if isinstance(layers, h5py.Group) else ():
        group = _hard(layers, key, path)
        variables = _hard(group, "vars", path) if isinstance(group, h5py.Group) else None
        if not isinstance(variables, h5py.Group):
            continue
        datasets = [_hard(variables, str(index), path) for index in range(len(variables))]
        for dataset in datasets:
            if not _is_weight(dataset):
                raise InputError(f"{path} holds something that is no weight at {one_line(key)}")
        groups[str(variables.attrs.get("name", key))] = datasets
    if not groups:
        raise InputError(f"{path} is not a Keras .weights.h5 file: it has no layers")
    return groups


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    """HDF5 has no such type: Keras keeps the bytes, and says so in an attribute."""
    return dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"


def _read(dataset: h5py.Dataset) -> np.ndarray:
    # A compressed file of some kilobytes may stand for any amount of memory; Keras compresses nothing.
    if dataset.id.get_storage_size() < math.prod(dataset.shape) * dataset.dtype.itemsize:
        raise InputError(f"{one_line(dataset.name)} of the weight file is compressed or was never written")
    return dataset[...].view(ml_dtypes.bfloat16) if _is_bfloat16(dataset) else dataset[...]


def _hard(group: h5py.Group, name: str, path):
    """A member of a group; None if there is none, an error if it is a link to somewhere else."""
    links, key = group.id.links, name.encode()  # h5py's own lookup takes ten times as long
    if not links.exists(key):
        return None
    if links.get_info(key).type != h5py.h5l.TYPE_HARD:
        raise InputError(f"{path} has a link out of the file at {one_line(name)}; links are not followed")
    found = h5py.h5o.open(group.id, key)
    kinds = {h5py.h5g.GroupID: h5py.Group, h5py.h5d.DatasetID: h5py.Dataset}
    return kinds[type(found)](found) if type(found) in kinds else None


def one_line(text: object) -> str:
    """What a file says, fit for a message: printable, on one line, not endless."""
    return " ".join(str(text).encode("unicode_escape").decode("ascii")[:200].split())


def _spell(shapes) -> str:
    return " ".join("x".join(map(str, shape)) or "scalar" for shape in shapes) or "none"
