"""A run's folder: recipe.json, history.csv, curves.png, checkpoints/, model.weights.h5 and more."""

import csv
import json
import os
from pathlib import Path

from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path, local_path, write_text


class RunFolder:
    """The paths of a run's files, with readers and writers of the small ones.

    Raises:
        InputError: the path is a URL.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = local_path(path)
        self.recipe = self.path / "recipe.json"
        self.history = self.path / "history.csv"
        self.curves = self.path / "curves.png"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "model.weights.h5"
        self.tensorboard = self.path / "tensorboard"
        self.trackers = self.path / "trackers.json"
        self.lock = self.path / "lock"

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
