"""Recipes for classification."""

import dataclasses
from typing import Literal

from keras_resnet.errors import InputError, require, unknown_name
from keras_resnet.training.recipe import Recipe, described


@dataclasses.dataclass(frozen=True)
class ClassificationRecipe(Recipe):
    """A training recipe for classification."""

    image_size: int = described("Height and width of the network's input in pixels.", 32)
    channels: int = described("Channels of the network's input; gray images are repeated.", 3)
    normalization: Literal["per_channel", "per_pixel", "imagenet", "weights"] = described(
        "per_channel (mean and standard deviation of the training split), per_pixel (its mean image; section "
        "4.2), imagenet (ImageNet's published statistics) or weights (that of the pretrained weights).",
        "per_channel",
    )
    augmentation: str = described("A name of keras_resnet.data.AUGMENTATIONS.", "none")
    label_smoothing: float = described("Share of the target spread over all classes.", 0)
    mixup: float = described("Alpha of mixup's Beta distribution; 0 disables it.", 0)
    cutmix: float = described(
        "Alpha of cutmix's Beta distribution; 0 disables it. With mixup, each batch uses one of the two.", 0
    )
    progressive: tuple[float, ...] = described(
        "Rising shares of image_size, the last 1, over equal parts of the run. Default: always image_size.",
        (),
    )

    def __post_init__(self):
        super().__post_init__()
        for name in ("image_size", "channels"):
            require(getattr(self, name) >= 1, f"{name} must be at least 1", getattr(self, name))
        require(0 <= self.label_smoothing < 1, "label_smoothing must be in [0, 1)", self.label_smoothing)
        for name in ("mixup", "cutmix"):
            require(getattr(self, name) >= 0, f"{name} must not be negative", getattr(self, name))
        shares = (0.0, *self.progressive)
        rises = all(a < b for a, b in zip(shares, self.progressive, strict=False)) and shares[-1] in (0, 1)
        require(rises, "progressive sizes must rise from above 0 to 1", self.progressive)
        if self.progressive and self.normalization == "per_pixel":
            raise InputError("a mean image has one size; progressive sizes need another normalization")
        if self.normalization == "weights" and self.weights is None:
            raise InputError("normalization 'weights' needs pretrained weights; set weights")


RECIPES: dict[str, ClassificationRecipe] = {
    # Digits are shifted, not mirrored.
    "digits": ClassificationRecipe(
        model="cifar_resnet20",
        dataset="digits",
        augmentation="pad_crop",
        batch_size=64,
        epochs=20,
        schedule="cosine",
        warmup_epochs=1,
    ),
    "fashion_mnist": ClassificationRecipe(
        model="cifar_resnet20",
        dataset="fashion_mnist",
        image_size=28,
        augmentation="pad_crop_flip",
        epochs=20,
        schedule="cosine",
        warmup_epochs=1,
        nesterov=True,
        weight_decay=5e-4,
    ),
    # Section 4.2.
    "cifar10_paper": ClassificationRecipe(
        model="cifar_resnet20",
        dataset="cifar10",
        train_split="train[:45000]",
        val_split="train[45000:]",
        augmentation="pad_crop_flip",
        normalization="per_pixel",
        steps=64_000,
        schedule="steps",
        boundaries=(0.5, 0.75),
    ),
    # Section 3.4.
    "imagenet_paper": ClassificationRecipe(
        model="resnet50",
        dataset="imagenet2012",
        val_split="validation",
        image_size=224,
        augmentation="scale_crop_flip_pca",
        normalization="imagenet",
        batch_size=256,
        steps=600_000,
        schedule="plateau",
        reestimate_batches=200,
    ),
    "imagenet_modern": ClassificationRecipe(
        model="resnet50_v1_5",
        dataset="imagenet2012",
        val_split="validation",
        image_size=224,
        augmentation="inception",
        normalization="imagenet",
        batch_size=1024,
        epochs=100,
        learning_rate=0.4,
        schedule="cosine",
        warmup_epochs=5,
        nesterov=True,
        weight_decay=5e-5,
        label_smoothing=0.1,
        ema_decay=0.9999,
    ),
    "finetune": ClassificationRecipe(
        model="resnet50",
        dataset="imagenette",
        weights="imagenet",
        image_size=224,
        augmentation="scale_crop_flip",
        normalization="weights",
        batch_size=64,
        epochs=10,
        learning_rate=0.01,
        schedule="cosine",
        warmup_epochs=1,
        nesterov=True,
        label_smoothing=0.1,
    ),
}
"""The recipes of classifiers, by name."""


# "In this case, we find that the initial learning rate of 0.1 is slightly too large" (section 4.2).
_FOR_MODEL = {("cifar10_paper", "cifar_resnet110"): {"error_warmup_rate": 0.01}}


def get_recipe(name: str, model: str | None = None) -> ClassificationRecipe:
    """Returns the recipe `name`, for another network if `model` is given.

    `cifar10_paper` with `cifar_resnet110` has the paper's warm-up.

    Raises:
        InputError: the recipe is unknown.
    """
    if name not in RECIPES:
        raise unknown_name("recipe", name, RECIPES)
    changes = {} if model is None else {"model": model, **_FOR_MODEL.get((name, model), {})}
    return RECIPES[name].replace(**changes)
