"""Whether the files of a killed run are whole, and whether they are those of the undisturbed run.

TensorBoard's logs are not inspected: they grow in place, and readers ignore an incomplete last record.
"""

import json
import re
from pathlib import Path

import numpy as np
from helpers.runs import history

from keras_resnet.training import checkpoints

_LOGS = "tensorboard"
_STEP = re.compile(r"(checkpoints/step-)\d{9}\.h5$")
_VERSION = re.compile(r"(export/saved_model)/\d+(?=/|$)")
# They contain the time of a call, or something drawn anew in every export.
_NEVER_EQUAL = {"export/saved_model/1/fingerprint.pb"}


def broken(folder: Path, whole: Path) -> list[str]:
    """The files that have a name of the undisturbed run `whole`, but not a possible content."""
    expected = _entries(whole).values()
    found = [
        str(path.relative_to(folder))
        for path, name in _entries(folder).items()
        if name in expected and path.is_file() and not _is_whole(path, name, folder, whole)
    ]
    for version in folder.glob("export/saved_model/[0-9]*"):
        present = {name for path, name in _entries(folder).items() if version in path.parents}
        missing = {name for name in expected if name.startswith("export/saved_model/1/")} - present
        found += [f"{version.relative_to(folder)} lacks {name}" for name in sorted(missing)]
    return found


def leftovers(folder: Path, whole: Path) -> list[str]:
    """The files and folders that the undisturbed run does not have, and more checkpoints than it keeps.

    A folder counts once, whatever is in it.
    """
    expected = _entries(whole).values()
    unknown = {path for path, name in _entries(folder).items() if name not in expected}
    found = sorted(path for path in unknown if path.parent not in unknown)
    kept = len(checkpoints.list_checkpoints(whole / "checkpoints"))
    found += checkpoints.list_checkpoints(folder / "checkpoints")[:-kept]
    return [str(path.relative_to(folder)) for path in found]


def differences(folder: Path, whole: Path) -> list[str]:
    """What a finished run has other than the undisturbed one."""
    missing = set(_entries(whole).values()) - set(_entries(folder).values())
    found = [f"no {name}" for name in sorted(missing)] + broken(folder, whole)
    if history(folder) != history(whole):
        found.append("history.csv")
    if _state(folder) != _state(whole):
        found.append("the last checkpoint")
    return found


def _entries(folder: Path) -> dict[Path, str]:
    """All files and folders by path, and their names, in which all steps and all versions are the same."""
    names = {path: path.relative_to(folder).as_posix() for path in folder.rglob("*")}
    return {
        path: _VERSION.sub(r"\1/1", _STEP.sub(r"\1.h5", name))
        for path, name in names.items()
        if name.split("/")[0] != _LOGS
    }


def _is_whole(path: Path, name: str, folder: Path, whole: Path) -> bool:
    if name == "checkpoints/step-.h5":
        try:
            checkpoints.load(path)
        except checkpoints.BrokenCheckpoint:
            return False
        return True
    if name == "history.csv":
        rows = history(folder)
        return path.read_bytes().endswith(b"\n") and rows == history(whole)[: len(rows)]
    if name == "export/parity.json":
        return _keys(path) == _keys(whole / name)
    if name == "export/MODEL_CARD.md":
        return _headings(path) == _headings(whole / name)
    if name in _NEVER_EQUAL:
        return path.stat().st_size > 0
    return path.read_bytes() == (whole / name).read_bytes()


def _keys(path: Path) -> list[str] | None:
    try:
        return list(json.loads(path.read_text()))
    except ValueError:
        return None


def _headings(path: Path) -> list[str]:
    return [line for line in path.read_text(errors="replace").splitlines() if line.startswith("#")]


def _state(folder: Path) -> tuple | None:
    """The content of the last checkpoint without speeds."""
    paths = checkpoints.list_checkpoints(folder / "checkpoints")
    if not paths:
        return None
    checkpoint = checkpoints.load(paths[-1])
    rows = [
        {key: value for key, value in row.items() if key != "images_per_second"}
        for row in checkpoint.numbers["history"]
    ]
    arrays = {name: np.asarray(array).tobytes() for name, array in checkpoint.arrays.items()}
    return checkpoint.step, arrays, {**checkpoint.numbers, "history": rows}
