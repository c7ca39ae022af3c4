"""The same weight files give the same outputs on JAX, in both data formats, without TensorFlow."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from zoo_networks import ALL_SMALL, images, randomize, relative_difference

import keras_resnet
from keras_resnet import build_resnet
from keras_resnet.weights import save_weights

ROOT = Path(keras_resnet.__file__).parents[1]
SHAPE = (33, 35, 3)
# Every block, option and stem; not all their products, because JAX compiles each shape of each operation.
KINDS = [
    "basic 1x1 A cifar",
    "basic 1x1 B imagenet",
    "basic 1x1 None cifar",
    "bottleneck 1x1 A imagenet",
    "bottleneck 1x1 B cifar",
    "bottleneck 3x3 C imagenet",
]
ON_JAX = """
import json, pathlib, sys
import keras
import numpy as np
from keras_resnet import ResNetConfig, build_resnet, complexity, feature_maps

assert keras.backend.backend() == "jax"
folder = pathlib.Path(sys.argv[1])
batch = np.load(folder / "batch.npy")
results, facts = {}, {}
for index, (kind, fields) in enumerate(json.loads((folder / "kinds.json").read_text()).items()):
    config, weights = ResNetConfig(**fields), folder / f"{index}.weights.h5"
    options = {"weights": weights, "classifier_activation": None}
    model = build_resnet(config, input_shape=batch.shape[1:], **options)
    results[f"{index} channels_last"] = np.asarray(model(batch))
    if index == 0:
        bn = model.get_layer("conv1_bn")
        before = np.asarray(bn.moving_mean)
        results["training"] = np.asarray(model(batch, training=True))
        results["moved"] = np.stack([before, np.asarray(bn.moving_mean), np.asarray(bn.moving_variance)])
        facts["maps"] = {name: list(value.shape) for name, value in feature_maps(model).items()}
    keras.config.set_image_data_format("channels_first")
    first = np.moveaxis(batch, -1, 1)
    model = build_resnet(config, input_shape=first.shape[1:], **options)
    results[f"{index} channels_first"] = np.asarray(model(first))
    facts[kind] = complexity(model).multiply_adds
    keras.config.set_image_data_format("channels_last")
facts["modules"] = sorted({"tensorflow", "tensorflow_datasets", "torch"} & set(sys.modules))
np.savez(folder / "results.npz", **results)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def networks():
    """On TensorFlow: one network of each kind, with random statistics."""
    keras.utils.set_random_seed(0)
    return {
        kind: randomize(build_resnet(ALL_SMALL[kind], input_shape=SHAPE, classifier_activation=None))
        for kind in KINDS
    }


@pytest.fixture(scope="module")
def jax(networks, tmp_path_factory):
    """What a process with the JAX backend computes: outputs, and a few facts."""
    folder = tmp_path_factory.mktemp("jax")
    for index, model in enumerate(networks.values()):
        save_weights(model, folder / f"{index}.weights.h5")
    np.save(folder / "batch.npy", images(2, *SHAPE))
    kinds = {kind: dataclasses.asdict(ALL_SMALL[kind]) for kind in KINDS}
    (folder / "kinds.json").write_text(json.dumps(kinds))
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles faster
    done = subprocess.run(
        [sys.executable, "-c", ON_JAX, str(folder)], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "results.npz"), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
@pytest.mark.parametrize("kind", KINDS)
def test_jax_equals_tensorflow(kind, data_format, networks, jax):
    index = KINDS.index(kind)
    expected = networks[kind](images(2, *SHAPE))
    assert relative_difference(jax[0][f"{index} {data_format}"], expected) < 1e-5


def test_training_on_jax_equals_tensorflow(networks, jax):
    """TensorFlow runs our fused batch normalization here, JAX runs Keras'."""
    before, mean, variance = jax[0]["moved"]
    model = keras.models.clone_model(networks[KINDS[0]])
    model.set_weights(networks[KINDS[0]].get_weights())
    assert relative_difference(jax[0]["training"], model(images(2, *SHAPE), training=True)) < 1e-5
    bn = model.get_layer("conv1_bn")
    assert np.abs(mean - before).max() > 1e-3
    assert relative_difference(mean, bn.moving_mean) < 1e-5
    assert relative_difference(variance, bn.moving_variance) < 1e-5


def test_jax_needs_no_tensorflow(jax):
    assert jax[1]["modules"] == []


def test_facts_do_not_depend_on_backend_or_data_format(networks, jax):
    for kind, model in networks.items():
        assert jax[1][kind] == keras_resnet.complexity(model).multiply_adds
    maps = keras_resnet.feature_maps(networks[KINDS[0]])
    assert jax[1]["maps"] == {name: list(value.shape) for name, value in maps.items()}
