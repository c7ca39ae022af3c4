"""Writes the results of an evaluation to evaluation.json, per_class.csv and precision_recall.png."""

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.data.preview import legible
from keras_resnet.detection.evaluation import DetectionEvaluation
from keras_resnet.detection.metrics import CocoStatistics
from keras_resnet.files import atomic_path, sha256, write_json
from keras_resnet.tables import markdown_table
from keras_resnet.version import versions

_NAMED_CLASSES = 20  # more names would not be legible in the legend
_LETTERS = 28  # maximum length of class names in the plot
_RECALLS = np.linspace(0, 1, 101)
# Rows of `CocoStatistics.precision` by label.
_OVERLAPS = {"IoU 0.5": slice(0, 1), "IoU 0.75": slice(5, 6), "mean of IoU 0.5 to 0.95": slice(None)}


def table(evaluation: DetectionEvaluation) -> str:
    """Returns a Markdown table of COCO's statistics and VOC's mean average precisions, in percent."""
    figures = {**evaluation.coco.figures, **_voc_means(evaluation)}
    cells = [
        (name, "-" if (value := _or_none(figure)) is None else f"{100 * value:.1f}")
        for name, figure in figures.items()
    ]
    return markdown_table(("statistic", "%"), cells)


def content(
    evaluation: DetectionEvaluation,
    command: str,
    dataset: str,
    weights: Sequence[str],
    *,
    names: Sequence[str] | None = None,
    refine: bool = False,
    scales: Sequence[int] = (),
) -> dict:
    """Returns the content of evaluation.json; statistics are in [0, 1], or None if there are no objects.

    The arguments are those of `write_report`.
    """
    counts = _counts(evaluation)
    files = [
        {"weights": name, "sha256": sha256(each) if Path(each).is_file() else None}
        for each, name in zip(weights, names or weights, strict=True)
    ]
    return {
        "command": command,
        "detector": evaluation.detector,
        **files[0],
        "ensemble": files[1:],
        "refine": refine,
        "scales": list(scales),
        "dataset": dataset,
        "split": evaluation.split.name,
        "images": evaluation.images,
        "objects": sum(objects for objects, _ in counts),
        "detections": sum(detections for _, detections in counts),
        "bad_images": [{"image": image, "reason": reason} for image, _, reason in evaluation.bad_images],
        "skipped": [{"file": file, "reason": reason} for file, reason in evaluation.split.skipped],
        "coco": {name: _or_none(value) for name, value in evaluation.coco.figures.items()},
        "voc": {name: _or_none(value) for name, value in _voc_means(evaluation).items()},
        "classes": _classes(evaluation),
        "replicas": evaluation.replicas,
        "batch_size": evaluation.batch_size,
        "seconds": round(evaluation.seconds, 3),
        "images_per_second": round(evaluation.images / evaluation.seconds, 2),
        "versions": versions("keras", "tensorflow", "numpy"),
    }


def write_report(
    evaluation: DetectionEvaluation,
    folder: str | os.PathLike,
    command: str,
    dataset: str,
    weights: Sequence[str],
    **more: Any,
) -> None:
    """Writes per_class.csv, precision_recall.png and evaluation.json, each atomically, in this order.

    The folder is created if necessary, and existing files are replaced.

    Args:
        command: the command line that repeats the evaluation.
        dataset: the dataset's title.
        weights: the path or the published name of the weights, and of those of an ensemble's further
            detectors.
        more: `refine` and `scales` of `ImprovedDetector`, and `names` to report instead of `weights`.

    Raises:
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    rows = _classes(evaluation)
    with (
        atomic_path(folder / "per_class.csv") as path,
        open(path, "w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    title = f"{evaluation.detector} on {dataset} {evaluation.split.name}"
    with atomic_path(folder / "precision_recall.png", suffix=".png") as path:
        _draw_precision_recall(evaluation.coco, evaluation.split.class_names, title, path)
    write_json(folder / "evaluation.json", content(evaluation, command, dataset, weights, **more))


def _or_none(value: float) -> float | None:
    """Returns None for a statistic without objects, which is -1 in COCO's statistics and NaN in VOC's."""
    return None if math.isnan(value) or value < 0 else float(value)


def _voc_means(evaluation: DetectionEvaluation) -> dict[str, float]:
    return {
        f"VOC {metric}": float(np.nanmean(values)) if np.isfinite(values).any() else math.nan
        for metric, values in evaluation.voc.items()
    }


def _counts(evaluation: DetectionEvaluation) -> list[tuple[int, int]]:
    """The number of objects, without crowd regions, and the number of detections of each class."""
    classes = len(evaluation.split.class_names)
    counts = np.zeros((2, classes), int)
    for objects, own in zip(evaluation.split.objects, evaluation.detections, strict=True):
        if own is not None:
            counts[0] += np.bincount(objects.labels[~objects.crowd], minlength=classes)
            counts[1] += np.bincount(own.labels, minlength=classes)
    return [(objects, detections) for objects, detections in counts.T.tolist()]


def _classes(evaluation: DetectionEvaluation) -> list[dict]:
    """The statistics of each class; None for statistics without objects."""
    rows = []
    for label, (objects, detections) in enumerate(_counts(evaluation)):
        name = evaluation.split.class_names[label]
        figures = {
            **evaluation.coco.per_class[label],
            **{f"VOC {metric}": values[label] for metric, values in evaluation.voc.items()},
        }
        statistics = {key: _or_none(value) for key, value in figures.items()}
        rows.append(
            {"class": label, "name": name, "objects": objects, "detections": detections, **statistics}
        )
    return rows


def _draw_precision_recall(
    statistics: CocoStatistics, names: tuple[str, ...], title: str, path: str | os.PathLike
) -> None:
    """Plots COCO's precision-recall curves to a PNG file: means over classes, and each class at IoU 0.5.

    With more than 20 classes, only those with the highest and the lowest AP50 are in the legend.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(14, 6), layout="constrained")
    figure.suptitle(title, parse_math=False)
    together, apart = figure.subplots(1, 2)
    present = [label for label in range(len(names)) if statistics.per_class[label]["AP"] >= 0]
    precision = statistics.precision[:, :, present]
    for label, rows in _OVERLAPS.items():
        if present:
            curve = precision[rows].mean((0, 2))
            together.plot(_RECALLS, curve, label=f"{label}: {curve.mean():.1%}")
    ordered = sorted(present, key=lambda label: -statistics.per_class[label]["AP50"])
    half = _NAMED_CLASSES // 2
    named = ordered if len(ordered) <= _NAMED_CLASSES else [*ordered[:half], *ordered[-half:]]
    for label in sorted(ordered, key=lambda label: label in named):  # named classes on top
        style = {"label": f"{_short(names[label])}: {statistics.per_class[label]['AP50']:.1%}"}
        if label not in named:
            style = {"color": "lightgray", "linewidth": 0.8}
        apart.plot(_RECALLS, statistics.precision[0, :, label], **style)
    together.set_title(f"mean of {len(present)} classes")
    apart.set_title("each class, IoU 0.5")
    for axes in (together, apart):
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1), ylim=(0, 1.02))
        axes.grid(alpha=0.3)
    if present:
        together.legend(title="average precision")
        apart.legend(title="AP50", loc="upper left", bbox_to_anchor=(1, 1), fontsize=8)
    # Without the software's name and version, equal plots are byte-identical.
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def _short(name: str) -> str:
    name = name if len(name) <= _LETTERS else name[: _LETTERS - 1] + "…"
    return legible(name).replace("$", r"\$")
