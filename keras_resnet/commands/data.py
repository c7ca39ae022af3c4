"""`python -m keras_resnet data preview`, `check` and `convert`."""

import os
from pathlib import Path

from keras_resnet import detection
from keras_resnet.classification import get_recipe
from keras_resnet.data.check import check as check_folder
from keras_resnet.data.conversion import convert as convert_dataset
from keras_resnet.data.pipeline import Transform, dataset_statistics
from keras_resnet.data.preview import draw_views, sample_examples, save_sheet
from keras_resnet.data.sources import names_detection_dataset, open_dataset
from keras_resnet.detection.data.check import check as check_objects
from keras_resnet.errors import InputError, require
from keras_resnet.files import atomic_path, os_errors_as_input_errors
from keras_resnet.images.preprocessing import Normalization

_MOST = 32  # rows or columns


def preview(
    recipe: str,
    output: str,
    dataset: str | None = None,
    data_dir: str | None = None,
    augmentation: str | None = None,
    seed: int = 0,
    epoch: int = 0,
    images: int = 8,
    draws: int = 7,
) -> None:
    """Writes a contact sheet of a recipe's training images: `images` rows with `draws` augmented views each.

    The examples are not in the order of a run, but the augmentation has the same distribution. Dataset and
    augmentation are the recipe's by default; `epoch` is the first epoch that is drawn.
    """
    if not output.endswith(".png"):
        raise InputError(f"--output must end with .png; got {output}")
    for name, value in (("images", images), ("draws", draws)):
        require(1 <= value <= _MOST, f"--{name} must be from 1 to {_MOST}", value)
    if dataset is None and recipe in detection.RECIPES:
        dataset = detection.RECIPES[recipe].dataset
    if dataset is not None and names_detection_dataset(dataset):
        raise InputError(
            f"{dataset} is an object detection dataset;"
            f" draw it with `python -m keras_resnet detection preview --dataset={dataset}`"
        )
    chosen = get_recipe(recipe)
    dataset = chosen.dataset if dataset is None else dataset
    augmentation = chosen.augmentation if augmentation is None else augmentation
    normalization = Normalization.imagenet().for_channels(chosen.channels)
    transform = Transform.create(chosen.image_size, normalization, augmentation)
    opened = open_dataset(dataset, data_dir)
    split = opened.split(chosen.train_split)
    few, titles = sample_examples(split, opened.class_names, images, transform)
    if chosen.normalization in ("per_channel", "per_pixel"):
        # Statistics of these images are enough: the sheet undoes the normalization, except for padding.
        normalization = dataset_statistics(
            few,
            chosen.image_size,
            chosen.channels,
            resize=transform.preprocessing.resize,
            per_pixel=chosen.normalization == "per_pixel",
        )
        transform = Transform.create(chosen.image_size, normalization, augmentation)
    sheet = draw_views(few, transform, seed, range(epoch, epoch + draws))
    heading = f"{dataset}, recipe {recipe}, augmentation {augmentation}, seed {seed}"
    with os_errors_as_input_errors(Path(output)), atomic_path(output, suffix=".png") as temporary:
        save_sheet(sheet, titles, heading, temporary)
    print(f"{Path(output)}: {len(titles)} images, {draws} draws of each")


def convert(name: str, output_dir: str, data_dir: str | None = None) -> None:
    """Converts a TFDS dataset to ArrayRecord files."""
    print(convert_dataset(name, output_dir, data_dir))


def check(path: str) -> int:
    """Checks a folder of classes, or a detection dataset by its name; returns the exit status."""
    if names_detection_dataset(path) and not os.path.isdir(path):
        return check_objects(path)
    return check_folder(path)
