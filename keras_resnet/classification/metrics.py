"""Figures over many predictions, added up batch by batch."""

import dataclasses

import numpy as np

BINS = 15
"""Of the confidence, for the expected calibration error; Guo et al. 2017 take as many."""

TOP = 5


@dataclasses.dataclass(frozen=True)
class ClassFigures:
    """How one class fares.

    Attributes:
        images: with this label.
        predicted: images that were taken for it.
        top1: share of its images that were taken for it; None without images.
        precision: share of what was taken for it that has this label; None if nothing was.
        confused_with: the class for which most of its other images were taken, and how many were;
            None if there are none.
    """

    images: int
    predicted: int
    top1: float | None
    precision: float | None
    confused_with: tuple[int, int] | None


class Metrics:
    """Top-1, top-5, loss, calibration error and the confusion matrix of the predictions added so far.

    Attributes:
        classes: of the network.
        confusion: int64 (classes, classes): images by their label (row) and prediction (column).
    """

    def __init__(self, classes: int):
        self.classes = classes
        self.confusion = np.zeros((classes, classes), "int64")
        self._top5 = 0
        self._loss = 0.0
        # By the confidence's bin: images, confidences added up, right ones.
        self._bins = np.zeros((3, BINS), "float64")

    def update(self, log_probabilities: np.ndarray, labels: np.ndarray, loss: float | None = None) -> None:
        """Adds images.

        Args:
            log_probabilities: float (images, classes), natural logarithms, finite or minus infinity.
            labels: int (images,).
            loss: the sum of the images' losses, if it is known as the training computes it.

        Raises:
            ValueError: something is not a number, as the scores of a network that diverged are not.
        """
        scores = np.asarray(log_probabilities, "float64")
        if np.isnan(scores).any():
            raise ValueError("a score is not a number")
        rows = np.arange(len(labels))
        own = scores[rows, labels][:, None]
        # Among equals the lower index comes first, as argmax has it.
        before = (scores > own) | ((scores == own) & (np.arange(self.classes) < labels[:, None]))
        predicted = scores.argmax(1)
        right = predicted == labels
        self._top5 += int((before.sum(1) < TOP).sum())
        self._loss += -float(own.sum()) if loss is None else loss
        np.add.at(self.confusion, (labels, predicted), 1)
        confidences = np.exp(scores[rows, predicted])
        edges = np.linspace(0.0, 1.0, BINS + 1)
        # A bin has its upper edge, but not its lower one.
        bins = np.clip(np.searchsorted(edges, confidences, side="left") - 1, 0, BINS - 1)
        for row, values in zip(self._bins, (1.0, confidences, right), strict=True):
            np.add.at(row, bins, values)

    @property
    def images(self) -> int:
        """How many were added."""
        return int(self.confusion.sum())

    def figures(self) -> dict[str, float]:
        """Each figure by its name.

        `top1` and `top5` are shares of 1, where among fewer than five classes each is in the top 5;
        `loss` is the mean cross-entropy in nats; `calibration_error` the expected one: the mean over
        all images of the difference between confidence and accuracy in the image's bin.
        """
        images = self.images
        return {
            "top1": float(np.trace(self.confusion) / images),
            "top5": self._top5 / images,
            "loss": self._loss / images,
            "calibration_error": float(np.abs(self._bins[1] - self._bins[2]).sum() / images),
        }

    def reliability(self) -> list[dict[str, float]]:
        """The bins that have images: how many, their mean confidence, and the share that is right."""
        return [
            {"images": int(images), "confidence": confidence / images, "accuracy": right / images}
            for images, confidence, right in self._bins.T.tolist()
            if images
        ]

    def per_class(self) -> list[ClassFigures]:
        """Of every class, in the order of the labels."""
        images, predicted = self.confusion.sum(1), self.confusion.sum(0)
        right = np.diag(self.confusion)
        wrong = self.confusion - np.diag(right)
        rows = []
        for index in range(self.classes):
            other = int(wrong[index].argmax())
            rows.append(
                ClassFigures(
                    images=int(images[index]),
                    predicted=int(predicted[index]),
                    top1=_share(right[index], images[index]),
                    precision=_share(right[index], predicted[index]),
                    confused_with=(other, int(wrong[index, other])) if wrong[index, other] else None,
                )
            )
        return rows

    def confusions(self, limit: int) -> list[tuple[int, int, int]]:
        """The most frequent mistakes, `(label, prediction, images)`, most frequent first."""
        wrong = self.confusion - np.diag(np.diag(self.confusion))
        order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
        pairs = zip(*np.unravel_index(order, wrong.shape), wrong.flat[order], strict=True)
        return [(int(label), int(other), int(count)) for label, other, count in pairs if count]


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
