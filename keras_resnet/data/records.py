"""The records of TFRecord and ArrayRecord files, read in any order.

A TFRecord file has no table of its records, so the position of each is found once, from the lengths before
the records, and kept in an index: beside the files, or in the user's cache if that folder cannot be written.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import tensorflow as tf

from keras_resnet.errors import InputError, TryAgain
from keras_resnet.files import PASSING_ERRORS, atomic_path
from keras_resnet.progress import ProgressBar
from keras_resnet.weights.download import cache_folder

HEADER, FOOTER = 12, 4
"""Bytes before and after a TFRecord's content: its length with a checksum, and the content's checksum."""

ARRAY_RECORD_ERRORS = (OSError, ValueError, RuntimeError, IndexError)
"""What the package array_record raises for files that cannot be read or written."""

INDEX_SUFFIX = ".tfrecord_index.npz"
"""How the names of index files end."""

_LOCAL_BLOCK, _REMOTE_BLOCK = 4096, 16 * 2**20  # bytes read at once for an index
_THREADS = 16
_POLYNOMIAL, _MASK = 0x82F63B78, 0xA282EAD8  # of CRC-32C, and of TensorFlow's masked checksums


class UnreadableRecord(Exception):
    """One record cannot be read, but others of its file can; the message completes "the record is ..."."""


def reason_of(error: Exception) -> str:
    """An exception's message on one line of bounded length."""
    text = " ".join(re.sub(r"{{.*?}}", "", str(error)).split()) or type(error).__name__
    return text if len(text) <= 240 else text[:237] + "..."


class TFRecords(Sequence):
    """Records of TFRecord files.

    Args:
        files: the names of the files, which may be URLs that TensorFlow reads.
        bounds: for each file, int64 (records + 1,): where each record starts, and the end of the file.
        start: the first of all records that belongs to these.
        stop: the last one + 1; None for all.
    """

    def __init__(
        self, files: Sequence[str], bounds: Sequence[np.ndarray], start: int = 0, stop: int | None = None
    ):
        counts = [len(some) - 1 for some in bounds]
        chosen = slice(start, stop)
        self._files, self._bounds = tuple(files), tuple(bounds)
        self._file_numbers = np.repeat(np.arange(len(files), dtype="int32"), counts)[chosen]
        self._starts = np.concatenate([some[:-1] for some in bounds])[chosen]
        self._sizes = np.concatenate([np.diff(some) for some in bounds])[chosen]

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, index) -> Any:
        """The content of a record.

        Raises:
            UnreadableRecord: the record is damaged.
            InputError: the file is missing or too short.
            TryAgain: it cannot be read for another reason, which may pass.
        """
        index = range(len(self))[index]
        try:
            return self.fetch(tf.constant(index, tf.int64)).numpy()
        except tf.errors.OpError as error:
            raise self._reason(index, error) from None

    def fetch(self, index: tf.Tensor) -> tf.Tensor:
        """The content of a record, string (); fails with one of TensorFlow's errors, see `__getitem__`."""
        files, numbers, starts, sizes = self._tensors
        dataset = tf.raw_ops.TFRecordDatasetV2(
            filenames=tf.gather(files, tf.gather(numbers, index))[None],
            compression_type="",
            buffer_size=tf.gather(sizes, index),  # one read for the whole record, and of nothing else
            byte_offsets=tf.gather(starts, index)[None],
        )
        kind: Any = {"output_types": [tf.string], "output_shapes": [tf.TensorShape([])]}
        first = tf.raw_ops.TakeDataset(input_dataset=dataset, count=1, **kind)
        return tf.raw_ops.DatasetToSingleElement(dataset=first, **kind)[0]

    @functools.cached_property
    def _tensors(self) -> tuple[tf.Tensor, ...]:
        """Constants in host memory, shared by all pipelines."""
        with tf.init_scope(), tf.device("CPU:0"):
            columns = (self._files, self._file_numbers, self._starts, self._sizes)
            return tuple(tf.constant(column) for column in columns)

    def _reason(self, index: int, error: tf.errors.OpError) -> Exception:
        """Why a record could not be read, as an exception."""
        number = self._file_numbers[index]
        file, bounds, start = self._files[number], self._bounds[number], self._starts[index]
        try:
            size = tf.io.gfile.stat(file).length
        except tf.errors.OpError as failure:
            size, error = bounds[-1], failure
        record = int(np.searchsorted(bounds, start))
        if size < start + self._sizes[index]:
            return _unreadable_after(file, int(np.searchsorted(bounds, size, "right")) - 1)
        if isinstance(error, tf.errors.DataLossError | tf.errors.InvalidArgumentError):
            return UnreadableRecord(f"damaged (record {record} of {file})")
        kind = InputError if isinstance(error, tf.errors.NotFoundError) else TryAgain
        return kind(f"{file} cannot be read after record {record}: {reason_of(error)}")


class ArrayRecords(Sequence):
    """Records of ArrayRecord files; `files` are TFDS' file instructions of a split."""

    def __init__(self, files: Sequence[Any]):
        self._source = array_record("array_record_data_source").ArrayRecordDataSource(files)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index) -> Any:
        """The content of a record; raises `UnreadableRecord`."""
        index = range(len(self))[index]
        try:
            return self._source[index]
        except ARRAY_RECORD_ERRORS as error:
            raise UnreadableRecord(f"unreadable: {reason_of(error)}") from None

    def fetch(self, index: tf.Tensor) -> tf.Tensor:
        """The content of a record, string ()."""
        return tf.ensure_shape(tf.numpy_function(self.__getitem__, [index], tf.string), ())


def array_record(module: str) -> Any:
    """A module of `array_record.python`, a package that TFDS installs on Linux and macOS.

    Raises:
        InputError: it is not installed.
    """
    try:
        return importlib.import_module(f"array_record.python.{module}")
    except ImportError:
        raise InputError("array_record is not installed; pip install array_record") from None


def open_tfrecords(
    name: str, files: Sequence[str], counts: Sequence[int], start: int = 0, stop: int | None = None
) -> TFRecords:
    """Opens TFRecord files through their index, which is made and stored if there is none for these files.

    Args:
        name: of the index, such as "imagenet2012-train".
        counts: the number of records of each file.
        start: the first of all records that is wanted.
        stop: the last one + 1; None for all.

    Raises:
        InputError: a file is missing or damaged, or has another number of records.
        TryAgain: a file cannot be read for a reason that may pass.
    """
    with ThreadPoolExecutor(_THREADS) as pool:
        stamps = list(pool.map(_stamp, files))
        places = _index_paths(name, files)
        for place in places:
            if bounds := _load_index(place, files, stamps, counts):
                return TFRecords(files, bounds, start, stop)
        bounds = []
        with ProgressBar(sum(counts), "records", f"finding the records of {name}") as bar:
            for found in pool.map(_find_records, files, stamps, counts):
                bounds.append(found)
                bar.update(len(found) - 1)
    for place in places:
        with contextlib.suppress(OSError):  # a full disk, or a folder that only others write
            _store_index(place, files, stamps, bounds)
            break
    return TFRecords(files, bounds, start, stop)


@dataclasses.dataclass(frozen=True)
class _Stamp:
    """What tells whether a file has changed."""

    size: int
    modified: int  # nanoseconds


def _stamp(file: str) -> _Stamp:
    with _file_errors(file):
        if not _is_remote(file):
            status = os.stat(file)
            return _Stamp(status.st_size, status.st_mtime_ns)
        status = tf.io.gfile.stat(file)
        return _Stamp(status.length, status.mtime_nsec)


def _is_remote(file: str) -> bool:
    return "://" in file


@contextlib.contextmanager
def _file_errors(file: str) -> Iterator[None]:
    """Turns an error of a file into `InputError`, or into `TryAgain` if it may pass."""
    try:
        yield
    except OSError as error:
        kind = TryAgain if error.errno in PASSING_ERRORS else InputError
        raise kind(f"{file} cannot be read: {error.strerror or error}") from None
    except tf.errors.OpError as error:
        kind = InputError if isinstance(error, tf.errors.NotFoundError) else TryAgain
        raise kind(f"{file} cannot be read: {reason_of(error)}") from None


def _index_paths(name: str, files: Sequence[str]) -> list[Path]:
    """Where the index may be: beside local files, and in the user's cache."""
    file_name = name + INDEX_SUFFIX
    folder = os.path.dirname(files[0])
    digest = hashlib.sha256(os.fsencode(os.path.abspath(folder) if not _is_remote(folder) else folder))
    cached = cache_folder().with_name("datasets") / f"{digest.hexdigest()[:16]}-{file_name}"
    return [cached] if _is_remote(folder) else [Path(folder, file_name), cached]


def _index_arrays(
    files: Sequence[str], stamps: Sequence[_Stamp], bounds: Sequence[np.ndarray]
) -> dict[str, np.ndarray]:
    return {
        "files": np.array([os.path.basename(file) for file in files]),
        "sizes": np.array([stamp.size for stamp in stamps], "int64"),
        "modified": np.array([stamp.modified for stamp in stamps], "int64"),
        "bounds": np.concatenate(bounds),
    }


def _store_index(
    path: Path, files: Sequence[str], stamps: Sequence[_Stamp], bounds: Sequence[np.ndarray]
) -> None:
    with atomic_path(path, ".npz") as temporary:
        cast(Any, np.savez)(temporary, **_index_arrays(files, stamps, bounds))


def _load_index(
    path: Path, files: Sequence[str], stamps: Sequence[_Stamp], counts: Sequence[int]
) -> list[np.ndarray] | None:
    """The bounds of all files; None if there is no valid index of these very files."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = dict(arrays)
        bounds = np.split(found["bounds"], np.cumsum(np.array(counts) + 1)[:-1])
        for key, value in _index_arrays(files, stamps, bounds).items():
            if found[key].dtype != value.dtype or not np.array_equal(found[key], value):
                return None
        for some, stamp, count in zip(bounds, stamps, counts, strict=True):
            if some.dtype != np.int64 or some.shape != (count + 1,) or some[0] or some[-1] != stamp.size:
                return None
            if np.any(np.diff(some) < HEADER + FOOTER):
                return None
        return bounds
    except Exception:  # missing, or damaged in any way
        return None


def _find_records(file: str, stamp: _Stamp, count: int) -> np.ndarray:
    """Where the records of a file start, and its end: int64 (records + 1,)."""
    headers, bounds, position = bytearray(), [0], 0
    with _file_errors(file), _open(file) as read:
        while position + HEADER <= stamp.size:
            header = read(position)
            if len(header) < HEADER:
                break
            headers += header
            position += HEADER + int.from_bytes(header[:8], "little") + FOOTER
            if position > stamp.size:
                break
            bounds.append(position)
    fields = np.frombuffer(bytes(headers), np.dtype([("length", "u1", 8), ("checksum", "<u4")]))
    damaged = np.flatnonzero(_masked_checksums(fields["length"]) != fields["checksum"])
    if len(damaged):
        raise InputError(f"{file} cannot be read after record {damaged[0]}: the next one is damaged")
    found = len(bounds) - 1
    if bounds[-1] != stamp.size or found < count:
        raise _unreadable_after(file, found)
    if found > count:
        raise InputError(f"{file} has {found} records instead of {count}; prepare the dataset again")
    return np.array(bounds, "int64")


def _unreadable_after(file: str, record: int) -> InputError:
    return InputError(f"{file} cannot be read after record {record}: truncated, or not written yet")


@contextlib.contextmanager
def _open(file: str) -> Iterator[Callable[[int], bytes]]:
    """Yields a function that returns the header at a position, or what the file has of it."""
    block = _REMOTE_BLOCK if _is_remote(file) else _LOCAL_BLOCK
    begin, held = 0, b""

    def read(position: int) -> bytes:
        nonlocal begin, held
        if not begin <= position <= begin + len(held) - HEADER:
            length = block if position - begin < block else HEADER  # of large records no more than needed
            opened.seek(position)
            begin, held = position, opened.read(length)
        return held[position - begin : position - begin + HEADER]

    # Without Python's own buffer, which would read further.
    with tf.io.gfile.GFile(file, "rb") if _is_remote(file) else open(file, "rb", buffering=0) as opened:
        yield read


def _masked_checksums(data: np.ndarray) -> np.ndarray:
    """TFRecord's checksums, uint32 (records,), of bytes, uint8 (records, length)."""
    table = np.arange(256, dtype="uint32")
    for _ in range(8):
        table = (table >> 1) ^ np.where(table & 1, np.uint32(_POLYNOMIAL), np.uint32(0))
    checksums = np.full(len(data), 0xFFFFFFFF, "uint32")
    for column in data.T:
        checksums = table[(checksums ^ column) & 0xFF] ^ (checksums >> np.uint32(8))
    checksums = ~checksums
    return ((checksums >> np.uint32(15)) | (checksums << np.uint32(17))) + np.uint32(_MASK)
