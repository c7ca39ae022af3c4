"""What the experiments train for each dataset and budget."""

import dataclasses

from keras_resnet.classification.recipe import ClassificationRecipe, get_recipe
from keras_resnet.errors import unknown_name

BUDGETS = ("minutes", "hours", "paper")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained for a dataset within a budget.

    Attributes:
        dataset: name of the dataset.
        budget: one of `BUDGETS`.
        recipe: recipe of every run; its model is replaced.
        depths: weighted layers of the ladder's networks, rising.
        seeds: runs per network.
        shortcut_depth: weighted layers of the networks that compare shortcut options.
        warmup_epochs: length of ResNet-110's training with and without warm-up.
        deepest_epochs: length of ResNet-1202's training; 0 omits it.
        deepest_batch: batch size for measuring ResNet-1202's memory on 32x32 images; 0 omits it.
        data_dir: where TFDS keeps its datasets.
    """

    dataset: str
    budget: str
    recipe: ClassificationRecipe
    depths: tuple[int, ...]
    seeds: int
    shortcut_depth: int
    warmup_epochs: float
    deepest_epochs: float = 0
    deepest_batch: int = 0
    data_dir: str | None = None


_LADDER = (20, 32, 44, 56, 110)

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

_ROWS = (
    Setting(
        "digits",
        "minutes",
        _DIGITS,
        depths=(20, 32, 56),
        seeds=3,
        shortcut_depth=56,
        warmup_epochs=20,
        deepest_epochs=3,
    ),
    Setting(
        "digits",
        "hours",
        _DIGITS.replace(image_size=16, epochs=80),
        depths=_LADDER,
        seeds=5,
        shortcut_depth=56,
        warmup_epochs=80,
        deepest_epochs=20,
        deepest_batch=128,
    ),
    Setting(
        "digits",
        "paper",
        _DIGITS.replace(image_size=32, epochs=200),
        depths=_LADDER,
        seeds=5,
        shortcut_depth=56,
        warmup_epochs=200,
        deepest_epochs=200,
        deepest_batch=128,
    ),
    Setting(
        "fashion_mnist",
        "minutes",
        _FASHION_MNIST.replace(train_split="train[:2000]"),
        depths=(20, 56),
        seeds=3,
        shortcut_depth=20,
        warmup_epochs=5,
    ),
    Setting(
        "fashion_mnist",
        "hours",
        _FASHION_MNIST.replace(train_split="train[:20000]"),
        depths=_LADDER,
        seeds=3,
        shortcut_depth=56,
        warmup_epochs=10,
        deepest_epochs=1,
        deepest_batch=128,
    ),
    Setting(
        "fashion_mnist",
        "paper",
        _FASHION_MNIST.replace(image_size=28, batch_size=128, learning_rate=0.1, epochs=100),
        depths=_LADDER,
        seeds=5,
        shortcut_depth=56,
        warmup_epochs=100,
        deepest_epochs=100,
        deepest_batch=128,
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
        depths=(20, 56),
        seeds=3,
        shortcut_depth=20,
        warmup_epochs=5,
    ),
    Setting(
        "cifar10",
        "hours",
        _CIFAR10.replace(train_split="train[:10000]", steps=None, epochs=20),
        depths=(20, 32, 56),
        seeds=3,
        shortcut_depth=56,
        warmup_epochs=5,
        deepest_batch=128,
    ),
    Setting(
        "cifar10",
        "paper",
        _CIFAR10,
        depths=_LADDER,
        seeds=5,
        shortcut_depth=110,
        warmup_epochs=164,
        deepest_epochs=164,
        deepest_batch=128,
    ),
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
