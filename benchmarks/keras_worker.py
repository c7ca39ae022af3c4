"""Measures on TensorFlow: training steps, a whole run, one of several workers, a matrix product."""

import json
import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.workers import (
    MOMENTUM,
    RATE,
    TakeSteps,
    peak_memory,
    random_batch,
    seconds_of,
    serve_steps,
    speed_of,
)
from keras_resnet import build_model, complexity
from keras_resnet.classification import ClassificationRecipe, ClassificationTask, train
from keras_resnet.data import Transform, dataset_statistics, open_dataset, training_batches
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.models.config import get_config
from keras_resnet.models.layers import BatchNormalization
from keras_resnet.processes import cores, read_spec, serve
from keras_resnet.training import PRECISIONS, RunOptions
from keras_resnet.training.distribution import create
from keras_resnet.training.step import Trainer

_CLASSES, _TEST_EXAMPLES = 10, 64  # of the whole run
_SCALING_WARM_UP = 3


class _OwnStep:
    """This project's training step of the network in `spec`.

    `batches` is an endless dataset of batches; None repeats one random batch.
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
        jit = spec.get("jit", False)
        self._trainer = Trainer(self.model, ClassificationTask(recipe), self.distribution, seed=0, jit=jit)
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


def _own(spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    """Our training step, with the images of the folder `images` if there is one."""
    batches = None
    if "images" in spec:
        split = open_dataset(f"folder:{spec['images']}").split("train")
        transform = Transform.create(spec["image_size"], Normalization.imagenet(), "inception")
        batches = training_batches(
            split, transform, global_batch=spec["batch_size"], seed=0, epoch=0
        ).repeat()
    own = _OwnStep(spec, batches=batches)
    return own.model, own.take_steps


def _infer(model: keras.Model, spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    """Inference of one random batch."""
    images = tf.constant(random_batch(spec["batch_size"], spec["image_size"], 1)[0])
    compute = tf.function(lambda images: model(images, training=False), jit_compile=spec.get("jit", False))

    def take_steps(steps: int) -> None:
        results: Any = images
        for _ in range(steps):
            results = compute(images)
        tf.reduce_sum(results).numpy()  # waits for the device

    return model, take_steps


def _inference(spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    model = build_model(spec["model"], input_shape=spec["input_shape"], classifier_activation=None)
    return _infer(model, spec)


def _applications_inference(spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    return _infer(_build_application(spec), spec)


def _fit(model: Any, spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    """Keras' own training of a model whose outputs are logits."""
    model.compile(
        optimizer=keras.optimizers.SGD(RATE, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],  # our step counts the correct predictions, too
        jit_compile=spec.get("jit", False),
    )
    batch = random_batch(spec["batch_size"], spec["image_size"], model.output.shape[-1])
    dataset = tf.data.Dataset.from_tensors(batch).repeat()

    def take_steps(steps: int) -> float:
        history = model.fit(dataset, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
        return history.history["loss"][-1]

    return model, take_steps


def _build_application(spec: dict[str, Any]) -> keras.Model:
    """The network of the same name in keras.applications."""
    build: Callable[..., keras.Model] = {"resnet50": keras.applications.ResNet50}[spec["model"]]
    return build(weights=None, input_shape=spec["input_shape"], classifier_activation=None)


def _applications(spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    return _fit(_build_application(spec), spec)


def _with_keras_layers(spec: dict[str, Any]) -> tuple[keras.Model, TakeSteps]:
    """Our network with Keras' batch normalization."""

    def swap(layer):
        kind = keras.layers.BatchNormalization if isinstance(layer, BatchNormalization) else type(layer)
        return kind.from_config(layer.get_config())

    own = build_model(spec["model"], input_shape=spec["input_shape"], classifier_activation=None)
    return _fit(keras.models.clone_model(own, clone_function=swap), spec)


def _matrix_product(spec: dict[str, Any]) -> tuple[None, TakeSteps]:
    """Multiplies two square matrices of side `size`."""
    side, dtype = spec["size"], spec["precision"]
    a, b = (tf.cast(tf.random.uniform((side, side)), dtype) for _ in range(2))
    multiply = tf.function(tf.linalg.matmul)

    def take_steps(steps: int) -> None:
        product = None
        for _ in range(steps):
            product = multiply(a, b)
        assert product is not None
        product[0, 0].numpy()  # waits for the device

    return None, take_steps


_CONTENDERS = {
    "ours": _own,
    "applications": _applications,
    "keras_layers": _with_keras_layers,
    "inference": _inference,
    "applications_inference": _applications_inference,
    "matrix_product": _matrix_product,
}


def _prepare(spec: dict[str, Any]) -> tuple[dict[str, Any], TakeSteps]:
    keras.utils.set_random_seed(0)
    keras.config.set_dtype_policy(PRECISIONS[spec["precision"]])
    size = spec.get("image_size")
    model, take_steps = _CONTENDERS[spec["contender"]]({**spec, "input_shape": (size, size, 3)})
    if model is None:
        return {}, take_steps
    parameters = sum(math.prod(weight.shape) for weight in model.trainable_weights)
    return {"parameters": parameters, "multiply_adds": complexity(model).multiply_adds}, take_steps


def _peak_memory() -> float:
    """The most memory that tensors took on the GPU, or the process on a CPU, MiB."""
    if tf.config.list_physical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 2**20
    return peak_memory()


def _write_noise(folder: Path, examples: int, size: int) -> None:
    """Writes the TFDS dataset "synthetic" of random pixels."""
    import tensorflow_datasets as tfds

    def split(count: int) -> list[tuple[int, dict[str, Any]]]:
        random = np.random.default_rng(0)
        images = (random.integers(0, 256, (size, size, 3), "uint8") for _ in range(count))
        return [(i, {"image": image, "label": i % _CLASSES}) for i, image in enumerate(images)]

    features = {
        "image": tfds.features.Image(shape=(size, size, 3)),
        "label": tfds.features.ClassLabel(num_classes=_CLASSES),
    }
    tfds.disable_progress_bar()
    tfds.dataset_builders.store_as_tfds_dataset(
        "synthetic",
        "1.0.0",
        tfds.features.FeaturesDict(features),
        {"train": split(examples), "test": split(_TEST_EXAMPLES)},
        data_dir=folder,
    )


def _prepare_run(spec: dict[str, Any]):
    """Serves "loop", the images/s of the second epoch of a run, and "bare", those of its step alone."""
    folder, size, batch = Path(spec["folder"]), spec["image_size"], spec["batch_size"]
    _write_noise(folder / "data", spec["steps"] * batch, size)
    recipe = ClassificationRecipe(
        spec["model"],
        "synthetic",
        image_size=size,
        augmentation="pad_crop_flip",
        batch_size=batch,
        learning_rate=RATE,
        momentum=MOMENTUM,
        epochs=2,
    )
    options = RunOptions(strategy="one_device", data_dir=str(folder / "data"))
    split = open_dataset("synthetic", options.data_dir).split("train")
    transform = Transform.create(size, dataset_statistics(split, size), recipe.augmentation)
    batches = training_batches(split, transform, global_batch=batch, seed=0, epoch=0).cache()
    for _ in batches:
        pass  # fills the cache
    bare = speed_of(_OwnStep(spec, batches=batches.repeat()).take_steps, batch)
    bare(spec["warm_up"])

    runs = []

    def loop(steps: int) -> float:
        del steps  # a whole epoch
        runs.append(folder / f"run{len(runs)}")
        # The first epoch includes compilation; the result is the second one's.
        return float(train(recipe, runs[-1], options)["images_per_second"])

    return {}, {"loop": loop, "bare": bare}


def _use_own_cores(worker: int, count: int) -> None:
    """Binds this process to the cores of one worker of `count`; more workers than cores share them."""
    share = max(1, len(cores()) // count)
    first = worker * share % len(cores())
    own = cores()[first : first + share]
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)


def _all_reduce(own: _OwnStep) -> Callable[[int], None]:
    """A function that sums a vector as long as a step's over all workers, a number of times."""
    # A step sends gradients and moving statistics, and four sums.
    vector = tf.ones([sum(math.prod(variable.shape) for variable in own.model.variables) + 4])

    def sum_up(vector):
        # The all-reduce needs a tensor that a replica's device made.
        vector = tf.identity(vector)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, vector)

    @tf.function
    def reduce(vector):
        return own.distribution.local(own.distribution.run(sum_up, (vector,)))

    def repeat(times: int) -> None:
        for _ in range(times):
            reduce(vector)[0].numpy()

    return repeat


def _scale(spec: dict[str, Any]) -> None:
    """Times the step and the all-reduce alone, as one of several workers; the chief writes `result`."""
    # Before TensorFlow counts the cores and starts its threads.
    _use_own_cores(json.loads(os.environ["TF_CONFIG"])["task"]["index"], spec["share_of"])
    own, steps = _OwnStep(spec, "multi_worker"), spec["steps"]
    seconds = {}
    for name, repeat in (("step", own.take_steps), ("reduce", _all_reduce(own))):
        repeat(_SCALING_WARM_UP)
        seconds[name] = seconds_of(partial(repeat, steps)) / steps
    if own.distribution.is_chief:
        Path(spec["result"]).write_text(json.dumps(seconds))


if __name__ == "__main__":
    specification = read_spec()
    if "contender" in specification:
        serve_steps(_prepare, _peak_memory)
    elif "folder" in specification:
        serve(_prepare_run)
    else:
        _scale(specification)
