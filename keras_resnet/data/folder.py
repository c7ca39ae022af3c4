"""Image classification datasets in folders: `PATH/[split/]class/image`."""

import dataclasses
import hashlib
import os
import stat
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from keras_resnet.data.digits import HOLD_OUT
from keras_resnet.errors import InputError
from keras_resnet.images.decode import is_image

HELD_OUT_SPLITS = ("test", "validation", "val")
SPLIT_RULE = "a hash of their names"
"""What selects the images of slices and of `test`; versions without a rule selected them by their order."""

_MAX_BYTES = 300_000_000  # a BMP image of the largest size that is decoded
_CONTROL = ("Cc", "Cs", "Zl", "Zp")  # Unicode's categories; Cs: bytes that are not UTF-8


@dataclasses.dataclass(frozen=True)
class Files:
    """The images of one split: paths, bytes sorted by class and name, and labels, int32.

    `skipped` has `(path, reason)` of entries that are not examples.
    """

    paths: np.ndarray
    labels: np.ndarray
    skipped: tuple[tuple[str, str], ...] = ()

    def select(self, start: int, stop: int) -> np.ndarray:
        """The sorted indices of a slice, in which the classes are as frequent as in the whole split.

        Adjacent slices have no image in common.
        """
        if stop - start == len(self.paths):
            return np.arange(len(self.paths))
        hashes, ranks, counts = self._ranks()
        return np.sort(np.lexsort((hashes, (ranks + 0.5) / counts))[start:stop])

    def held_out(self) -> np.ndarray:
        """Selects about a fifth of each class by a hash of the names, bool (examples,).

        An added image moves no other one, except that a class of five or more images has at least one on each
        side.
        """
        hashes, ranks, counts = self._ranks()
        chosen = (hashes < 2**64 // HOLD_OUT) | (ranks == 0)
        return chosen & (ranks < counts - 1) & (counts >= HOLD_OUT)

    def _ranks(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each file: a hash of class/name, its rank by this hash in its class, and the class' size."""
        names = (b"/".join(path.split(b"/")[-2:]) for path in self.paths)
        digests = b"".join(hashlib.blake2b(name, digest_size=8).digest() for name in names)
        hashes = np.frombuffer(digests, ">u8").astype("uint64")
        sizes = np.bincount(self.labels)
        ranks = np.empty(len(hashes), "int64")
        firsts = np.repeat(np.cumsum(sizes) - sizes, sizes)
        ranks[np.lexsort((hashes, self.labels))] = np.arange(len(hashes)) - firsts
        return hashes, ranks, sizes[self.labels]


def scan(path: str) -> tuple[tuple[str, ...], dict[str, Files], bool]:
    """Finds the sorted class names, the files of each split, and whether `test` was held out.

    All files in class folders are examples; they are not decoded here. If there are `train/` and any of
    `test/`, `validation/`, `val/`, these are the splits; otherwise `Files.held_out` are the `test` split.

    Raises:
        InputError: the folder is not a dataset; the message names the offending path.
    """
    if not os.path.exists(path):
        raise InputError(f"there is no folder {path!r}")
    if not os.path.isdir(path):
        raise InputError(f"{path!r} is not a folder; the layout is FOLDER/class/image")
    folders, _ = _subfolders(path)
    if "train" in folders and (names := [name for name in HELD_OUT_SPLITS if name in folders]):
        found = {name: _scan_classes(os.path.join(path, name)) for name in ("train", *names)}
        classes = found["train"][0]
        for name in names:
            if found[name][0] != classes:
                odd = sorted(set(found[name][0]) ^ set(classes))[0]
                raise InputError(
                    f"{path!r}: train and {name} have different classes; {odd!r} is only in one of them"
                )
        return classes, {name: files for name, (_, files) in found.items()}, False
    if folders == ["train"]:
        raise InputError(f"{path!r} has train/ but none of {'/, '.join(HELD_OUT_SPLITS)}/ beside it")
    classes, files = _scan_classes(path)
    test = files.held_out()
    if not test.any():
        raise InputError(
            f"{path!r}: no class has {HOLD_OUT} images, so none can be held out for testing;"
            " add images, or make train/ and test/ folders"
        )
    train = Files(files.paths[~test], files.labels[~test], files.skipped)
    return classes, {"train": train, "test": Files(files.paths[test], files.labels[test])}, True


def _subfolders(path: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The sorted names of subfolders, and `(path, reason)` of invalid links."""
    names, skipped = [], []
    above = Path(os.path.realpath(path))
    for entry in _visible_entries(path):
        if entry.is_symlink() and not os.path.exists(entry.path):
            skipped.append((entry.path, "a link to nothing, or to itself"))
        elif entry.is_symlink() and entry.is_dir() and above.is_relative_to(os.path.realpath(entry.path)):
            skipped.append((entry.path, "a link to a folder that contains it"))
        elif entry.is_dir():
            names.append(entry.name)
    return names, skipped


def _visible_entries(path: str) -> list[os.DirEntry]:
    """The entries of a folder that are not hidden, sorted by name."""
    with os.scandir(path) as entries:
        return sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)


def _scan_classes(path: str) -> tuple[tuple[str, ...], Files]:
    classes, skipped = _subfolders(path)
    if len(classes) < 2:
        found = f"only the class folder {classes[0]!r}" if classes else "no class folders"
        raise InputError(f"{path!r} has {found}; a dataset needs two or more, one per class")
    for name in classes:
        if any(unicodedata.category(letter) in _CONTROL for letter in name):
            raise InputError(
                f"{path!r}: the name of the class folder {name!r} must be UTF-8 text without control"
                " characters; rename it"
            )
    folders = [os.path.join(path, name) for name in classes]
    # Threads: on a network file system each request is a round trip.
    with ThreadPoolExecutor(16) as pool:
        listed = list(pool.map(_class_files, folders))
    paths = np.array([os.fsencode(file) for files, _ in listed for file in files], dtype=object)
    skipped += [skip for _, of_class in listed for skip in of_class]
    labels = np.repeat(np.arange(len(classes), dtype="int32"), [len(files) for files, _ in listed])
    return tuple(classes), Files(paths, labels, tuple(skipped))


def _class_files(folder: str) -> tuple[list[str], list[tuple[str, str]]]:
    """The sorted files and links of a class folder, and `(path, reason)` of other entries."""
    files, skipped = [], []
    try:
        for entry in _visible_entries(folder):
            # Links to folders and to nothing are examples that cannot be decoded.
            linked = entry.is_symlink() and (not os.path.exists(entry.path) or entry.is_dir())
            reason = None if linked else entry_error(entry.stat())
            if reason is None:
                files.append(entry.path)
            else:
                skipped.append((entry.path, reason))
    except OSError as error:
        raise InputError(f"the class folder {folder!r} cannot be read: {error.strerror}") from None
    if not files:
        raise InputError(f"the class folder {folder!r} has no files; the layout is FOLDER/class/image")
    if not any(_looks_like_image(file) for file in files):
        raise InputError(f"the class folder {folder!r} has no JPEG, PNG, GIF or BMP image")
    return files, skipped


def entry_error(status: os.stat_result) -> str | None:
    """Why something in a class folder cannot be read as an image, or None if it can."""
    if stat.S_ISDIR(status.st_mode):
        return "a folder where an image was expected"
    if not stat.S_ISREG(status.st_mode):
        return "not a regular file where an image was expected"
    if status.st_size > _MAX_BYTES:
        return f"a file of {status.st_size} bytes; the limit is {_MAX_BYTES}"
    return None


def _looks_like_image(path: str) -> bool:
    try:
        with open(path, "rb", buffering=0) as file:
            return is_image(file.read(8))
    except OSError:
        return False
