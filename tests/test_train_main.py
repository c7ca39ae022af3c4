"""Invalid input of train_main.py: one line, exit status 2, and no files."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.commands import run as run_command
from helpers.zoo_networks import TINY

import keras_resnet
from keras_resnet.commands.recipes import TRAIN
from keras_resnet.weights import read_spec, save_weights

ROOT = Path(__file__).parents[1]
TINY_FLAGS = [f"--set=model.{name}={value}" for name, value in TINY.items()]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Where the module's digits are prepared, once."""
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def command(tmp_path, data_dir, monkeypatch, capsys):
    """Runs train_main.py with flags in this process: (exit status, lines on standard error)."""
    monkeypatch.chdir(tmp_path)

    def run(*flags):
        status = run_command(TRAIN, f"--data_dir={data_dir}", *flags)
        return status, capsys.readouterr().err.splitlines()

    return run


def write_folder(path, classes, files=("a.png", "b.png", "c.png", "d.png", "e.png")):
    for name in classes:
        (path / name).mkdir(parents=True)
        for file in files:
            image = tf.io.encode_png(np.random.default_rng(0).integers(0, 255, (20, 20, 3), dtype=np.uint8))
            (path / name / file).write_bytes(image.numpy())
    return f"--dataset=folder:{path}"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--recipe=digit"], "unknown recipe 'digit'; did you mean digits"),
        (["--model=resnet51"], "unknown model 'resnet51'; did you mean resnet"),
        (["--dataset=mnits"], "unknown dataset 'mnits'; did you mean mnist"),
        (["--strategy=mirrorred"], "unknown strategy 'mirrorred'; did you mean mirrored"),
        (["--precision=float8"], "unknown precision 'float8'; did you mean float"),
        (["--export=onxx"], "unknown format 'onxx'; did you mean onnx"),
        (["--set=momentun=0.5"], "unknown recipe key 'momentun'; did you mean momentum"),
        (["--set=model.shortcut=E"], "shortcut must be one of 'A', 'B', 'C', 'D', None; got 'E'"),
        (["--set=model.classes=7"], "classes is 7, but digits has 10"),
        (["--batch_size=0"], "batch_size must be at least 1; got 0"),
        (["--batch_size=2000"], "batch size 2000 is larger than the split 'train'"),
        (["--set=image_size=2"], "needs images of at least 4 pixels"),
        (["--weights=none.weights.h5"], "none.weights.h5 does not exist"),
        (["--weights=torchvison_v1", "--model=resnet18", "--set=image_size=32"], "torchvision_v1"),
        (["--freeze=C9"], "freeze takes one of C1, C2, C3, C4 or None; got 'C9'"),
        (["--set=normalization=weights"], "'weights' needs pretrained weights; set weights"),
        (["--batchsize=3"], "batchsize"),
        (["--epochs=many"], "epochs"),
        (["--epochs=inf"], "'epochs' takes float; got inf"),
        (["--seed=5000000000"], "seed must be less than 4294967296; got 5000000000"),
        (["--worker_timeout=0"], "worker_timeout must be positive"),
        (["digits"], "unexpected argument 'digits'"),
        (["--dataset=folder:/nowhere"], "there is no folder '/nowhere'"),
        (["--workdir=/proc/nowhere"], "cannot write /proc/nowhere"),
    ],
)
def test_one_line_and_status_2(command, tmp_path, flags, message):
    status, errors = command(*flags)
    assert status == 2
    assert [line for line in errors if line.startswith("error: ")] == errors[-1:]
    assert message in errors[-1]
    assert not (tmp_path / "runs").exists()


def test_weights_that_are_broken_or_of_another_network(command, tmp_path):
    path = tmp_path / "w.weights.h5"
    save_weights(keras_resnet.CifarResNet20(**TINY), path)
    for content, message in [(b"text", "is not an HDF5 file"), (path.read_bytes()[:20_000], "truncated")]:
        path.write_bytes(content)
        status, errors = command(f"--weights={path}", *TINY_FLAGS)
        assert (status, message in errors[-1]) == (2, True), errors
    save_weights(keras_resnet.CifarResNet20(shortcut="B", classes=3, **TINY), path)
    status, errors = command(f"--weights={path}", *TINY_FLAGS)
    assert status == 2
    assert f"{path} is of another network: its layer " in errors[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_finetunes_a_runs_own_file_on_a_folder(command, tmp_path):
    """With other classes and another image size; another run in the same workdir is an error."""
    status, errors = command("--workdir=a", *TINY_FLAGS, "--set=train_split='train[:64]'", "--set=steps=1")
    assert status == 0, errors
    flags = ["--recipe=finetune", "--model=cifar_resnet20", "--weights=a/model.weights.h5", "--freeze=C2"]
    flags += [write_folder(tmp_path / "photos", ["cat", "dog"]), "--batch_size=4", "--epochs=1"]
    status, errors = command("--workdir=b", *flags, *TINY_FLAGS, "--set=image_size=32")
    assert status == 0, errors
    recipe = json.loads((tmp_path / "b" / "recipe.json").read_text())
    assert (recipe["weights"], recipe["freeze"]) == ("a/model.weights.h5", "C2")
    before, after = (read_spec(name) for name in ("a/model.weights.h5", "b/model.weights.h5"))
    assert (before.classes, after.classes) == (10, 2)
    assert (after.labels, after.input_shape) == (("cat", "dog"), (32, 32, 3))
    assert before.normalization == after.normalization
    status, errors = command("--workdir=b", *flags, *TINY_FLAGS, "--set=image_size=32", "--freeze=C1")
    assert status == 2
    assert "holds another run (freeze 'C2' there, 'C1' now)" in errors[-1]


def test_folders_that_are_not_datasets(command, tmp_path):
    (tmp_path / "empty").mkdir()
    status, errors = command(f"--dataset=folder:{tmp_path}/empty")
    assert (status, "two or more, one per class" in errors[-1]) == (2, True), errors
    status, errors = command(write_folder(tmp_path / "one", ["cat"]))
    assert (status, "two or more, one per class" in errors[-1]) == (2, True), errors
    flag = write_folder(tmp_path / "text", ["cat", "dog"])
    (tmp_path / "text" / "dog" / "notes.txt").write_text("not an image")
    status, errors = command(flag, "--batch_size=4", "--max_bad_images=0")
    assert (status, "notes.txt" in errors[-1]) == (2, True), errors


def test_a_missing_dataset_without_a_network(command, data_dir, monkeypatch):
    from keras_resnet.data import sources

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr(sources.tfds.core.DatasetBuilder, "download_and_prepare", offline)
    status, errors = command("--recipe=cifar10_paper")
    assert status == 2
    assert "cifar10" in errors[-1]
    assert str(data_dir) in errors[-1]


def test_as_a_program():
    made = subprocess.run(
        [sys.executable, "train_main.py", "--recipe=imagenet_papr"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 2
    assert made.stderr.splitlines()[-1].startswith(
        "error: unknown recipe 'imagenet_papr'; did you mean imagenet_paper"
    )
    assert "Traceback" not in made.stderr
