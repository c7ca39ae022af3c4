"""Gradient norms against finite differences and by hand; verdicts from synthetic ones."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.made_up import outcome

from experiments import page
from experiments.claims import FAILS, HOLDS, OPEN
from experiments.networks import initial_network
from experiments.runs import RunFailed
from experiments.settings import SETTINGS, get_setting
from experiments.studies.gradients import (
    EXPERIMENT,
    NETWORKS,
    Moment,
    claims,
    decay,
    layer_norms,
)
from keras_resnet import build_model
from keras_resnet.classification import ClassificationRecipe, train
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import RunOptions, checkpoints
from keras_resnet.weights import ModelSpec, save_weights

SMALL = {"stage_depths": (1, 1, 1), "stage_filters": (2, 3, 4)}
DIGITS = ClassificationRecipe(
    "cifar_resnet20", "digits", {**SMALL}, image_size=8, batch_size=64, steps=1, learning_rate=1e-30
)


def network(name="cifar_resnet20", **overrides):
    keras.utils.set_random_seed(5)
    return build_model(
        name, input_shape=(8, 8, 3), classes=3, classifier_activation=None, **SMALL, **overrides
    )


def batch(count=6):
    random = np.random.default_rng(2)
    return random.normal(size=(count, 8, 8, 3)).astype("float32"), random.integers(0, 3, count)


def test_the_first_layer_by_hand():
    """One convolution and a classifier, against the gradient computed in NumPy."""
    inputs = keras.Input((4, 4, 2))
    x = keras.layers.Conv2D(3, 1, name="only")(inputs)
    outputs = keras.layers.Dense(5)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, outputs)
    random = np.random.default_rng(0)
    images, labels = random.normal(size=(7, 4, 4, 2)).astype("float32"), random.integers(0, 5, 7)
    kernel, bias = (w.astype("float64") for w in model.get_layer("only").get_weights())
    head, shift = (w.astype("float64") for w in model.layers[-1].get_weights())
    means = images.mean((1, 2))  # the convolution is linear, so it may come after the pooling
    logits = (means @ kernel[0, 0] + bias) @ head + shift
    wrong = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True) - np.eye(5)[labels]
    gradient = means.T @ wrong @ head.T / 7
    assert layer_norms(model, images, labels) == {
        "only": pytest.approx(np.sqrt(np.square(gradient).sum()), rel=1e-5)
    }


@pytest.mark.parametrize("batch_norm", [True, False])
def test_norms_agree_with_finite_differences(batch_norm):
    """A step along the gradient changes the loss, as training computes it, by its squared norm."""
    model, (images, labels) = network(batch_norm=batch_norm), batch()
    norms = layer_norms(model, images, labels)

    def loss():
        logits = model(images, training=True).numpy().astype("float64")
        return np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(len(labels)), labels])

    for name in ("conv1_conv", "conv3_block1_2_conv"):
        kernel = model.get_layer(name).kernel
        kept = kernel.numpy()
        with tf.GradientTape() as tape:
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, model(images, training=True))
            mean = tf.reduce_mean(losses)
        direction = tape.gradient(mean, kernel.value).numpy()
        direction /= np.sqrt(np.square(direction).sum())
        values = []
        for step in (2e-3, -2e-3):
            kernel.assign(kept + step * direction)
            values.append(loss())
        kernel.assign(kept)
        assert (values[0] - values[1]) / 4e-3 == pytest.approx(norms[name], rel=0.02)


def test_every_convolution_in_order():
    assert list(layer_norms(network(), *batch())) == ["conv1_conv"] + [
        f"conv{stage}_block1_{number}_conv" for stage in (2, 3, 4) for number in (1, 2)
    ]


def test_the_model_stays_as_it_is():
    model = network()
    before = model.get_weights()
    first = layer_norms(model, *batch())
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)
    assert layer_norms(model, *batch()) == first


def test_normalization_takes_the_batchs_statistics():
    model = network()
    before = layer_norms(model, *batch())
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.full(layer.gamma.shape, 100.0))
    assert layer_norms(model, *batch()) == before


@pytest.mark.slow
def test_initial_network_is_that_of_the_training(tmp_path):
    recipe = DIGITS.replace(model_overrides={**SMALL, "batch_norm": False})
    train(recipe, tmp_path, RunOptions(strategy="one_device", seed=3))
    (path,) = checkpoints.list_checkpoints(RunFolder(tmp_path).checkpoints)
    arrays = checkpoints.load(path).arrays
    for variable in initial_network(recipe, 3).trainable_variables:
        # At a rate of 1e-30 a step changes nothing that float32 can hold, but what is zero.
        np.testing.assert_allclose(arrays[f"weights/{variable.path}"], variable.numpy(), rtol=0, atol=1e-25)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1.0] * 9, 0),
        ([0.01, 0.1, 1, 5, 5, 5, 10, 1, 0.1], -1),
        ([100, 100, 7, 1, 1], 2),  # a third of five is one layer
        ([3.0], 0),
        ([0, 1, 1], -30),
        ([np.inf, 1, 1], 30),
        ([np.nan, 1, 1], 30),
    ],
)
def test_decay(norms, expected):
    assert decay(norms) == pytest.approx(expected, abs=1e-9)


def test_the_plan_is_short_at_one_rate_and_keeps_every_epoch():
    setting = get_setting("digits", "minutes")
    runs = EXPERIMENT.plan(setting)
    assert len(set(runs)) == len(runs) == 4 * setting.seeds
    for run in runs:
        assert run.recipe.epochs <= run.keep
        assert run.recipe.schedule == "constant"
        assert run.recipe.learning_rate == setting.recipe.learning_rate
    models = {(run.recipe.model, run.recipe.model_overrides.get("batch_norm", True)) for run in runs}
    deepest = setting.depths[-1]
    assert models == {(f"cifar_{kind}{deepest}", bn) for kind, bn in NETWORKS}


@pytest.mark.parametrize("key", SETTINGS)
def test_no_run_is_longer_than_ten_epochs(key):
    for run in EXPERIMENT.plan(SETTINGS[key]):
        assert run.recipe.steps is None
        assert 1 < run.recipe.epochs <= run.keep


def made_up(decays, errors):
    """Three seeds; the first layers' norms fall to the given power of ten at the second of three moments."""
    measured, found = {}, {}
    for network_, power, error in zip(NETWORKS, decays, errors, strict=True):
        rows = []
        for shift in (-0.1, 0.0, 0.1):
            worst = [10.0 ** (power + shift)] * 2 + [1.0] * 4
            rows.append([Moment(0, [1.0] * 6), Moment(1, worst), Moment(2, [1.0] * 6)])
        measured[network_] = rows
        found[network_] = [error - 1, error, error + 1]
    return measured, found


@pytest.mark.parametrize(
    ("decays", "errors", "verdicts"),
    [
        # plain with, without, residual with, without batch normalization
        ((-0.5, -4, 0, 0), (50, 90, 5, 90), [HOLDS, HOLDS, HOLDS, HOLDS, HOLDS]),
        ((-0.5, -0.2, 0, 0), (50, 40, 5, 90), [HOLDS, HOLDS, FAILS, FAILS, FAILS]),
        ((-3, -4, 0, 0), (50, 90, 5, 90), [FAILS, FAILS, HOLDS, HOLDS, HOLDS]),
        ((-0.5, -4, 0, 0), (5, 90, 50, 90), [HOLDS, FAILS, HOLDS, HOLDS, HOLDS]),
        ((-0.95, -1.05, 0, 0), (50, 50.5, 49.5, 90), [OPEN, OPEN, OPEN, OPEN, OPEN]),
    ],
)
def test_verdicts(decays, errors, verdicts):
    assert [claim.verdict for claim in claims(56, *made_up(decays, errors))] == verdicts


def test_a_network_that_nothing_gets_through_is_neither_healthy_nor_a_matter_of_the_way_back():
    measured, errors = made_up((-0.5, -0.2, 0, 0), (50, 90, 5, 90))
    for network_ in (("plain", True), ("plain", False)):
        measured[network_] = [[*row, Moment(3, [0.0] * 6)] for row in measured[network_]]
    healthy, _, vanish, _, _ = claims(56, measured, errors)
    assert (healthy.verdict, vanish.verdict) == (FAILS, FAILS)
    assert "0.63" in vanish.ours
    assert "in 3 of 3 runs no layer gets any gradient at some moment" in vanish.ours


def test_what_was_measured_is_said():
    found = claims(56, *made_up((-2, -4, 0, 0), (50, 90, 5, 90)))
    assert "0.01 ×/÷ 1.3" in found[0].ours
    assert "0.0001" in found[2].ours
    assert "0.0001 ×/÷ 1.3 against 0.01" in found[3].ours


def test_nothing_is_decided_without_a_measurement():
    nothing = {network_: [] for network_ in NETWORKS}
    found = claims(56, nothing, nothing)
    assert {claim.verdict for claim in found} == {OPEN}
    assert "not measured" in found[0].ours


@pytest.fixture
def untrained(tmp_path):
    """A setting, and outcomes whose checkpoints hold the first weights, scaled by 1, 2 and 3.

    The residual networks without normalization diverge at once.
    """
    setting = get_setting("digits", "minutes")
    recipe = setting.recipe.replace(model_overrides=SMALL)
    setting = dataclasses.replace(setting, recipe=recipe, seeds=2)
    outcomes = {}
    for run in EXPERIMENT.plan(setting):
        found = outcome(run, tmp_path, [90.0, 80.0, 70.0])
        if "resnet" in run.name and "no_bn" in run.name:
            found = outcome(
                run, tmp_path, [], failure="loss or gradient is not finite at step 2; no checkpoint"
            )
        else:
            model = initial_network(run.recipe, run.seed)
            weights = {f"weights/{variable.path}": variable.numpy() for variable in model.variables}
            for row in found.history:
                arrays = {name: row["epoch"] * value for name, value in weights.items()}
                checkpoint = checkpoints.Checkpoint(int(row["step"]), arrays, {})
                checkpoints.save(found.folder.checkpoints, checkpoint, run.keep)
            spec = ModelSpec.default(
                run.recipe.model, overrides=run.recipe.model_overrides, input_shape=(8, 8, 3)
            )
            save_weights(model, found.folder.weights, spec)
        outcomes[run] = found
    return setting, outcomes


@pytest.mark.slow
def test_a_report_of_untrained_networks(untrained, tmp_path):
    section = EXPERIMENT.section(*untrained)
    table = next(part for part in section.body if isinstance(part, page.Table))
    rows = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    assert list(rows) == list(NETWORKS.values())
    assert [row["diverged"] for row in rows.values()] == ["0 of 2", "0 of 2", "0 of 2", "2 of 2"]
    assert rows["plain with BN"]["training error, %"] == "70.00 ± 0.00"
    assert rows["ResNet without BN"]["training error, %"] == "90.00 ± 0.00"
    assert any("gradients-cifar_resnet56-no_bn-seed1" in part for part in section.body if type(part) is str)
    page.write_page(tmp_path / "report.html", "Title", "Lead", [section], {})


def test_a_damaged_checkpoint_ends_in_one_line(untrained, tmp_path):
    setting, outcomes = untrained
    run = next(run for run in outcomes if run.name == "gradients-cifar_plain56-seed1")
    checkpoints.list_checkpoints(outcomes[run].folder.checkpoints)[1].write_bytes(b"")
    with pytest.raises(
        RunFailed, match=r"gradients-cifar_plain56-seed1: .*delete its folder to train it again"
    ):
        EXPERIMENT.section(setting, outcomes)


def test_where_every_run_diverged_nothing_is_decided(untrained, tmp_path):
    setting, outcomes = untrained
    lost = {run: outcome(run, tmp_path / "lost", [], failure="loss is not finite") for run in outcomes}
    section = EXPERIMENT.section(setting, lost)
    assert section.claims[0].verdict == OPEN
    assert not any(isinstance(part, page.Picture) for part in section.body)
    page.write_page(tmp_path / "report.html", "Title", "Lead", [section], {})
