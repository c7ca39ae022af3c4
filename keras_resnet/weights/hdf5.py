"""Reads untrusted HDF5 files safely: links, virtual data and endless structures are refused."""

import contextlib
import errno
import math
import mmap
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import ml_dtypes
import numpy as np
from h5py import h5l, h5o  # pyright: ignore[reportAttributeAccessIssue]

from keras_resnet.errors import InputError, one_line
from keras_resnet.files import PASSING_ERRORS
from keras_resnet.weights.conversion import Budget

# See "Superblock" and "Global Heap" in HDF5's format specification.
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_HEAP = b"GCOL"
_HEAP_HEADER = struct.Struct("<4xB3xQ")  # the version and the heap's size
_LEAST_HEAP = 4096
_OBJECT_HEADER = struct.Struct("<H6xQ")  # the object's index and size
_SCANNED_BYTES = 2**20
_LARGEST_ATTRIBUTE = 2**20  # bytes, without the contents of strings of variable length
_LONGEST_NAME = 1000  # of a layer; the same bytes of a file can be the names of thousands of layers

# Errors of the system, not of the file: another process locks it, no permission, a server does not answer.
_OF_THE_SYSTEM = PASSING_ERRORS | {errno.EACCES, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.EPERM}


class CannotReadNow(InputError):
    """The system could not read a file, which may be intact."""


def open_hdf5(path: str | os.PathLike) -> h5py.File:
    """Opens an HDF5 file; this and reading must take place inside `refuse_damage`."""
    path = check_is_file(path)
    _check_heaps(path)
    return h5py.File(path, "r")


@contextlib.contextmanager
def refuse_damage(path: str | os.PathLike, *more: type[Exception]) -> Iterator[None]:
    """Converts the exceptions that readers raise for a damaged file, and `more`, into `InputError`.

    It is a `CannotReadNow` if the file may be intact.
    """
    damage = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, MemoryError, *more)
    try:
        yield
    except InputError:
        raise
    except damage as error:
        check_readable(path, error)
        raise InputError(f"{path} is truncated or damaged ({one_line(error)})") from None


def check_readable(path: str | os.PathLike, error: Exception) -> None:
    """Raises `CannotReadNow` if an exception of a reader is not due to the file's content."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in _OF_THE_SYSTEM:
        reason = one_line(getattr(error, "strerror", None) or repr(error))
        raise CannotReadNow(f"{path} cannot be read now ({reason}); it may be intact") from None


def check_is_file(path: str | os.PathLike) -> Path:
    """Returns the path of a weight file; raises `InputError` if there is no such file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"weight file {path} {'is a folder' if path.is_dir() else 'does not exist'}")
    return path


def layer_groups(file: h5py.File, path: Path) -> dict[str, list[h5py.Dataset]]:
    """Returns the datasets of each layer in Keras 3's layout by the layer's name."""
    layers = hard_member(file, "layers", path)
    groups, budget = {}, Budget(path)
    for key in map(str, layers) if isinstance(layers, h5py.Group) else ():
        variables = hard_member(hard_member(layers, key, path), "vars", path)
        if not isinstance(variables, h5py.Group):
            continue
        datasets = []
        for index in range(len(variables)):
            datasets.append(check_weight(hard_member(variables, str(index), path), key, path))
            budget.take(key, ())
        name = read_text(variables, "name") or key
        if len(name) > _LONGEST_NAME:
            raise InputError(f"{path} is damaged: the name of its layer {one_line(key)} is too long")
        groups[name] = datasets
    if not groups:
        raise InputError(f"{path} is not a Keras .weights.h5 file: it has no layers")
    return groups


def checked_attribute(item: h5py.Group | h5py.Dataset, name: str) -> Any:
    """Returns the low-level object of an attribute, before it is read; `ValueError` if it is too large."""
    attribute = item.attrs.get_id(name)
    if math.prod(attribute.shape or ()) * attribute.dtype.itemsize > _LARGEST_ATTRIBUTE:
        raise ValueError(f"the attribute {name} is too large")
    return attribute


def read_text(item: h5py.Group | h5py.Dataset, name: str) -> str | None:
    """Returns an attribute that is one string; None without it."""
    if name not in item.attrs:
        return None
    attribute = checked_attribute(item, name)
    if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
        raise ValueError(f"the attribute {name} is not a string")
    value = item.attrs[name]
    return value.decode() if isinstance(value, bytes) else str(value)


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


def check_weight(member: object, name: str, path: Path, kinds: str = "f") -> h5py.Dataset:
    """Returns the member if it is a dataset in the file itself of dtypes of these NumPy kinds, or bfloat16.

    Raises `InputError` for anything else.
    """
    if isinstance(member, h5py.Dataset):
        # h5py's properties query the library at each access; networks have a thousand datasets.
        layout = member.id.get_create_plist()
        elsewhere = layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count()
        if not elsewhere and (member.dtype.kind in kinds or _is_bfloat16(member)):
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
    return dataset.dtype == np.dtype("V2") and read_text(dataset, "dtype") == "bfloat16"


def _check_heaps(path: Path) -> None:
    """Refuses string heaps that the HDF5 library (1.14) would never finish reading, and other formats.

    A free object of size 0 is its own successor.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        size = len(content)
        starts = [0, *(2**power for power in range(9, size.bit_length()))]
        if not any(content[start : start + len(_SIGNATURE)] == _SIGNATURE for start in starts):
            raise InputError(f"{path} is not an HDF5 file")
        left = size // _OBJECT_HEADER.size  # as many objects fit into the file, unless its heaps overlap
        for start in range(0, size, _SCANNED_BYTES):
            block = content[start : start + _SCANNED_BYTES + len(_HEAP) - 1]
            found = block.find(_HEAP)
            while found >= 0:
                left -= _count_objects(content, start + found, left)
                if left < 0:
                    raise InputError(f"{path} is truncated or damaged (its heap of strings is invalid)")
                found = block.find(_HEAP, found + 1)


def _count_objects(content: mmap.mmap, heap: int, limit: int) -> int:
    """Returns the number of objects in a heap; more than `limit` if they do not fill it.

    Sizes that overflow end at another place for the library.
    """
    position, count = heap + _HEAP_HEADER.size, 0
    if position > len(content):
        return 0
    version, size = _HEAP_HEADER.unpack_from(content, heap)
    end = heap + size
    if version != 1 or end > len(content):  # the library refuses it
        return 0
    if size < _LEAST_HEAP:
        return limit + 1
    while position + _OBJECT_HEADER.size <= end and count <= limit:
        index, size = _OBJECT_HEADER.unpack_from(content, position)
        position += _OBJECT_HEADER.size + -(-size // 8) * 8 if index else size
        count += 1
        if position > end or index == size == 0:
            return limit + 1
    return count
