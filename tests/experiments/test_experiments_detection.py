"""The detection experiment: verdicts from synthetic results, its runs, and a page from tiny networks."""

import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.experiment_runs import train_here
from helpers.made_up import outcome

from experiments import page, worker
from experiments.claims import FAILS, HOLDS, OPEN
from experiments.program import make_setting
from experiments.runs import Outcome, Run, is_done, read_outcome, run_all
from experiments.settings import DETECTION_SETTINGS, get_setting
from experiments.studies import detection
from experiments.studies.detection import CLASSIFIER, PRETRAINED, SCRATCH, claims, gains, rank_correlation
from keras_resnet.detection import Detections
from keras_resnet.errors import InputError
from keras_resnet.run_folder import RunFolder

ROOT = Path(__file__).parents[2]
SECONDS = get_setting("digits", "seconds", DETECTION_SETTINGS)
MINUTES = get_setting("fashion_mnist", "minutes", DETECTION_SETTINGS)


def made(plain, resnet, scratch):
    """Three seeds around the given mAP, by role, kind and depth; plain and resnet are at depths 20 and 44."""
    centers = {("plain", 20): plain[0], ("plain", 44): plain[1]}
    centers |= {("resnet", 20): resnet[0], ("resnet", 44): resnet[1]}
    maps = {(PRETRAINED, *network): center for network, center in centers.items()}
    maps[SCRATCH, "resnet", 20] = scratch
    return {arm: [center - 1.0, center, center + 1.0] for arm, center in maps.items()}


def accuracies(*values):
    """The classifiers' accuracies in the order plain-20, plain-44, ResNet-20, ResNet-44."""
    networks = [("plain", 20), ("plain", 44), ("resnet", 20), ("resnet", 44)]
    return {network: [value] * 3 for network, value in zip(networks, values, strict=True)}


def verdicts(*arguments):
    return [claim.verdict for claim in claims((20, 44), *arguments)]


def test_as_in_the_paper():
    maps = made(plain=(75, 60), resnet=(80, 82), scratch=65)
    assert verdicts(accuracies(88, 80, 89, 90), maps) == [HOLDS] * 5


def test_the_other_way_round():
    maps = made(plain=(60, 75), resnet=(70, 60), scratch=65)
    assert verdicts(accuracies(90, 85, 80, 88), maps) == [FAILS] * 5


def test_single_seeds_decide_nothing_that_needs_a_spread():
    maps = {arm: values[:1] for arm, values in made((75, 60), (80, 82), 65).items()}
    assert verdicts(accuracies(88, 80, 89, 90), maps) == [OPEN] * 5


def test_a_collapsed_backbone_leaves_the_rest_as_it_is():
    maps = made(plain=(75, 0), resnet=(80, 82), scratch=65)
    maps[PRETRAINED, "plain", 44] = [0.0, 0.0, 0.0]
    found = claims((20, 44), accuracies(88, 10, 89, 90), maps)
    assert [claim.verdict for claim in found] == [HOLDS] * 5
    assert found[2].ours == "0.00 ± 0.00 % against 75.00 ± 1.00 %"
    assert found[4].ours.endswith("with ResNet-44")


@pytest.mark.parametrize(
    ("better", "worse", "verdict"),
    [
        ([80, 81, 82], [60, 61, 62], HOLDS),
        ([70, 71, 72], [60, 61, 62], HOLDS),
        ([69, 71, 72], [60, 61, 62], FAILS),
        ([60, 61, 62], [80, 81, 82], FAILS),
        ([62, 99, 99], [60, 61, 63], OPEN),
        ([80], [60], OPEN),
        ([80], [75], FAILS),
    ],
)
def test_a_gain_needs_its_size_and_ranges_apart(better, worse, verdict):
    assert gains(better, worse, 10).verdict == verdict


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        ([1, 2, 3, 4], [10, 20, 30, 99], 1),
        ([1, 2, 3, 4], [4, 3, 2, 1], -1),
        ([1, 2, 3, 4], [2, 1, 3, 4], 0.8),
        ([1, 2, 2, 3], [1, 2, 3, 4], 0.9486833),  # scipy.stats.spearmanr of SciPy 1.15
    ],
)
def test_rank_correlation(first, second, expected):
    assert rank_correlation(first, second) == pytest.approx(expected)


def test_equal_ranks_have_no_correlation():
    assert np.isnan(rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]))
    maps = made(plain=(75, 60), resnet=(80, 82), scratch=65)
    assert verdicts(accuracies(90, 90, 90, 90), maps)[3] == OPEN


def test_the_runs():
    plan = {run.name: run for run in detection.EXPERIMENT.plan(MINUTES)}
    depths = MINUTES.depths
    assert len(plan) == 3 * (4 + 5)
    pretrained = plan[f"detection-pretrained-cifar_plain{depths[1]}-seed2"]
    assert pretrained.after == plan[f"detection-classifier-cifar_plain{depths[1]}-seed2"]
    assert pretrained.recipe.model == f"faster_rcnn_cifar_plain{depths[1]}_c4"
    assert pretrained.recipe.backbone_weights == f"{pretrained.after.name}/model.weights.h5"
    assert pretrained.layers == pretrained.after.layers == depths[1]
    scratch = plan["detection-scratch-cifar_resnet20-seed2"]
    assert (scratch.after, scratch.recipe.backbone_weights) == (None, None)
    twin = plan["detection-pretrained-cifar_resnet20-seed2"].recipe
    assert twin.replace(backbone_weights=None) == scratch.recipe


def test_a_classifier_with_changes_gives_its_backbone_the_same():
    setting = make_setting(
        "digits", "seconds", assignments=["model.stage_depths=(1, 1, 1)"], settings=DETECTION_SETTINGS
    )
    recipes = [run.recipe for run in detection.EXPERIMENT.plan(setting) if "classifier" not in run.name]
    assert all(recipe.model_overrides["network"] == {"stage_depths": (1, 1, 1)} for recipe in recipes)


def test_assignments_reach_the_recipe_that_they_name():
    changed = make_setting(
        *("digits", "seconds"),
        assignments=["epochs=2", "detector.batch_size=4", "detector.model.proposals=7"],
        settings=DETECTION_SETTINGS,
    )
    assert (changed.recipe.epochs, changed.detector.epochs) == (2, SECONDS.detector.epochs)
    assert (changed.detector.batch_size, changed.detector.model_overrides["proposals"]) == (4, 7)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        *(
            (
                {"assignments": [f"detector.{key}={value}"]},
                f"--set cannot change detector.{key}: the experiment",
            )
            for key, value in (
                ("model", "faster_rcnn_cifar_plain20_c4"),
                ("model.network", "{'stage_depths': (1, 1, 1)}"),
                ("dataset", "scenes/digits"),
                ("weights", "a.h5"),
                ("backbone_weights", "a.h5"),
                ("freeze", "C2"),
                ("statistics_batches", "2"),
            )
        ),
        ({"assignments": ["detector.epoch=3"]}, "unknown recipe key 'epoch'; did you mean epochs"),
        ({"budget": "paper"}, "unknown budget 'paper'; choose one of seconds"),
        ({"dataset": "cifar10"}, "unknown dataset 'cifar10'; choose one of digits, fashion_mnist"),
        ({"first_seed": -1}, "--first_seed must not be negative; got -1"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, sentence):
    with pytest.raises(InputError) as error:
        make_setting(**{"dataset": "digits", "budget": "seconds", "settings": DETECTION_SETTINGS, **changes})
    assert sentence in str(error.value)


def test_a_detector_of_a_diverged_classifier_is_not_trained(tmp_path, monkeypatch):
    (tmp_path / "classifier").mkdir()
    spec = {"folder": str(tmp_path / "detector"), "after": "classifier", "task": "detection"}
    monkeypatch.setattr(worker, "read_spec", lambda: spec)
    monkeypatch.setattr(worker, "stop_with_parent", lambda: None)
    assert worker.main() == 0
    run = Run("detector", SECONDS.detector, 0)
    found = read_outcome(run, tmp_path)
    assert found.failure == "classifier, whose weights it starts from, diverged"
    assert found.last("val_map50", 0) == 0


def made_outcomes(setting, folder):
    """Outcomes of all runs; deeper plain networks are the worst, and detectors from scratch are behind."""
    found = {}
    for run in detection.EXPERIMENT.plan(setting):
        name, bad = run.name, f"plain{setting.depths[1]}" in run.name
        if CLASSIFIER in name:
            found[run] = outcome(run, folder, [50, 40 if bad else 10 - run.layers / 10])
            continue
        last = 0.6 if SCRATCH in name else 0.5 if bad else 0.8 + run.layers / 1000
        rows = [
            {
                "epoch": epoch,
                "step": 2 * epoch,
                "images_per_second": 8.0,
                "val_map50": value,
                "val_map": value / 2,
            }
            for epoch, value in ((1, last / 2), (2, last + 0.001 * run.seed))
        ]
        found[run] = Outcome(run, RunFolder(folder / name), tuple(rows))
    return found


class OneBox:
    """Stands for a detector; finds one object in each image."""

    def __init__(self, path):
        assert path.name == "model.weights.h5"

    def detect(self, images):
        box = np.array([[2, 3, 20, 25]], "float32")
        return [Detections(box, np.array([0.9], "float32"), np.array([3])) for _ in images]


def test_the_page_from_histories(tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "load_detector", OneBox)
    setting = dataclasses.replace(SECONDS, seeds=3)
    section = detection.EXPERIMENT.section(setting, made_outcomes(setting, tmp_path))
    assert [claim.verdict for claim in section.claims] == [HOLDS] * 5
    tables = [part for part in section.body if isinstance(part, page.Table)]
    rows = {row[0]: row for row in tables[0].rows}
    assert rows["ResNet-20"][1:3] == ["92.00 ± 0.00", "82.10 ± 0.10"]
    assert rows["ResNet-20, from scratch"][1] == "random weights"
    assert tables[1].rows[-1] == ["gain", "+3.2", "+3.4", "+6.9", "+6.0"]  # Tables 7 and 8
    pictures = [part.name for part in section.body if isinstance(part, page.Picture)]
    assert pictures == ["detection-curves", "detection-scenes"]


def test_without_a_detector_no_scene_is_drawn(tmp_path):
    outcomes = made_outcomes(SECONDS, tmp_path)
    run = next(run for run in outcomes if SCRATCH in run.name)
    outcomes[run] = dataclasses.replace(outcomes[run], history=(), failure="loss is not finite at step 3")
    section = detection.EXPERIMENT.section(SECONDS, outcomes)
    assert [part.name for part in section.body if isinstance(part, page.Picture)] == ["detection-curves"]
    assert any(run.name in part for part in section.body if isinstance(part, str))


@pytest.mark.slow
def test_a_killed_experiment_resumes(tmp_path):
    """A detector starts from its classifier; finished runs are not changed. Networks of three blocks."""
    assignments = ("model.stage_depths=(1, 1, 1)", "detector.epochs=6")
    setting = make_setting("digits", "seconds", assignments=assignments, settings=DETECTION_SETTINGS)
    plan = detection.EXPERIMENT.plan(setting)
    runs = tmp_path / "runs"
    # The one that the command would train between the first detector's classifier and that detector.
    train_here([run for run in plan if run.name == "detection-classifier-cifar_resnet32-seed0"], runs)
    flags = ["--dataset=digits", "--budget=seconds", "--jobs=1", f"--output_dir={tmp_path}"]
    command = [sys.executable, "-m", "experiments.detection", *flags, *(f"--set={x}" for x in assignments)]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while not (begun := list(runs.glob("detection-pretrained-*/history.csv"))):
        assert process.poll() is None, process.stderr.read()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    detector = next(run for run in plan if run.name == begun[0].parent.name)
    assert not is_done(detector, runs)
    classifier = runs / detector.after.name
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in classifier.glob("*.*")}
    kept = read_outcome(detector, runs).history
    outcomes = run_all([detector, detector.after], runs, data_dir=None, jobs=1)
    assert len(before) > 3
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in before} == before
    history = outcomes[detector].history
    assert 0 < len(kept) < len(history) == 6
    assert history[: len(kept)] == kept  # with its speed: these epochs are not repeated
