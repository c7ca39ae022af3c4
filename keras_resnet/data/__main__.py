"""`python -m keras_resnet.data`: draws what an augmentation does, checks a folder of images.

Exit status: 0; 1 if `check` finds an unusable image; 2 for bad input, with one line that says what is wrong.
"""

# argparse as in `python -m keras_resnet.weights`, which has commands, too.
import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from keras_resnet.data.check import main_check
from keras_resnet.data.pipeline import Transform, dataset_statistics
from keras_resnet.data.preview import draw_views, few_examples, save_sheet
from keras_resnet.data.sources import open_dataset
from keras_resnet.errors import InputError
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
) -> int:
    """Writes a contact sheet of a recipe's training images.

    The order of a run's epochs and the numbers of its examples are not the sheet's, but the
    distribution of what is drawn is.

    Args:
        recipe: a name of `keras_resnet.training.RECIPES`.
        output: ends with `.png`.
        dataset: instead of the recipe's.
        data_dir: where TFDS keeps its datasets.
        augmentation: a name of `AUGMENTATIONS`, instead of the recipe's.
        seed: of the draws.
        epoch: the first of them.
        images: rows, at most 32.
        draws: columns besides the evaluation's, at most 32.

    Returns:
        How many images were drawn.

    Raises:
        InputError: an argument is wrong, or no image can be read.
        OSError: the output cannot be written.
    """
    # The one door from the data to the recipes, open only here.
    from keras_resnet.classification.recipe import get_recipe
    from keras_resnet.files import atomic_path

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
    with atomic_path(output, suffix=".png") as temporary:
        save_sheet(sheet, titles, heading, temporary)
    return len(titles)


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        """One line, without the usage."""
        _fail(message)


def _fail(message: object) -> None:
    print("error: " + " ".join(str(message).split()), file=sys.stderr)
    sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command that the arguments name."""
    parser = _Parser(prog="python -m keras_resnet.data", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("preview", help="draw what training makes of a few images")
    command.add_argument("--recipe", required=True, help="`python -m keras_resnet.training` lists them")
    command.add_argument("--output", required=True, help="file to write; ends with .png")
    command.add_argument("--dataset", help="digits, a TFDS name or folder:PATH, instead of the recipe's")
    command.add_argument("--data_dir", help="where TFDS keeps its datasets")
    command.add_argument("--augmentation", help="instead of the recipe's")
    command.add_argument("--seed", type=int, default=0, help="of the draws")
    command.add_argument("--epoch", type=int, default=0, help="the first that is drawn")
    command.add_argument("--images", type=int, default=8, help="rows")
    command.add_argument("--draws", type=int, default=7, help="columns besides the evaluation's view")
    command = commands.add_parser("check", help="find the images of a folder that cannot be used")
    command.add_argument("path", help="a folder: PATH/[split/]class/image")
    given = vars(parser.parse_args(arguments))
    try:
        if given.pop("command") == "preview":
            count = preview(**given)
            print(f"{Path(given['output'])}: {count} images, {given['draws']} draws of each")
        else:
            sys.exit(main_check(given["path"]))
    except (InputError, OSError) as error:
        _fail(error)


if __name__ == "__main__":
    main()
