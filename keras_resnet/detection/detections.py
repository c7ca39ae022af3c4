"""`Detections`, the objects that a detector finds in one image."""

import dataclasses

import numpy as np

from keras_resnet.errors import InputError


@dataclasses.dataclass(frozen=True, eq=False)
class Detections:
    """The objects that a detector found in one image, sorted by descending score.

    Attributes:
        boxes: float32 (n, 4): x1, y1, x2, y2 in pixels of the original image.
        scores: float32 (n,), in [0, 1], descending.
        labels: int32 (n,), indices into the detector's `class_names`.

    Raises:
        InputError: the shapes do not match, or the scores are not descending.
    """

    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray

    def __post_init__(self):
        scores = np.asarray(self.scores, np.float32)
        boxes, labels = np.asarray(self.boxes, np.float32), np.asarray(self.labels, np.int32)
        count = scores.size
        if (boxes.shape, scores.shape, labels.shape) != ((count, 4), (count,), (count,)):
            raise InputError(
                "boxes, scores and labels must be of shapes (n, 4), (n,) and (n,); "
                f"got {boxes.shape}, {scores.shape} and {labels.shape}"
            )
        if (scores[1:] > scores[:-1]).any():
            raise InputError("the scores of detections must be descending")
        for field, value in (("boxes", boxes), ("scores", scores), ("labels", labels)):
            object.__setattr__(self, field, value)

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, score: float) -> "Detections":
        """Returns the detections with scores above `score`."""
        kept = self.scores > score
        return Detections(self.boxes[kept], self.scores[kept], self.labels[kept])
