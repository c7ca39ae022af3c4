"""Training steps on TensorFlow: this project's, or those of Keras' `fit`."""

import math
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from benchmarks.own_step import MOMENTUM, RATE, OwnStep
from benchmarks.workers import TakeSteps, random_batch, serve_steps
from keras_resnet import build_model
from keras_resnet.models.layers import BatchNormalization
from keras_resnet.training import PRECISIONS


def _own(spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    own = OwnStep(spec)
    return own.model, own.take_steps


def _fit(model: Any, spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    """Keras' own training of a model whose outputs are logits."""
    model.compile(
        optimizer=keras.optimizers.SGD(RATE, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],  # our step counts the correct predictions, too
    )
    batch = random_batch(spec["batch_size"], spec["image_size"], model.output.shape[-1])
    dataset = tf.data.Dataset.from_tensors(batch).repeat()

    def take_steps(steps: int) -> float:
        history = model.fit(dataset, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
        return history.history["loss"][-1]

    return model, take_steps


def _applications(spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    """The network of the same name in keras.applications."""
    build: Callable[..., keras.Model] = {"resnet50": keras.applications.ResNet50}[spec["model"]]
    return _fit(build(weights=None, input_shape=_shape(spec), classifier_activation=None), spec)


def _with_keras_layers(spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    """Our network with Keras' batch normalization."""

    def swap(layer):
        kind = keras.layers.BatchNormalization if isinstance(layer, BatchNormalization) else type(layer)
        return kind.from_config(layer.get_config())

    own = build_model(spec["model"], input_shape=_shape(spec), classifier_activation=None)
    return _fit(keras.models.clone_model(own, clone_function=swap), spec)


def _shape(spec: dict[str, Any]) -> tuple[int, int, int]:
    return spec["image_size"], spec["image_size"], 3


_CONTENDERS = {"ours": _own, "applications": _applications, "keras_layers": _with_keras_layers}


def _prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], TakeSteps]:
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(PRECISIONS[spec["precision"]])
    model, take_steps = _CONTENDERS[spec["contender"]](spec)
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return {"parameters": parameters}, take_steps


if __name__ == "__main__":
    serve_steps(_prepare)
