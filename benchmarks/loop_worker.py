"""A whole training run, and the bare step on the same batches."""

from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from benchmarks.own_step import MOMENTUM, RATE, OwnStep
from benchmarks.workers import speed_of
from keras_resnet.classification import ClassificationRecipe, train
from keras_resnet.data import Transform, dataset_statistics, open_dataset, training_batches
from keras_resnet.processes import serve
from keras_resnet.training import RunOptions

_CLASSES, _TEST_EXAMPLES = 10, 64


def _write_noise(folder: Path, examples: int, size: int) -> None:
    """Writes the TFDS dataset "synthetic" of random pixels."""

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


def _prepare(spec: dict[str, Any]):
    """Measures of the images/s of the second epoch of a run ("loop"), and of the bare step ("bare")."""
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
    bare = speed_of(OwnStep(spec, batches=batches.repeat()).take_steps, batch)
    bare(spec["warm_up"])

    runs = []

    def loop(steps: int) -> float:
        del steps  # a whole epoch
        runs.append(folder / f"run{len(runs)}")
        # The first epoch includes compilation; the result is the second one's.
        return float(train(recipe, runs[-1], options)["images_per_second"])

    return {}, {"loop": loop, "bare": bare}


if __name__ == "__main__":
    serve(_prepare)
