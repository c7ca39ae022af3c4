"""The same weight files give the same outputs on JAX, in both data formats, without TensorFlow."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.zoo_networks import ALL_SMALL, images, randomize, relative_difference

import keras_resnet
from keras_resnet import build_resnet, complexity, feature_maps
from keras_resnet.weights import save_weights

ROOT = Path(keras_resnet.__file__).parents[1]
SHAPE = (33, 35, 3)
# Every block, option and stem, but not all combinations: JAX compiles each shape of each operation.
KINDS = [
    "basic 1x1 A cifar",
    "basic 1x1 None imagenet",
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


def on_jax(networks, folder):
    """Returns the outputs of a process with the JAX backend for these weights, and a few facts."""
    for index, model in enumerate(networks.values()):
        save_weights(model, folder / f"{index}.weights.h5")
    np.save(folder / "batch.npy", images(2, *SHAPE))
    kinds = {kind: dataclasses.asdict(ALL_SMALL[kind]) for kind in networks}
    (folder / "kinds.json").write_text(json.dumps(kinds))
    environment = {**os.environ, "KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles ten times as fast
    done = subprocess.run(
        [sys.executable, "-c", ON_JAX, str(folder)], cwd=ROOT, env=environment, text=True, capture_output=True
    )
    assert done.returncode == 0, done.stderr
    return np.load(folder / "results.npz"), json.loads(done.stdout.splitlines()[-1])


def check_training(model, results):
    """TensorFlow runs our fused batch normalization here, JAX runs Keras'."""
    before, mean, variance = results["moved"]
    assert relative_difference(results["training"], model(images(2, *SHAPE), training=True)) < 1e-5
    bn = model.get_layer("conv1_bn")
    assert np.abs(mean - before).max() > 1e-3
    assert relative_difference(mean, bn.moving_mean) < 1e-5
    assert relative_difference(variance, bn.moving_variance) < 1e-5


@pytest.mark.slow
def test_jax_equals_tensorflow(tmp_path):
    """A single test, because the process is slow and parallel test runners would start it again."""
    networks = {
        kind: randomize(build_resnet(ALL_SMALL[kind], input_shape=SHAPE, classifier_activation=None))
        for kind in KINDS
    }
    results, facts = on_jax(networks, tmp_path)
    assert facts["modules"] == []
    for index, (kind, model) in enumerate(networks.items()):
        expected = model(images(2, *SHAPE))
        for data_format in ("channels_last", "channels_first"):
            assert relative_difference(results[f"{index} {data_format}"], expected) < 1e-5, (
                kind,
                data_format,
            )
        assert facts[kind] == complexity(model).multiply_adds
    maps = feature_maps(networks[KINDS[0]])
    assert facts["maps"] == {name: list(value.shape) for name, value in maps.items()}
    check_training(networks[KINDS[0]], results)
