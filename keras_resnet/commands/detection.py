"""`python -m keras_resnet detection`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from keras_resnet.data.preview import save_grid
from keras_resnet.detection.data.annotations import DetectionSplit
from keras_resnet.detection.data.augmentation import DetectionAugmentation, augment_example
from keras_resnet.detection.data.check import check as check_dataset
from keras_resnet.detection.data.sources import open_detection_dataset
from keras_resnet.detection.detector import build_detector
from keras_resnet.detection.drawing import CELL, draw_boxes, legible
from keras_resnet.errors import InputError, require
from keras_resnet.files import atomic_path, os_errors_as_input_errors

_MOST_CELLS = 32  # rows or columns of a preview


def count_parameters(detectors: Sequence[str]) -> list[int]:
    """Returns the number of parameters of each detector, with its default classes."""
    return [build_detector(name).model.count_params() for name in detectors]


def preview(
    dataset: str,
    output: str,
    data_dir: str | None = None,
    split: str = "train",
    scale: Sequence[str] = ("1", "1"),
    seed: int = 0,
    epoch: int = 0,
    images: int = 4,
    draws: int = 3,
) -> None:
    """Writes a contact sheet of images with their annotated boxes, and of `draws` augmentations of each."""
    if not output.endswith(".png"):
        raise InputError(f"--output must end with .png; got {output}")
    for name, value in (("images", images), ("draws", draws)):
        require(1 <= value <= _MOST_CELLS, f"--{name} must be from 1 to {_MOST_CELLS}", value)
    policy = DetectionAugmentation(scale=_scale(scale))
    opened = open_detection_dataset(dataset, data_dir)
    part = opened.split(split)
    # Spread evenly: folders may be sorted.
    chosen = [int(index) for index in np.arange(min(images, len(part))) * len(part) // min(images, len(part))]
    cells = [_views(part, index, policy, seed, range(epoch, epoch + draws)) for index in chosen]
    titles = [[legible(f"{part.image_ids[index]}: {len(part.objects[index])} objects")] for index in chosen]
    labels = ("annotated", *(f"epoch {epoch + draw}" for draw in range(draws)))
    low, high = policy.scale
    heading = f"{opened.title}, {split}: the annotated boxes; flip, scale {low:g} to {high:g}, seed {seed}"
    with os_errors_as_input_errors(output), atomic_path(output, suffix=".png") as temporary:
        save_grid(cells, titles, labels, legible(heading), temporary, CELL)
    print(f"{Path(output)}: {len(chosen)} images, {draws} draws of each")


def _scale(texts: Sequence[str]) -> tuple[float, float]:
    try:
        low, high = map(float, texts)
    except ValueError:
        raise InputError(f"--scale must be two numbers, such as 0.5,2; got {','.join(texts)}") from None
    return low, high


def _views(
    split: DetectionSplit, index: int, policy: DetectionAugmentation, seed: int, epochs: range
) -> list[np.ndarray]:
    """An image with its boxes, and as it is augmented in each epoch."""
    image, objects = split.read_image(index), split.objects[index]
    views = [(image, objects)]
    views += [augment_example(image, objects, policy, seed, epoch, index) for epoch in epochs]
    return [draw_boxes(pixels, own.boxes, own.labels, split.class_names) for pixels, own in views]


def check(dataset: str, data_dir: str | None = None) -> int:
    """Prints all faults of a dataset, and returns the exit status: 1 if there are any."""
    return check_dataset(dataset, data_dir)
