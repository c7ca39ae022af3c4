"""`python -m keras_resnet data preview`."""

from pathlib import Path

from keras_resnet.classification import get_recipe
from keras_resnet.data.pipeline import Transform, dataset_statistics
from keras_resnet.data.preview import draw_views, few_examples, save_sheet
from keras_resnet.data.sources import open_dataset
from keras_resnet.errors import InputError
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
    """Writes a contact sheet of a recipe's training images.

    Order and numbers of the examples are not those of a run, but the distribution of the augmentation is.

    Args:
        recipe: its name.
        output: ends with `.png`.
        dataset: default: the recipe's.
        data_dir: where TFDS keeps its datasets.
        augmentation: default: the recipe's.
        seed: seed of the augmentation.
        epoch: the first that is drawn.
        images: rows, at most 32.
        draws: columns in addition to the evaluation's, at most 32.
    """
    if not output.endswith(".png"):
        raise InputError(f"--output must end with .png; got {output}")
    for name, value in (("images", images), ("draws", draws)):
        if not 1 <= value <= _MOST:
            raise InputError(f"--{name} must be from 1 to {_MOST}; got {value}")
    chosen = get_recipe(recipe)
    dataset = chosen.dataset if dataset is None else dataset
    augmentation = chosen.augmentation if augmentation is None else augmentation
    normalization = Normalization.imagenet().for_channels(chosen.channels)
    transform = Transform.create(chosen.image_size, normalization, augmentation)
    opened = open_dataset(dataset, data_dir)
    split = opened.split(chosen.train_split)
    few, titles = few_examples(split, opened.class_names, images, transform)
    if chosen.normalization in ("per_channel", "per_pixel"):
        # Of these images alone: it is undone for the sheet and only colours what is filled with zeros.
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
