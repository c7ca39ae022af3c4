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
    TINY_ASSIGNMENTS,
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
from keras_resnet.processes import cores
from keras_resnet.training import checkpoints, cluster, launch_local
from keras_resnet.weights import ModelSpec, save_weights

# One after the other: most of these tests use two cores.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several_processes")]


def result(workdir):
    return history(workdir), (workdir / "model.weights.h5").read_bytes()


def tiny_recipe(**changes):
    """20 steps per epoch."""
    return get_recipe("digits").set(TINY_ASSIGNMENTS).replace(**changes)


def test_killed_at_random_steps_ends_with_the_same_bytes(tmp_path, data_dir, run_options):
    recipe = tiny_recipe(epochs=2, ema_decay=0.9, mixup=0.2)
    train(recipe, tmp_path / "whole", run_options())
    workdir = tmp_path / "killed"
    flags = ["--epochs=2", "--checkpoint_every=3", "--set=ema_decay=0.9", "--set=mixup=0.2"]
    command = train_command(workdir, data_dir, *flags)
    draw = random.Random(os.getpid())
    killed = []
    for mark in sorted(draw.sample(range(1, 30), 2)):  # of 40
        process = start(command)
        if wait_for(lambda mark=mark: newest_step(workdir) >= mark, process):
            time.sleep(draw.uniform(0, 0.05))  # anywhere in a step, or in the writing of a checkpoint
            kill_group(process)
            killed.append(newest_step(workdir))
    train(recipe, workdir, run_options())
    assert killed  # the second mark may come too late
    assert result(workdir) == result(tmp_path / "whole")


def test_a_killed_pyramid_ends_with_the_same_bytes(tmp_path, data_dir, run_options):
    """Also with the largest seed."""
    recipe = small_recipe(fpn=True, epochs=2, flip=True, scale_jitter=(0.7, 1.5))
    options = run_options(checkpoint_every=2, seed=2**32 - 1)
    detection.train(recipe, tmp_path / "whole", options)
    workdir = tmp_path / "killed"
    flags = ["--checkpoint_every=2", f"--seed={options.seed}", "--strategy=one_device"]
    _, *command = train_command(workdir, data_dir, *flags, recipe=recipe_flags(recipe))
    attack = Attack(signal.SIGKILL, "train", 5, 0.002)  # in the second of the 3 steps of the last epoch
    ended = attack_run([VICTIM, *command], workdir, tmp_path, time.monotonic() + 200, attack)
    assert ended.sent, ended.output
    steps = []
    detection.train(recipe, workdir, options, lambda trainer, first, rows: steps.append(first))
    assert steps == [4, 5]
    assert result(workdir) == result(tmp_path / "whole")


# The command `train`, which sends SIGTERM to itself when TensorFlow has connected the workers.
CONNECTING = """
import os, signal, sys
import tensorflow as tf
from keras_resnet import cli
from keras_resnet.commands.recipes import TRAIN

received_by, *flags = sys.argv[1:]
create = tf.distribute.MultiWorkerMirroredStrategy.__init__

def create_and_send(self, *arguments, **options):
    create(self, *arguments, **options)
    if os.environ["TF_CONFIG"][-3] in received_by:
        os.kill(os.getpid(), signal.SIGTERM)

tf.distribute.MultiWorkerMirroredStrategy.__init__ = create_and_send
cli.run(TRAIN, flags)
"""


def run_two_workers(folder, data_dir, task, recipe, **options):
    """Trains in `folder`/run; returns what each worker ended with."""
    plan = {"folder": str(folder), "task": task, "recipe": recipe.to_dict()}
    folder.mkdir(exist_ok=True)
    path = folder / "plan.json"
    path.write_text(json.dumps({**plan, "options": {"data_dir": data_dir, **options}}))
    program = processes.ROOT / "tests" / "helpers" / "dump_workers.py"
    launcher = ["-m", "keras_resnet.training.launch_local", "--workers=2", f"--program={program}"]
    status, output = run([*launcher, "--", str(path)], PYTHONPATH=str(processes.ROOT))
    assert status == 0, output
    workers = [json.loads((folder / f"worker{index}.json").read_text()) for index in (0, 1)]
    for worker in workers:
        worker["last"].pop("images_per_second")
    return workers


def start_two_workers(*commands):
    """A process per command, with the cluster and the threads that `launch_local` gives it."""
    addresses = [f"127.0.0.1:{port}" for port in launch_local.free_ports(2)]
    threads = str(max(1, len(cores()) // 2))
    return addresses, [
        start(command, TF_CONFIG=tf_config(addresses, index), TF_NUM_INTRAOP_THREADS=threads)
        for index, command in enumerate(commands)
    ]


def tf_config(addresses, index):
    return json.dumps({"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}})


def lose_worker(victim, command, workdir):
    """Kills a worker of a run after its 4th step."""
    process = start(command)
    assert wait_for(lambda: newest_step(workdir) >= 4, process), finish(process)
    os.kill(children(process)[victim], signal.SIGKILL)
    status, output = finish(process, timeout=120)
    assert status == 137, output  # the other's is 138
    assert f"[{1 - victim}] error: lost worker {victim} at 127.0.0.1:" in output
    assert "Traceback" not in output
    assert not (workdir / "model.weights.h5").exists()


# A rate at which rounding does not grow.
SLOWLY = ["epochs=2", "learning_rate=0.001", "warmup_epochs=0", "schedule='constant'"]


@pytest.fixture(scope="module")
def synchronized(tmp_path_factory, data_dir):
    """The folder of a run with synchronized batch normalization, and what each of two workers ended with."""
    folder = tmp_path_factory.mktemp("synchronized")
    recipe = tiny_recipe().set(SLOWLY)
    workers = run_two_workers(folder, data_dir, "classification", recipe, sync_batch_norm=True)
    return folder / "run", workers


def test_two_workers_train_as_one_device_does(tmp_path, synchronized, run_options):
    _, workers = synchronized
    assert workers[0] == workers[1]
    rows = []
    last = train(
        tiny_recipe().set(SLOWLY),
        tmp_path / "one",
        run_options(),
        lambda trainer, first, results: rows.extend(results.tolist()),
    )
    losses, expected = (np.array(some)[:, 0] / np.array(some)[:, 2] for some in (workers[0]["rows"], rows))
    assert losses == pytest.approx(expected, rel=1e-4)
    # One image of 355 may stand on the border between two classes.
    assert workers[0]["last"]["val_top1"] == pytest.approx(last["val_top1"], abs=1.5 / 355)
    assert workers[0]["last"]["val_loss"] == pytest.approx(last["val_loss"], rel=1e-3)


def test_a_first_worker_that_dies_is_named_and_the_run_resumes_to_the_same_bytes(
    tmp_path, data_dir, synchronized
):
    """Also if the file system does not show the first worker's files to the other one yet."""
    whole, _ = synchronized
    flags = ["--checkpoint_every=2", "--sync_batch_norm", *(f"--set={each}" for each in SLOWLY)]
    shown, hidden = tmp_path / "shown", tmp_path / "hidden"
    lose_worker(0, launch_command(2, shown, data_dir, *flags), shown)
    flags += ["--strategy=multi_worker", "--export=onnx"]
    _, workers = start_two_workers(*(train_command(folder, data_dir, *flags) for folder in (shown, hidden)))
    (status, output), (other, other_output) = [finish(worker) for worker in workers]
    assert (status, other) == (0, 0), output + other_output
    assert "resuming" in output
    assert result(shown) == result(whole)
    assert (shown / "export" / "model.onnx").is_file()
    assert not (hidden / "export").exists()
    assert "wrote model.onnx" not in other_output


def test_two_workers_compute_with_xla(tmp_path, data_dir):
    workers = run_two_workers(tmp_path, data_dir, "classification", tiny_recipe(epochs=1), jit=True)
    assert workers[0] == workers[1]
    losses = [row[0] / row[2] for row in workers[0]["rows"]]
    assert losses[-1] < losses[0]


def test_two_workers_send_gradients_in_bfloat16(tmp_path, data_dir, synchronized):
    _, (exact, _) = synchronized
    options = {"sync_batch_norm": True, "compress_gradients": True}
    workers = run_two_workers(tmp_path, data_dir, "classification", tiny_recipe().set(SLOWLY), **options)
    assert workers[0] == workers[1]
    saved = exact["sent"]["float32"] - workers[0]["sent"]["float32"]
    assert saved == 2 * workers[0]["sent"]["bfloat16"] > 0
    losses, expected = (np.array(some["rows"])[:, 0] for some in (workers[0], exact))
    assert not np.array_equal(losses, expected)
    assert losses == pytest.approx(expected, rel=1e-3)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """A file of weights for the backbone of `small_recipe()`."""
    keras.utils.set_random_seed(0)
    spec = ModelSpec.default("cifar_resnet20", overrides=NETWORK)
    return str(save_weights(spec.build(), tmp_path_factory.mktemp("classifier") / "a.weights.h5", spec))


def validation_metrics(recipe, weights, data_dir, distribution):
    """The validation metrics of a detector's weights, computed by the devices of `distribution`."""
    changes = {"backbone_weights": None, "statistics_batches": 0, "freeze": None}
    task = detection.DetectionTask(recipe.replace(weights=str(weights), **changes))
    task.open(data_dir)
    model = task.build(pretrained=True)
    bad = BadImages()
    task.prepare(distribution, None, bad)
    evaluate = tf.function(lambda batch: task.evaluation_sums(model, batch))
    results = [evaluate(batch) for batch in task.evaluation_batches(distribution, bad)]
    sums = np.sum([sums for sums, _ in results], axis=0)
    collected = {name: np.concatenate([more[name] for _, more in results]) for name in results[0][1]}
    return task.evaluation_metrics(sums, collected)


def test_two_workers_train_a_detector_as_one_device_does(
    tmp_path, data_dir, backbone, run_options, one_device
):
    """Also if one of them is killed within the second epoch, and both are started again."""
    # So many boxes that even an untrained detector finds some of the objects.
    many = {"score_threshold": 0.0, "proposal_candidates": 1000, "proposals": 50, "detections": 500}
    recipe = small_recipe(
        backbone_weights=backbone,
        statistics_batches=2,
        learning_rate=0.001,
        model_overrides={**C4, **many},
    )
    whole = tmp_path / "whole"
    workers = run_two_workers(whole, data_dir, "detection", recipe)
    assert workers[0] == workers[1]
    expected = validation_metrics(recipe, whole / "run" / "model.weights.h5", data_dir, one_device)
    assert expected["map50"] > 0
    for worker in workers:
        found = {name: worker["last"][f"val_{name}"] for name in expected}
        assert found == pytest.approx(expected, rel=1e-3)
    rows = []
    detection.train(
        recipe,
        tmp_path / "one",
        run_options(),
        lambda trainer, first, results: rows.extend(results.tolist()),
    )
    assert len(rows) == 9
    np.testing.assert_allclose(np.array(workers[0]["rows"])[:3], np.array(rows)[:3], rtol=1e-5)

    workdir = tmp_path / "killed"
    command = launch_command(2, workdir, data_dir, "--checkpoint_every=2", recipe=recipe_flags(recipe))
    lose_worker(1, command, workdir)
    # Not ONNX: rounding may decide which of an untrained detector's boxes suppresses another.
    status, output = run([*command, "--export=saved_model"])
    assert status == 0, output
    assert result(workdir) == result(whole / "run")
    assert [line[:3] for line in output.splitlines() if "wrote saved_model " in line] == ["[0]"], output
    assert [version.name for version in (workdir / "export" / "saved_model").iterdir()] == ["1"]


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


def test_sigterm_during_the_start_of_the_workers_is_forwarded(monkeypatch):
    start_workers = launch_local.start

    def start_and_receive(command, count):
        workers = start_workers([sys.executable, "-c", "import time; time.sleep(60)"], count)
        signal.raise_signal(signal.SIGTERM)
        return workers

    monkeypatch.setattr(launch_local, "start", start_and_receive)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    try:
        assert launch_local.main(2, None, []) == 143
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("received_by", ["0", "1", "01"])
def test_sigterm_while_tensorflow_connects_the_workers(tmp_path, data_dir, received_by):
    """TensorFlow's own handler takes the signal, and tells all workers."""
    _, *flags = train_command(tmp_path / "run", data_dir, "--epochs=500", "--strategy=multi_worker")
    command = ["-c", CONNECTING, received_by, *flags]
    _, workers = start_two_workers(command, command)
    for worker in workers:
        status, output = finish(worker, timeout=120)
        assert status in (143, 138), output
        assert (status == 143) == ("stopped by SIGTERM" in output), output
        assert "Traceback" not in output
    assert 143 in [worker.returncode for worker in workers]


def test_a_missing_worker_is_named(tmp_path, data_dir):
    addresses = [f"127.0.0.1:{port}" for port in launch_local.free_ports(2)]
    command = train_command(tmp_path / "run", data_dir, "--strategy=multi_worker", "--worker_timeout=1")
    status, output = run(command, TF_CONFIG=tf_config(addresses, 0))
    assert status == 138
    assert f"error: worker 1 at {addresses[1]} did not connect within 1 seconds" in output
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("lost", [0, 1])
def test_a_worker_that_is_lost_while_tensorflow_connects(tmp_path, data_dir, lost):
    addresses = [f"127.0.0.1:{port}" for port in launch_local.free_ports(2)]
    command = train_command(tmp_path / "run", data_dir, "--strategy=multi_worker", "--worker_timeout=5")
    process = start(command, TF_CONFIG=tf_config(addresses, 1 - lost))
    cluster.rendezvous(addresses, lost, 120)  # and no strategy after it
    status, output = finish(process)
    assert status == 138
    assert "error: TensorFlow has not connected the 2 workers within 5 seconds; start all" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()


def test_a_worker_that_ends_at_the_start_is_named(tmp_path, data_dir):
    command = train_command(tmp_path / "run", data_dir, "--strategy=multi_worker")
    addresses, workers = start_two_workers(command, [*command, "--set=val_split=tests"])
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
