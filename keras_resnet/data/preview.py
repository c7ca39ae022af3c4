"""Draws a contact sheet of augmented images, as seen in training."""

import dataclasses
import functools
import os
from collections.abc import Sequence

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.data.pipeline import Transform, raw_images, training_batches
from keras_resnet.data.sources import IndexedSplit, Split
from keras_resnet.errors import InputError, printable
from keras_resnet.images.preprocessing import Normalization

FONT = "DejaVu Sans"
"""The font of matplotlib's package: Latin, Greek, Cyrillic, Arabic and more."""


def sample_examples(
    split: Split, class_names: tuple[str, ...], count: int, transform: Transform
) -> tuple[IndexedSplit, list[str]]:
    """Selects up to `count` examples of a split, relabeled 0, 1, 2, ..., and titles them.

    They are spread evenly over the split (folders are sorted by class). Images that cannot be decoded are
    skipped; raises `InputError` if all of them are, or if a record cannot be read.
    """
    count = min(count, len(split))
    chosen = np.arange(count) * len(split) // count
    if isinstance(split, IndexedSplit):
        images, labels, files = split.images[chosen], split.classes[chosen], split.files
        names = [_name(split, int(index)) for index in chosen]
    else:
        examples = [split.parse(tf.constant(split.record(int(index)))) for index in chosen]
        # An object array: NumPy would convert a list of bytes to strings of one length.
        images = np.array([image.numpy() for image, _ in examples], dtype=object)
        labels, files = np.array([int(label) for _, label in examples]), False
        names = [f"record {index}" for index in chosen]
    few = IndexedSplit(split.name, images, np.arange(count, dtype="int32"), files)
    good = [label for _, labels_seen in raw_images(few, transform.preprocessing) for label in labels_seen]
    if not good:
        raise InputError(f"not one of {count} images of the split {split.name!r} can be decoded")
    titles = [f"{class_names[labels[i]]}, {names[i]}" for i in good]
    return dataclasses.replace(few, images=images[good], classes=few.classes[: len(good)]), titles


def _name(split: IndexedSplit, index: int) -> str:
    if not split.files:
        return f"example {index}"
    return printable(os.fsdecode(os.path.basename(split.images[index])))


def to_pixels(images: np.ndarray, normalization: Normalization) -> np.ndarray:
    """Inverts a normalization; returns uint8, rounded and clipped."""
    pixels = images * np.asarray(normalization.std) + np.asarray(normalization.mean)
    return pixels.round().clip(0, 255).astype("uint8")


@dataclasses.dataclass(frozen=True, eq=False)
class Sheet:
    """Views of a few images, uint8.

    `evaluation` is (images, height, width, channels), `training` (images, epochs, height, width, channels).
    """

    evaluation: np.ndarray
    training: np.ndarray
    epochs: range


def draw_views(few: IndexedSplit, transform: Transform, seed: int, epochs: range) -> Sheet:
    """Prepares the views of `sample_examples` in several epochs of training on only these examples."""
    evaluation = np.concatenate([images for images, _ in raw_images(few, transform.preprocessing)])
    columns = []
    for epoch in epochs:
        batches = training_batches(few, transform, global_batch=len(few), seed=seed, epoch=epoch)
        batch = next(batches.as_numpy_iterator())
        images = batch["images"]
        if keras.config.image_data_format() == "channels_first":
            images = images.transpose(0, 2, 3, 1)
        # Epochs are shuffled; the labels identify the images.
        columns.append(to_pixels(images, transform.preprocessing.normalization)[np.argsort(batch["labels"])])
    return Sheet(to_pixels(evaluation, Normalization.identity(1)), np.stack(columns, 1), epochs)


def save_sheet(sheet: Sheet, titles: list[str], heading: str, path: str | os.PathLike) -> None:
    """Draws a sheet as a PNG file: one row per image, with the evaluation view first."""
    cells = [[view, *views] for view, views in zip(sheet.evaluation, sheet.training, strict=True)]
    labels = ("evaluation", *(f"epoch {epoch}" for epoch in sheet.epochs))
    save_grid(cells, [[title] for title in titles], labels, heading, path)


def save_grid(
    cells: Sequence[Sequence[np.ndarray]],
    titles: Sequence[Sequence[str]],
    labels: Sequence[str],
    heading: str,
    path: str | os.PathLike,
    largest: int = 224,
) -> None:
    """Draws rows of images as a PNG file.

    Args:
        cells: for each row, images uint8 (height, width, channels); rows may be shorter than the first.
        titles: for each row, texts above its first images.
        labels: texts below the columns, or none.
        largest: the most pixels of an image's longer side in the file.
    """
    from matplotlib.figure import Figure

    rows, columns = len(cells), len(cells[0])
    size = max(max(image.shape[:2]) for row in cells for image in row)
    cell = min(max(size, 110), largest) / 100
    figure = Figure(figsize=(columns * cell + 0.4, rows * (cell + 0.25) + 0.7), layout="constrained")
    figure.suptitle(legible(heading), parse_math=False, fontsize=10)
    axes = figure.subplots(rows, columns, squeeze=False)
    for row, images in enumerate(cells):
        for axis, image in zip(axes[row], images, strict=False):
            axis.imshow(image[..., 0] if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
        for axis in axes[row][len(images) :]:
            axis.set_axis_off()
        for axis, title in zip(axes[row], titles[row], strict=False):
            title = legible(title)
            title = title if len(title) <= 60 else title[:57] + "..."
            axis.set_title(title, loc="left", fontsize=8, parse_math=False).set_in_layout(False)
    for axis, label in zip(axes[-1], labels, strict=False):
        axis.set_xlabel(label, fontsize=8)
    # The software's name and version would change the bytes of equal sheets.
    figure.savefig(path, format="png", dpi=100, metadata={"Software": None})


def legible(text: str) -> str:
    """Returns a text for a figure, where characters that its font lacks are spelled, such as \\u732b."""
    from matplotlib import font_manager

    return spelled(printable(text), font_manager.findfont(FONT))


def spelled(text: str, path: str) -> str:
    """Spells the characters of a text that the font in a file lacks."""
    known = characters(path)
    return "".join(letter if ord(letter) in known else ascii(letter)[1:-1] for letter in text)


@functools.cache
def characters(path: str) -> frozenset[int]:
    """The code points of the characters of a font."""
    from matplotlib import font_manager

    return frozenset(font_manager.get_font(path).get_charmap())
