"""Splits whose images are filled with their index, and a detector that knows the answer for each index."""

import numpy as np

from keras_resnet.detection.data.annotations import DetectionSplit, Objects
from keras_resnet.detection.detections import Detections
from keras_resnet.errors import InputError

NOTHING = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0))


def objects(*boxes, labels=0, crowd=False, difficult=False, areas=None):
    """Objects with the given boxes; a scalar label or flag holds for all of them."""
    corners = np.array(boxes, "float32").reshape(-1, 4)
    count = len(corners)
    areas = (corners[:, 2:] - corners[:, :2]).prod(1) if areas is None else areas
    columns = [
        np.broadcast_to(np.array(value, dtype), count).copy()
        for value, dtype in ((labels, "int32"), (crowd, "bool"), (difficult, "bool"), (areas, "float32"))
    ]
    return Objects(corners, *columns)


def detected(*rows, label=0):
    """Detections from (score, x1, y1, x2, y2), of one label or of an array of labels."""
    values = np.array(rows, "float32").reshape(-1, 5)
    return Detections(values[:, 1:], values[:, 0], np.broadcast_to(np.array(label, "int32"), len(values)))


def made_split(per_image, class_names=("thing",), class_ids=None, image_ids=None, unreadable=()):
    """A split with these objects of each image, whose images are filled with their index."""

    def read(index):
        if index in unreadable:
            raise InputError(f"image{index}.jpg: not an image")
        return np.full((8 + index % 3, 8, 3), index, "uint8")

    count = len(per_image)
    sizes = np.array([(8 + index % 3, 8) for index in range(count)], "int32").reshape(-1, 2)
    return DetectionSplit(
        "test",
        tuple(class_names),
        tuple(class_ids or range(len(class_names))),
        tuple(image_ids or range(count)),
        sizes,
        tuple(per_image),
        read,
    )


class StandInDetector:
    """Finds `answers[i]` in an image filled with i."""

    name = "stand_in"

    def __init__(self, answers, class_names=("thing",)):
        self.answers, self.class_names = answers, tuple(class_names)
        self.seen = []

    def detect(self, images):
        indices = [int(image[0, 0, 0]) for image in images]
        self.seen += indices
        return [self.answers[index] for index in indices]


def random_case(seed=0, images=12, classes=4):
    """Objects and detections of several images: crowds, difficult objects, ties, empty images.

    Corners are whole pixels, so that COCO's files hold the same boxes.
    """
    random = np.random.default_rng(seed)

    def boxes(count, near=None):
        corner = random.integers(0, 200, (count, 2))
        sides = random.integers(4, 200, (count, 2))
        made = np.concatenate([corner, corner + sides], 1)
        if near is not None and len(near):
            places = random.integers(0, len(near), count)
            moved = near[places] + random.integers(-6, 7, (count, 4))
            moved[:, 2:] = np.maximum(moved[:, 2:], moved[:, :2] + 1)
            made = np.where(random.random((count, 1)) < 0.7, moved, made)
        return made.astype("float32")

    truth, found = [], []
    for _ in range(images):
        count = int(random.integers(0, 9))
        own = boxes(count)
        labels = random.integers(0, classes, count)
        crowd, difficult = random.random((2, count)) < 0.2
        areas = (own[:, 2:] - own[:, :2]).prod(1) * 0.75
        truth.append(objects(*own, labels=labels, crowd=crowd, difficult=difficult, areas=areas))
        count = int(random.integers(0, 30))
        scores = -np.sort(-random.integers(1, 12, count) / 12)  # with ties
        near = boxes(count, own)
        close = labels[random.integers(0, len(labels), count)] if len(labels) else np.zeros(count, int)
        found.append(Detections(near, scores, close))
    return truth, found
