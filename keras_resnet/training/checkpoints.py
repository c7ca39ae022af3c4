"""Checkpoints: HDF5 files of named arrays and a few numbers, written atomically, with a digest."""

import dataclasses
import hashlib
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path

_NAME = re.compile(r"step-(\d{9})\.h5")


class BrokenCheckpoint(Exception):
    """A checkpoint file is truncated or damaged."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a run needs to resume.

    Attributes:
        step: optimizer steps done.
        arrays: by name, e.g. "weights/conv1_conv/kernel".
        numbers: plain JSON values.
    """

    step: int
    arrays: dict[str, np.ndarray]
    numbers: dict


def path_of(folder: Path, step: int) -> Path:
    """Returns the file of step `step`."""
    return folder / f"step-{step:09d}.h5"


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints of a folder, oldest first."""
    return sorted(path for path in Path(folder).glob("step-*.h5") if _NAME.fullmatch(path.name))


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint, reads it back, and then deletes all but the newest `keep`.

    Raises:
        OSError: it cannot be written; existing checkpoints are untouched.
        BrokenCheckpoint: the file cannot be read back.
    """
    path = path_of(folder, checkpoint.step)
    # Composed in memory: on a full disk the HDF5 library crashes where Python's files raise OSError.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, value in checkpoint.arrays.items():
            file.create_dataset(name, data=value)
        numbers = json.dumps(checkpoint.numbers, sort_keys=True)
        file.attrs.update({"step": checkpoint.step, "numbers": numbers})
        file.attrs["sha256"] = _digest(checkpoint)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
        load(temporary)
    for old in list_checkpoints(folder)[:-keep]:
        old.unlink()
    return path


def load(path: Path) -> Checkpoint:
    """Reads and checks a checkpoint.

    Raises:
        BrokenCheckpoint: it is truncated or damaged.
    """
    try:
        with h5py.File(path, "r") as file:
            arrays = {}

            def take(name, item):
                if isinstance(item, h5py.Dataset):
                    arrays[name] = item[...]

            file.visititems(take)
            attributes: Any = file.attrs
            checkpoint = Checkpoint(int(attributes["step"]), arrays, json.loads(attributes["numbers"]))
            written = attributes["sha256"]
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, MemoryError) as error:
        raise BrokenCheckpoint(f"{path} cannot be read ({error})") from None
    if _digest(checkpoint) != written:
        raise BrokenCheckpoint(f"{path} does not hold what was written to it")
    return checkpoint


def load_newest(folder: Path, report: Callable[[str], object]) -> Checkpoint | None:
    """Loads the newest intact checkpoint; None if the folder has none at all.

    Args:
        folder: may be missing.
        report: called with one line for each broken file that is skipped.

    Raises:
        InputError: there are checkpoints, and all are broken.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        try:
            return load(path)
        except BrokenCheckpoint as error:
            report(f"warning: {error}; using the one before")
    if paths:
        raise InputError(f"every checkpoint in {folder} is broken; delete the folder to start again")
    return None


def _digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(json.dumps([checkpoint.step, checkpoint.numbers], sort_keys=True).encode())
    for name in sorted(checkpoint.arrays):
        value = np.ascontiguousarray(checkpoint.arrays[name])
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
