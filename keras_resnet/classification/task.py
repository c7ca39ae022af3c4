"""The classification task of the training loop."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.applications import build_model
from keras_resnet.classification import mixing
from keras_resnet.classification.recipe import ClassificationRecipe
from keras_resnet.data import (
    BadImages,
    Dataset,
    Transform,
    dataset_statistics,
    evaluation_batches,
    get_augmentation,
    open_dataset,
    steps_per_epoch,
    training_batches,
)
from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.config import get_config
from keras_resnet.models.features import freeze
from keras_resnet.training import loop
from keras_resnet.training.distribution import Distribution
from keras_resnet.training.options import RunOptions
from keras_resnet.training.schedules import progressive_size
from keras_resnet.training.task import Batch, Call, Curve, Task
from keras_resnet.training.trackers import Tracker
from keras_resnet.weights import ModelSpec, open_weights, save_weights


def train(
    recipe: ClassificationRecipe,
    folder: str | os.PathLike,
    options: RunOptions | None = None,
    observer: loop.Observer | None = None,
    trackers: Sequence[Tracker] = (),
) -> dict:
    """Trains a classification recipe; see `keras_resnet.training.train`."""
    return loop.train(ClassificationTask(recipe), folder, options, observer, trackers)


class ClassificationTask(Task):
    """Classification of images with softmax and top-1 accuracy; its methods are described in `Task`."""

    train_metrics = val_metrics = ("loss", "top1")
    curves = (
        Curve(("top1",), "top-1 error (%)", lambda top1: 100 - 100 * top1),
        Curve(("loss",), "loss", log=True),
    )

    def __init__(self, recipe: ClassificationRecipe):
        self.recipe: ClassificationRecipe = recipe

    def open(self, data_dir: str | None) -> None:
        recipe = self.recipe
        self._dataset = open_dataset(recipe.dataset, data_dir)
        self._train_split = self._dataset.split(recipe.train_split)
        validation = recipe.val_split or self._dataset.test_split
        self._val_split = self._dataset.split(validation)
        self.data_identity = self._dataset.identity(recipe.train_split, validation)
        self.epoch_steps = steps_per_epoch(self._train_split, recipe.batch_size)
        self.evaluation_steps = -(-len(self._val_split) // recipe.batch_size)
        _check_network(recipe, self._dataset)

    def build(self, pretrained: bool) -> keras.Model:
        recipe, overrides = self.recipe, _overrides(self.recipe)
        side = None if recipe.progressive else recipe.image_size
        shape = (side, side, recipe.channels)
        if keras.config.image_data_format() == "channels_first":
            shape = shape[::-1]
        options = {"classes": self._dataset.classes, "classifier_activation": None, **overrides}
        model = freeze(build_model(recipe.model, input_shape=shape, **options), recipe.freeze)
        self._preprocessing: Preprocessing | None = None
        if pretrained and recipe.weights is not None:
            with open_weights(recipe.weights, get_config(recipe.model, **overrides)) as file:
                file.load(model, transfer=True)
            self._preprocessing = file.preprocessing_for(model)
        return model

    def prepare(self, distribution: Distribution, held: dict[str, np.ndarray] | None, bad: BadImages) -> None:
        # Checkpoints of older versions lack it.
        normalization = Normalization.from_arrays(held or {})
        normalization = normalization or self._choose_normalization(bad, distribution.is_chief)
        preprocessing = Preprocessing(self.recipe.image_size, self._resize, "bilinear", normalization)
        self._transform = Transform(preprocessing, self.recipe.augmentation)

    def arrays(self) -> dict[str, np.ndarray]:
        return self._transform.preprocessing.normalization.to_arrays()

    def training_batches(
        self,
        distribution: Distribution,
        *,
        seed: int,
        epoch: int,
        epochs: float,
        first_step: int,
        bad: BadImages,
    ) -> tf.data.Dataset:
        recipe = self.recipe
        size = progressive_size(recipe.progressive, epoch, epochs, recipe.image_size)
        return training_batches(
            self._train_split,
            self._transform.for_size(size),
            global_batch=recipe.batch_size,
            seed=seed,
            epoch=epoch,
            first_step=first_step,
            workers=distribution.workers,
            worker=distribution.worker,
            replicas=distribution.replicas,
            bad=bad,
        )

    def evaluation_batches(self, distribution: Distribution, bad: BadImages) -> tf.data.Dataset:
        return evaluation_batches(
            self._val_split,
            self._transform.preprocessing,
            global_batch=self.recipe.batch_size,
            workers=distribution.workers,
            worker=distribution.worker,
            replicas=distribution.replicas,
            bad=bad,
        )

    def training_sums(
        self,
        model: keras.Model,
        call: Call,
        batch: Batch,
        key: tuple[int, tf.Tensor, tf.Tensor],
    ) -> list[tf.Tensor]:
        recipe = self.recipe
        classes: Any = model.outputs[0].shape[-1]
        targets = tf.one_hot(batch["labels"], classes)
        images, targets = mixing.mix(batch["images"], targets, recipe.mixup, recipe.cutmix, key)
        if recipe.label_smoothing:
            smoothing = recipe.label_smoothing
            targets = targets * (1 - smoothing) + smoothing / classes
        logits = call(model, images)
        losses = tf.nn.softmax_cross_entropy_with_logits(targets, logits)
        # The label of mixed images is that of the larger share.
        return _sums(losses, logits, tf.argmax(targets, -1), batch["weights"])

    def evaluation_sums(self, model: keras.Model, batch: Batch) -> tuple[list[tf.Tensor], dict]:
        logits = model(batch["images"], training=False)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(batch["labels"], logits)
        return _sums(losses, logits, batch["labels"], batch["weights"]), {}

    def evaluation_metrics(self, sums: np.ndarray, collected: dict[str, np.ndarray]) -> dict[str, float]:
        loss, correct, count = sums.tolist()
        if not count:
            raise InputError(f"not one image of the split {self._val_split.name!r} can be decoded")
        return {"loss": loss / count, "top1": correct / count}

    def error_sum(self, sums: dict[str, float]) -> float:
        return sums["count"] - sums["top1"]

    def error(self, metrics: dict[str, float]) -> float:
        return 1 - metrics["top1"]

    def describe(self, metrics: dict[str, float]) -> str:
        return f"loss {metrics['loss']:.4f}, top-1 {metrics['top1']:.2%}"

    def save(self, model: keras.Model, path: Path) -> None:
        recipe, dataset = self.recipe, self._dataset
        spec = ModelSpec(
            model=recipe.model,
            overrides=_overrides(recipe),
            classes=dataset.classes,
            input_shape=(recipe.image_size, recipe.image_size, recipe.channels),
            preprocessing=self._transform.preprocessing,
            labels=tuple(dataset.class_names),
        )
        save_weights(model, path, spec)

    @property
    def _resize(self) -> int | None:
        """The shorter side before the evaluation's center crop."""
        return get_augmentation(self.recipe.augmentation).evaluation_resize(self.recipe.image_size)

    def _choose_normalization(self, bad: BadImages, is_chief: bool) -> Normalization:
        recipe = self.recipe
        if recipe.normalization == "imagenet":
            return Normalization.imagenet().for_channels(recipe.channels)
        if recipe.normalization == "weights":
            return _normalization_of_weights(recipe, self._preprocessing)
        return dataset_statistics(
            self._train_split,
            recipe.image_size,
            recipe.channels,
            per_pixel=recipe.normalization == "per_pixel",
            resize=self._resize,
            bad=bad,
            show_progress=is_chief,
        )


def _sums(losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor) -> list[tf.Tensor]:
    """The weighted sums of losses and correct predictions, and the sum of the weights."""
    correct = tf.cast(tf.equal(tf.argmax(logits, -1, output_type=labels.dtype), labels), tf.float32)
    return [tf.reduce_sum(losses * weights), tf.reduce_sum(correct * weights), tf.reduce_sum(weights)]


def _overrides(recipe: ClassificationRecipe) -> dict:
    """The recipe's overrides of the network's config, without `classes`."""
    return {key: value for key, value in recipe.model_overrides.items() if key != "classes"}


def _check_network(recipe: ClassificationRecipe, dataset: Dataset) -> None:
    """Raises `InputError` if the network does not match the dataset or the image size."""
    config = get_config(recipe.model, **recipe.model_overrides)
    if recipe.model_overrides.get("classes", dataset.classes) != dataset.classes:
        raise InputError(f"classes is {config.classes}, but {dataset.name} has {dataset.classes}")
    if recipe.image_size < config.total_stride:
        raise InputError(
            f"{recipe.model} needs images of at least {config.total_stride} pixels; "
            f"image_size is {recipe.image_size}"
        )


def _normalization_of_weights(
    recipe: ClassificationRecipe, preprocessing: Preprocessing | None
) -> Normalization:
    """The normalization of the pretrained weights; `InputError` if it is unknown or does not match."""
    if preprocessing is None:
        raise InputError(
            f"{recipe.weights} does not say how its images are prepared; set another normalization"
        )
    shape = preprocessing.normalization.shape
    input_shape = (recipe.image_size, recipe.image_size, recipe.channels)
    if shape not in (input_shape[2:], input_shape):
        theirs, ours = ("x".join(map(str, sizes)) for sizes in (shape, input_shape))
        raise InputError(
            f"{recipe.weights} has a mean image of {theirs}, the network an input of {ours}; "
            "set another normalization"
        )
    return preprocessing.normalization
