"""Measures training steps of a network in a separate process."""

import statistics
import time
from typing import Any

import keras
import tensorflow as tf

from keras_resnet import build_model
from keras_resnet.classification import ClassificationRecipe, ClassificationTask
from keras_resnet.processes import resident_memory, serve
from keras_resnet.training.distribution import create
from keras_resnet.training.step import Trainer

_RATE = 0.01  # small enough that no network diverges within a few steps


def _take_steps(spec: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The results of `step_cost.measure`."""
    distribution = create("one_device")
    keras.utils.set_random_seed(0)
    tf.zeros(()).numpy()  # TensorFlow's own memory is not the network's
    base = resident_memory()

    begun = time.perf_counter()
    size, batch_size = spec["image_size"], spec["batch_size"]
    shape = (size, size, 3)
    with distribution.scope():
        network = build_model(spec["model"], input_shape=shape, classifier_activation=None)
    recipe = ClassificationRecipe(spec["model"], "random", image_size=size, batch_size=batch_size)
    trainer = Trainer(
        network, ClassificationTask(recipe), distribution, seed=0, jit=spec["jit"], remat=spec["remat"]
    )
    built = time.perf_counter() - begun

    batch = {
        "images": tf.random.normal((batch_size, *shape), seed=1),
        "labels": tf.random.uniform((batch_size,), 0, network.outputs[0].shape[-1], tf.int32, seed=2),
        "weights": tf.ones((batch_size,)),
    }
    iterator = distribution.iterate(tf.data.Dataset.from_tensors(batch).repeat())
    seconds, losses = [], []
    for step in range(spec["steps"]):
        begun = time.perf_counter()
        row = trainer.train(iterator, tf.constant([_RATE]), tf.constant(step), tf.constant(0.0)).numpy()[0]
        seconds.append(time.perf_counter() - begun)
        result = dict(zip(trainer.columns, row.tolist(), strict=True))
        losses.append(result["loss"] / result["count"])

    gpu = bool(tf.config.list_physical_devices("GPU"))
    peak = tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpu else resident_memory(peak=True)
    costs = {
        "build_seconds": built,
        "first_step_seconds": seconds[0],
        "step_seconds": statistics.median(seconds[1:]),
        "peak_bytes": peak,
        "base_bytes": 0 if gpu else base,
        "losses": losses,
    }
    return costs, {}


if __name__ == "__main__":
    serve(_take_steps)
