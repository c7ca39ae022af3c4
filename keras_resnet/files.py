"""Artifacts on the disk: written beside their place and renamed, measured, and hashed."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from keras_resnet.errors import InputError


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike, suffix: str = "") -> Iterator[Path]:
    """Gives a temporary sibling of `path`; renames it to `path`, synced, if the body succeeds.

    Args:
        path: the file's final name; its folder is made.
        suffix: that the temporary name must end with.

    Raises:
        OSError: of the body or the rename; nothing is left behind then.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)  # mkstemp's files are private
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing(path: str | Path, is_ours: Callable[[Path], bool]) -> Iterator[Path]:
    """Gives a path to write to, in a hidden folder beside `path`, and renames it to `path` at the end.

    After an exception nothing has changed at `path`. Whatever else was written beside the given path
    is removed with the hidden folder.

    Args:
        path: the final name, of a file or a folder.
        is_ours: whether what lies at `path` now may be replaced.

    Raises:
        InputError: something else lies at `path`, or the disk refuses (unwritable, full).
    """
    path = Path(path)
    with os_errors_as_input_errors(path):
        if os.path.lexists(path) and not is_ours(path):
            raise InputError(
                f"{path} exists and was not written by an export; move it or choose another place"
            )
        path.parent.mkdir(parents=True, exist_ok=True)
        hidden = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
        try:
            yield hidden / path.name
            if os.path.lexists(path) and not is_ours(path):  # it came while we wrote
                raise InputError(f"another program has written {path} in the meantime; start again")
            old = hidden / "replaced"
            if path.is_dir() and not path.is_symlink():
                path.rename(old)  # a folder cannot be renamed over one that has entries
            try:
                os.replace(hidden / path.name, path)
            except OSError:
                if old.exists():
                    old.rename(path)
                raise
        finally:
            shutil.rmtree(hidden, ignore_errors=True)


@contextlib.contextmanager
def os_errors_as_input_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turns an `OSError` while writing `path` into one line about it."""
    try:
        yield
    except OSError as error:
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def starts_with(*marks: bytes) -> Callable[[Path], bool]:
    """A test for `replacing`: a regular file whose first bytes hold one of `marks`, or an empty one."""

    def is_ours(path: Path) -> bool:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            head = file.read(256)
        return not head or any(mark in head for mark in marks)

    return is_ours


def write_text(path: str | Path, text: str) -> Path:
    """Writes a small text file in one step, replacing any regular file of that name."""
    with replacing(path, Path.is_file) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, value: dict) -> Path:
    """Writes `value` as readable JSON in one step; NaN and infinity are refused."""
    return write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _files(path: Path) -> list[tuple[str, Path]]:
    """(relative path, file) of everything under `path`, sorted; of the file itself if it is one."""
    if not path.is_dir():
        return [("", path)]
    return sorted((file.relative_to(path).as_posix(), file) for file in path.rglob("*") if file.is_file())


def size(path: str | Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for _, file in _files(Path(path)))


def sha256(path: str | Path) -> str:
    """Hexadecimal digest of a file, as `sha256sum` prints it.

    Of a folder: the digest of the lines "DIGEST  RELATIVE/PATH" of its files in the order of their
    paths, so that it changes with any name or content.
    """
    path = Path(path)
    if not path.is_dir():
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    listing = "".join(f"{sha256(file)}  {name}\n" for name, file in _files(path))
    return hashlib.sha256(listing.encode()).hexdigest()
