"""What the experiments train for each dataset and budget."""

import dataclasses
from typing import Any

from keras_resnet.classification.recipe import ClassificationRecipe, get_recipe
from keras_resnet.errors import unknown_name

BUDGETS = ("minutes", "hours", "paper")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained for a dataset within a budget; most defaults are those of the largest budgets.

    Attributes:
        recipe: recipe of every run; its model is replaced.
        warmup_epochs: length of ResNet-110's training with and without warm-up.
        deepest_epochs: length of ResNet-1202's training; 0 omits it.
        deepest_batch: batch size for measuring ResNet-1202's memory on 32x32 images; 0 omits it.
        depths: weighted layers of the ladder's networks, rising.
        seeds: runs per network.
        shortcut_depth: weighted layers of the networks that compare shortcut options.
        data_dir: where TFDS keeps its datasets.
    """

    dataset: str
    budget: str
    recipe: ClassificationRecipe
    warmup_epochs: float
    deepest_epochs: float = 0
    deepest_batch: int = 128
    depths: tuple[int, ...] = (20, 32, 44, 56, 110)
    seeds: int = 5
    shortcut_depth: int = 56
    data_dir: str | None = None


# The paper divides the rate by ten after one half and three quarters of the training (section 4.2). A rate
# of 0.02 trains even the deep residual networks from the first step; the paper's 0.1 is for images and
# batches many times as large.
_SMALL = ClassificationRecipe(
    model="cifar_resnet20",
    dataset="digits",
    batch_size=64,
    learning_rate=0.02,
    schedule="steps",
    boundaries=(0.5, 0.75),
)
_DIGITS = _SMALL.replace(image_size=8, epochs=30)
_FASHION_MNIST = _SMALL.replace(dataset="fashion_mnist", image_size=14, epochs=15)
# Section 4.2, trained on all training images and tested on the test images, as Table 6.
_CIFAR10 = get_recipe("cifar10_paper").replace(train_split="train", val_split=None)
_CIFAR10_MINUTES = _CIFAR10.replace(
    train_split="train[:2000]",
    image_size=16,
    augmentation="none",
    normalization="per_channel",
    steps=None,
    epochs=12,
    learning_rate=0.05,
)
_SMALLEST: dict[str, Any] = {"deepest_batch": 0, "depths": (20, 56), "seeds": 3, "shortcut_depth": 20}

# The numbers after the recipes are `warmup_epochs` and `deepest_epochs`.
_ROWS = (
    Setting("digits", "minutes", _DIGITS, 20, 3, deepest_batch=0, depths=(20, 32, 56), seeds=3),
    Setting("digits", "hours", _DIGITS.replace(image_size=16, epochs=80), 80, 20),
    Setting("digits", "paper", _DIGITS.replace(image_size=32, epochs=200), 200, 200),
    Setting("fashion_mnist", "minutes", _FASHION_MNIST.replace(train_split="train[:2000]"), 5, **_SMALLEST),
    Setting("fashion_mnist", "hours", _FASHION_MNIST.replace(train_split="train[:20000]"), 10, 1, seeds=3),
    Setting(
        "fashion_mnist",
        "paper",
        _FASHION_MNIST.replace(image_size=28, batch_size=128, learning_rate=0.1, epochs=100),
        100,
        100,
    ),
    Setting("cifar10", "minutes", _CIFAR10_MINUTES, 5, **_SMALLEST),
    Setting(
        "cifar10",
        "hours",
        _CIFAR10.replace(train_split="train[:10000]", steps=None, epochs=20),
        5,
        depths=(20, 32, 56),
        seeds=3,
    ),
    Setting("cifar10", "paper", _CIFAR10, 164, 164, shortcut_depth=110),
)
SETTINGS = {(row.dataset, row.budget): row for row in _ROWS}
DATASETS = tuple(dict.fromkeys(row.dataset for row in _ROWS))


def get_setting(dataset: str, budget: str) -> Setting:
    """The setting of a dataset and budget.

    Raises:
        InputError: there is no such dataset or budget.
    """
    if dataset not in DATASETS:
        raise unknown_name("dataset", dataset, DATASETS)
    if budget not in BUDGETS:
        raise unknown_name("budget", budget, BUDGETS)
    return SETTINGS[dataset, budget]
