"""Reads untrusted HDF5 files safely: links, virtual data and invalid structures are refused."""

import contextlib
import errno
import math
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
from keras_resnet.weights.hdf5_structures import Structures

_LARGEST_ATTRIBUTE = 2**20  # bytes, without the contents of strings of variable length
_MOST_CHECKED = 16  # files
_LONGEST_NAME = 1000  # of a layer; the same bytes of a file can be the names of thousands of layers

# Errors of the system, not of the file: another process locks it, no permission, a server does not answer.
_OF_THE_SYSTEM = PASSING_ERRORS | {errno.EACCES, errno.EINTR, errno.EMFILE, errno.ENFILE, errno.EPERM}


class CannotReadNow(InputError):
    """The system could not read a file, which may be intact."""


def open_hdf5(path: str | os.PathLike) -> h5py.File:
    """Opens an HDF5 file; this and reading must take place inside `refuse_damage`."""
    path = check_is_file(path)
    _check(os.fsencode(path))
    return h5py.File(path, "r")


_checked: dict[bytes, Structures] = {}  # by path, for `read_strings`; the latest ones


def _check(path: bytes) -> Structures:
    structures = Structures(Path(os.fsdecode(path)))
    structures.check()
    _checked.pop(path, None)
    _checked[path] = structures
    if len(_checked) > _MOST_CHECKED:
        del _checked[next(iter(_checked))]
    return structures


@contextlib.contextmanager
def refuse_damage(path: str | os.PathLike, *more: type[Exception]) -> Iterator[None]:
    """Converts the exceptions that readers raise for a damaged file, and `more`, into `InputError`.

    It is a `CannotReadNow` if the file may be intact.
    """
    damage = (OSError, RuntimeError, LookupError, ValueError, TypeError, AttributeError, MemoryError)
    damage = (*damage, OverflowError, struct.error, *more)
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
    (value,) = read_strings(item, name)
    return value.decode()


def read_strings(item: h5py.Group | h5py.Dataset, name: str) -> list[bytes]:
    """Returns the strings of an attribute; only those of a fixed length are read by the HDF5 library."""
    attribute = checked_attribute(item, name)
    text = h5py.check_string_dtype(attribute.dtype)
    if text is None:
        raise ValueError(f"the attribute {name} is not text")
    if text.length is not None:
        values: Any = item.attrs[name]
        return np.ravel(values).astype("S").tolist()
    address = h5py.h5g.get_objinfo(item.id, b".").objno[0]
    path = h5py.h5f.get_name(item.id)
    return (_checked.get(path) or _check(path)).strings(address, name)


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
    # The dtype first: with the layout, the HDF5 library reads a fill value, which may be a string.
    if isinstance(member, h5py.Dataset) and (member.dtype.kind in kinds or _is_bfloat16(member)):
        # h5py's properties query the library at each access; networks have a thousand datasets.
        layout = member.id.get_create_plist()
        if layout.get_layout() != h5py.h5d.VIRTUAL and not layout.get_external_count():
            return member
    raise InputError(f"{path} holds something other than a weight at {one_line(name)}")


def read_dataset(dataset: h5py.Dataset) -> np.ndarray:
    """Reads the values of a contiguous, uncompressed dataset."""
    # A compressed file of a few kilobytes could take any amount of memory, and a tree of chunks any time.
    is_chunked = dataset.id.get_create_plist().get_layout() == h5py.h5d.CHUNKED
    if is_chunked or dataset.id.get_storage_size() < math.prod(dataset.shape) * dataset.dtype.itemsize:
        raise InputError(
            f"{one_line(dataset.name)} of the weight file is chunked, compressed or was never written"
        )
    return dataset[...].view(ml_dtypes.bfloat16) if _is_bfloat16(dataset) else dataset[...]


def _is_bfloat16(dataset: h5py.Dataset) -> bool:
    """HDF5 has no bfloat16: Keras stores the bytes and names the type in an attribute."""
    return dataset.dtype == np.dtype("V2") and read_text(dataset, "dtype") == "bfloat16"
