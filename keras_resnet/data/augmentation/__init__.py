"""Random changes to training images, as a table of policies."""

from keras_resnet.data.augmentation.policies import (
    AUGMENTATIONS,
    Augmentation,
    get_augmentation,
)

__all__ = ["AUGMENTATIONS", "Augmentation", "get_augmentation"]
