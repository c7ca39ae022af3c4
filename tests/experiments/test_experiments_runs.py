"""The commands: invalid input, a whole page, and resuming after a kill."""

import dataclasses
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.commands import run as run_command
from helpers.data_helpers import write_tfds
from helpers.experiment_runs import train_here

from experiments import runs as runs_module
from experiments.command import COMMANDS
from experiments.program import make_setting
from experiments.runs import Run, RunFailed, ladder_run, read_outcome, run_all
from experiments.settings import get_setting
from experiments.studies import degradation, gradients, shortcuts, very_deep
from keras_resnet import InputError
from keras_resnet.run_folder import RunFolder
from keras_resnet.training.recipe import run_identity

ROOT = Path(__file__).parents[2]
# Networks of three blocks, whatever their names say.
BLOCKS, IMAGES = "model.stage_depths=(1, 1, 1)", "train_split=train[:256]"


def start(*arguments, module="experiments.degradation"):
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def tiny_run(name="tiny", **changes):
    recipe = get_setting("digits", "minutes").recipe
    recipe = recipe.replace(
        model_overrides={"stage_depths": (1, 1, 1)}, train_split="train[:128]", epochs=1, **changes
    )
    return Run(name, recipe, seed=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"dataset": "digit"}, "unknown dataset 'digit'; did you mean digits?"),
        ({"budget": "days"}, "unknown budget 'days'; choose one of hours, minutes, paper"),
        ({"depths": ["20", "33"]}, "--depths takes two or more of 20, 32, 44, 56, 110, rising; got 20,33"),
        ({"depths": ["56", "20"]}, "--depths takes two or more of 20, 32, 44, 56, 110, rising; got 56,20"),
        ({"depths": ["20"]}, "--depths takes two or more of 20, 32, 44, 56, 110, rising; got 20"),
        ({"depths": ["x", "20"]}, "--depths takes two or more of 20, 32, 44, 56, 110, rising; got x,20"),
        ({"seeds": 0}, "--seeds must be at least 1; got 0"),
        ({"assignments": ["dataset=cifar10"]}, "--set does not change the dataset; --dataset does"),
        ({"assignments": ["model.shortcut=B"]}, "--set cannot change model.shortcut: it is what the"),
        ({"assignments": ["val_split=train"]}, "--set cannot change val_split: it is what the"),
        ({"assignments": ["epoch=3"]}, "unknown recipe key 'epoch'; did you mean epochs"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, sentence):
    with pytest.raises(InputError) as error:
        make_setting(**{"dataset": "digits", "budget": "minutes", **changes})
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_mistyped_command_ends_with_status_2_and_leaves_nothing(tmp_path, capsys):
    assert run_command(COMMANDS["degradation"], "--jobs=0", f"--output_dir={tmp_path / 'out'}") == 2
    assert capsys.readouterr() == ("", "error: --jobs must be at least 1; got 0\n")
    assert list(tmp_path.iterdir()) == []


def test_another_run_in_the_folder_is_refused(tmp_path):
    run = tiny_run()
    RunFolder(tmp_path / run.name).write_recipe(run_identity(run.recipe, run.seed, "float32"))
    other = dataclasses.replace(run, recipe=run.recipe.replace(learning_rate=0.5))
    with pytest.raises(InputError, match=r"holds another run .*; choose another --output_dir"):
        run_all([other], tmp_path, data_dir=None)


def test_a_plain_net_starts_as_its_twin():
    """With the same seed both have the same initial weights; like `train`, this sets the seed and builds."""
    setting = get_setting("digits", "minutes")
    weights = {}
    for kind in ("plain", "resnet"):
        run = ladder_run(setting, kind, 20, seed=5)
        keras.utils.set_random_seed(run.seed)
        from keras_resnet import build_model

        model = build_model(run.recipe.model, input_shape=(8, 8, 3))
        weights[kind] = model.get_weights()
    assert len(weights["plain"]) > 60
    assert all(np.array_equal(a, b) for a, b in zip(weights["plain"], weights["resnet"], strict=True))
    assert np.std(weights["plain"][0]) > 0


@pytest.mark.slow
def test_a_run_is_done_once_and_divergence_is_an_outcome(tmp_path):
    good, bad = tiny_run(), tiny_run("bad", learning_rate=1e30)
    outcomes = run_all([good, bad, good], tmp_path, data_dir=None)
    assert list(outcomes) == [good, bad]
    assert outcomes[good].failure is None
    assert len(outcomes[good].history) == 1
    assert outcomes[good].seconds > 0
    assert "not finite" in outcomes[bad].failure
    assert outcomes[bad].error("val") == 90
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    again = run_all([good, bad], tmp_path, data_dir=None)
    assert [(o.history, o.failure) for o in again.values()] == [
        (o.history, o.failure) for o in outcomes.values()
    ]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == written


def test_the_time_left_is_that_of_all_runs(tmp_path, monkeypatch, capsys):
    """A finished run, half of another and one that has not begun, weighted by their work."""
    monkeypatch.setattr("keras_resnet.progress._FIRST_SECONDS", 0.0)
    finished, begun, waiting = (tiny_run(name) for name in ("finished", "begun", "waiting"))
    begun = dataclasses.replace(begun, recipe=begun.recipe.replace(epochs=2))
    progress = runs_module._Progress(
        [finished, begun, waiting], tmp_path, {finished: 10, begun: 40, waiting: 50}.__getitem__
    )
    for run in (finished, begun):
        folder = RunFolder(tmp_path / run.name)
        folder.path.mkdir()
        folder.write_history(("epoch", "step"), [{"epoch": 1.0, "step": 2}])
    RunFolder(tmp_path / "finished").weights.touch()
    progress.update()
    line = capsys.readouterr().err
    assert re.fullmatch(
        r"all runs: 300 of 1,000 thousandths of the training, \S+ left, 1 of 3 runs finished\n", line
    )


def test_workers_are_as_nice_as_the_command(tmp_path, monkeypatch):
    """Among the sessions that Linux schedules as groups, if it does: each worker is a session."""
    monkeypatch.setattr(os, "nice", lambda increment: 7)
    worker = runs_module._start(tiny_run(), tmp_path, None, {})
    group = Path(f"/proc/{worker.process.pid}/autogroup")
    text = group.read_text() if group.exists() else ""
    worker.close()
    assert not text or text.endswith("nice 7\n")


@pytest.mark.slow
def test_a_run_that_ends_without_a_result_stops_the_command(tmp_path):
    run = tiny_run()
    folder = tmp_path / run.name / "checkpoints"
    folder.mkdir(parents=True)
    (folder / "step-000000001.h5").write_text("no checkpoint")
    with pytest.raises(RunFailed, match=r"tiny ended with status 1: .*every checkpoint in .* is broken"):
        run_all([run], tmp_path, data_dir=None)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"batch_size": 100_000}, "batch size 100000 is larger than the split"),
        ({"image_size": 3}, "needs images of at least 4 pixels; got 3"),
        ({"train_split": "training"}, "training"),
        ({"model_overrides": {"stage_depth": (1,)}}, "unknown network option 'stage_depth'"),
    ],
)
def test_recipes_that_no_run_can_carry_out(changes, sentence, tmp_path):
    run = tiny_run()
    run = dataclasses.replace(run, recipe=run.recipe.replace(**changes))
    with pytest.raises(InputError) as error:
        run_all([run], tmp_path, data_dir=None)
    assert sentence in str(error.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_killed_experiment_repeats_nothing(tmp_path):
    """Finished runs are not changed; the interrupted one resumes from its checkpoint.

    The same with SIGTERM is a test of the detection experiment.
    """
    changes = [BLOCKS, IMAGES, "epochs=8"]
    setting = make_setting("digits", "minutes", depths=["20", "32"], seeds=1, assignments=changes)
    runs = tmp_path / "runs"
    # The command trains the other two, one after the other, and is killed during the second.
    train_here([run for run in degradation.EXPERIMENT.plan(setting) if run.layers == 20], runs)
    early = {path.parent.name for path in runs.glob("*/model.weights.h5")}
    assert len(early) == 2
    arguments = ["--seeds=1", "--depths=20,32", *(f"--set={change}" for change in changes)]
    arguments += ["--jobs=1", f"--output_dir={tmp_path}"]
    process = start(*arguments)
    interrupted = None
    while interrupted is None:
        assert process.poll() is None, process.stderr.read()
        done = {path.parent.name for path in runs.glob("*/model.weights.h5")}
        begun = {path.parent.name for path in runs.glob("*/history.csv")} - done
        interrupted = next(iter(begun), None) if done > early else None
        time.sleep(0.02)
    process.kill()
    assert process.wait(timeout=60) == -signal.SIGKILL
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes())
        for first in done
        for path in (runs / first).rglob("*")
        if path.is_file()
    }
    _wait_for_orphans(runs / interrupted)
    kept = _step(runs / interrupted)
    assert kept > 0

    process = start(*arguments)
    taken_up = None
    while process.poll() is None:
        if (runs / interrupted / "history.csv").exists():
            taken_up = taken_up or _step(runs / interrupted)
        time.sleep(0.05)
    assert process.returncode == 0, process.stderr.read()
    assert taken_up >= kept
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in before} == before
    rows = (runs / interrupted / "history.csv").read_text().splitlines()
    assert len(rows) == 9  # each epoch once
    said = process.stdout.read()
    assert "plain-32's training error is higher than plain-20's" in said
    assert (tmp_path / "degradation" / "report.html").exists()
    assert sorted(path.name for path in (tmp_path / "degradation").glob("*.png")) == [
        "degradation-curves.png",
        "degradation-depth.png",
        "degradation.png",
    ]


def _step(workdir):
    return int(re.search(r"step-(\d+)", max(p.name for p in (workdir / "checkpoints").glob("step-*.h5")))[1])


def _wait_for_orphans(workdir):
    """Waits until the worker of a killed command has saved its checkpoint and ended."""
    import fcntl

    with open(workdir / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)


@pytest.mark.slow
def test_the_papers_budget_on_another_dataset(tmp_path, capsys):
    """With the paper's recipes, shortened, on records that TFDS wrote."""

    def examples(count):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28, 1), "uint8")
        return [{"image": image, "label": index % 10} for index, image in enumerate(images)]

    data = {"train": examples(256), "test": examples(64)}
    data_dir = write_tfds(tmp_path / "data", "fashion_mnist", data)
    changes = [BLOCKS, "epochs=1", "image_size=16"]
    setting = make_setting("fashion_mnist", "paper", depths=["20", "32"], seeds=1, assignments=changes)
    *most, _last = degradation.EXPERIMENT.plan(setting)
    train_here(most, tmp_path / "out" / "runs", data_dir=str(data_dir))
    arguments = ["--seeds=1", "--depths=20,32", *(f"--set={change}" for change in changes)]
    arguments += ["--dataset=fashion_mnist", "--budget=paper", f"--data_dir={data_dir}"]
    capsys.readouterr()
    assert run_command(COMMANDS["degradation"], *arguments, f"--output_dir={tmp_path / 'out'}") == 0
    assert "ResNet-32's training error is not higher than ResNet-20's" in capsys.readouterr().out
    text = (tmp_path / "out" / "degradation" / "report.html").read_text()
    assert "fashion_mnist, paper: mean" in text
    assert "3 of the 4 runs were finished before" in text
    assert "next budget" not in text  # there is no larger budget


@pytest.mark.slow
def test_all_claims_on_one_page(tmp_path):
    """The command trains two of the runs: ResNet-110 with and without warm-up."""
    changes = [BLOCKS, "train_split=train[:128]", "epochs=2"]
    # The experiments on shortcuts have 56 layers at this budget, and then share these networks.
    setting = make_setting("digits", "minutes", depths=["20", "56"], seeds=1, assignments=changes)
    studies = (degradation, shortcuts, gradients, very_deep)
    plan = dict.fromkeys(run for study in studies for run in study.EXPERIMENT.plan(setting))
    runs = tmp_path / "runs"
    train_here([run for run in plan if "-warm-" not in run.name and "-cold-" not in run.name], runs)
    arguments = ["--seeds=1", "--depths=20,56", *(f"--set={change}" for change in changes)]
    done = start(*arguments, f"--output_dir={tmp_path}", module="experiments.paper")
    out, err = done.communicate()
    assert done.returncode == 0, err
    text = (tmp_path / "paper" / "report.html").read_text()
    for title in ("Deeper plain nets", "shortcut options", "gradients", "1202", "identities", "as files"):
        assert title in text
    # Two networks as SavedModel, TFLite and ONNX; the latter two also in int8.
    assert text.count(">equal<") == 6
    assert text.count(">close<") + text.count(">worse<") == 4
    assert f"{len(plan) - 2} of the {len(plan)} runs were finished before" in text
    assert out.count("here: ") > 12
    assert all(read_outcome(run, runs).history for run in plan)
