"""Datasets by name, and `tf.data` pipelines whose every byte follows from seed, epoch and example."""

from typing import TYPE_CHECKING

from keras_resnet import lazy

if TYPE_CHECKING:
    from keras_resnet.data.augmentation import AUGMENTATIONS, Augmentation, get_augmentation
    from keras_resnet.data.examples import BadImages
    from keras_resnet.data.pipeline import (
        Transform,
        dataset_statistics,
        evaluation_batches,
        raw_images,
        steps_per_epoch,
        training_batches,
    )
    from keras_resnet.data.sources import Dataset, IndexedSplit, Split, StreamedSplit, open_dataset

__all__ = [
    "AUGMENTATIONS",
    "Augmentation",
    "BadImages",
    "Dataset",
    "IndexedSplit",
    "Split",
    "StreamedSplit",
    "Transform",
    "dataset_statistics",
    "evaluation_batches",
    "get_augmentation",
    "open_dataset",
    "raw_images",
    "steps_per_epoch",
    "training_batches",
]

__getattr__ = lazy.attach(
    __name__,
    {
        "augmentation": ["AUGMENTATIONS", "Augmentation", "get_augmentation"],
        "examples": ["BadImages"],
        "pipeline": [
            "Transform",
            "dataset_statistics",
            "evaluation_batches",
            "raw_images",
            "steps_per_epoch",
            "training_batches",
        ],
        "sources": ["Dataset", "IndexedSplit", "Split", "StreamedSplit", "open_dataset"],
    },
)
