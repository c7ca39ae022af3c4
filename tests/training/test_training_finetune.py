"""Runs that start from pretrained weights: transfer, frozen stages, resuming without the file."""

import json

import numpy as np
import pytest
from helpers.zoo_networks import TINY, load_network

from keras_resnet import InputError, build_model
from keras_resnet.classification import train
from keras_resnet.data import evaluation_batches, open_dataset
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.weights import ModelSpec, PretrainedWeights, read_spec, save_weights
from keras_resnet.weights import weight_file as pretrained

THEIRS = Normalization((100.0, 110.0, 120.0), (50.0, 60.0, 70.0))


def write_weights(path, normalization=THEIRS, size=16, described=True):
    """A network of 7 classes and 3 channels whose every variable differs from its initial value."""
    preprocessing = Preprocessing(size, None, "bilinear", normalization)
    spec = ModelSpec("cifar_resnet20", TINY, 7, (size, size, 3), preprocessing)
    model = spec.build()
    random = np.random.default_rng(3)
    for variable in model.variables:
        variable.assign(variable + random.uniform(-0.05, 0.05, variable.shape))
    return str(save_weights(model, path, spec if described else None))


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "theirs.weights.h5")


def variables_of(path):
    model = load_network(path)
    return {variable.path: variable.numpy() for variable in model.variables}


def test_frozen_stages_are_those_of_the_file(tmp_path, tiny, run_options, weights):
    recipe = tiny.replace(weights=weights, freeze="C2", normalization="weights", epochs=1)
    train(recipe, tmp_path / "run", run_options(strategy="mirrored", precision="bfloat16"))
    before, after = variables_of(weights), variables_of(tmp_path / "run" / "model.weights.h5")
    assert after["predictions/kernel"].shape == (8, 10)  # fresh: the file has 7 classes
    same = {name for name in after if np.array_equal(before[name], after[name])}
    assert same == {name for name in after if name.startswith(("conv1", "conv2"))}
    assert read_spec(tmp_path / "run" / "model.weights.h5").normalization == THEIRS
    recorded = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert (recorded["weights"], recorded["freeze"]) == (weights, "C2")


def test_a_linear_probe_learns_from_weights_that_do_not_say_how_images_are_prepared(
    tmp_path, tiny, run_options, weights
):
    bare = save_weights(load_network(weights), tmp_path / "bare.weights.h5")
    recipe = tiny.replace(weights=str(bare), freeze="C3", normalization="per_channel")
    train(recipe, tmp_path / "run", run_options(sync_batch_norm=True))
    rows = (tmp_path / "run" / "history.csv").read_text().splitlines()
    losses = [float(row.split(",")[3]) for row in rows[1:]]
    assert losses[-1] < losses[0]
    before, after = variables_of(weights), variables_of(tmp_path / "run" / "model.weights.h5")
    same = {name for name in after if np.array_equal(before[name], after[name])}
    assert same == {name for name in after if name.startswith("conv")}
    # Other weights or stages are another run.
    with pytest.raises(InputError, match=r"holds another run \(freeze 'C3' there, 'C2' now\)"):
        train(recipe.replace(freeze="C2"), tmp_path / "run", run_options())
    with pytest.raises(InputError, match=r"holds another run \(weights '.*' there, None now\)"):
        train(recipe.replace(weights=None), tmp_path / "run", run_options())


@pytest.mark.slow
def test_resuming_needs_no_pretrained_weights(tmp_path, tiny, run_options, weights, break_off):
    """Not even for the normalization; the run ends with the same bytes."""
    recipe = tiny.replace(weights=weights, freeze="C2", normalization="weights", epochs=1)
    train(recipe, tmp_path / "whole", run_options())
    with break_off(3):
        train(recipe, tmp_path / "run", run_options(checkpoint_every=2))
    write_weights(weights, Normalization((1.0,) * 3, (2.0,) * 3))
    with break_off(1):
        train(recipe, tmp_path / "run", run_options(checkpoint_every=1))
    (tmp_path / "theirs.weights.h5").unlink()
    train(recipe, tmp_path / "run", run_options())
    whole, broken = (tmp_path / name / "model.weights.h5" for name in ("whole", "run"))
    assert broken.read_bytes() == whole.read_bytes()


def test_one_channel_from_three(tmp_path, tiny, run_options, weights):
    recipe = tiny.replace(weights=weights, freeze="C1", normalization="weights", channels=1, steps=1)
    train(recipe, tmp_path / "run", run_options())
    spec = read_spec(tmp_path / "run" / "model.weights.h5")
    assert spec.normalization == Normalization((110.0,), (60.0,))
    name = "conv1_conv/kernel"
    adapted = variables_of(tmp_path / "run" / "model.weights.h5")[name]
    np.testing.assert_array_equal(adapted, variables_of(weights)[name].sum(2, keepdims=True))


@pytest.fixture
def entry(monkeypatch, weights):
    """An entry "theirs" of cifar_resnet20 whose file need not be downloaded."""
    row = PretrainedWeights(
        name="theirs",
        model="cifar_resnet20",
        url="https://example.org/theirs.weights.h5",
        digest="sha256:0123456789abcdef",
        top1=90.0,
        top5=99.0,
        metrics_source="this test",
        license="MIT",
        preprocessing=Preprocessing(32, None, "bilinear", THEIRS),
    )
    monkeypatch.setattr("keras_resnet.weights.registry.ENTRIES", (row,))
    monkeypatch.setattr(pretrained, "fetch", lambda url, digest: {row.url: weights_of(row, weights)}[url])
    return row


def weights_of(row, path):
    """The entry's file: of the zoo's own network, not of the tiny one."""
    spec = ModelSpec(row.model, {}, 7, (32, 32, 3), row.preprocessing)
    return save_weights(spec.build(), path, spec)


def test_an_entry_by_its_name(tmp_path, tiny, run_options, entry):
    recipe = tiny.replace(model_overrides={}, weights="theirs", freeze="C4", normalization="weights", steps=1)
    train(recipe, tmp_path / "run", run_options())
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["weights"] == "theirs"
    before = variables_of(tmp_path / "theirs.weights.h5")
    after = variables_of(tmp_path / "run" / "model.weights.h5")
    np.testing.assert_array_equal(before["conv3_block2_1_conv/kernel"], after["conv3_block2_1_conv/kernel"])
    assert read_spec(tmp_path / "run" / "model.weights.h5").normalization == THEIRS


def test_a_misspelt_entry_names_the_right_one(tmp_path, tiny, run_options, entry):
    recipe = tiny.replace(model_overrides={}, weights="thiers", normalization="weights")
    with pytest.raises(InputError, match="theirs"):
        train(recipe, tmp_path / "run", run_options())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"described": False}, "does not say how its images are prepared; set another normalization"),
        (
            {"normalization": Normalization(np.zeros((8, 8, 3)).tolist(), (1.0,) * 3), "size": 8},
            "has a mean image of 8x8x3, the network an input of 16x16x3; set another normalization",
        ),
    ],
)
def test_weights_without_a_normalization_for_this_network(tmp_path, tiny, run_options, arguments, message):
    weights = write_weights(tmp_path / "theirs.weights.h5", **arguments)
    with pytest.raises(InputError) as caught:
        train(tiny.replace(weights=weights, normalization="weights"), tmp_path / "run", run_options())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "resize", "normalization"),
    [
        (
            {"augmentation": "pad_crop_flip", "normalization": "imagenet", "channels": 1},
            None,
            Normalization.imagenet().for_channels(1),
        ),
        pytest.param({"augmentation": "scale_crop_flip"}, 32, None, marks=pytest.mark.slow),
    ],
    ids=["one channel", "resized"],
)
def test_the_saved_files_model_prepares_images_as_the_evaluation_did(
    tmp_path, tiny, data_dir, run_options, changes, resize, normalization
):
    recipe = tiny.replace(image_size=28, steps=1, **changes)
    train(recipe, tmp_path, run_options())
    file = tmp_path / "model.weights.h5"
    spec = read_spec(file)
    assert (spec.preprocessing.resize, spec.preprocessing.interpolation) == (resize, "bilinear")
    assert normalization in (None, spec.normalization)
    shape = (28, 28, recipe.channels)
    model = build_model("cifar_resnet20", input_shape=shape, classes=10, weights=str(file), **TINY)
    split = open_dataset("digits", data_dir).split("test")
    images = next(iter(evaluation_batches(split, spec.preprocessing, global_batch=64)))["images"].numpy()
    prepared = model.preprocess(split.images[:64])
    assert prepared.shape == images.shape
    # Pillow's passes end in whole levels; the evaluation's resizing does not round.
    levels = np.abs(prepared - images) * np.asarray(spec.normalization.std)
    assert levels.max() < 1.01
