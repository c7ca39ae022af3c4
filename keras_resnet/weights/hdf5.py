"""Reads untrusted HDF5 files safely: links, virtual data and endless structures are refused."""

import contextlib
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
from h5py import h5l, h5o  # pyright: ignore[reportAttributeAccessIssue]

from keras_resnet.errors import InputError, one_line

# See "Global Heap" in HDF5's format specification.
_HEAP = int.from_bytes(b"GCOL", "little")
_HEAP_HEADER = struct.Struct("<8xQ")  # the heap's size
_OBJECT_HEADER = struct.Struct("<H6xQ")  # the object's index and size
_SCANNED_BYTES = 2**20


def open_hdf5(path: str | os.PathLike) -> h5py.File:
    """Opens an HDF5 file; this and reading must take place inside `refuse_damage`."""
    path = check_is_file(path)
    if not h5py.is_hdf5(path):
        raise InputError(f"{path} is not an HDF5 file")
    _check_heaps(path)
    return h5py.File(path, "r")


@contextlib.contextmanager
def refuse_damage(path: str | os.PathLike, *more: type[Exception]) -> Iterator[None]:
    """Converts the exceptions that readers raise for a damaged file, and `more`, into `InputError`."""
    try:
        yield
    except InputError:
        raise
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, *more) as error:
        raise InputError(f"{path} is truncated or damaged ({one_line(error)})") from None


def check_is_file(path: str | os.PathLike) -> Path:
    """Returns the path of a weight file; raises `InputError` if there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weight file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return path


def layer_groups(file: h5py.File, path: Path) -> dict[str, list[h5py.Dataset]]:
    """Returns the datasets of each layer in Keras 3's layout by the layer's name."""
    layers = hard_member(file, "layers", path)
    groups = {}
    for key in map(str, layers) if isinstance(layers, h5py.Group) else ():
        variables = hard_member(hard_member(layers, key, path), "vars", path)
        if not isinstance(variables, h5py.Group):
            continue
        datasets = [hard_member(variables, str(index), path) for index in range(len(variables))]
        groups[str(variables.attrs.get("name", key))] = [check_weight(each, key, path) for each in datasets]
    if not groups:
        raise InputError(f"{path} is not a Keras .weights.h5 file: it has no layers")
    return groups


def hard_member(group: object, name: str, path: Path) -> h5py.Group | h5py.Dataset | None:
    """Returns a member of a group, or None without one; links out of the file raise `InputError`."""
    if not isinstance(group, h5py.Group):
        return None
    links, key = group.id.links, name.encode()  # ten times as fast as h5py's high-level lookup
    if not links.exists(key):
        return None
    if links.get_info(key).type != h5l.TYPE_HARD:
        raise InputError(f"{path} has a link out of the file at {one_line(name)}; links are not followed")
    found = h5o.open(group.id, key)
    kinds = {h5py.h5g.GroupID: h5py.Group, h5py.h5d.DatasetID: h5py.Dataset}
    return kinds[type(found)](found) if type(found) in kinds else None


def check_weight(member: object, name: str, path: Path) -> h5py.Dataset:
    """Returns the member if it is a dataset of floats in the file itself; else raises `InputError`."""
    if isinstance(member, h5py.Dataset):
        # h5py's properties query the library at each access; networks have a thousand datasets.
        layout = member.id.get_create_plist()
        elsewhere = layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count()
        if not elsewhere and (member.dtype.kind == "f" or _is_bfloat16(member)):
            return member
    raise InputError(f"{path} holds something other than a weight at {one_line(name)}")


def read_dataset(dataset: h5py.Dataset) -> np.ndarray:
    """Reads the values of an uncompressed dataset."""
    # A compressed file of a few kilobytes could take any amount of memory.
    if dataset.id.get_storage_size() < math.prod(dataset.shape) * dataset.dtype.itemsize:
        raise InputError(f"{one_line(dataset.name)} of the weight file is compressed or was never written")
    return dataset[...].view(ml_dtypes.bfloat16) if _is_bfloat16(dataset) else dataset[...]


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    """HDF5 has no bfloat16: Keras stores the bytes and names the type in an attribute."""
    return dataset.dtype == np.dtype("V2") and dataset.attrs.get("dtype") == "bfloat16"


def _check_heaps(path: Path) -> None:
    """Refuses string heaps that the HDF5 library (1.14) would never finish reading.

    A free object of size 0 is its own successor. Only multiples of four bytes are searched, where the
    library puts heaps between float32 tensors; searching everywhere would take a third of the loading time.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for start in range(0, len(content) - 3, _SCANNED_BYTES):
            count = min(_SCANNED_BYTES, len(content) - start) // 4
            words = np.frombuffer(content, "<u4", count, start) == _HEAP
            for position in np.flatnonzero(words) if words.any() else ():
                if _is_endless(content, start + 4 * int(position)):
                    raise InputError(f"{path} is truncated or damaged (its heap of strings has no end)")


def _is_endless(content: mmap.mmap, heap: int) -> bool:
    position = heap + _HEAP_HEADER.size
    if position > len(content):
        return False
    end = min(heap + _HEAP_HEADER.unpack_from(content, heap)[0], len(content))
    while position + _OBJECT_HEADER.size <= end:
        index, size = _OBJECT_HEADER.unpack_from(content, position)
        if index == size == 0:
            return True
        position += _OBJECT_HEADER.size + -(-size // 8) * 8 if index else size
    return False
