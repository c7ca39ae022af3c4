"""A run's folder: recipe.json, history.csv, curves.png, checkpoints/, model.weights.h5 and more."""

import contextlib
import csv
import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path

from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path, local_path, locked, write_text
from keras_resnet.object_storage import Mirror, is_stored, mirrored


class RunFolder:
    """The paths of a run's files, with readers and writers of the small ones.

    `open_run_folder` also opens a folder in object storage: as a path it is the local copy, as text the URL.

    Args:
        mirror: the folder in object storage of which `path` is the copy.

    Raises:
        InputError: the path is a URL.
    """

    def __init__(self, path: str | os.PathLike, mirror: Mirror | None = None):
        self.path, self._mirror = local_path(path), mirror
        self.recipe = self.path / "recipe.json"
        self.history = self.path / "history.csv"
        self.curves = self.path / "curves.png"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "model.weights.h5"
        self.tensorboard = self.path / "tensorboard"
        self.trackers = self.path / "trackers.json"
        self.lock = self.path / "lock"

    def __fspath__(self) -> str:
        return str(self.path)

    def __str__(self) -> str:
        return self.shown(str(self.path))

    def shown(self, text: str) -> str:
        """A message about the run's files, with the folder as the user has named it."""
        return self._mirror.shown(text) if self._mirror else text

    def upload(self) -> None:
        """Copies what has changed to object storage, if the folder is there; see `Mirror.upload`."""
        if self._mirror:
            self._mirror.upload()

    @contextlib.contextmanager
    def locked(self, seconds: float = 0) -> Iterator[None]:
        """Excludes other processes from the folder; see `files.locked` and `Mirror.take_over`."""
        with locked(self.lock, seconds):
            if self._mirror:
                self._mirror.take_over()
            yield

    def bad_images(self, worker: int) -> Path:
        """The list of the images that this worker could not decode."""
        return self.path / ("bad_images.csv" if worker == 0 else f"bad_images.worker{worker}.csv")

    def read_recipe(self) -> dict:
        """The content of recipe.json; `InputError` if it is invalid.

        Its keys are those of a recipe, "seed", "precision" and "data", the identity of the data. Files of
        older versions lack newer keys.
        """
        try:
            values = json.loads(self.recipe.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise InputError(f"{self.path} holds no {self.recipe.name}") from None
        except OSError as error:
            raise InputError(f"{self.recipe} cannot be read: {error.strerror}") from None
        except ValueError as error:
            raise InputError(f"{self.recipe} is not JSON ({error})") from None
        missing = [key for key in ("model", "dataset") if not isinstance(values, dict) or key not in values]
        if missing:
            raise InputError(f"{self.recipe} is not a recipe: it has no {' and no '.join(missing)}")
        return values

    def write_recipe(self, values: dict) -> None:
        """Writes recipe.json; creates the folder if it is missing."""
        write_text(self.recipe, json.dumps(values, indent=2) + "\n")

    def read_history(self) -> list[dict[str, str]]:
        """The rows of history.csv as strings; empty if there is no file."""
        if not self.history.exists():
            return []
        with open(self.history, newline="") as file:
            return list(csv.DictReader(file))

    def write_history(self, columns: tuple[str, ...], rows: list[dict]) -> None:
        """Replaces history.csv."""
        with atomic_path(self.history) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


@contextlib.contextmanager
def open_run_folder(path: str | os.PathLike, subfolders: Collection[str] = ()) -> Iterator[RunFolder]:
    """Opens the folder of a run on a disk or in object storage; see `mirrored` for the errors.

    Args:
        path: of a folder, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER; an open `RunFolder` is yielded unchanged.
        subfolders: names of the folders that are needed from object storage, besides the files beside them.
    """
    if isinstance(path, RunFolder) or not is_stored(path):
        yield path if isinstance(path, RunFolder) else RunFolder(path)
        return
    with mirrored(path, subfolders) as mirror:
        yield RunFolder(mirror.folder, mirror)
