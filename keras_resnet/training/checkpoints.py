"""Checkpoints: HDF5 files of named arrays and a few numbers, written atomically, with a digest."""

import contextlib
import dataclasses
import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path
from keras_resnet.weights.conversion import Budget
from keras_resnet.weights.hdf5 import (
    CannotReadNow,
    check_weight,
    checked_attribute,
    open_hdf5,
    read_dataset,
    read_text,
    refuse_damage,
)

_BROKEN = ".broken"  # ending of a broken file that was set aside


class BrokenCheckpoint(Exception):
    """A checkpoint file is truncated or damaged."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """The state of a run after `step` steps: arrays, such as "weights/conv1_conv/kernel", and JSON values."""

    step: int
    arrays: dict[str, np.ndarray]
    numbers: dict


def list_checkpoints(folder: Path) -> list[Path]:
    """Lists the checkpoints in a folder, oldest first."""
    return sorted(folder.glob(f"step-{'[0-9]' * 9}.h5"))


def save(folder: Path, checkpoint: Checkpoint, keep: int) -> Path:
    """Writes a checkpoint, reads it back, and then deletes all older ones but the newest `keep`.

    If it cannot be written (`OSError`) or read back (`BrokenCheckpoint`), existing checkpoints are kept.
    """
    path = folder / f"step-{checkpoint.step:09d}.h5"
    # Written in memory first: on a full disk the HDF5 library crashes, while Python's files raise OSError.
    content = io.BytesIO()
    with h5py.File(content, "w") as file:
        for name, value in checkpoint.arrays.items():
            file.create_dataset(name, data=value)
        numbers = json.dumps(checkpoint.numbers, sort_keys=True)
        file.attrs.update({"step": checkpoint.step, "numbers": numbers, "sha256": _digest(checkpoint)})
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())
        load(temporary)
    # A later one is broken, or this run would have resumed from it.
    older = [old for old in list_checkpoints(folder) if old <= path]
    for old in (*older[:-keep], *folder.glob(f"step-*.h5{_BROKEN}")):
        old.unlink(missing_ok=True)
    return path


def load(path: Path) -> Checkpoint:
    """Reads and checks a checkpoint; `BrokenCheckpoint` if it is truncated or damaged.

    If the system cannot read it now, for example because another process has locked it, `InputError`.
    """
    arrays, budget = {}, Budget(path)

    def take(name: str, item: object) -> None:
        if isinstance(item, h5py.Dataset):
            dataset = check_weight(item, name, path, kinds="biuf")
            budget.take(name, dataset.shape)
            arrays[name] = read_dataset(dataset)

    try:
        with refuse_damage(path), open_hdf5(path) as file:
            file.visititems(take)
            attributes: Any = file.attrs
            step = checked_attribute(file, "step")
            if step.shape != () or step.dtype.kind not in "iu":
                raise ValueError("the step is not a number")
            numbers = json.loads(str(read_text(file, "numbers")))
            checkpoint = Checkpoint(int(attributes["step"]), arrays, numbers)
            is_intact = _digest(checkpoint) == read_text(file, "sha256")
    except CannotReadNow:
        raise
    except InputError as error:
        raise BrokenCheckpoint(str(error)) from None
    if not is_intact:
        raise BrokenCheckpoint(f"{path} is damaged: its content does not match its digest")
    return checkpoint


def load_newest(folder: Path, report: Callable[[str], object]) -> Checkpoint | None:
    """Loads the newest intact checkpoint; None if the folder has none or does not exist.

    `report` is called with one line per broken file, which is then renamed, so that it does not count as one
    of those to keep. `InputError` if all checkpoints are broken, or if one cannot be
    read now.
    """
    paths, broken = list_checkpoints(folder), []
    for path in reversed(paths):
        try:
            checkpoint = load(path)
        except BrokenCheckpoint as error:
            report(f"warning: {error}; using the previous one")
            broken.append(path)
            continue
        for each in broken:
            with contextlib.suppress(OSError):
                each.rename(f"{each}{_BROKEN}")
        return checkpoint
    if paths:
        raise InputError(f"every checkpoint in {folder} is broken; delete the folder to start again")
    return None


def to_bytes(checkpoint: Checkpoint | None) -> bytes:
    """The checkpoint as bytes for another process; empty for None."""
    if checkpoint is None:
        return b""
    content = io.BytesIO()
    about = json.dumps([checkpoint.step, checkpoint.numbers])
    arrays: Any = {"about": np.array(about), **checkpoint.arrays}
    np.savez(content, **arrays)
    return content.getvalue()


def from_bytes(content: bytes) -> Checkpoint | None:
    """The inverse of `to_bytes`."""
    if not content:
        return None
    with np.load(io.BytesIO(content)) as file:
        arrays = dict(file)
    step, numbers = json.loads(str(arrays.pop("about")))
    return Checkpoint(step, arrays, numbers)


def _digest(checkpoint: Checkpoint) -> str:
    digest = hashlib.sha256(json.dumps([checkpoint.step, checkpoint.numbers], sort_keys=True).encode())
    for name in sorted(checkpoint.arrays):
        value = np.ascontiguousarray(checkpoint.arrays[name])
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(value.tobytes())
    return digest.hexdigest()
