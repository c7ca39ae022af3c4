"""Runs that are killed, run out of disk space, and use several processes."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers import processes
from helpers.processes import (
    children,
    finish,
    kill_group,
    launch_command,
    newest_step,
    run,
    start,
    train_command,
    wait_for,
)
from helpers.runs import history
from helpers.tiny_detectors import C4, NETWORK, recipe_flags, small_recipe
from kill.attack import VICTIM, Attack
from kill.attack import run as attack_run

from keras_resnet import detection
from keras_resnet.classification import get_recipe, train
from keras_resnet.data import BadImages
from keras_resnet.training import RunOptions, checkpoints, cluster, launch_local
from keras_resnet.weights import ModelSpec, save_weights

# One after the other: most of these tests use two cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several_processes")]


def result(workdir):
    return history(workdir), (workdir / "model.weights.h5").read_bytes()


def test_killed_at_random_steps_ends_with_the_same_bytes(tmp_path, data_dir):
    flags = ["--epochs=2", "--checkpoint_every=3", "--set=ema_decay=0.9", "--set=mixup=0.2"]
    status, output = run(train_command(tmp_path / "whole", data_dir, *flags))
    assert status == 0, output
    workdir = tmp_path / "killed"
    command = train_command(workdir, data_dir, *flags)
    draw = random.Random(os.getpid())
    killed = []
    for mark in sorted(draw.sample(range(1, 30), 2)):  # of 40
        process = start(command)
        if wait_for(lambda mark=mark: newest_step(workdir) >= mark, process):
            time.sleep(draw.uniform(0, 0.05))  # anywhere in a step, or in the writing of a checkpoint
            kill_group(process)
            killed.append(newest_step(workdir))
    status, output = run(command)
    assert status == 0, output
    assert killed  # the second mark may come too late
    assert result(workdir) == result(tmp_path / "whole")


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file of weights for the backbone of `small_recipe()`."""
    keras.utils.set_random_seed(0)
    spec = ModelSpec.default("cifar_resnet20", overrides=NETWORK)
    return str(save_weights(spec.build(), tmp_path_factory.mktemp("classifier") / "a.weights.h5", spec))


def test_a_detector_killed_twice_ends_with_the_same_bytes(tmp_path, data_dir, backbone, run_options):
    """Within an epoch, and while files are written."""
    recipe = small_recipe(
        backbone_weights=backbone, statistics_batches=2, freeze="C2", flip=True, scale_jitter=(0.7, 1.5)
    )
    options = run_options(checkpoint_every=2)
    detection.train(recipe, tmp_path / "whole", options)
    workdir = tmp_path / "killed"
    flags = ["--checkpoint_every=2", "--strategy=one_device"]
    _, *command = train_command(workdir, data_dir, *flags, recipe=recipe_flags(recipe))
    deadline = time.monotonic() + 200
    for point, count in (("train", 5), ("write", 12)):  # of 9 steps, 3 in each epoch
        attack = Attack(signal.SIGKILL, point, count, 0.002)
        ended = attack_run([VICTIM, *command], workdir, tmp_path, deadline, attack)
        assert ended.sent, ended.output
        assert 4 <= newest_step(workdir) < 9, ended.output
    detection.train(recipe, workdir, options)
    assert result(workdir) == result(tmp_path / "whole")


def test_a_worker_that_dies_is_named_and_the_run_resumes_to_the_same_bytes(tmp_path, data_dir):
    flags = ["--epochs=3", "--checkpoint_every=2"]
    status, output = run(launch_command(2, tmp_path / "whole", data_dir, *flags))
    assert status == 0, output
    workdir = tmp_path / "killed"
    command = launch_command(2, workdir, data_dir, *flags)
    for victim, step in ((0, 4), (1, 24)):  # of 60
        process = start(command)
        assert wait_for(lambda step=step: newest_step(workdir) >= step, process), finish(process)
        os.kill(children(process)[victim], signal.SIGKILL)
        status, output = finish(process, timeout=120)
        assert status == 137, output  # the other's is 138
        assert f"[{1 - victim}] error: lost worker {victim} at 127.0.0.1:" in output
        assert "Traceback" not in output
    status, output = run([*command, "--export=saved_model,onnx"])
    assert status == 0, output
    assert result(workdir) == result(tmp_path / "whole")
    only_the_first_worker_exports(workdir, output, ["model.onnx", "saved_model"])


def only_the_first_worker_exports(workdir, output, names):
    for name in names:
        assert [line[:4] for line in output.splitlines() if f"wrote {name} " in line] == ["[0] "], output
    found = sorted(path.name for path in (workdir / "export").iterdir())
    assert [name for name in found if name in names] == names
    assert ".rejected" not in found
    if "saved_model" in names:
        assert [version.name for version in (workdir / "export" / "saved_model").iterdir()] == ["1"]


def workers_plan(folder, data_dir, task, recipe, **options):
    """Writes the plan of `dump_workers.py`; returns the command that carries it out with two workers."""
    plan = {"folder": str(folder), "task": task, "recipe": recipe.to_dict(), "apart": False}
    folder.mkdir(exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps({**plan, "options": {"data_dir": data_dir, **options}}))
    program = processes.ROOT / "tests" / "helpers" / "dump_workers.py"
    launcher = ["-m", "keras_resnet.training.launch_local", "--workers=2", f"--program={program}"]
    return [*launcher, "--", str(path)]


def run_workers(folder, command):
    """Runs a command of `workers_plan`; returns what each worker ended with."""
    status, output = run(command, PYTHONPATH=str(processes.ROOT))
    assert status == 0, output
    return [json.loads((folder / f"worker{index}.json").read_text()) for index in (0, 1)]


def resumes_with_a_worker_that_sees_no_checkpoint(folder, command, workers):
    """Worker 1 has a folder of its own, as if its file system did not show the chief's files yet."""
    weights = (folder / "run" / "model.weights.h5").read_bytes()
    checkpoints.list_checkpoints(folder / "run" / "checkpoints")[-1].unlink()
    plan = json.loads((folder / "plan.json").read_text())
    (folder / "plan.json").write_text(json.dumps({**plan, "apart": True}))
    resumed = run_workers(folder, command)
    assert 0 < len(resumed[0]["rows"]) < len(workers[0]["rows"])
    assert resumed[0]["digests"] == resumed[1]["digests"] == workers[0]["digests"]
    assert (folder / "run" / "model.weights.h5").read_bytes() == weights


def hold_the_same(workers):
    for worker in workers:
        worker["last"].pop("images_per_second")
    assert workers[0] == workers[1]


@pytest.mark.parametrize("mode", ["plain", "sync", "jit"])
def test_two_workers_hold_the_same_bytes(tmp_path, data_dir, mode):
    recipe = get_recipe("digits").set(
        [
            "model.stage_depths=(1,1)",
            "model.stage_filters=(4,8)",
            "image_size=16",
            "batch_size=64",
            "epochs=1",
        ]
    )
    # A rate at which rounding does not grow.
    small = recipe.replace(learning_rate=1e-3, warmup_epochs=0, schedule="constant")
    options = {"checkpoint_every": 8, "sync_batch_norm": mode == "sync", "jit": mode == "jit"}
    command = workers_plan(
        tmp_path, data_dir, "classification", small if mode == "sync" else recipe, **options
    )
    workers = run_workers(tmp_path, command)
    hold_the_same(workers)
    if mode == "jit":
        losses = [row[0] / row[2] for row in workers[0]["rows"]]
        assert losses[-1] < losses[0]
        return
    if mode == "plain":
        resumes_with_a_worker_that_sees_no_checkpoint(tmp_path, command, workers)
        return
    rows = []
    last = train(
        small,
        tmp_path / "one",
        RunOptions(strategy="one_device", data_dir=data_dir),
        lambda trainer, first, results: rows.extend(results.tolist()),
    )
    losses, expected = (
        np.array(some)[:20, 0] / np.array(some)[:20, 2] for some in (workers[0]["rows"], rows)
    )
    assert losses == pytest.approx(expected, rel=1e-4)
    # One image of 355 may stand on the border between two classes.
    assert workers[0]["last"]["val_top1"] == pytest.approx(last["val_top1"], abs=1.5 / 355)
    assert workers[0]["last"]["val_loss"] == pytest.approx(last["val_loss"], rel=1e-3)


def validation_metrics(recipe, weights, distribution):
    """The validation metrics of a detector's weights, computed by the devices of `distribution`."""
    changes = {"backbone_weights": None, "statistics_batches": 0, "freeze": None}
    task = detection.DetectionTask(recipe.replace(weights=str(weights), **changes))
    task.open(None)
    task.build(pretrained=True)
    bad = BadImages()
    task.prepare(distribution, None, bad)
    evaluate = tf.function(lambda batch: task.evaluation_sums(None, batch))
    results = [evaluate(batch) for batch in task.evaluation_batches(distribution, bad)]
    sums = sum(np.array(sums) for sums, _ in results)
    collected = {name: np.concatenate([more[name] for _, more in results]) for name in results[0][1]}
    return task.evaluation_metrics(sums, collected)


def test_two_workers_train_a_detector_as_one_device_does(
    tmp_path, data_dir, backbone, run_options, one_device
):
    """And they compute the same metrics.

    Also if one of them is killed within the second epoch, and both are started again.
    """
    overrides = {**C4, "score_threshold": 0.0, "proposals": 50}
    recipe = small_recipe(
        backbone_weights=backbone,
        statistics_batches=2,
        learning_rate=0.001,
        model_overrides=overrides,
    )
    options = {"checkpoint_every": 2}
    whole = tmp_path / "whole"
    workers = run_workers(whole, workers_plan(whole, data_dir, "detection", recipe, **options))
    hold_the_same(workers)
    expected = validation_metrics(recipe, whole / "run" / "model.weights.h5", one_device)
    assert expected["map50"] > 0
    for worker in workers:
        found = {name: worker["last"][f"val_{name}"] for name in expected}
        assert found == pytest.approx(expected, rel=1e-3)
    rows = []
    detection.train(
        recipe,
        tmp_path / "one",
        run_options(**options),
        lambda trainer, first, results: rows.extend(results.tolist()),
    )
    assert len(rows) == 9
    np.testing.assert_allclose(np.array(workers[0]["rows"])[:3], np.array(rows)[:3], rtol=1e-5)

    workdir = tmp_path / "killed"
    command = launch_command(2, workdir, data_dir, "--checkpoint_every=2", recipe=recipe_flags(recipe))
    process = start(command)
    assert wait_for(lambda: newest_step(workdir) >= 4, process), finish(process)
    os.kill(children(process)[1], signal.SIGKILL)
    status, output = finish(process, timeout=120)
    assert status == 137, output  # the other's is 138
    assert "[0] error: lost worker 1 at 127.0.0.1:" in output
    assert not (workdir / "model.weights.h5").exists()
    status, output = run([*command, "--export=onnx"])
    assert status == 0, output
    assert result(workdir) == result(whole / "run")
    only_the_first_worker_exports(workdir, output, ["model.onnx"])


@pytest.mark.parametrize("checkpoint_every", [1, 5])
def test_sigterm_is_forwarded_and_exits_143(tmp_path, data_dir, checkpoint_every):
    """With 1, the results of every call are read before the next one starts."""
    flags = ["--epochs=500", f"--checkpoint_every={checkpoint_every}"]
    process = start(launch_command(2, tmp_path, data_dir, *flags))
    assert wait_for(lambda: newest_step(tmp_path) >= 5, process), finish(process)
    process.send_signal(signal.SIGTERM)
    status, output = finish(process, timeout=120)
    assert status == 143, output
    stopped = int(output.split("stopped by SIGTERM after step ")[1].split()[0])
    assert newest_step(tmp_path) == stopped
    assert "Traceback" not in output


def test_a_missing_worker_is_named(tmp_path, data_dir):
    addresses = [f"127.0.0.1:{port}" for port in launch_local.free_ports(2)]
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 0}}
    command = train_command(tmp_path / "run", data_dir, "--strategy=multi_worker", "--worker_timeout=5")
    status, output = run(command, TF_CONFIG=json.dumps(config))
    assert status == 138
    assert f"error: worker 1 at {addresses[1]} did not connect within 5 seconds" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_worker_that_is_lost_while_tensorflow_connects(tmp_path, data_dir, lost):
    addresses = [f"127.0.0.1:{port}" for port in launch_local.free_ports(2)]
    config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": 1 - lost}}
    command = train_command(tmp_path / "run", data_dir, "--strategy=multi_worker", "--worker_timeout=10")
    process = start(command, TF_CONFIG=json.dumps(config))
    cluster.rendezvous(addresses, lost, 120)  # and no strategy after it
    status, output = finish(process)
    assert status == 138
    assert "error: TensorFlow has not connected the 2 workers within 10 seconds; start all" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_worker_that_ends_at_the_start_is_named(tmp_path, data_dir):
    addresses = [f"127.0.0.1:{port}" for port in launch_local.free_ports(2)]
    workers = []
    for index, flags in enumerate([[], ["--set=val_split=tests"]]):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        command = train_command(tmp_path / "run", data_dir, "--strategy=multi_worker", *flags)
        workers.append(start(command, TF_CONFIG=json.dumps(config)))
    (chief, chief_output), (other, other_output) = [finish(worker) for worker in workers]
    assert (other, chief) == (2, 138), chief_output
    assert "unknown split" in other_output
    assert f"error: lost worker 1 at {addresses[1]}; start all workers again" in chief_output
    assert "Traceback" not in chief_output
    assert not (tmp_path / "run").exists()


def test_no_worker_succeeds_if_the_chief_cannot_write_the_result(tmp_path, data_dir):
    (tmp_path / "model.weights.h5").mkdir()
    process = start(launch_command(2, tmp_path, data_dir, "--set=steps=2"))
    status, output = finish(process)
    assert status == 2, output
    assert "[0] error: " in output
    assert "[1] error: lost worker 0 at 127.0.0.1:" in output
    assert "Traceback" not in output


def test_a_full_disk_is_one_line_and_leaves_the_last_checkpoint_intact(tmp_path, data_dir):
    # A small file system in a name space of its own needs no root; its files are copied out at the end.
    disk, kept = tmp_path / "disk", tmp_path / "kept"
    disk.mkdir()
    kept.mkdir()
    workdir = disk / "run"
    flags = ["--epochs=500", "--checkpoint_every=1", "--keep=1000"]
    train = " ".join(
        f"'{part}'" for part in [sys.executable, *train_command(workdir, data_dir, *flags)]
    ).replace("'train[:640]'", "\"'train[:640]'\"")
    script = (
        f"mount -t tmpfs -o size=1m tmpfs {disk} && {{ {train}; echo $? >{kept}/status; "
        f"cp -r {workdir}/. {kept}/; ls -a {workdir} {workdir}/checkpoints >{kept}/names; }}"
    )
    process = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script],
        cwd=processes.ROOT,
        env=processes.environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (kept / "status").read_text().strip() == "2", process.stderr
    errors = [line for line in process.stderr.splitlines() if "error:" in line]
    assert len(errors) == 1, process.stderr
    assert "No space left on device" in errors[0]
    assert "Traceback" not in process.stderr
    assert not any(name.startswith(".step") for name in (kept / "names").read_text().split())
    paths = checkpoints.list_checkpoints(kept / "checkpoints")
    assert paths
    for path in paths:
        checkpoints.load(path)
