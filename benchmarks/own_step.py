"""The project's training step, for the workers that time it."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.workers import random_batch
from keras_resnet import build_model
from keras_resnet.classification import ClassificationRecipe, ClassificationTask
from keras_resnet.models.config import get_config
from keras_resnet.training.distribution import create
from keras_resnet.training.step import Trainer

RATE, MOMENTUM = 0.01, 0.9


class OwnStep:
    """A network and its trainer.

    Args:
        spec: `model`, `image_size` and `batch_size`, of all workers.
        strategy: a name in `keras_resnet.training.distribution`.
        batches: an endless dataset of batches. Default: one random batch, repeated.
    """

    def __init__(
        self, spec: dict[str, Any], strategy: str = "one_device", batches: tf.data.Dataset | None = None
    ):
        self.distribution = create(strategy)
        keras.utils.set_random_seed(0)
        size, batch = spec["image_size"], spec["batch_size"]
        with self.distribution.scope():
            self.model = build_model(spec["model"], input_shape=(size, size, 3), classifier_activation=None)
        recipe = ClassificationRecipe(
            spec["model"], "synthetic", image_size=size, batch_size=batch, momentum=MOMENTUM
        )
        self._trainer = Trainer(self.model, ClassificationTask(recipe), self.distribution, seed=0)
        if batches is None:
            local = batch // self.distribution.total_replicas
            classes = get_config(spec["model"]).classes
            images, labels = random_batch(local, size, classes, seed=self.distribution.worker)
            values = {"images": images, "labels": labels, "weights": np.ones(local, "float32")}
            batches = tf.data.Dataset.from_tensors(values).repeat()
        self._iterator = self.distribution.iterate(batches)

    def take_steps(self, steps: int) -> float:
        """Returns the last step's loss; NaN if it or the gradient is not finite."""
        rates, stopping = tf.constant([RATE]), tf.constant(0.0)
        results = None
        for step in range(steps):
            results = self._trainer.train(self._iterator, rates, tf.constant(step), stopping)
        assert results is not None
        last = dict(zip(self._trainer.columns, results.numpy()[-1].tolist(), strict=True))
        return last["loss"] if last["finite"] else math.nan
