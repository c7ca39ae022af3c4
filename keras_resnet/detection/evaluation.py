"""Evaluates a detector on a split, each image once, on any number of devices and workers."""

import dataclasses
import queue
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Protocol

import numpy as np
import tensorflow as tf

from keras_resnet.data import BadImages
from keras_resnet.detection.data.annotations import DetectionSplit
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.metrics import (
    VOC_METRICS,
    CocoStatistics,
    coco_statistics,
    voc_average_precision,
)
from keras_resnet.errors import InputError, require
from keras_resnet.progress import ProgressBar
from keras_resnet.training.distribution import Distribution


class DetectsObjects(Protocol):
    """The interface of a detector that `evaluate` needs."""

    name: str
    class_names: tuple[str, ...]

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detects objects in images, uint8 (height, width, 3), RGB; called by one thread per device."""
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class DetectionEvaluation:
    """The results of an evaluation.

    Attributes:
        detector: the detector's name.
        detections: of each image of `split`, with the labels of `split`; None for images that could not be
            decoded.
        voc: for each metric in `VOC_METRICS` the average precision of each class, float64 (classes,); NaN
            for classes without objects.
        batch_size: images per call of `detect`.
        replicas: number of devices of all workers.
        seconds: duration of detection, including compilation, but not the statistics.
        bad_images: `(image, split, reason)` of each image that this worker could not decode; such images are
            left out of the statistics.
    """

    detector: str
    split: DetectionSplit
    detections: tuple[Detections | None, ...]
    coco: CocoStatistics
    voc: dict[str, np.ndarray]
    batch_size: int
    replicas: int
    seconds: float
    bad_images: tuple[tuple[str, str, str], ...] = ()

    @property
    def images(self) -> int:
        """The number of evaluated images, without those that could not be decoded."""
        return sum(own is not None for own in self.detections)


def evaluate(
    detector: DetectsObjects,
    split: DetectionSplit,
    *,
    distribution: Distribution,
    batch_size: int = 1,
    max_bad_images: int = 0,
) -> DetectionEvaluation:
    """Detects objects in each image of a split once, and computes COCO's and VOC's statistics.

    Classes are matched by name; detections of classes that the split does not have are dropped.

    Args:
        detector: built in `distribution.scope()` if it runs on several devices.
        batch_size: images per call of `detect`.
        max_bad_images: number of images that cannot be decoded and are skipped before it is an error.

    Raises:
        InputError: an argument is invalid, the detector lacks a class of the split, boxes or scores are not
            finite, or too many images cannot be decoded.
        LostWorker: another worker was lost.
    """
    require(batch_size >= 1, "the batch size must be at least 1", batch_size)
    require(max_bad_images >= 0, "max_bad_images must be at least 0", max_bad_images)
    labels = labels_of_split(detector, split)
    bad = BadImages()
    found: dict[int, Detections] = {}
    own = range(distribution.worker, len(split), distribution.workers)
    begun = time.perf_counter()
    with (
        distribution.name_lost_workers(),
        ProgressBar(len(own), "images", "evaluating", visible=distribution.is_chief) as bar,
    ):
        for index, detections in _detect_all(detector, split, own, batch_size, distribution.devices, bad):
            found[index] = relabeled(detections, labels, detector.name)
            bar.update()
            if distribution.workers == 1:
                bad.check(max_bad_images)
        found = _from_all_workers(found, distribution)
    seconds = time.perf_counter() - begun
    # Each worker knows only its own bad images, and if one stopped earlier, the others would wait for it.
    bad.check(max_bad_images)
    missing = len(split) - len(found)
    if missing > max_bad_images or not found:
        raise InputError(f"{missing} of the {len(split)} images of {split.name!r} cannot be decoded")
    ordered = tuple(found.get(index) for index in range(len(split)))
    return DetectionEvaluation(
        detector.name,
        split,
        ordered,
        coco_statistics(split, ordered),
        {metric: voc_average_precision(split, ordered, metric) for metric in VOC_METRICS},
        batch_size,
        distribution.total_replicas,
        seconds,
        tuple(bad.rows()),
    )


def labels_of_split(detector: DetectsObjects, split: DetectionSplit) -> np.ndarray:
    """The split's label of each class of the detector, int32 (classes,); -1 for classes it does not have."""
    missing = [name for name in split.class_names if name not in detector.class_names]
    if missing:
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        raise InputError(
            f"{detector.name} does not know the class {missing[0]!r}{others} of {split.name!r};"
            f" it knows {len(detector.class_names)}, the first is {detector.class_names[0]!r}"
        )
    places = {name: label for label, name in enumerate(split.class_names)}
    return np.array([places.get(name, -1) for name in detector.class_names], "int32")


def relabeled(detections: Detections, labels: np.ndarray, name: str) -> Detections:
    """The detections with the split's labels, without those of classes that the split does not have."""
    if not (np.isfinite(detections.boxes).all() and np.isfinite(detections.scores).all()):
        raise InputError(f"{name} gives boxes or scores that are not numbers")
    if len(detections) and not 0 <= detections.labels.min() <= detections.labels.max() < len(labels):
        raise InputError(f"{name} returns labels outside of 0 to {len(labels) - 1}")
    own = labels[detections.labels]
    kept = own >= 0
    return Detections(detections.boxes[kept], detections.scores[kept], own[kept])


def _detect_all(
    detector: DetectsObjects,
    split: DetectionSplit,
    indices: Sequence[int],
    batch_size: int,
    devices: Sequence[str],
    bad: BadImages,
) -> Iterator[tuple[int, Detections]]:
    """Yields the index and the detections of each image that can be decoded, in any order."""
    free: queue.SimpleQueue[str] = queue.SimpleQueue()
    for device in devices:
        free.put(device)

    def detect(batch: Sequence[int]) -> list[tuple[int, Detections]]:
        images = {index: image for index in batch if (image := _read(split, index, bad)) is not None}
        if not images:
            return []
        device = free.get()
        try:
            with tf.device(device):
                found = detector.detect(list(images.values()))
        finally:
            free.put(device)
        return list(zip(images, found, strict=True))

    # While one thread per device detects objects, as many threads read the next images.
    pool = ThreadPoolExecutor(2 * len(devices))
    try:
        starts = range(0, len(indices), batch_size)
        for future in as_completed(
            [pool.submit(detect, indices[start : start + batch_size]) for start in starts]
        ):
            yield from future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _read(split: DetectionSplit, index: int, bad: BadImages) -> np.ndarray | None:
    try:
        return split.read_image(index)
    except InputError as error:
        bad.add(str(split.image_ids[index]), split.name, str(error))
    return None


def _from_all_workers(found: dict[int, Detections], distribution: Distribution) -> dict[int, Detections]:
    """Returns the detections of all workers, on each worker."""
    if distribution.workers == 1:
        return found
    # One row (index, label, score, box) per detection, after a row with the label -1 per image.
    rows = [np.zeros((0, 7))]
    for index, own in found.items():
        rows.append(np.array([[index, -1, 0, 0, 0, 0, 0]], "float64"))
        columns = (np.full(len(own), index), own.labels, own.scores)
        rows.append(np.concatenate([np.stack(columns, 1), own.boxes], 1))
    gathered = distribution.gather(np.concatenate(rows))
    result = {}
    for (index, *_), *own in np.split(gathered, np.flatnonzero(gathered[:, 1] < 0))[1:]:
        columns = np.reshape(own, (-1, 7)).astype("float32")
        result[int(index)] = Detections(columns[:, 3:], columns[:, 2], columns[:, 1].astype("int32"))
    return result
