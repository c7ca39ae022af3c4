"""Finds all faults of a detection dataset, and the fraction of boxes that no anchor can match."""

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from keras_resnet.detection.anchors import cell_anchors
from keras_resnet.detection.data.annotations import DetectionDataset, DetectionSplit, Faults
from keras_resnet.detection.data.sources import open_detection_dataset
from keras_resnet.errors import InputError, printable
from keras_resnet.progress import ProgressBar
from keras_resnet.tables import markdown_table

_ANCHOR_SIZES = (32, 64, 128, 256, 512)  # of torchvision's Faster R-CNN
_SIDES = (800, 1333)  # its shorter and longer side of resized images
_REACHED = 0.5
_THREADS = 4


def check(dataset: str, data_dir: str | os.PathLike | None = None) -> int:
    """Prints a table of all faults of a dataset, including undecodable images, and a summary per split.

    The arguments are those of `open_detection_dataset`.

    Returns:
        The exit status: 1 if there are faults, otherwise 0.
    """
    opened = open_detection_dataset(dataset, data_dir)
    rows, summaries = find_faults(opened)
    if rows:
        cells = [[printable(cell) for cell in row] for row in rows]
        print(markdown_table(["split", "file", "fault"], cells), end="\n\n")
    for line in summaries:
        print(line)
    print(f"{opened.title}: {len(rows)} faults")
    return 1 if rows else 0


def find_faults(dataset: DetectionDataset) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Reads all annotations and decodes all images; shows the progress.

    Returns:
        `(split, file, reason)` of each fault, and one line per split that summarizes it.
    """
    rows, summaries = [], []
    for name in dataset.split_names:
        faults = Faults(collect=True)
        try:
            split = dataset.loaders[name](faults)
        except InputError as error:  # the split cannot be read at all
            rows.append((name, "", str(error)))
            continue
        rows += [(name, *row) for row in faults.rows]
        rows += [(name, *row) for row in _undecodable(split)]
        summaries.append(_summary(split, faults.repaired))
    return rows, summaries


def _undecodable(split: DetectionSplit) -> list[tuple[str, str]]:
    def fault(index: int) -> tuple[str, str] | None:
        try:
            split.read_image(index)
        except InputError as error:
            return split.image_names[index], str(error)
        return None

    with ThreadPoolExecutor(_THREADS) as pool:
        found = pool.map(fault, range(len(split)))
        progress = ProgressBar(len(split), "images", f"decoding {split.name}")
        return [row for row in progress.track(found) if row]


def _summary(split: DetectionSplit, repaired: Counter[str]) -> str:
    counts = [len(objects) for objects in split.objects]
    line = (
        f"{split.name}: {len(split)} images, {sum(counts)} objects, {counts.count(0)} images without objects"
    )
    for what, count in sorted(repaired.items()):
        line += f", {count} {what}" if count else ""
    if unreached := unreached_share(split):
        line += f", {unreached:.1%} of the boxes overlap no anchor by {_REACHED} (sizes {_ANCHOR_SIZES[0]} to"
        line += f" {_ANCHOR_SIZES[-1]} at {_SIDES[0]} pixels)"
    return line


def unreached_share(
    split: DetectionSplit, anchor_sizes: Sequence[float] = _ANCHOR_SIZES, sides: tuple[int, int] = _SIDES
) -> float:
    """Returns the fraction of boxes whose IoU with every anchor is below 0.5, even with the same center.

    Args:
        anchor_sizes: square roots of the anchors' areas, pixels of the resized image.
        sides: shorter side of resized images, and the maximum of the longer side, pixels.
    """
    anchors = cell_anchors(anchor_sizes)
    anchors = anchors[:, 2:] - anchors[:, :2]
    unreached = total = 0
    for size, objects in zip(split.sizes, split.objects, strict=True):
        boxes = (objects.boxes[:, 2:] - objects.boxes[:, :2]) * min(
            sides[0] / min(size), sides[1] / max(size)
        )
        common = np.minimum(boxes[:, None], anchors).prod(-1)
        overlaps = common / (boxes.prod(-1)[:, None] + anchors.prod(-1) - common)
        unreached += int((overlaps.max(-1, initial=0.0) < _REACHED).sum())
        total += len(objects)
    return unreached / max(total, 1)
