"""Writes evaluation.json, per_class.csv and confusion.png, and formats a table."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_resnet.classification.evaluation import Evaluation
from keras_resnet.classification.metrics import Metrics
from keras_resnet.data.preview import legible
from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path, write_json
from keras_resnet.tables import markdown_table
from keras_resnet.version import versions

_NAMED_CLASSES = 30  # more names are not legible beside a matrix
_CELLS = 500  # with more classes, several share a cell
_MISTAKES = 25  # number of mistakes listed beside a matrix without names
_LETTERS = 28  # maximum length of class names in the plot


def table(evaluation: Evaluation) -> str:
    """A Markdown table of the metrics: a row per network, and one for the ensemble."""
    rows = [
        (model.weights, model.spec.model, *_cells(metrics))
        for model, metrics in zip(evaluation.models, evaluation.model_metrics, strict=True)
    ]
    if len(rows) > 1:
        rows.append(("all", "ensemble", *_cells(evaluation.metrics)))
    header = ("weights", "model", "images", "top-1", "top-5", "loss", "calibration error")
    return markdown_table(header, rows)


def _cells(metrics: Metrics) -> tuple[str, ...]:
    figures = metrics.figures()
    top1, top5, error = (f"{100 * figures[key]:.2f} %" for key in ("top1", "top5", "calibration_error"))
    return str(metrics.images), top1, top5, f"{figures['loss']:.4f}", error


def content(evaluation: Evaluation, command: str) -> dict:
    """The content of evaluation.json; shares are in [0, 1], the loss in nats, times in seconds."""
    images = evaluation.metrics.images
    return {
        "command": command,
        "dataset": evaluation.dataset.name,
        "split": evaluation.split,
        "images": images,
        "bad_images": [{"path": path, "reason": reason} for path, _, reason in evaluation.bad_images],
        "protocol": evaluation.protocol.name,
        "protocol_summary": evaluation.protocol.summary,
        "figures": evaluation.metrics.figures(),
        "networks": [
            {
                "model": model.spec.model,
                "weights": model.weights,
                "sha256": model.digest,
                "overrides": model.spec.overrides,
                "input_size": model.preprocessing.size,
                "shorter_sides": list(evaluation.protocol.resizes(model.preprocessing)),
                "interpolation": model.preprocessing.interpolation,
                "figures": metrics.figures(),
            }
            for model, metrics in zip(evaluation.models, evaluation.model_metrics, strict=True)
        ],
        "reliability": evaluation.metrics.reliability(),
        "replicas": evaluation.replicas,
        "batch_size": evaluation.batch_size,
        "seconds": round(evaluation.seconds, 3),
        "images_per_second": round(images / evaluation.seconds, 2),
        "versions": versions("keras", "tensorflow", "numpy"),
    }


def check_folder(folder: str | os.PathLike) -> None:
    """Raises `InputError` before an evaluation if its folder cannot be created or written."""
    path = Path(folder).absolute()
    while not os.path.lexists(path):
        path = path.parent
    if not path.is_dir():
        raise InputError(f"--output_dir {folder}: {path} is not a folder")
    if not os.access(path, os.W_OK | os.X_OK):
        raise InputError(f"--output_dir {folder}: {path} cannot be written")


def write_report(evaluation: Evaluation, folder: str | os.PathLike, command: str) -> None:
    """Writes per_class.csv, confusion.png and evaluation.json, each atomically, in this order.

    The folder is created if necessary, and existing files are replaced. `command` is the command that
    repeats the evaluation.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    names = evaluation.dataset.class_names
    with (
        atomic_path(folder / "per_class.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        _write_classes(file, evaluation.metrics, names)
    title = f"{evaluation.dataset.name} {evaluation.split}, {evaluation.protocol.name}"
    with atomic_path(folder / "confusion.png", suffix=".png") as path:
        draw_confusion(evaluation.metrics, names, title, path)
    write_json(folder / "evaluation.json", content(evaluation, command))


def _write_classes(file, metrics: Metrics, names: Sequence[str]) -> None:
    writer = csv.writer(file, lineterminator="\n")
    fields = ("images", "predicted", "top1", "precision")
    writer.writerow(("class", "name", *fields, "confused_with", "confused_images"))
    for index, figures in enumerate(metrics.per_class()):
        other, count = figures.confused_with or (None, 0)
        values = (getattr(figures, field) for field in fields)
        writer.writerow((index, names[index], *values, "" if other is None else names[other], count))


def draw_confusion(metrics: Metrics, names: Sequence[str], title: str, path: str | os.PathLike) -> None:
    """Draws the confusion matrix of at least one image to a PNG file, colored by the share of each label.

    With few classes, cells and axes are labeled with numbers of images and names; with many, the most
    frequent mistakes are listed beside the matrix.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    confusion, classes = metrics.confusion, metrics.classes
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    named = classes <= _NAMED_CLASSES
    side = 3 + 0.45 * classes if named else 10
    figure = Figure(figsize=(side, side) if named else (side + 7, side), layout="constrained")
    if named:
        axes = figure.subplots()
    else:
        axes, beside = figure.subplots(1, 2, width_ratios=(10, 7))
        beside.set_axis_off()
        beside.set_title("most frequent mistakes")
        lines = [
            f"{count:5}   {_short(names[label])} → {_short(names[other])}"
            for label, other, count in metrics.confusions(_MISTAKES)
        ]
        beside.text(0, 1, "\n".join(lines) or "none", va="top", linespacing=1.8, transform=beside.transAxes)
    # Keeps rare mistakes visible.
    scale = PowerNorm(0.4, vmin=0, vmax=1)
    extent = (-0.5, classes - 0.5, classes - 0.5, -0.5)
    image = axes.imshow(_largest_of_blocks(shares), cmap="Blues", norm=scale, extent=extent)
    axes.set_title(f"{_plain(title)}: top-1 {metrics.figures()['top1']:.2%}")
    axes.set_xlabel("prediction")
    axes.set_ylabel("label")
    if named:
        short = [_short(name) for name in names]
        axes.set_xticks(range(classes), short, rotation=90 if max(map(len, short)) > 2 else 0)
        axes.set_yticks(range(classes), short)
        for row, column in zip(*np.nonzero(confusion), strict=True):
            color = "white" if shares[row, column] > 0.3 else "black"
            text = str(confusion[row, column])
            axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.6, label="share of the label's images")
    # The software's name and version would change the bytes of equal plots.
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def _largest_of_blocks(shares: np.ndarray) -> np.ndarray:
    """Max-pools a matrix to at most `_CELLS` cells per side; single mistakes stay visible."""
    block = -(-len(shares) // _CELLS)
    padded = np.pad(shares, (0, -len(shares) % block))
    cells = len(padded) // block
    return padded.reshape(cells, block, cells, block).max((1, 3))


def _short(name: str) -> str:
    return _plain(name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…")


def _plain(text: str) -> str:
    """Escapes text that matplotlib would parse as a formula, and spells what its font lacks."""
    return legible(text).replace("$", r"\$")
