"""Image classification datasets that are folders: `PATH/[split/]class/image`."""

import dataclasses
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_resnet.data.digits import HOLD_OUT, held_out
from keras_resnet.errors import InputError

HELD_OUT_SPLITS = ("test", "validation", "val")


@dataclasses.dataclass(frozen=True)
class Files:
    """The images of one split.

    Attributes:
        paths: file names, ordered by class and then by name.
        labels: int32 array (images,).
    """

    paths: tuple[str, ...]
    labels: np.ndarray


def scan(path: str) -> tuple[tuple[str, ...], dict[str, Files]]:
    """Finds the classes and the splits of a folder and checks that its files are images.

    With `train/` and one of `test/`, `validation/`, `val/` inside, those are the splits; otherwise
    every fifth image of each class (sorted by name) is the `test` split.

    Args:
        path: the folder.

    Returns:
        The class names, sorted, and the files of each split.

    Raises:
        InputError: for a folder that is not a dataset, naming the offending path.
    """
    if not os.path.exists(path):
        raise InputError(f"there is no folder {path!r}")
    if not os.path.isdir(path):
        raise InputError(f"{path!r} is not a folder; the layout is FOLDER/class/image")
    folders = _subfolders(path)
    if "train" in folders and (names := [name for name in HELD_OUT_SPLITS if name in folders]):
        found = {name: _scan_classes(os.path.join(path, name)) for name in ("train", *names)}
        classes = found["train"][0]
        for name in names:
            if found[name][0] != classes:
                odd = sorted(set(found[name][0]) ^ set(classes))[0]
                raise InputError(
                    f"{path!r}: train and {name} have different classes; {odd!r} is only in one of them"
                )
        splits = {name: files for name, (_, files) in found.items()}
    elif folders == ["train"]:
        raise InputError(f"{path!r} has train/ but none of {'/, '.join(HELD_OUT_SPLITS)}/ beside it")
    else:
        classes, files = _scan_classes(path)
        test = held_out(files.labels)
        if not test.any():
            raise InputError(
                f"{path!r}: no class has {HOLD_OUT} images, so none can be held out for testing;"
                " add images, or make train/ and test/ folders"
            )
        splits = {"train": _select(files, ~test), "test": _select(files, test)}
    for files in splits.values():
        _check_images(files.paths)
    return classes, splits


def _select(files: Files, mask: np.ndarray) -> Files:
    return Files(tuple(files.paths[i] for i in np.flatnonzero(mask)), files.labels[mask])


def _subfolders(path: str) -> list[str]:
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _scan_classes(path: str) -> tuple[tuple[str, ...], Files]:
    classes = _subfolders(path)
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folders"
        raise InputError(f"{path!r} has {found}; a dataset needs two or more, one a class")
    paths, labels = [], []
    for label, name in enumerate(classes):
        folder = os.path.join(path, name)
        files = sorted(file for file in os.listdir(folder) if not file.startswith("."))
        if not files:
            raise InputError(f"the class folder {folder!r} is empty")
        paths += [os.path.join(folder, file) for file in files]
        labels += [label] * len(files)
    return tuple(classes), Files(tuple(paths), np.asarray(labels, "int32"))


def _check_images(paths: Iterable[str]) -> None:
    # Threads: on a network file system each open is a round trip.
    with ThreadPoolExecutor(16) as pool:
        for path, fault in zip(paths, pool.map(_fault, paths, chunksize=256), strict=True):
            if fault:
                raise InputError(f"{path!r} {fault}")


def _fault(path: str) -> str | None:
    """What makes a file unusable, by its first bytes, or None."""
    try:
        with open(path, "rb", buffering=0) as file:
            head = file.read(32)
    except IsADirectoryError:
        return "is a folder where an image was expected; the layout is FOLDER/class/image"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if head.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")):
        return None
    if head.startswith(b"BM") and len(head) >= 30:
        # TensorFlow decodes no palettes and drops no alpha in this format.
        bits = int.from_bytes(head[28:30], "little")
        return None if bits == 24 else f"is a BMP image with {bits} bits a pixel; only 24 can be read"
    return "is not a JPEG, PNG, GIF or BMP image"
