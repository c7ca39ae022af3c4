"""Saved `.keras` files need no package but Keras, and in this package they have the fused kernel again."""

import collections
import functools
import inspect
import json
import os
import subprocess
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import train_keras_files
from helpers.zoo_networks import ALL_SMALL, images, randomize, relative_difference

from keras_resnet import InputError, build_resnet, load_model
from keras_resnet.models.layers import BatchNormalization

SHAPE = (32, 32, 3)
CIFAR = ALL_SMALL["basic 1x1 A cifar"]
SAVED_STEPS = 7


def build_with_own_head():
    """A compiled model of the user's own, with a network inside."""
    encoder = build_resnet(ALL_SMALL["bottleneck 3x3 C cifar"], include_top=False, pooling="avg")
    head = [keras.layers.Dense(8, "relu", name="hidden"), keras.layers.Dense(5, "softmax", name="classes")]
    model = keras.Sequential([keras.Input(SHAPE), randomize(encoder), *head])
    model.compile(keras.optimizers.SGD(0.01, momentum=0.9), "sparse_categorical_crossentropy")
    model.optimizer.build(model.trainable_variables)
    model.optimizer.iterations.assign(SAVED_STEPS)
    return model


@pytest.fixture(scope="module")
def networks():
    """The kinds of networks that differ most, by name."""
    configs = {"cifar": CIFAR, "d": ALL_SMALL["d bottleneck"], "v2": ALL_SMALL["v2"]}
    built = {name: randomize(build_resnet(config)) for name, config in configs.items()}
    return {**built, "head": build_with_own_head()}


@pytest.fixture(scope="module")
def folder(networks, tmp_path_factory):
    """The folder of their files, with a batch of images."""
    folder = tmp_path_factory.mktemp("keras")
    for name, model in networks.items():
        model.save(folder / f"{name}.keras")
    np.save(folder / "batch.npy", images(4, *SHAPE))
    return folder


def read_config(path):
    with zipfile.ZipFile(path) as file:
        return json.loads(file.read("config.json"))


def modules_in(config):
    """The modules of all classes and functions that a config names."""
    if isinstance(config, list):
        return set().union(*map(modules_in, config))
    if not isinstance(config, dict):
        return set()
    return {config.get("module")}.union(*map(modules_in, config.values()))


def test_files_name_only_what_keras_has(networks, folder):
    for name in networks:
        found = modules_in(read_config(folder / f"{name}.keras")) - {None, "builtins"}
        assert "keras.layers" in found
        assert {module.split(".")[0] for module in found} == {"keras"}, found


@pytest.fixture(scope="module")
def expected(networks, folder):
    """What training gives in this process, on the fused kernel."""
    batch = np.load(folder / "batch.npy")
    return {name: train_keras_files.train(load_model(folder / f"{name}.keras"), batch) for name in networks}


@pytest.mark.xdist_group("keras_files")
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param("tensorflow", marks=pytest.mark.slow),
        pytest.param("jax", marks=pytest.mark.slow),
        pytest.param("torch", marks=pytest.mark.torch),
    ],
)
def test_models_open_and_train_without_this_package(backend, folder, expected):
    environment = {**os.environ, "KERAS_BACKEND": backend, "JAX_PLATFORMS": "cpu"}
    if backend == "jax":
        environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # compiles ten times as fast
    command = [sys.executable, train_keras_files.__file__, folder]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    for name, ours in expected.items():
        assert abs(ours["losses"][-1] / ours["losses"][0] - 1) > 1e-2  # it trained
        with np.load(folder / f"{name}-{backend}.npz") as theirs:
            assert relative_difference(theirs["before"], ours["before"]) < 1e-5
            assert relative_difference(theirs["losses"], ours["losses"]) < 1e-4
            assert relative_difference(theirs["after"], ours["after"]) < 1e-3


def normalizations(model):
    return [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]


def types_of_normalizations(model):
    return {type(layer) for layer in normalizations(model)}


@pytest.mark.parametrize("name", ["cifar", "head"])
def test_load_model_gives_the_same_model(name, networks, folder):
    """Bit for bit: with the fused kernel, which rounds differently from Keras' layer."""
    model, again = networks[name], load_model(folder / f"{name}.keras")
    assert types_of_normalizations(again) == {BatchNormalization}
    batch = np.load(folder / "batch.npy")
    np.testing.assert_array_equal(again(batch), model(batch))
    assert again.compiled == model.compiled
    assert not again.compiled or int(again.optimizer.iterations) == SAVED_STEPS


def test_a_model_that_was_saved_elsewhere_has_the_fused_kernel_again(networks, folder, tmp_path):
    elsewhere = keras.models.load_model(folder / "head.keras")
    assert types_of_normalizations(elsewhere) == {keras.layers.BatchNormalization}
    elsewhere.save(tmp_path / "back.keras")
    back = load_model(tmp_path / "back.keras", compile=False)
    assert types_of_normalizations(back) == {BatchNormalization}
    assert not back.compiled
    batch = np.load(folder / "batch.npy")
    np.testing.assert_array_equal(back(batch), networks["head"](batch))


def test_a_model_in_a_wrapper_has_the_fused_kernel_again(networks, tmp_path):
    videos = keras.Input((2, *SHAPE))
    per_frame = keras.layers.TimeDistributed(networks["cifar"])(videos)
    keras.Model(videos, per_frame).save(tmp_path / "videos.keras")
    assert types_of_normalizations(load_model(tmp_path / "videos.keras")) == {BatchNormalization}


def test_a_file_of_an_earlier_version_opens(networks, folder, tmp_path):
    """Its config names our layer, by module and registered name."""
    config = read_config(folder / "cifar.keras")
    layers = [layer for layer in config["config"]["layers"] if layer["class_name"] == "BatchNormalization"]
    for layer in layers:
        layer["module"] = "keras_resnet.models.layers"
        layer["registered_name"] = "keras_resnet>BatchNormalization"
    assert layers
    path = tmp_path / "old.keras"
    with zipfile.ZipFile(folder / "cifar.keras") as new, zipfile.ZipFile(path, "w") as old:
        for name in new.namelist():
            old.writestr(name, json.dumps(config) if name == "config.json" else new.read(name))
    again = load_model(path)
    assert types_of_normalizations(again) == {BatchNormalization}
    batch = np.load(folder / "batch.npy")
    np.testing.assert_array_equal(again(batch), networks["cifar"](batch))


ORIGINS = {
    "built": lambda path: build_resnet(CIFAR),
    "cloned": lambda path: keras.models.clone_model(build_resnet(CIFAR)),
    "loaded": load_model,
}


@pytest.mark.parametrize("origin", ORIGINS)
def test_fit_runs_the_fused_kernel(origin, folder):
    model = ORIGINS[origin](folder / "cifar.keras")
    model.compile(keras.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    batch = tf.TensorSpec((4, *SHAPE)), tf.TensorSpec((4,), "int32")
    graph = tf.function(model.train_step).get_concrete_function(batch).graph
    counts = collections.Counter(operation.type for operation in graph.get_operations())
    count = len(normalizations(model))
    assert counts["FusedBatchNormV3"] == counts["FusedBatchNormGradV3"] == count > 0


def test_a_file_may_be_deeper_than_the_stack(tmp_path, request):
    x = inputs = keras.Input((2,))
    for _ in range(250):
        x = keras.layers.Activation("relu")(x)
    keras.Model(inputs, x).save(tmp_path / "deep.keras")
    request.addfinalizer(functools.partial(sys.setrecursionlimit, sys.getrecursionlimit()))
    sys.setrecursionlimit(len(inspect.stack()) + 200)
    with pytest.raises(RecursionError):
        keras.models.load_model(tmp_path / "deep.keras")
    assert len(load_model(tmp_path / "deep.keras").layers) == 251


def test_files_that_are_refused(tmp_path):
    unsafe, text = tmp_path / "unsafe.keras", tmp_path / "text.keras"
    keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x)]).save(unsafe)
    text.write_text("text")
    for path, message in (
        (unsafe, r"unsafe\.keras cannot be loaded in safe mode: .*Lambda"),
        (text, r"text\.keras cannot be loaded in safe mode: "),
        (tmp_path / "missing.keras", r"there is no .*missing\.keras"),
        (tmp_path / "model.weights.h5", r"ends with \.keras, not from .*model\.weights\.h5"),
    ):
        with pytest.raises(InputError, match=message):
            load_model(path)
