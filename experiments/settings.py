"""What an experiment trains for a dataset within a budget: one table."""

import dataclasses

from keras_resnet.errors import unknown_name
from keras_resnet.training import Recipe, get_recipe

BUDGETS = ("minutes", "hours", "paper")


@dataclasses.dataclass(frozen=True)
class Setting:
    """A dataset's recipe and how much of everything the budget allows.

    Attributes:
        dataset: name of the dataset.
        budget: one of `BUDGETS`.
        recipe: of every run; its model is replaced.
        depths: weighted layers of the ladder's networks, rising.
        seeds: runs of each network.
        shortcut_depth: weighted layers where the shortcut options are compared.
        warmup_epochs: length of ResNet-110's training with and without warm-up.
        deepest_epochs: length of ResNet-1202's training; 0 leaves it out.
        deepest_batch: images of 32x32 pixels a step where ResNet-1202's memory is measured; 0 leaves it
            out.
        data_dir: where TFDS keeps its datasets.
    """

    dataset: str
    budget: str
    recipe: Recipe
    depths: tuple[int, ...]
    seeds: int
    shortcut_depth: int
    warmup_epochs: float
    deepest_epochs: float
    deepest_batch: int
    data_dir: str | None = None


# The paper divides the rate at one half and three quarters of the training (section 4.2).
_STEPS = {"schedule": "steps", "boundaries": (0.5, 0.75)}

# Images as they are, 8x8: a rate of 0.02 is what the deep residual networks train at from the first
# step; the paper's 0.1 is for images and batches many times as large.
_DIGITS = Recipe(
    model="cifar_resnet20",
    dataset="digits",
    image_size=8,
    batch_size=64,
    epochs=30,
    learning_rate=0.02,
    **_STEPS,
)
_FASHION_MNIST = Recipe(
    model="cifar_resnet20",
    dataset="fashion_mnist",
    image_size=14,
    batch_size=64,
    epochs=15,
    learning_rate=0.02,
    **_STEPS,
)
# Section 4.2, trained on all training images and tested on the test images, as Table 6.
_CIFAR10 = get_recipe("cifar10_paper").replace(train_split="train", val_split=None)

_LADDER = (20, 32, 44, 56, 110)

# dataset, budget, recipe, depths, seeds, shortcut_depth, warmup_epochs, deepest_epochs, deepest_batch
_ROWS = (
    Setting("digits", "minutes", _DIGITS, (20, 32, 56), 3, 56, 20, 3, 0),
    Setting("digits", "hours", _DIGITS.replace(image_size=16, epochs=80), _LADDER, 5, 56, 80, 20, 128),
    Setting("digits", "paper", _DIGITS.replace(image_size=32, epochs=200), _LADDER, 5, 56, 200, 200, 128),
    Setting(
        *("fashion_mnist", "minutes", _FASHION_MNIST.replace(train_split="train[:2000]")),
        *((20, 56), 3, 20, 5, 0, 0),
    ),
    Setting(
        *("fashion_mnist", "hours", _FASHION_MNIST.replace(train_split="train[:20000]")),
        *(_LADDER, 3, 56, 10, 1, 128),
    ),
    Setting(
        *(
            "fashion_mnist",
            "paper",
            _FASHION_MNIST.replace(image_size=28, batch_size=128, learning_rate=0.1, epochs=100),
        ),
        *(_LADDER, 5, 56, 100, 100, 128),
    ),
    Setting(
        "cifar10",
        "minutes",
        _CIFAR10.replace(
            train_split="train[:2000]",
            image_size=16,
            augmentation="none",
            normalization="per_channel",
            steps=None,
            epochs=12,
            learning_rate=0.05,
        ),
        *((20, 56), 3, 20, 5, 0, 0),
    ),
    Setting(
        *("cifar10", "hours", _CIFAR10.replace(train_split="train[:10000]", steps=None, epochs=20)),
        *((20, 32, 56), 3, 56, 5, 0, 128),
    ),
    Setting("cifar10", "paper", _CIFAR10, _LADDER, 5, 110, 164, 164, 128),
)
SETTINGS = {(row.dataset, row.budget): row for row in _ROWS}
DATASETS = tuple(dict.fromkeys(row.dataset for row in _ROWS))


def get_setting(dataset: str, budget: str) -> Setting:
    """The row of the table.

    Raises:
        InputError: there is no such dataset or budget.
    """
    if dataset not in DATASETS:
        raise unknown_name("dataset", dataset, DATASETS)
    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS)
    return SETTINGS[dataset, budget]
