"""The same weight files give the same outputs on torch, in both data formats, without TensorFlow."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.zoo_networks import ALL_SMALL, images, randomize, relative_difference

import keras_resnet
from keras_resnet import build_resnet, complexity, feature_maps
from keras_resnet.weights import load_weights, save_weights

pytestmark = pytest.mark.torch

ROOT = Path(keras_resnet.__file__).parents[1]
SHAPE = (33, 35, 3)
ON_TORCH = """
import json, pathlib, sys
import keras
import numpy as np
from keras_resnet import ResNetConfig, build_resnet, complexity, feature_maps
from keras_resnet.weights import save_weights

assert keras.backend.backend() == "torch"
folder = pathlib.Path(sys.argv[1])
batch = np.load(folder / "batch.npy")
number = keras.ops.convert_to_numpy
results, facts = {}, {}
for index, (kind, fields) in enumerate(json.loads((folder / "kinds.json").read_text()).items()):
    config, weights = ResNetConfig(**fields), folder / f"{index}.weights.h5"
    options = {"weights": weights, "classifier_activation": None}
    model = build_resnet(config, input_shape=batch.shape[1:], **options)
    save_weights(model, folder / f"{index}-torch.weights.h5")
    facts[kind] = complexity(model).multiply_adds
    outputs = {"channels_last": model.output, **feature_maps(model)}
    for name, value in keras.Model(model.input, outputs)(batch).items():
        results[f"{index} {name}"] = number(value)
    keras.config.set_image_data_format("channels_first")
    first = np.moveaxis(batch, -1, 1)
    model = build_resnet(config, input_shape=first.shape[1:], **options)
    results[f"{index} channels_first"] = number(model(first))
    keras.config.set_image_data_format("channels_last")
    if index == 0:
        model = build_resnet(config, input_shape=batch.shape[1:], **options)
        bn = model.get_layer("conv1_bn")
        before = number(bn.moving_mean)
        results["training"] = number(model(batch, training=True))
        results["moved"] = np.stack([before, number(bn.moving_mean), number(bn.moving_variance)])
facts["modules"] = sorted({"tensorflow", "tensorflow_datasets"} & set(sys.modules))
np.savez(folder / "results.npz", **results)
print(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def networks():
    """Every block, shortcut and stem, with statistics that no error can hide behind."""
    options = {"input_shape": SHAPE, "classifier_activation": None}
    return {kind: randomize(build_resnet(config, **options)) for kind, config in ALL_SMALL.items()}


@pytest.fixture(scope="module")
def on_torch(networks, tmp_path_factory):
    """What a process with the torch backend computes with their weights: its folder, outputs, facts."""
    folder = tmp_path_factory.mktemp("torch")
    for index, model in enumerate(networks.values()):
        save_weights(model, folder / f"{index}.weights.h5")
    np.save(folder / "batch.npy", images(2, *SHAPE))
    kinds = {kind: dataclasses.asdict(ALL_SMALL[kind]) for kind in networks}
    (folder / "kinds.json").write_text(json.dumps(kinds))
    environment = {**os.environ, "KERAS_BACKEND": "torch"}
    done = subprocess.run(
        [sys.executable, "-c", ON_TORCH, str(folder)],
        cwd=ROOT,
        env=environment,
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    return folder, np.load(folder / "results.npz"), json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_logits(data_format, networks, on_torch):
    _, results, _ = on_torch
    for index, (kind, model) in enumerate(networks.items()):
        expected = model(images(2, *SHAPE))
        assert relative_difference(results[f"{index} {data_format}"], expected) < 1e-5, kind


def test_feature_maps(networks, on_torch):
    _, results, _ = on_torch
    for index, (kind, model) in enumerate(networks.items()):
        for name, expected in _maps(model).items():
            assert relative_difference(results[f"{index} {name}"], expected) < 1e-5, (kind, name)


def _maps(model):
    return keras.Model(model.input, feature_maps(model))(images(2, *SHAPE))


def test_multiply_adds(networks, on_torch):
    _, _, facts = on_torch
    assert {kind: facts[kind] for kind in networks} == {
        kind: complexity(model).multiply_adds for kind, model in networks.items()
    }


def test_tensorflow_is_not_imported(on_torch):
    assert on_torch[2]["modules"] == []


def test_saved_weights_come_back(networks, on_torch):
    """What torch wrote is, number for number, what TensorFlow wrote."""
    folder, _, _ = on_torch
    for index, (kind, model) in enumerate(networks.items()):
        before = model.get_weights()
        for weight in model.weights:
            weight.assign(weight * 0)
        load_weights(model, folder / f"{index}-torch.weights.h5")
        assert all(map(np.array_equal, before, model.get_weights())), kind


def test_training_step_of_the_statistics(networks, on_torch):
    _, results, _ = on_torch
    model = next(iter(networks.values()))
    bn = model.get_layer("conv1_bn")
    before, mean, variance = results["moved"]
    weights = model.get_weights()
    assert relative_difference(results["training"], model(images(2, *SHAPE), training=True)) < 1e-5
    assert np.abs(mean - before).max() > 1e-3
    assert relative_difference(mean, bn.moving_mean) < 1e-5
    assert relative_difference(variance, bn.moving_variance) < 1e-5
    model.set_weights(weights)
