"""Verdicts and reports from synthetic histories that support or contradict the claims."""

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from helpers.made_up import outcome

from experiments import cost, page
from experiments.claims import FAILS, HOLDS, OPEN, Sample
from experiments.settings import BUDGETS, DATASETS, get_setting
from experiments.studies import degradation, gradients, shortcuts, very_deep
from keras_resnet import InputError
from keras_resnet.data import open_dataset

SETTING = dataclasses.replace(get_setting("digits", "minutes"), depths=(20, 56))


def falling(last, seed):
    """Errors of three epochs that end near `last`, slightly different for each seed."""
    return [90.0, (90 + last) / 2, last + 0.1 * seed]


def ladder(folder, plain, resnet):
    """Outcomes of the ladder with these last errors at (20, 56)."""
    last = {"plain": dict(zip(SETTING.depths, plain, strict=True))}
    last["resnet"] = dict(zip(SETTING.depths, resnet, strict=True))
    found = {}
    for run in degradation.EXPERIMENT.plan(SETTING):
        kind, depth = re.match(r"cifar_(plain|resnet)(\d+)", run.name).groups()
        found[run] = outcome(run, folder, falling(last[kind][int(depth)], run.seed))
    return found


def verdicts(section):
    return [claim.verdict for claim in section.claims]


def test_degradation_as_in_the_paper(tmp_path):
    section = degradation.EXPERIMENT.section(SETTING, ladder(tmp_path, plain=(3, 12), resnet=(2, 1)))
    assert verdicts(section) == [HOLDS] * 5
    assert section.claims[0].ours == "12.10 ± 0.10 % against 3.10 ± 0.10 %"
    # The table has the paper's numbers, and equal parameters.
    table = next(part for part in section.body if isinstance(part, page.Table))
    rows = {row[0]: row for row in table.rows}
    assert rows["plain-56"][1] == rows["ResNet-56"][1] == "853,018"  # counted from section 4.2
    assert rows["ResNet-56"][4] == "6.97"
    assert rows["plain-56"][2] == "12.10 ± 0.10"


def test_no_degradation_is_told_as_well(tmp_path):
    section = degradation.EXPERIMENT.section(SETTING, ladder(tmp_path, plain=(12, 3), resnet=(2, 13)))
    assert verdicts(section) == [FAILS] * 5


def test_differences_within_the_spread_are_not_decided(tmp_path):
    section = degradation.EXPERIMENT.section(SETTING, ladder(tmp_path, plain=(3, 3.05), resnet=(2, 1.95)))
    assert section.claims[0].verdict == OPEN
    assert section.claims[4].verdict == OPEN


def test_small_steps_in_the_wrong_direction_add_up():
    """Neighbors within the spread, but the deepest network is worse than the first."""
    rising = {20: Sample(8.6, 0.1, 3), 32: Sample(8.8, 0.3, 3), 56: Sample(9.0, 0.3, 3)}
    errors = {(kind, depth): sample for kind in ("plain", "resnet") for depth, sample in rising.items()}
    claim = degradation.claims(tuple(rising), errors, errors)[4]
    assert [comparison.label for comparison in claim.comparisons] == [
        "20 and 32 layers",
        "20 and 56 layers",
        "32 and 56 layers",
    ]
    assert claim.verdict == FAILS


def test_a_run_that_gave_up_counts_as_guessing(tmp_path):
    outcomes = ladder(tmp_path, plain=(3, 12), resnet=(2, 1))
    run = next(run for run in outcomes if run.name == "cifar_plain56-seed1")
    outcomes[run] = outcome(run, tmp_path, [], failure="loss or gradient is not finite at step 3")
    section = degradation.EXPERIMENT.section(SETTING, outcomes)
    assert section.claims[0].ours.startswith("38.07 ± 44.98 %")  # of 12, 90 and 12.2
    assert section.claims[0].verdict == OPEN
    assert any("cifar_plain56-seed1" in part for part in section.body if isinstance(part, str))


def test_twins_share_seed_data_and_schedule():
    plans = {run.name: run for run in degradation.EXPERIMENT.plan(SETTING)}
    for name, run in plans.items():
        twin = plans[name.replace("plain", "resnet")]
        assert twin.seed == run.seed
        assert twin.recipe.replace(model=run.recipe.model) == run.recipe


OPTIONS = {"plain": [9.0, 9.2, 9.1], "A": [3.0, 3.1, 3.2], "B": [2.0, 2.1, 2.2], "C": [1.0, 1.1, 1.2]}


def test_shortcuts_as_in_the_paper():
    assert [claim.verdict for claim in shortcuts.claims(OPTIONS)] == [HOLDS] * 3


def test_shortcuts_the_other_way_round():
    turned = dict(zip(OPTIONS, reversed(OPTIONS.values()), strict=True))
    assert [claim.verdict for claim in shortcuts.claims(turned)] == [FAILS] * 3


def test_options_are_compared_within_each_seed():
    """What all networks of a seed have in common does not hide the differences among them."""
    found = {"plain": [10, 12, 14], "A": [5, 5, 5], "B": [5.1, 5.1, 5.1], "C": [7, 8, 9]}
    claim = shortcuts.claims(found)[2]
    assert claim.ours == "3.00 ± 1.00 % among them, 4.00 ± 1.00 % to the plain net"
    assert claim.verdict == HOLDS


def test_shortcuts_page_from_histories(tmp_path):
    last = {"cifar_plain": 9, "shortcutB": 2, "shortcutC": 1, "cifar_resnet": 3}
    outcomes = {}
    for run in shortcuts.EXPERIMENT.plan(SETTING):
        error = next(value for key, value in last.items() if key in run.name)
        outcomes[run] = outcome(run, tmp_path, falling(error, run.seed))
    assert len({run.name for run in outcomes}) == 12
    section = shortcuts.EXPERIMENT.section(SETTING, outcomes)
    assert verdicts(section) == [HOLDS] * 3
    recipes = {run.name: run.recipe.model_overrides for run in outcomes}
    assert recipes["cifar_resnet56-shortcutC-seed0"] == {"shortcut": "C"}


def test_warm_up_is_judged_by_the_start_and_by_the_end(tmp_path):
    run = very_deep.EXPERIMENT.plan(SETTING)[0]
    late, early = [95.0, 85.0, 79.0, 5.0], [79.9, 60.0, 30.0, 5.2]
    starts = [very_deep.epochs_to_start(outcome(run, tmp_path, errors)) for errors in (late, early, [90, 90])]
    assert starts == [3, 1, math.inf]
    similar = {True: [5.0, 5.2, 5.1], False: [5.1, 5.3, 5.0]}
    found = very_deep.warmup_claims({True: [1, 1, 1], False: [3, 3, math.inf]}, similar, 4)
    assert "3.67 ± 1.15 (never in 1, counted as 5) epochs without" in found[0].ours
    assert [claim.verdict for claim in found] == [HOLDS, HOLDS]
    errors = {True: [5, 5, 5], False: [9, 9, 9]}
    found = very_deep.warmup_claims({True: [3, 3, 3], False: [1, 1, 1]}, errors, 4)
    assert [claim.verdict for claim in found] == [FAILS, FAILS]


def test_the_deepest_and_the_gradients_have_their_own_images(tmp_path):
    setting = dataclasses.replace(SETTING, deepest_epochs=3, warmup_epochs=4, short_split="train[:100]")
    plan = very_deep.EXPERIMENT.plan(setting)
    assert [run.name for run in plan if "deepest" in run.name] == [
        "cifar_resnet1202-seed0-deepest",
        *(f"cifar_resnet110-seed{seed}-deepest" for seed in range(3)),
    ]
    for run in (*plan, *gradients.EXPERIMENT.plan(setting)):
        assert run.recipe.train_split == "train[:100]"
    # The measured epochs do not depend on how long the ladder is trained.
    brief = dataclasses.replace(setting, recipe=setting.recipe.replace(epochs=2))
    assert {run.recipe.epochs for run in gradients.EXPERIMENT.plan(brief)} == {10}
    assert {run.recipe.train_split for run in degradation.EXPERIMENT.plan(setting)} == {"train"}

    last = {run: 0.2 if run.layers == 1202 else 0.1 * (1 + run.seed) for run in plan}
    outcomes = {run: outcome(run, tmp_path, [50.0, 10.0, error]) for run, error in last.items()}
    section = very_deep.EXPERIMENT.section(setting, outcomes)
    claim = next(claim for claim in section.claims if "1202" in claim.statement)
    assert claim.ours == (
        "training error 0.20 % after 3 epochs of train[:100], from 50.00 %; ResNet-110: 0.20 ± 0.10 %"
    )
    assert claim.verdict == HOLDS
    table = next(part for part in section.body if isinstance(part, page.Table))
    assert table.rows[-1] == ["3", "0.0040", "0.20", "0.20", "0.20 ± 0.10", "0.20 ± 0.10"]


@pytest.mark.parametrize(
    ("errors", "verdict"),
    [
        ([90, 50, 0.05], HOLDS),
        ([90, 50], OPEN),
        ([90, 21], HOLDS),
        ([50], OPEN),
        ([89, 90], FAILS),
        ([], FAILS),
    ],
)
def test_the_deepest_trains_or_not(errors, verdict):
    assert very_deep.trains(errors, Sample(20.0, 1.5, 3)) == verdict


def test_memory_is_judged_by_the_measurement():
    kept = {"batch_size": 128, "peak_bytes": 10e9, "step_seconds": 30.0}
    for peak, verdict in ((5e9, HOLDS), (5.1e9, FAILS)):
        assert very_deep.memory_claim(kept, kept | {"peak_bytes": peak}).verdict == verdict


def test_the_memory_that_was_measured_here():
    """Rematerialization saves half, in the measurement that benchmarks/results/README.md describes."""
    path = Path(__file__).parents[2] / "benchmarks/results/resnet1202_memory-2cores.json"
    kept, remat = json.loads(path.read_text())["readings"]
    assert [(cost["batch_size"], cost["image_size"], cost["remat"]) for cost in (kept, remat)] == [
        (128, 32, False),
        (128, 32, True),
    ]
    assert remat["losses"] == kept["losses"]
    assert very_deep.memory_claim(kept, remat).verdict == HOLDS


def test_every_dataset_has_every_budget():
    for dataset in DATASETS:
        for budget in BUDGETS:
            setting = get_setting(dataset, budget)
            assert setting.seeds >= 3
            assert (setting.dataset, setting.recipe.dataset) == (dataset, dataset)
    with pytest.raises(InputError, match="unknown dataset 'digit'; did you mean digits"):
        get_setting("digit", "minutes")
    with pytest.raises(InputError, match="unknown budget 'hour'; did you mean hours"):
        get_setting("digits", "hour")


def test_cifar10_is_the_papers():
    """The settings are those of section 4.2."""
    setting = get_setting("cifar10", "paper")
    recipe = setting.recipe
    assert setting.depths == (20, 32, 44, 56, 110)
    assert (recipe.steps, recipe.batch_size, recipe.learning_rate) == (64_000, 128, 0.1)
    assert recipe.boundaries == (0.5, 0.75)  # 32k and 48k
    assert (recipe.momentum, recipe.weight_decay, recipe.augmentation) == (0.9, 1e-4, "pad_crop_flip")
    runs = {run.name: run.recipe for run in degradation.EXPERIMENT.plan(setting)}
    assert runs["cifar_resnet110-seed0"].error_warmup_rate == pytest.approx(0.01)
    assert runs["cifar_plain56-seed0"].error_warmup_rate == 0


def test_cost_follows_depth_pixels_and_steps():
    """Against ResNet-20's 40.6 million multiply-adds, as `keras_resnet.complexity` counts them."""
    dataset = open_dataset("digits")
    run = degradation.EXPERIMENT.plan(SETTING)[0]
    run = dataclasses.replace(run, recipe=run.recipe.replace(model="cifar_resnet20", image_size=32, epochs=1))
    images = 22 * 64  # of 1442
    assert cost.multiply_adds(run, dataset) == pytest.approx(3 * 40.6e6 * images, rel=0.06)
    assert cost.hours([run, run], dataset, speed=3 * 40.6e6 * images / 3600, places=2) == pytest.approx(
        0.5, rel=0.06
    )
