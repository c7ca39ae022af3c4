"""The responses of layers whose statistics are known, and verdicts from synthetic ones."""

import dataclasses

import keras
import numpy as np
import pytest
from helpers.made_up import outcome

from experiments import page
from experiments.claims import FAILS, HOLDS, OPEN
from experiments.settings import get_setting
from experiments.studies.layer_responses import EXPERIMENT, claims, responses
from keras_resnet import InputError, build_model, build_resnet
from keras_resnet.models.config import ResNetConfig
from keras_resnet.weights import ModelSpec, save_weights

SMALL = {"stage_depths": (1, 2), "stage_filters": (4, 6), "input_shape": (8, 8, 3), "classes": 3}
NAMES = ["conv1_bn", "conv2_block1_1_bn", "conv2_block1_2_bn"] + [
    f"conv3_block{block}_{number}_bn" for block in (1, 2) for number in (1, 2)
]


def images(count, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(count, size, size, 3)).astype("float32")


def pass_on(model, name, scale=1.0):
    """Gives a convolution a kernel that takes its first input channel, and a normalization that scales."""
    kernel = model.get_layer(f"{name}_conv").kernel
    values = np.zeros(kernel.shape, "float32")
    values[1, 1, 0] = 1
    kernel.assign(values)
    layer = model.get_layer(f"{name}_bn")
    layer.moving_variance.assign(np.full(layer.gamma.shape, 1 - layer.epsilon))
    layer.gamma.assign(np.full(layer.gamma.shape, scale))
    return layer


def test_layers_and_their_order():
    for name in ("cifar_plain20", "cifar_resnet20"):
        assert list(responses(build_model(name, **SMALL), images(2))) == NAMES


def test_only_a_bottlenecks_3x3_responds():
    config = ResNetConfig("bottleneck", (1, 1), (4, 6), "cifar", "B")
    found = responses(build_resnet(config, input_shape=(8, 8, 3)), images(2))
    assert list(found) == ["conv1_bn", "conv2_block1_2_bn", "conv3_block1_2_bn"]


@pytest.mark.parametrize("count", [1, 50, 61])  # 50 go at once
def test_responses_of_known_kernels(count):
    """The response of a layer that scales one channel is that channel's scaled deviation, after ReLUs."""
    model = build_model("cifar_plain20", **SMALL)
    pass_on(model, "conv1", scale=3.0)
    pass_on(model, "conv2_block1_1", scale=0.5)
    shift = pass_on(model, "conv2_block1_2", scale=0.0).beta
    shift.assign([1, 2, 3, 6])
    batch = images(count)
    found = responses(model, batch)
    first = 3 * batch[..., 0].astype("float64")
    assert found["conv1_bn"] == pytest.approx(first.std(), rel=1e-5)
    # Before the ReLU: the ReLU's own deviation is another.
    assert found["conv2_block1_1_bn"] == pytest.approx(0.5 * np.maximum(first, 0).std(), rel=1e-5)
    # Constant channels: what remains is that they differ from each other.
    assert found["conv2_block1_2_bn"] == pytest.approx(np.std([1, 2, 3, 6]), rel=1e-5)


def test_a_residual_branch_is_measured_before_the_addition():
    model = build_model("cifar_resnet20", **SMALL)
    layer = model.get_layer("conv2_block1_2_bn")
    layer.gamma.assign(np.zeros(layer.gamma.shape))
    assert responses(model, images(5))["conv2_block1_2_bn"] == 0


def test_the_moving_statistics_are_used_and_kept():
    model = build_model("cifar_plain20", **SMALL)
    before = model.get_weights()
    found = responses(model, images(8))
    layer = model.get_layer("conv1_bn")
    layer.moving_variance.assign(np.full(layer.gamma.shape, 4.0))
    again = responses(model, images(8))
    assert again["conv1_bn"] == pytest.approx(found["conv1_bn"] * np.sqrt((1 + 1e-5) / (4 + 1e-5)), rel=1e-4)
    layer.moving_variance.assign(np.ones(layer.gamma.shape))
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)


@pytest.mark.parametrize("overrides", [{"batch_norm": False}, {"block": "preactivation"}])
def test_networks_without_normalization_behind_convolutions_are_refused(overrides):
    model = build_model("cifar_resnet20", **{**SMALL, **overrides})
    with pytest.raises(InputError, match="behind batch normalization; conv1_conv has none"):
        responses(model, images(1))


def made_up(plain, residual, depths=(20, 56)):
    """Three seeds with three layers each, about the given means."""
    rows = {}
    for kind, means in (("plain", plain), ("resnet", residual)):
        for depth, mean in zip(depths, means, strict=True):
            rows[kind, depth] = [[mean + shift, 2 * mean, 0.0] for shift in (-0.03, 0.0, 0.03)]
    return rows


@pytest.mark.parametrize(
    ("plain", "residual", "smaller", "falling"),
    [
        ((1.0, 0.9), (0.6, 0.3), HOLDS, HOLDS),
        ((1.0, 0.9), (0.6, 0.8), HOLDS, FAILS),
        ((1.0, 0.2), (0.6, 0.3), FAILS, HOLDS),
        ((0.6, 0.61), (0.59, 0.595), OPEN, OPEN),
        ((0.6, 0.9), (0.595, 0.59), OPEN, OPEN),
    ],
)
def test_verdicts(plain, residual, smaller, falling):
    found = claims((20, 56), made_up(plain, residual))
    assert [claim.verdict for claim in found] == [smaller, falling]
    assert f"20: {residual[0]:.3f}" in found[1].ours


def test_the_first_and_the_last_depth_are_compared_too():
    """Neighbors within the spread."""
    depths = (20, 32, 56)
    claim = claims(depths, made_up((1.0, 1.0, 1.0), (0.6, 0.612, 0.624), depths))[1]
    assert claim.verdict == FAILS


def test_nothing_is_decided_without_trained_networks():
    nothing = {(kind, depth): [] for kind in ("plain", "resnet") for depth in (20, 56)}
    assert {claim.verdict for claim in claims((20, 56), nothing)} == {OPEN}


def test_one_seed_decides_nothing_in_favour():
    single = {key: rows[:1] for key, rows in made_up((1.0, 0.9), (0.6, 0.3)).items()}
    assert {claim.verdict for claim in claims((20, 56), single)} == {OPEN}


def test_the_model_is_not_changed_by_measuring():
    model = build_model("cifar_resnet20", **SMALL)
    layers = list(model.layers)
    responses(model, images(1))
    assert model.layers == layers
    assert isinstance(model, keras.Model)


@pytest.mark.slow
def test_a_report_of_untrained_networks(tmp_path):
    small = {"stage_depths": (1, 2), "stage_filters": (4, 6)}
    setting = get_setting("digits", "minutes")
    recipe = setting.recipe.replace(model_overrides=small)
    setting = dataclasses.replace(setting, recipe=recipe, depths=(20, 32), seeds=2)
    outcomes = {}
    for run in EXPERIMENT.plan(setting):
        found = outcome(run, tmp_path, [50.0])
        if run.name == "cifar_plain32-seed1":
            found = outcome(run, tmp_path, [], failure="loss or gradient is not finite at step 3")
        else:
            spec = ModelSpec.default(run.recipe.model, overrides=small, input_shape=(8, 8, 3))
            found.folder.path.mkdir()
            save_weights(spec.build(), found.folder.weights, spec)
        outcomes[run] = found
    section = EXPERIMENT.section(setting, outcomes)
    picture = next(part for part in section.body if isinstance(part, page.Picture))
    table = next(part for part in section.body if isinstance(part, page.Table))
    assert [row[0] for row in table.rows] == ["plain-20", "plain-32", "ResNet-20", "ResNet-32"]
    # A single seed is left of plain-32.
    assert ["±" in row[1] for row in table.rows] == [True, False, True, True]
    assert any("cifar_plain32-seed1" in part for part in section.body if isinstance(part, str))
    page.write_page(tmp_path / "report.html", "Title", "Lead", [section], {})
    assert (tmp_path / f"{picture.name}.png").read_bytes() == picture.png
