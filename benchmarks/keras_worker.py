"""A worker that trains on TensorFlow: with this project's step, with Keras' `fit`, or with our whole loop."""

import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.workers import Channel

RATE, MOMENTUM = 0.01, 0.9


def _shape(spec) -> tuple[int, int, int]:
    return spec["image_size"], spec["image_size"], 3


def _random_batch(spec, classes: int):
    """Images like normalized ones, float32 (batch, height, width, 3), and labels, int32 (batch,)."""
    random = np.random.default_rng(0)
    images = random.standard_normal((spec["batch_size"], *_shape(spec)), dtype="float32")
    return images, random.integers(0, classes, spec["batch_size"], dtype="int32")


def _ours(spec, batches=None):
    """The project's step: a model, and a measure of it.

    Args:
        spec: model, image_size, batch_size.
        batches: a dataset of batches that never ends; None for one random batch again and again.
    """
    import tensorflow as tf

    from keras_resnet import build_model
    from keras_resnet.classification import ClassificationRecipe, ClassificationTask
    from keras_resnet.models.config import get_config
    from keras_resnet.training.distribution import create
    from keras_resnet.training.step import Trainer

    distribution = create("one_device")
    with distribution.scope():
        model = build_model(spec["model"], input_shape=_shape(spec), classifier_activation=None)
    recipe = ClassificationRecipe(
        spec["model"],
        "synthetic",
        image_size=spec["image_size"],
        batch_size=spec["batch_size"],
        momentum=MOMENTUM,
    )
    trainer = Trainer(model, ClassificationTask(recipe), distribution, seed=0)
    if batches is None:
        images, labels = _random_batch(spec, get_config(spec["model"]).classes)
        batch = {"images": images, "labels": labels, "weights": np.ones(len(labels), "float32")}
        batches = tf.data.Dataset.from_tensors(batch).repeat()
    iterator = distribution.iterate(batches)
    rates, go_on = tf.constant([RATE]), tf.constant(0.0)

    def measure(steps: int) -> float:
        begun = time.perf_counter()
        for step in range(steps):
            results = trainer.train(iterator, rates, tf.constant(step), go_on)
        last = dict(zip(trainer.columns, results.numpy()[-1].tolist(), strict=True))
        seconds = time.perf_counter() - begun
        if not last["finite"]:
            raise FloatingPointError("the loss or the gradient is not finite")
        return steps * spec["batch_size"] / seconds

    return model, measure


def _fit(model, spec):
    """Keras' own training of `model`, whose outputs are logits."""
    import keras
    import tensorflow as tf

    model.compile(
        optimizer=keras.optimizers.SGD(RATE, momentum=MOMENTUM),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],  # our step counts what is right, too
    )
    batch = _random_batch(spec, model.output.shape[-1])
    dataset = tf.data.Dataset.from_tensors(batch).repeat()

    def measure(steps: int) -> float:
        begun = time.perf_counter()
        history = model.fit(dataset, steps_per_epoch=steps, epochs=1, shuffle=False, verbose=0)
        seconds = time.perf_counter() - begun
        if not np.isfinite(history.history["loss"][-1]):
            raise FloatingPointError("the loss is not finite")
        return steps * spec["batch_size"] / seconds

    return model, measure


def _applications(spec):
    """keras.applications' network of the same name, under `fit`."""
    import keras

    build = {"resnet50": keras.applications.ResNet50}[spec["model"]]
    return _fit(build(weights=None, input_shape=_shape(spec), classifier_activation=None), spec)


def _with_keras_layers(spec):
    """Our network with Keras' batch normalization in place of ours, under `fit`."""
    import keras

    from keras_resnet import build_model
    from keras_resnet.models.layers import BatchNormalization

    def swap(layer):
        kind = keras.layers.BatchNormalization if isinstance(layer, BatchNormalization) else type(layer)
        return kind.from_config(layer.get_config())

    ours = build_model(spec["model"], input_shape=_shape(spec), classifier_activation=None)
    return _fit(keras.models.clone_model(ours, clone_function=swap), spec)


CONTENDERS = {"ours": _ours, "applications": _applications, "keras_layers": _with_keras_layers}


def _loop(spec, folder: Path):
    """Measures of a whole training run's epoch and of the bare step on the same batches."""
    from benchmarks import synthetic
    from keras_resnet.classification import ClassificationRecipe, train
    from keras_resnet.data import Transform, dataset_statistics, open_dataset, training_batches
    from keras_resnet.training import RunOptions

    synthetic.write(folder / "data", spec["steps"] * spec["batch_size"], spec["image_size"])
    recipe = ClassificationRecipe(
        spec["model"],
        "synthetic",
        image_size=spec["image_size"],
        augmentation="pad_crop_flip",
        batch_size=spec["batch_size"],
        learning_rate=RATE,
        momentum=MOMENTUM,
        epochs=2,
    )
    options = RunOptions(strategy="one_device", data_dir=str(folder / "data"))
    split = open_dataset("synthetic", options.data_dir).split("train")
    normalization = dataset_statistics(split, recipe.image_size)
    transform = Transform.create(recipe.image_size, normalization, recipe.augmentation)
    batches = training_batches(split, transform, global_batch=recipe.batch_size, seed=0, epoch=0).cache()
    for _ in batches:
        pass  # fills the cache
    _, bare = _ours(spec, batches.repeat())

    def loop(steps: int) -> float:
        del steps  # an epoch's
        with tempfile.TemporaryDirectory(dir=folder) as workdir:
            # The first epoch compiles; the second is measured, as history.csv has it.
            return float(train(recipe, workdir, options)["images_per_second"])

    return {"loop": loop, "bare": bare}


def main() -> None:
    """Serves the contender that the spec names."""
    channel = Channel()
    spec = channel.spec
    import keras

    from keras_resnet.training import PRECISIONS

    keras.utils.set_random_seed(0)
    if spec["contender"] == "loop":
        with tempfile.TemporaryDirectory() as folder:
            measures = _loop(spec, Path(folder))
            measures["bare"](spec["warm_up"])
            channel.serve(measures)
        return
    keras.config.set_dtype_policy(PRECISIONS[spec["precision"]])
    model, measure = CONTENDERS[spec["contender"]](spec)
    measure(spec["warm_up"])
    parameters = sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    channel.serve({"step": measure}, parameters=parameters)


if __name__ == "__main__":
    main()
