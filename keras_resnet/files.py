"""Writes files atomically, and computes the size and the digest of files and folders."""

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, BinaryIO

from keras_resnet.errors import InputError, TryAgain

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

# Errors of disks, networks and file servers that may pass, unlike a full disk or a missing permission.
PASSING_ERRORS = {
    *(errno.EIO, errno.EAGAIN, errno.EBUSY, errno.ENOMEM, errno.ENOLCK, errno.ESTALE, errno.ETIMEDOUT),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENOTCONN),
    *(errno.ECONNABORTED, errno.ECONNREFUSED, errno.ECONNRESET),
}

_TEMPORARY = re.compile(r"\..+\.tmp-[0-9a-f]{8}(\.\w+)*")
# `Path` removes one of the slashes. Windows' drives have one letter.
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def local_path(path: str | os.PathLike) -> Path:
    """Returns a path of the file system; raises `InputError` for a URL such as gs://bucket/run."""
    if _URL.match(os.fspath(path)):
        raise InputError(
            f"{os.fspath(path)} is a URL; give a local path (object storage can be mounted as a folder)"
        )
    return Path(path)


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Yields a temporary file beside `path`; syncs it and renames it to `path` if the body succeeds.

    Creates the folder. After an exception, which may be an `OSError`, the temporary file is removed.

    Args:
        suffix: ending of the temporary file's name.
    """
    path = local_path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _temporary(path, suffix) as temporary:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextlib.contextmanager
def replacing(path: str | Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Yields a path in a hidden folder beside `path`, of a file or a folder, and renames it to `path`.

    After an exception `path` is unchanged. The hidden folder is removed, with everything in it.

    Args:
        is_ours: whether the file or folder that is at `path` now may be replaced.

    Raises:
        InputError: `path` may not be replaced, or cannot be written (no permission, full disk).
    """
    path = local_path(path)
    check_replaceable(path, is_ours)
    with os_errors_as_input_errors(path), hidden_folder(path) as hidden:
        yield hidden / path.name
        if os.path.lexists(path) and not is_ours(path):
            raise InputError(f"another program has written {path} in the meantime; start again")
        for written in (*(hidden / path.name).rglob("*"), hidden / path.name):
            _sync(written)
        old = hidden / "replaced"
        if path.is_dir() and not path.is_symlink():
            path.rename(old)  # a folder cannot be renamed to one that has entries
        try:
            os.replace(hidden / path.name, path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        _sync(path.parent)


@contextlib.contextmanager
def hidden_folder(path: Path) -> Iterator[Path]:
    """Yields a new hidden folder beside `path`; removes it with everything in it.

    Raises:
        InputError: the folder cannot be created.
    """
    with contextlib.ExitStack() as stack:
        path = local_path(path)
        with os_errors_as_input_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            hidden = stack.enter_context(_temporary(path, is_folder=True))
        yield hidden


@contextlib.contextmanager
def temporary_files_in(folder: str | os.PathLike) -> Iterator[None]:
    """Lets libraries put temporary files in a hidden folder in `folder` if the system has no folder for them.

    In a container only one folder may be writable, and without a temporary one TensorFlow cannot be imported.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        names = ("TMPDIR", "MPLCONFIGDIR")
        before = {name: os.environ[name] for name in names if name in os.environ}
        with hidden_folder(Path(folder) / "temporary") as hidden:
            os.environ.update(dict.fromkeys(names, str(hidden)))
            try:
                yield
            finally:
                tempfile.tempdir = None  # it is determined at its first use
                for name in names:
                    del os.environ[name]
                os.environ.update(before)
    else:
        yield


def _sync(path: Path) -> None:
    """Waits until a file, or the list of the entries of a folder, is on the disk."""
    try:
        descriptor = _open(path)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError:
        if not path.is_dir():  # not every file system, and no Windows, can sync a folder
            raise


@contextlib.contextmanager
def _temporary(path: Path, suffix: str = "", is_folder: bool = False) -> Iterator[Path]:
    """Creates a hidden file or folder beside `path`, and removes it and those that killed processes left.

    It is locked while the process lives, so that others can tell whether they may remove it.
    """
    _remove_leftovers(path.parent)
    while True:
        temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(4)}{suffix}")
        temporary.mkdir() if is_folder else temporary.touch(exist_ok=False)
        # A shared lock, because HDF5 locks files that it reads.
        with _locked(temporary, exclusive=False):
            if not temporary.exists():  # removed by another process before it was locked
                continue
            try:
                return (yield temporary)
            finally:
                _remove(temporary)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.glob(".*.tmp-*"):
        if _TEMPORARY.fullmatch(path.name):
            with contextlib.suppress(OSError), _locked(path, exclusive=True) as is_locked:
                if is_locked:
                    _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path, exclusive: bool) -> Iterator[bool]:
    """Locks a file or folder without waiting for another's lock if `exclusive`; yields whether it could."""
    descriptor, is_held = None, None
    try:
        with contextlib.suppress(OSError):  # e.g. removed by another process
            descriptor = _open(path)
            is_held = _lock(descriptor, exclusive)
        yield is_held is True
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open(path: Path) -> int:
    flags = os.O_RDONLY if path.is_dir() else os.O_RDWR
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0))


def check_replaceable(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raises `InputError` if there is something at `path` that an export has not written."""
    with os_errors_as_input_errors(path):
        if os.path.lexists(path) and not is_ours(path):
            raise InputError(
                f"{path} exists and was not written by an export; move it or choose another place"
            )


@contextlib.contextmanager
def locked(path: str | os.PathLike, seconds: float = 0) -> Iterator[None]:
    """Holds a lock on a file, which is created and stays; the system releases it if the process is killed.

    Does nothing on file systems without locks.

    Args:
        seconds: how long to wait for another process that holds the lock.

    Raises:
        InputError: another process holds the lock.
    """
    deadline = time.monotonic() + seconds
    folder = Path(path).parent
    folder.mkdir(parents=True, exist_ok=True)
    # The file is never deleted: otherwise two processes could lock different files of that name.
    with open_to_append(path) as file:
        while _lock(file) is False:
            if time.monotonic() >= deadline:
                raise InputError(
                    f"another process is using {folder}; wait until it ends, or choose another folder"
                )
            time.sleep(0.1)
        yield


def open_to_append(path: str | os.PathLike) -> BinaryIO:
    """Opens or creates a file; raises `OSError` for a symbolic link, which could lead to any file."""

    def without_links(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)

    return open(path, "ab", opener=without_links)


def _lock(file: IO | int, exclusive: bool = True) -> bool | None:
    """Locks a file; False if another process has locked it, None if the system has no locks.

    Waits for another's lock unless `exclusive`.
    """
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


@contextlib.contextmanager
def os_errors_as_input_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns an `OSError` of the body, which writes `path`, into one line: what cannot be written or used.

    Raises:
        TryAgain: the cause may pass, such as a file server that does not answer.
        InputError: for any other cause.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        name = error.filename if isinstance(error.filename, str) else os.fspath(path)
        if error.errno in PASSING_ERRORS:
            raise TryAgain(f"{name}: {reason}; the same command may succeed later") from error
        verb = "write" if _belongs(name, path) else "use"
        raise InputError(f"cannot {verb} {path if verb == 'write' else name}: {reason}") from error


def _belongs(name: str, path: str | os.PathLike) -> bool:
    """Whether a file is at `path` or in it, a folder that it is in, or temporary and beside it."""
    file, path = Path(os.path.abspath(name)), Path(os.path.abspath(path))
    if path.is_relative_to(file):
        return True
    beside = file.parts[len(path.parts) - 1] if file.is_relative_to(path.parent) else ""
    return beside == path.name or beside.startswith(f".{path.name}.")


def starts_with(*marks: bytes) -> Callable[[Path], bool]:
    """Returns a test for `replacing`: is it a file that is empty or has one of `marks` in its first bytes?"""

    def is_ours(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(256)
        return not head or any(mark in head for mark in marks)

    return is_ours


def write_text(path: str | Path, text: str) -> Path:
    """Writes a text file atomically, replacing any regular file of that name."""
    with replacing(path, Path.is_file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: dict) -> Path:
    """Writes `value` as indented JSON atomically; raises `ValueError` for NaN and infinity."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _files(path: Path) -> list[tuple[str, Path]]:
    """Returns (relative path, path) of all files in a folder, sorted, or of a single file."""
    if not path.is_dir():
        return [("", path)]
    return sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())


def size(path: str | Path) -> int:
    """Returns the bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for _, file in _files(Path(path)))


def sha256(path: str | Path) -> str:
    """Returns the hexadecimal digest of a file, as `sha256sum` prints it.

    For a folder it is the digest of the lines "DIGEST  RELATIVE/PATH" of its files, sorted by path.
    """
    path = Path(path)
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    listing = "".join(f"{sha256(file)}  {name}\n" for name, file in _files(path))
    return hashlib.sha256(listing.encode()).hexdigest()
