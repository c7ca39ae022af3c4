"""Average precision of detections: COCO's statistics, computed with pycocotools, and PASCAL VOC's metrics."""

import contextlib
import dataclasses
import io
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.detection.boxes import iou
from keras_resnet.detection.data.annotations import DetectionSplit, Objects
from keras_resnet.detection.detections import Detections
from keras_resnet.errors import InputError, require, unknown_name

COCO_STATISTICS = (
    *("AP", "AP50", "AP75", "APsmall", "APmedium", "APlarge"),
    *("AR1", "AR10", "AR100", "ARsmall", "ARmedium", "ARlarge"),
)
VOC_METRICS = ("11-point", "area")

_SIZES = ("small", "medium", "large")
_VOC_OVERLAP = 0.5


@dataclasses.dataclass(frozen=True, eq=False)
class CocoStatistics:
    """COCO's twelve statistics, and the average precisions of each class.

    As in pycocotools, a statistic is -1 if there is no ground truth for it, e.g. no small object of a class.

    Attributes:
        figures: the statistics by their names in `COCO_STATISTICS`, in [0, 1].
        per_class: for each class its AP, AP50, AP75, APsmall, APmedium and APlarge, by these names.
        precision: float64 (10, 101, classes): at IoU thresholds .5, .55, ..., .95 and recalls 0, .01, ..., 1.
    """

    figures: dict[str, float]
    per_class: tuple[dict[str, float], ...]
    precision: np.ndarray


def coco_statistics(split: DetectionSplit, detections: Sequence[Detections | None]) -> CocoStatistics:
    """Computes COCO's statistics with pycocotools.

    Crowd regions are ignored as in pycocotools. COCO has no difficult objects, so VOC's difficult objects
    are treated like all others. For each image and class, the 100 detections with the highest scores count.

    Args:
        detections: of each image of `split`; None leaves an image out.

    Raises:
        InputError: the detections do not fit the split, or pycocotools is not installed.
    """
    _check(split, detections)
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError:
        raise InputError("COCO's statistics need the package pycocotools: pip install pycocotools") from None
    images: list[dict[str, Any]] = []
    objects: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    ids: Sequence[object] = split.image_ids
    if len(set(ids)) < len(split):  # splits that were joined
        ids = range(len(split))
    for image_id, truth, own in zip(ids, split.objects, detections, strict=True):
        if own is None:
            continue
        images.append({"id": image_id})
        crowd = [{"iscrowd": int(value)} for value in truth.crowd]
        objects += _annotations(image_id, truth, crowd, truth.areas)
        scores = [{"score": float(value)} for value in own.scores]
        found += _annotations(image_id, own, scores)
    for rows in (objects, found):
        for number, row in enumerate(rows, 1):  # pycocotools takes an id of 0 for "no match"
            row["id"] = number

    def index(rows: list[dict[str, Any]]) -> Any:
        indexed: Any = COCO()
        categories = [{"id": label} for label in range(len(split.class_names))]
        indexed.dataset = {"images": images, "categories": categories, "annotations": rows}
        indexed.createIndex()
        return indexed

    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = COCOeval(index(objects), index(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    figures = dict(zip(COCO_STATISTICS, map(float, evaluation.stats), strict=True))
    precision = evaluation.eval["precision"][..., -1]  # (overlaps, recalls, classes, sizes), 100 detections
    per_class = tuple(_class_figures(precision[:, :, label]) for label in range(len(split.class_names)))
    return CocoStatistics(figures, per_class, precision[..., 0])


def _check(split: DetectionSplit, detections: Sequence[Detections | None]) -> None:
    """Raises `InputError` unless each image has detections, which are finite and of the split's classes."""
    fits = len(detections) == len(split)
    require(fits, f"expected detections of each of the {len(split)} images", len(detections))
    for name, own in zip(split.image_names, detections, strict=True):
        if own is None or not len(own):
            continue
        if not (np.isfinite(own.boxes).all() and np.isfinite(own.scores).all()):
            raise InputError(f"the detections of image {name} have boxes or scores that are not numbers")
        if not 0 <= own.labels.min() <= own.labels.max() < len(split.class_names):
            raise InputError(
                f"the detections of image {name} have labels outside of 0 to {len(split.class_names) - 1}"
            )


def _annotations(
    image_id: int | str,
    items: Objects | Detections,
    more: Sequence[dict[str, Any]],
    areas: np.ndarray | None = None,
) -> Iterator[dict[str, Any]]:
    """Yields the objects or detections of one image in COCO's JSON format; `areas` default to the boxes'."""
    corners = items.boxes.astype("float64")
    sides = corners[:, 2:] - corners[:, :2]
    boxes = np.concatenate([corners[:, :2], sides], 1).tolist()
    listed = (sides.prod(1) if areas is None else areas).tolist()
    for box, label, area, others in zip(boxes, items.labels.tolist(), listed, more, strict=True):
        yield {"image_id": image_id, "category_id": label, "bbox": box, "area": area, "iscrowd": 0, **others}


def _class_figures(precision: np.ndarray) -> dict[str, float]:
    """Averages the precision of a class, (overlaps, recalls, sizes), as pycocotools does for all classes."""
    parts = {"AP": precision[..., 0], "AP50": precision[0, :, 0], "AP75": precision[5, :, 0]}
    parts |= {f"AP{size}": precision[..., place] for place, size in enumerate(_SIZES, 1)}
    return {
        name: float(part[part > -1].mean()) if (part > -1).any() else -1.0 for name, part in parts.items()
    }


def voc_average_precision(
    split: DetectionSplit, detections: Sequence[Detections | None], metric: str = "area"
) -> np.ndarray:
    """Computes PASCAL VOC's average precision of each class, as py-faster-rcnn does.

    A detection is matched with the object of its class that it overlaps most, if their intersection over
    union is greater than 0.5. The match with the highest score is a true positive; all other detections are
    false positives. Difficult objects and crowd regions are ignored: they need not be found, and detections
    matched with them do not count.

    Boxes in py-faster-rcnn include their last pixel: (x1, y1, x2, y2) here is (x1, y1, x2 - 1, y2 - 1) there,
    whose sides, with "+ 1", are x2 - x1 and y2 - y1, too.

    Args:
        detections: of each image of `split`; None leaves an image out.
        metric: "11-point", the metric of VOC 2007: the mean precision at recalls 0, .1, ..., 1; or "area",
            the metric of later years: the area under the precision-recall curve. Both use the interpolated,
            monotonically decreasing precision.

    Returns:
        float64 (classes,), in [0, 1]; NaN for classes without objects.

    Raises:
        InputError: the metric is unknown, or the detections do not fit the split.
    """
    if metric not in VOC_METRICS:
        raise unknown_name("VOC metric", metric, VOC_METRICS)
    _check(split, detections)
    average = _eleven_point if metric == "11-point" else _area_under_curve
    counts, ignored, labels, scores, matches = _voc_matches(split, detections)
    result = np.full(len(split.class_names), np.nan)
    for label in np.flatnonzero(counts):
        own = np.flatnonzero(labels == label)
        own = own[np.argsort(-scores[own], kind="stable")]
        match = matches[own]
        is_right = np.zeros(len(own), bool)
        is_right[np.unique(match, return_index=True)[1]] = True
        is_right &= match >= 0
        counted = ~((match >= 0) & ignored[match])
        right = np.cumsum(is_right & counted)
        recall, precision = right / counts[label], right / np.maximum(np.cumsum(counted), 1)
        result[label] = average(recall, precision)
    return result


def _voc_matches(
    split: DetectionSplit, detections: Sequence[Detections | None]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Matches detections with objects.

    Returns:
        The number of objects of each class that are not ignored; for each object of the split whether it is
        ignored, with an additional False at the end; and the labels, the scores and the matched objects'
        indices (-1 for no match) of all detections.
    """
    counts = np.zeros(len(split.class_names), int)
    ignored, labels, scores, matches = [], [np.zeros(0, int)], [np.zeros(0)], [np.zeros(0, int)]
    for truth, own in zip(split.objects, detections, strict=True):
        if own is None:
            continue
        match = np.full(len(own), -1)
        is_ignored = truth.difficult | truth.crowd
        if len(own) and len(truth):
            same = own.labels[:, None] == truth.labels
            overlaps = np.where(same, iou(tf.constant(own.boxes), tf.constant(truth.boxes)).numpy(), -1.0)
            best = overlaps.argmax(1)
            hits = overlaps.max(1) > _VOC_OVERLAP
            match[hits] = len(ignored) + best[hits]
        counts += np.bincount(truth.labels[~is_ignored], minlength=len(counts))
        ignored += is_ignored.tolist()
        for rows, values in ((labels, own.labels), (scores, own.scores), (matches, match)):
            rows.append(values)
    all_labels, all_scores, all_matches = map(np.concatenate, (labels, scores, matches))
    return counts, np.array([*ignored, False]), all_labels, all_scores, all_matches


def _eleven_point(recall: np.ndarray, precision: np.ndarray) -> float:
    # As in py-faster-rcnn, with NumPy's rounding: the fourth recall is 0.30000000000000004.
    levels = np.arange(0.0, 1.1, 0.1)
    return float(np.mean([max(precision[recall >= level], default=0.0) for level in levels]))


def _area_under_curve(recall: np.ndarray, precision: np.ndarray) -> float:
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * highest))
