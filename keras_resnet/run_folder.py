"""A run's folder: recipe.json, history.csv, curves.png, checkpoints/, model.weights.h5, and more."""

import csv
import json
import os
from pathlib import Path

from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path
from keras_resnet.training.recipe import Recipe

HISTORY = (
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "images_per_second",
)


class Workdir:
    """The names of a run's files, and the small ones' reading and writing."""

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.recipe = self.path / "recipe.json"
        self.history = self.path / "history.csv"
        self.curves = self.path / "curves.png"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "model.weights.h5"
        self.tensorboard = self.path / "tensorboard"

    def bad_images(self, worker: int) -> Path:
        """The list of the images that this worker could not decode."""
        return self.path / ("bad_images.csv" if worker == 0 else f"bad_images.worker{worker}.csv")

    def check(self, recipe: Recipe, seed: int, precision: str) -> None:
        """Refuses what is no folder for this run; writes nothing.

        Args:
            recipe: the run's.
            seed: the run's.
            precision: the run's.

        Raises:
            InputError: the folder holds another run, and it says what differs; or it is a file.
        """
        if self.recipe.exists():
            wanted = _content(recipe, seed, precision)
            held = read_recipe(self.recipe)
            differing = [key for key in wanted if held.get(key) != wanted[key]]
            if differing:
                changes = ", ".join(
                    f"{key} {held.get(key)!r} there, {wanted[key]!r} now" for key in differing[:4]
                )
                raise InputError(f"{self.path} holds another run ({changes}); choose another --workdir")
        elif self.path.exists() and not self.path.is_dir():
            raise InputError(f"--workdir {self.path} is a file")

    def open(self, recipe: Recipe, seed: int, precision: str) -> None:
        """Makes the folder with its recipe.json, unless it is there; see `check`."""
        self.check(recipe, seed, precision)
        if not self.recipe.exists():
            write_text(self.recipe, json.dumps(_content(recipe, seed, precision), indent=2) + "\n")

    def read_history(self) -> list[dict[str, str]]:
        """The rows of history.csv, as texts; none if there is no file."""
        if not self.history.exists():
            return []
        with open(self.history, newline="") as file:
            return list(csv.DictReader(file))

    def write_history(self, rows: list[dict]) -> None:
        """Replaces history.csv."""
        with atomic_path(self.history) as temporary, open(temporary, "w", newline="") as file:
            writer = csv.DictWriter(file, HISTORY, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def draw_curves(self, title: str) -> None:
        """Draws curves.png from history.csv: error in % and loss, over epochs."""
        from matplotlib.figure import Figure

        rows = self.read_history()
        if not rows:
            return
        epochs = [float(row["epoch"]) for row in rows]
        figure = Figure(figsize=(10, 4), layout="constrained")
        figure.suptitle(title)
        error, loss = figure.subplots(1, 2)
        for split, style in (("train", "--"), ("val", "-")):
            error.plot(epochs, [100 - 100 * float(row[f"{split}_top1"]) for row in rows], style, label=split)
            loss.plot(epochs, [float(row[f"{split}_loss"]) for row in rows], style, label=split)
        error.set_ylabel("top-1 error (%)")
        loss.set_ylabel("loss")
        loss.set_yscale("log")
        for axes in (error, loss):
            axes.set_xlabel("epoch")
            axes.grid(alpha=0.3)
            axes.legend()
        error.set_ylim(bottom=0)
        with atomic_path(self.curves, suffix=".png") as temporary:
            figure.savefig(temporary, dpi=120, metadata={"Software": None})


def _content(recipe: Recipe, seed: int, precision: str) -> dict:
    return {**recipe.to_dict(), "seed": seed, "precision": precision}


def read_recipe(path: Path) -> dict:
    """The content of a recipe.json: a recipe's keys with "seed" and "precision".

    Keys that an older version did not write have their defaults.

    Raises:
        InputError: it is missing, not JSON, or not a recipe.
    """
    try:
        values = json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error})") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a recipe")
    others = {key: values.pop(key) for key in ("seed", "precision") if key in values}
    return {**Recipe.from_dict(values).to_dict(), **others}


def write_text(path: Path, text: str) -> None:
    """Writes a small file whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text)
