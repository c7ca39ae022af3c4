"""Outputs of deepened networks; verdicts from synthetic measurements."""

import dataclasses

import numpy as np
import pytest
from helpers.made_up import outcome

from experiments import page
from experiments.claims import FAILS, HOLDS, OPEN
from experiments.settings import get_setting
from experiments.studies.identity import CASES, EXPERIMENT, Measurement, claims, deepen, measure
from keras_resnet import InputError, build_resnet
from keras_resnet.models.config import ResNetConfig
from keras_resnet.weights import ModelSpec, save_weights

BASIC = ResNetConfig("basic", (1, 2), (4, 6), "cifar", "A", input_size=8, classes=3)
PLAIN = BASIC.replace(shortcut=None)
BOTTLENECK = ResNetConfig("bottleneck", (1, 2), (4, 6), "cifar", "B", input_size=8, classes=3)


def images(count=6, seed=1):
    return np.random.default_rng(seed).normal(size=(count, 8, 8, 3)).astype("float32")


def trained(config):
    """A network whose normalizations have random weights and statistics, as after training."""
    model = build_resnet(config, classifier_activation=None)
    random = np.random.default_rng(3)
    for layer in model.layers:
        if layer.name.endswith("_bn"):
            size = layer.gamma.shape
            layer.gamma.assign(random.uniform(0.5, 1.5, size))
            layer.beta.assign(random.normal(0, 0.3, size))
            layer.moving_mean.assign(random.normal(0, 0.3, size))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, size))
    return model


@pytest.mark.parametrize(
    "config",
    [
        BASIC,
        BASIC.replace(shortcut="B"),
        BASIC.replace(shortcut="D"),
        BASIC.replace(batch_norm=False),
        BOTTLENECK,
        BOTTLENECK.replace(batch_norm=False),
    ],
)
def test_residual_blocks_that_add_nothing_keep_every_bit(config):
    model = trained(config)
    deeper = deepen(config, model, (3, 4), "zero")
    assert len(deeper.layers) > len(model.layers)
    np.testing.assert_array_equal(deeper(images()).numpy(), model(images()).numpy())
    # In training, too: an addition of zero has no statistics.
    np.testing.assert_array_equal(deeper(images(), training=True), model(images(), training=True))


def test_trained_blocks_are_copied_and_stay_apart():
    model = trained(BASIC)
    deeper = deepen(BASIC, model, (2, 2), "he")
    names = {layer.name for layer in model.layers}
    for layer in deeper.layers:
        if layer.name in names:
            for value, copy in zip(
                model.get_layer(layer.name).get_weights(), layer.get_weights(), strict=True
            ):
                np.testing.assert_array_equal(value, copy)
    new = {layer.name.rsplit("_", 2)[0] for layer in deeper.layers if layer.name not in names}
    assert "conv2_block2" in {name.removesuffix("_1").removesuffix("_2") for name in new}
    before = model(images()).numpy()
    deeper.get_layer("conv1_conv").kernel.assign(np.zeros((3, 3, 3, 4)))
    np.testing.assert_array_equal(model(images()), before)


def test_new_blocks_are_he_initialized_unless_told_otherwise():
    wide = PLAIN.replace(stage_filters=(64, 64))
    kernel = deepen(wide, trained(wide), (2, 2), "he").get_layer("conv2_block2_1_conv").kernel.numpy()
    assert kernel.std() == pytest.approx(np.sqrt(2 / (9 * 64)), rel=0.02)


def test_plain_blocks_that_give_zeros_leave_a_constant():
    logits = deepen(PLAIN, trained(PLAIN), (2, 3), "zero")(images()).numpy()
    np.testing.assert_array_equal(logits, np.broadcast_to(logits[0], logits.shape))


def test_plain_blocks_with_unit_kernels_are_identities_in_inference_alone():
    model = trained(PLAIN)
    deeper = deepen(PLAIN, model, (3, 4), "dirac")
    np.testing.assert_allclose(deeper(images()), model(images()), rtol=1e-4, atol=1e-5)
    in_training = np.abs(deeper(images(), training=True) - model(images(), training=True)).max()
    assert in_training > 0.01


def test_he_initialized_blocks_change_the_network():
    for config in (BASIC, PLAIN):
        model = trained(config)
        assert np.abs(deepen(config, model, (2, 3), "he")(images()) - model(images())).max() > 0.01


@pytest.mark.parametrize(
    ("config", "depths", "start", "sentence"),
    [
        (BASIC, (1, 1), "zero", "stages of (1, 2) blocks cannot be deepened to (1, 1)"),
        (BASIC, (1, 2, 1), "zero", "cannot be deepened to (1, 2, 1)"),
        (BASIC, (2, 2), "orthogonal", "start is 'he', 'zero' or 'dirac'; got 'orthogonal'"),
        (BASIC, (2, 2), "dirac", "a start of plain basic blocks with batch normalization"),
        (BOTTLENECK.replace(shortcut=None), (2, 2), "dirac", "a start of plain basic blocks"),
        (PLAIN.replace(batch_norm=False), (2, 2), "dirac", "a start of plain basic blocks"),
        (BASIC.replace(shortcut="C"), (2, 2), "zero", "every shortcut is a projection"),
        (BOTTLENECK.replace(block="preactivation"), (2, 2), "he", "blocks cannot be added behind it"),
    ],
)
def test_what_cannot_be_deepened(config, depths, start, sentence):
    with pytest.raises(InputError) as refusal:
        deepen(config, build_resnet(config, classifier_activation=None), depths, start)
    assert sentence in str(refusal.value)


def test_measure_counts_wrong_answers_and_leaves_the_statistics():
    model = trained(BASIC)
    batch = images(10)
    labels = model(batch).numpy().argmax(-1)
    wrong = labels.copy()
    wrong[:3] = (wrong[:3] + 1) % 3
    before = model.get_weights()
    same = measure(model, deepen(BASIC, model, (2, 2), "zero"), (batch, wrong), (batch, labels))
    assert (same.before, same.after, same.equal) == (30.0, 30.0, True)
    logits = model(batch, training=True).numpy().astype("float64")
    expected = np.mean(np.log(np.exp(logits).sum(-1)) - logits[np.arange(10), labels])
    assert same.loss_before == pytest.approx(expected, rel=1e-5)
    assert same.loss_after == same.loss_before
    model.set_weights(before)
    other = measure(model, deepen(BASIC, model, (2, 2), "he"), (batch, wrong), (batch, labels))
    assert not other.equal
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)


def made_up(**after):
    """Three seeds of every case, with a test error of 8, 9 and 10 % before."""
    losses = {case: after.get("_".join(case), (0, 0, 0)) for case in CASES}
    return {
        case: [Measurement(8 + seed, 8 + seed + loss, 0.1, 0.1, loss == 0) for seed, loss in enumerate(found)]
        for case, found in losses.items()
    }


@pytest.mark.parametrize(
    ("after", "residual", "plain"),
    [
        ({"plain_zero": (80, 79, 78), "plain_he": (60, 70, 80)}, HOLDS, HOLDS),
        ({"resnet_zero": (9, 8, 7), "plain_zero": (80, 79, 78)}, FAILS, OPEN),
        ({"plain_zero": (80, 79, 78), "plain_he": (0.1, 0, 0)}, HOLDS, OPEN),
        ({"plain_zero": (80, 79, 78), "plain_he": (-5, -6, -7)}, HOLDS, FAILS),
        ({"plain_he": (60, 70, 80)}, HOLDS, OPEN),
    ],
)
def test_verdicts(after, residual, plain):
    found = claims(20, 56, made_up(**after))
    assert [claim.verdict for claim in found] == [residual, plain]
    equal = 3 if residual == HOLDS else 0
    assert f"equal to the last bit in {equal} of 3" in found[0].ours


def test_nothing_is_decided_without_trained_networks():
    assert {claim.verdict for claim in claims(20, 56, {case: [] for case in CASES})} == {OPEN}


@pytest.mark.slow
def test_a_report_of_untrained_networks(tmp_path):
    """Deepened residual networks have the same outputs; a run that diverged is left out."""
    small = {"stage_filters": (4, 6, 8), "stage_depths": (1, 1, 1)}
    setting = get_setting("digits", "minutes")
    recipe = setting.recipe.replace(model_overrides=small)
    setting = dataclasses.replace(setting, recipe=recipe, depths=(20, 32), seeds=2)
    outcomes = {}
    for run in EXPERIMENT.plan(setting):
        found = outcome(run, tmp_path, [50.0])
        if run.name == "cifar_plain20-seed1":
            found = outcome(run, tmp_path, [], failure="loss or gradient is not finite at step 3")
        else:
            spec = ModelSpec.default(run.recipe.model, overrides=small, input_shape=(8, 8, 3))
            found.folder.path.mkdir()
            save_weights(spec.build(), found.folder.weights, spec)
        outcomes[run] = found
    section = EXPERIMENT.section(setting, outcomes)
    assert section.claims[0].verdict == HOLDS
    assert "equal to the last bit in 2 of 2" in section.claims[0].ours
    assert section.claims[1].verdict in (OPEN, FAILS)  # one plain network decides nothing
    table = next(part for part in section.body if isinstance(part, page.Table))
    assert [row[0] for row in table.rows] == list(CASES.values())
    assert table.rows[0][1] == table.rows[0][2]
    assert any("cifar_plain20-seed1" in part for part in section.body if isinstance(part, str))
    page.write_page(tmp_path / "report.html", "Title", "Lead", [section], {})
