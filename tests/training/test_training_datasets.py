"""The paper's recipes on tiny datasets of the real format, under two devices."""

import numpy as np
import pytest
from data_helpers import write_tfds

from keras_resnet.training import Machine, get_recipe, train
from keras_resnet.weights import read_spec


def picture(random, height, width):
    return random.integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_cifar10(data_dir):
    random = np.random.default_rng(0)

    def examples(count):
        return [
            {"id": f"{i}", "image": picture(random, 32, 32), "label": int(random.integers(10))}
            for i in range(count)
        ]

    write_tfds(data_dir, "cifar10", {"train": examples(24), "test": examples(4)})


def write_imagenet(data_dir):
    random = np.random.default_rng(0)

    def examples(count):
        return [
            {
                "file_name": f"{i}.JPEG",
                "image": picture(random, *random.integers(40, 90, 2)),
                "label": int(random.integers(1000)),
            }
            for i in range(count)
        ]

    write_tfds(data_dir, "imagenet2012", {"train": examples(8), "validation": examples(3)}, shards=2)


CASES = {
    "cifar10_paper": (
        write_cifar10,
        {"steps": 2, "batch_size": 8, "train_split": "train[:16]", "val_split": "train[16:]"},
        (10, (32, 32, 3)),
    ),
    "imagenet_paper": (
        write_imagenet,
        {"steps": 1, "batch_size": 4, "model": "resnet18", "image_size": 64},
        (1000, (64, 64, 3)),
    ),
    "imagenet_modern": (
        write_imagenet,
        {"epochs": 0.5, "batch_size": 4, "model": "resnet18", "image_size": 64},
        (1000, (64, 64, 3)),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_recipe_takes_steps_on_its_own_dataset_under_two_devices(tmp_path, name):
    write, changes, (classes, shape) = CASES[name]
    write(tmp_path / "tfds")
    recipe = get_recipe(name).replace(**changes)
    last = train(recipe, tmp_path / "run", Machine(strategy="mirrored", data_dir=str(tmp_path / "tfds")))
    assert np.isfinite([last["train_loss"], last["val_loss"]]).all()
    spec = read_spec(tmp_path / "run" / "model.weights.h5")
    assert (spec.classes, spec.input_shape) == (classes, shape)
    if name == "cifar10_paper":  # the mean image, and nothing but the mean
        assert np.shape(spec.normalization.mean) == (32, 32, 3)
        assert spec.normalization.std == (1, 1, 1)
