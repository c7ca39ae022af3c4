"""Augmentation of training images."""

from keras_resnet.data.augmentation.policies import AUGMENTATIONS, Augmentation, get_augmentation

__all__ = ["AUGMENTATIONS", "Augmentation", "get_augmentation"]
