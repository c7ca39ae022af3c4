"""Metrics of predictions, accumulated over batches."""

import dataclasses

import numpy as np

BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017."""

TOP = 5


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """Metrics of one class: `images` have this label, `predicted` this prediction."""

    images: int
    predicted: int
    top1: float | None  # recall, 0-1; None without images
    precision: float | None  # 0-1; None without predictions
    confused_with: tuple[int, int] | None  # the most frequent wrong prediction, and its number of images


class Metrics:
    """Accumulates top-1, top-5, loss, calibration error and the confusion matrix.

    `confusion`, int64 (classes, classes), is the number of images by label (row) and prediction (column).
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.confusion = np.zeros((classes, classes), "int64")
        self._top5 = 0
        self._loss = 0.0
        # Per bin: images, sum of confidences, correct predictions.
        self._bins = np.zeros((3, BINS), "float64")

    def update(self, log_probabilities: np.ndarray, labels: np.ndarray, loss: float | None = None) -> None:
        """Adds a batch: natural logarithms (images, classes), finite or minus infinity, and labels (images,).

        `loss` is the sum of the losses as computed in training; None to compute it here.

        Raises:
            ValueError: a score is NaN, as those of a network that diverged.
        """
        scores = np.asarray(log_probabilities, "float64")
        if np.isnan(scores).any():
            raise ValueError("a score is not a number")
        rows = np.arange(len(labels))
        own = scores[rows, labels][:, None]
        # Among equal scores the lower index comes first, as in argmax.
        before = (scores > own) | ((scores == own) & (np.arange(self.classes) < labels[:, None]))
        predicted = scores.argmax(1)
        right = predicted == labels
        self._top5 += int((before.sum(1) < TOP).sum())
        self._loss += -float(own.sum()) if loss is None else loss
        np.add.at(self.confusion, (labels, predicted), 1)
        confidences = np.exp(scores[rows, predicted])
        edges = np.linspace(0.0, 1.0, BINS + 1)
        # A bin includes its upper edge, but not its lower one.
        bins = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, BINS - 1)
        for row, values in zip(self._bins, (1.0, confidences, right), strict=True):
            np.add.at(row, bins, values)

    @property
    def images(self) -> int:
        """The number of images added."""
        return int(self.confusion.sum())

    def figures(self) -> dict[str, float]:
        """The metrics by name.

        `top1` and `top5` are in [0, 1]; with five classes or fewer `top5` is 1. `loss` is the mean
        cross-entropy in nats. `calibration_error` is the expected calibration error: the difference
        between confidence and accuracy in the image's bin, averaged over all images.
        """
        images = self.images
        return {
            "top1": float(np.trace(self.confusion) / images),
            "top5": self._top5 / images,
            "loss": self._loss / images,
            "calibration_error": float(np.abs(self._bins[1] - self._bins[2]).sum() / images),
        }

    def reliability(self) -> list[dict[str, float]]:
        """The number of images, mean confidence and accuracy of each bin that has images."""
        return [
            {"images": int(images), "confidence": confidence / images, "accuracy": right / images}
            for images, confidence, right in self._bins.T.tolist()
            if images
        ]

    def per_class(self) -> list[ClassFigures]:
        """The metrics of each class, in the order of the labels."""
        images, predicted = self.confusion.sum(1), self.confusion.sum(0)
        right = np.diag(self.confusion)
        wrong = self.confusion - np.diag(right)
        rows = []
        for index, other in enumerate(wrong.argmax(1).tolist()):
            shares = _share(right[index], images[index]), _share(right[index], predicted[index])
            confused_with = (other, int(wrong[index, other])) if wrong[index, other] else None
            rows.append(ClassFigures(int(images[index]), int(predicted[index]), *shares, confused_with))
        return rows

    def confusions(self, limit: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes, `(label, prediction, images)`, most frequent first."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, wrong.shape), wrong.flat[order], strict=True)
        return [(int(label), int(other), int(count)) for label, other, count in pairs if count]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
