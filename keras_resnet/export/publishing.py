"""Writes artifacts; moves verified ones to their final names, and those that differ to a hidden folder."""

import contextlib
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from keras_resnet import files
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import ARTIFACTS
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.export.report import PARITY
from keras_resnet.export.writers.saved_model import next_version

CARD = "MODEL_CARD.md"

_REJECTED = ".rejected"
# What the files of a report have in their first bytes, so that no other program's file is replaced.
_MARKS = {PARITY: b'"model"', CARD: b"Python package `keras_resnet`"}
is_png = files.starts_with(b"PNG")


def check_output_folder(output_dir: Path, artifacts: Iterable[str], pictures: Iterable[str]) -> None:
    """Raises `InputError` if an artifact or a file of the report would replace another program's file.

    Args:
        artifacts: keys of `ARTIFACTS`.
        pictures: file names of the report's pictures.
    """
    for name, mark in _MARKS.items():
        files.check_replaceable(output_dir / name, files.starts_with(mark))
    for name in pictures:
        files.check_replaceable(output_dir / name, is_png)
    for name in artifacts:
        _final_path(name, output_dir)


@contextlib.contextmanager
def missing_packages_as_input_errors(name: str) -> Iterator[None]:
    """Raises `InputError`, which names the extra to install, if a package for an artifact is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"to write {name}, install the extra 'export': {error}") from error


def write_all(
    names: Iterable[str], folder: Path, write: Callable[[str, Path], Path], tell: Callable[[str], None]
) -> dict[str, Path]:
    """Writes artifacts to a folder; returns their paths by name.

    Args:
        names: keys of `ARTIFACTS`.
        write: writes the artifact of a name to a path; returns the path of the file, or of the SavedModel's
            version.
        tell: receives the progress, line by line.
    """
    written = {}
    for name in names:
        began, file_name = time.perf_counter(), ARTIFACTS[name].file_name
        written[name] = write(name, folder / file_name)
        size = files.size(written[name]) / 1e6
        tell(f"wrote {file_name} ({size:.2f} MB, {time.perf_counter() - began:.1f} s)")
    return written


def tell_rejected(
    paths: Mapping[str, str], equal: Collection[str], output_dir: Path, tell: Callable[[str], None]
) -> None:
    """Tells which artifacts were not published; `paths` are relative to `output_dir`."""
    rejected = [str(output_dir / path) for name, path in paths.items() if name not in equal]
    if rejected:
        tell(f"not published: {', '.join(rejected)}")


def publish(
    written: Mapping[str, Path], equal: Collection[str], output_dir: Path, pictures: Iterable[str]
) -> dict[str, Path]:
    """Moves artifacts to their final names, rejected ones to the hidden folder; removes the old report.

    Args:
        written: the artifacts' paths by keys of `ARTIFACTS`.
        equal: the keys of those that equal the Keras model; the others are rejected.
        pictures: file names of the report's pictures.

    Returns:
        Their new paths by key.
    """
    rejected = output_dir / _REJECTED
    with files.os_errors_as_input_errors(output_dir):
        shutil.rmtree(rejected, ignore_errors=True)
        for name in (*_MARKS, *pictures):
            (output_dir / name).unlink(missing_ok=True)
    published = {}
    for name, path in written.items():
        published[name] = _final_path(name, output_dir if name in equal else rejected)
        is_ours = FILE_FORMATS[ARTIFACTS[name].format].is_ours
        with files.replacing(published[name], is_ours) as temporary:
            shutil.move(path, temporary)
    return published


def _final_path(name: str, folder: Path) -> Path:
    """Returns where an artifact belongs: a SavedModel in the next version; refuses other programs' files."""
    kind = ARTIFACTS[name]
    file_format, path = FILE_FORMATS[kind.format], folder / kind.file_name
    if file_format.mark is None:
        return path / str(next_version(path))
    files.check_replaceable(path, file_format.is_ours)
    return path
