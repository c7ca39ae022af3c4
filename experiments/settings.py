"""What the experiments train for each dataset and budget."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from keras_resnet.classification.recipe import ClassificationRecipe, get_recipe
from keras_resnet.detection.recipe import DetectionRecipe
from keras_resnet.detection.recipe import get_recipe as get_detection_recipe
from keras_resnet.errors import unknown_name

BUDGETS = ("minutes", "hours", "paper")


@dataclasses.dataclass(frozen=True)
class Setting:
    """What is trained for a dataset within a budget; most defaults are those of the largest budgets.

    Attributes:
        recipe: recipe of every run; its model is replaced. For detection, that of the classifiers whose
            weights the detectors' backbones start from.
        warmup_epochs: length of ResNet-110's training with and without warm-up.
        deepest_epochs: length of ResNet-1202's training, and of the ResNet-110s that it is compared with; 0
            omits them.
        deepest_batch: batch size for measuring ResNet-1202's memory on 32x32 images; 0 omits it.
        short_split: training images of the runs on warm-up, on 1202 layers and on gradients, which need many
            steps or layers rather than accuracy. Default: the recipe's.
        depths: weighted layers of the ladder's networks, rising.
        seeds: runs per network.
        first_seed: the first of the seeds, which are consecutive.
        shortcut_depth: weighted layers of the networks that compare shortcut options.
        detector: recipe of every detector; its model and its backbone's weights are replaced. None: the
            setting is not for detection.
        data_dir: where TFDS keeps its datasets.
    """

    dataset: str
    budget: str
    recipe: ClassificationRecipe
    warmup_epochs: float = 0
    deepest_epochs: float = 0
    deepest_batch: int = 128
    short_split: str | None = None
    depths: tuple[int, ...] = (20, 32, 44, 56, 110)
    seeds: int = 5
    first_seed: int = 0
    shortcut_depth: int = 56
    detector: DetectionRecipe | None = None
    data_dir: str | None = None

    @property
    def short(self) -> "Setting":
        """The same setting with the training images of `short_split`."""
        split = self.short_split or self.recipe.train_split
        return dataclasses.replace(self, recipe=self.recipe.replace(train_split=split))


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
# Chosen by pilots with seed 100, which no page counts. Two cores train 1e5 images times layers of 14 pixels
# per second: ten epochs of the ladder take one hour, all experiments two; at 28 pixels three hours are too
# short for five epochs. Ten epochs are too few for augmentation: with crops and mirroring ResNet-56 got
# 87.9 % of the test images after 8 epochs (16 pixels, rate 0.1), without them 91.3 % after 10.
_FASHION_MNIST_HOURS = _FASHION_MNIST.replace(batch_size=128, learning_rate=0.05, epochs=10)
_SMALLEST: dict[str, Any] = {"deepest_batch": 0, "depths": (20, 56), "seeds": 3, "shortcut_depth": 20}

# The numbers after the recipes are `warmup_epochs` and `deepest_epochs`.
_ROWS = (
    Setting("digits", "minutes", _DIGITS, 20, 3, deepest_batch=0, depths=(20, 32, 56), seeds=3),
    Setting("digits", "hours", _DIGITS.replace(image_size=16, epochs=80), 80, 20),
    Setting("digits", "paper", _DIGITS.replace(image_size=32, epochs=200), 200, 200),
    Setting("fashion_mnist", "minutes", _FASHION_MNIST.replace(train_split="train[:2000]"), 5, **_SMALLEST),
    Setting(
        "fashion_mnist",
        "hours",
        _FASHION_MNIST_HOURS,
        20,
        10,
        deepest_batch=32,
        short_split="train[:6000]",
        depths=(20, 32, 56),
        seeds=3,
        shortcut_depth=32,
    ),
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

# Images of 16 pixels are about as large as the objects in scenes of 64 pixels, and as RoIAlign's 8 x 8
# cells with a stride of 2.
_BACKBONES = _FASHION_MNIST.replace(
    train_split="train[:30000]",
    image_size=16,
    batch_size=128,
    learning_rate=0.05,
    epochs=1,
    schedule="cosine",
    warmup_epochs=0.1,
)
# No layer is frozen: the features of garments on black do not separate objects on photos well enough.
_DETECT_SCENES = get_detection_recipe("detect_scenes")
_SCENES = _DETECT_SCENES.replace(
    dataset="scenes/digits/64",
    train_split="train[:2500]",
    val_split="test[:300]",
    model_overrides={
        **_DETECT_SCENES.model_overrides,
        "frozen_batch_norm": False,
        "roi_positive_fraction": 0.5,
    },
    batch_size=4,
    epochs=2,
    warmup_epochs=0.1,
)
_DETECTION_ROWS = (
    Setting(
        "digits",
        "seconds",
        _DIGITS.replace(train_split="train[:256]", epochs=1),
        depths=(20, 32),
        seeds=1,
        detector=_SCENES.replace(train_split="train[:16]", val_split="test[:8]", epochs=1),
    ),
    Setting("fashion_mnist", "minutes", _BACKBONES, depths=(20, 44), seeds=3, detector=_SCENES),
)

Settings = Mapping[tuple[str, str], Setting]
"""Settings by dataset and budget."""

SETTINGS: Settings = {(row.dataset, row.budget): row for row in _ROWS}
DETECTION_SETTINGS: Settings = {(row.dataset, row.budget): row for row in _DETECTION_ROWS}
DATASETS = tuple(dict.fromkeys(row.dataset for row in _ROWS))


def get_setting(dataset: str, budget: str, settings: Settings = SETTINGS) -> Setting:
    """The setting of a dataset and budget.

    Raises:
        InputError: there is no such dataset or budget.
    """
    datasets = dict.fromkeys(known for known, _ in settings)
    if dataset not in datasets:
        raise unknown_name("dataset", dataset, datasets)
    budgets = [known for owner, known in settings if owner == dataset]
    if budget not in budgets:
        raise unknown_name("budget", budget, budgets)
    return settings[dataset, budget]
