"""`python -m keras_resnet evaluate`: what it writes, and one line for what is wrong."""

import csv
import dataclasses
import hashlib
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.commands import run
from helpers.evaluation_networks import tiny_spec, write_weights
from PIL import Image
from sklearn.datasets import load_digits

import keras_resnet
from keras_resnet.classification import PROTOCOLS, get_recipe, load_evaluated_model, train
from keras_resnet.classification.__main__ import COMMAND
from keras_resnet.commands import evaluate
from keras_resnet.images.decode import decode_image
from keras_resnet.images.preprocessing import INTERPOLATIONS
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import LostWorker, RunOptions
from keras_resnet.weights import save_weights

ROOT = Path(keras_resnet.__file__).parents[1]
TINY = "--weights=tiny.weights.h5"
DIGITS = "--dataset=digits"


@pytest.fixture
def command(tmp_path, digits, data_dir, monkeypatch, capsys):
    """Runs the program: (exit status, standard output, lines on standard error)."""
    monkeypatch.chdir(tmp_path)

    def run_here(*flags):
        status = run(COMMAND, *flags, f"--data_dir={data_dir}")
        output, errors = capsys.readouterr()
        return status, output, errors.splitlines()

    return run_here


def test_the_report(command, weights_of):
    weights = weights_of()
    flags = [DIGITS, "--split=test[:60]", "--protocol=ten_crop", "--output_dir=out"]
    status, output, _ = command(f"--weights={weights}", *flags)
    assert status == 0
    held = json.loads(Path("out/evaluation.json").read_text())
    assert held["images"] == 60
    assert (held["dataset"], held["split"], held["protocol"]) == ("digits", "test[:60]", "ten_crop")
    assert set(held["figures"]) == {"top1", "top5", "loss", "calibration_error"}
    (network,) = held["networks"]
    assert network["sha256"] == hashlib.sha256(Path(weights).read_bytes()).hexdigest()
    assert network["model"] == "cifar_resnet20"
    assert network["shorter_sides"] == [18]
    assert f"{100 * held['figures']['top1']:.2f} %" in output
    assert output.splitlines()[-1].endswith("; see out")

    with open("out/per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [str(index) for index in range(10)]
    assert sum(int(row["images"]) for row in rows) == 60
    right = sum(float(row["top1"]) * int(row["images"]) for row in rows)
    assert right == pytest.approx(60 * held["figures"]["top1"])
    assert tf.io.decode_png(Path("out/confusion.png").read_bytes()).shape[0] > 300

    # The command in it does it again.
    words = shlex.split(held["command"])
    assert words[:4] == ["python", "-m", "keras_resnet", "evaluate"]
    before = Path("out/per_class.csv").read_bytes(), Path("out/confusion.png").read_bytes()
    command(*words[4:])
    again = json.loads(Path("out/evaluation.json").read_text())
    assert again["figures"] == held["figures"]
    assert (Path("out/per_class.csv").read_bytes(), Path("out/confusion.png").read_bytes()) == before
    names = {path.name for path in Path("out").iterdir()}
    assert names == {"confusion.png", "evaluation.json", "per_class.csv"}


@pytest.mark.slow
def test_an_ensemble_has_a_row_for_each_and_one_for_all(command, weights_of):
    files = [weights_of(name="first"), weights_of(seed=1, name="second")]
    status, output, _ = command(
        f"--weights={','.join(files)}", "--model=cifar_resnet20", DIGITS, "--split=test[:20]"
    )
    assert status == 0
    assert [name in output for name in ("first.weights.h5", "second.weights.h5", "ensemble")] == [True] * 3
    (folder,) = Path("runs/evaluation").iterdir()
    digests = [hashlib.sha256(Path(file).read_bytes()).hexdigest()[:8] for file in files]
    assert folder.name == (
        f"cifar_resnet20-{digests[0]}-cifar_resnet20-{digests[1]}-digits-test_20_-single_crop"
    )
    held = json.loads((folder / "evaluation.json").read_text())
    losses = [network["figures"]["loss"] for network in held["networks"]]
    # By Jensen's inequality.
    assert held["figures"]["loss"] < sum(losses) / 2


def test_a_trainings_folder(command, weights_of):
    weights_of(name="run/model")
    recipe = get_recipe("digits").to_dict()
    Path("run/recipe.json").write_text(json.dumps({**recipe, "seed": 0, "precision": "float32"}))
    status, _, _ = command("--workdir=run", "--split=test[:20]")
    assert status == 0
    held = json.loads(Path("run/evaluation/digits-test_20_-single_crop/evaluation.json").read_text())
    assert held["command"].startswith("python -m keras_resnet evaluate --workdir=run ")
    assert held["networks"][0]["weights"] == "run/model.weights.h5"
    assert held["images"] == 20


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """A folder of digits as photos of odd sizes, PNG and JPEG."""
    found, random = load_digits(), np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("photos")
    for index in range(600):
        split = "train" if index < 500 else "val"
        pixels = np.uint8(255 / 16 * found.images[index])
        photo = Image.fromarray(pixels).resize(random.integers(23, 60, 2), Image.Resampling.BICUBIC)
        path = folder / split / str(found.target[index]) / f"{index}.{'png' if index % 2 else 'jpg'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo.convert("RGB").save(path)
    return folder


@pytest.fixture(scope="session")
def trained(photos, tmp_path_factory):
    """The folder of a run on the photos."""
    recipe = get_recipe("digits").replace(
        model_overrides={"stage_depths": (1, 1), "stage_filters": (8, 16)},
        dataset=f"folder:{photos}",
        image_size=16,
        augmentation="none",
        val_split="val",
        batch_size=10,
        learning_rate=0.05,
        warmup_epochs=0.5,
        epochs=3,
    )
    folder = tmp_path_factory.mktemp("trained")
    train(recipe, folder, RunOptions(strategy="one_device"))
    return folder


def test_a_run_is_evaluated_as_it_was_validated(command, trained):
    """The same photos, resized alike, in the same batches: figures equal to the last digit."""
    status, _, _ = command(f"--workdir={trained}", "--strategy=one_device", "--output_dir=out")
    assert status == 0
    held = json.loads(Path("out/evaluation.json").read_text())
    assert (held["split"], held["images"], held["batch_size"]) == ("val", 100, 10)
    last = RunFolder(trained).read_history()[-1]
    assert held["figures"]["top1"] == float(last["val_top1"])
    assert held["figures"]["loss"] == float(last["val_loss"])


def test_a_run_is_not_evaluated_on_images_that_an_older_version_trained_on(
    command, trained, photos, tmp_path
):
    recipe = {
        **RunFolder(trained).read_recipe(),
        "dataset": f"folder:{photos / 'train'}",
        "val_split": "test",
    }
    recipe["data"] = {key: value for key, value in recipe["data"].items() if key != "split_rule"}
    older = RunFolder(shutil.copytree(trained, tmp_path / "older"))
    older.write_recipe(recipe)
    status, _, (line,) = command(f"--workdir={older.path}")
    assert status == 2
    assert "images were selected for splits by their order, now by a hash of their names" in line
    assert not (older.path / "evaluation").exists()


@pytest.mark.slow
def test_photos_resized_by_pillow_are_predicted_alike(photos, trained):
    """At most one of 100 predictions depends on whether TensorFlow or Pillow resizes."""
    run = load_evaluated_model(str(RunFolder(trained).weights))
    network = run.network()
    files = sorted(photos.glob("val/*/*"))
    labels = [int(file.parent.name) for file in files]
    for interpolation in INTERPOLATIONS:
        preprocessing = dataclasses.replace(run.preprocessing, interpolation=interpolation)
        by_pillow = preprocessing([Image.open(file) for file in files])
        by_tensorflow = [
            PROTOCOLS["single_crop"].views(decode_image(tf.constant(file.read_bytes())), preprocessing)[0]
            for file in files
        ]
        one, other = (
            network(images, training=False).numpy().argmax(1)
            for images in (by_pillow, np.concatenate(by_tensorflow))
        )
        assert (one == labels).mean() > 0.5
        assert (one != other).sum() <= 1


@pytest.fixture(scope="session")
def some_weights(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    write_weights(folder)
    write_weights(folder, tiny_spec(7), name="seven")
    write_weights(folder, tiny_spec(input_shape=(16, 20, 3)), name="wide")
    save_weights(tiny_spec().build(), folder / "bare.weights.h5")
    return folder


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --weights=FILE_OR_NAME and --dataset=NAME, or --workdir=DIR"),
        ([TINY], "give --weights=FILE_OR_NAME and --dataset=NAME"),
        (["--workdir=run", TINY], "--workdir and --weights exclude each other"),
        (["--workdir=run"], "run holds no recipe.json"),
        ([TINY, DIGITS, "--protocol=tencrop"], "unknown protocol 'tencrop'; did you mean ten_crop"),
        ([TINY, DIGITS, "--protocol=ensemble"], "an ensemble is any protocol with several weights"),
        ([TINY, DIGITS, "--strategy=mirorred"], "unknown strategy 'mirorred'; did you mean mirrored"),
        ([TINY, DIGITS, "--batch_size=0"], "the batch size must be at least 1; got 0"),
        ([TINY, DIGITS, "--max_bad_images=-1"], "max_bad_images must be at least 0; got -1"),
        ([TINY, DIGITS, "--split=tset"], "unknown split of digits 'tset'; did you mean test"),
        ([TINY, "--dataset=digist"], "unknown dataset 'digist'; did you mean digits"),
        (
            [TINY, DIGITS, "--model=resnet18"],
            "--model=resnet18, but tiny.weights.h5 has weights of cifar_",
        ),
        ([TINY, DIGITS, "--model=resnet19"], "unknown model 'resnet19'; did you mean"),
        ([TINY, DIGITS, "--model=resnet18,resnet34"], "--model has 2 names, --weights 1"),
        ([TINY + ",", DIGITS], "--weights has an empty name"),
        ([TINY + ",none.weights.h5", DIGITS], "weight file none.weights.h5 does not exist"),
        (["--weights=bare.weights.h5", DIGITS], "does not name its network; pass --model=NAME"),
        (
            ["--weights=bare.weights.h5", "--model=cifar_resnet32", DIGITS],
            "bare.weights.h5 is of another network",
        ),
        (["--weights=imagenet", DIGITS], "imagenet does not name its network; pass --model=NAME"),
        (
            ["--weights=imagenet", "--model=cifar_resnet20", DIGITS],
            "cifar_resnet20 has no pretrained weights",
        ),
        (["--weights=seven.weights.h5", DIGITS], "seven.weights.h5 has 7 classes, dataset digits has 10"),
        (
            ["--weights=wide.weights.h5", DIGITS],
            "images are cropped to squares; the network of wide.weights.h5 takes 16x20",
        ),
        ([TINY, DIGITS, "--output_dir=tiny.weights.h5/deep"], "tiny.weights.h5 is not a folder"),
        ([TINY, DIGITS, "--protocoll=ten_crop"], "protocoll"),
        (["tiny.weights.h5"], "unexpected argument 'tiny.weights.h5'"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(command, some_weights, monkeypatch, flags, message):
    monkeypatch.chdir(some_weights)
    before = sorted(path.name for path in some_weights.iterdir())
    status, output, errors = command(*flags)
    assert status == 2
    assert output == ""
    assert len(errors) == 1, errors
    assert errors[0].startswith("error: ")
    assert message in errors[0]
    assert sorted(path.name for path in some_weights.iterdir()) == before


def test_a_lost_worker_is_status_138(command, weights_of, monkeypatch):
    lost = "lost worker 1 at 127.0.0.1:1; start all workers again"

    def lose(*args, **kwargs):
        raise LostWorker(lost)

    monkeypatch.setattr(evaluate, "evaluate", lose)
    status, _, errors = command(f"--weights={weights_of()}", DIGITS)
    assert status == 138
    assert errors == [f"error: {lost}"]


@pytest.mark.slow
@pytest.mark.xdist_group("several_processes")
def test_two_workers_find_what_one_process_finds(command, weights_of, data_dir, tmp_path):
    """The workers under the evaluation's name in the first edition."""
    flags = [f"--weights={weights_of()}", DIGITS, "--batch_size=8"]
    status, _, errors = command(*flags, "--strategy=one_device", "--output_dir=one")
    assert status == 0, errors
    environment = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    environment["PYTHONPATH"] = str(ROOT)
    launcher = ["-m", "keras_resnet.training.launch_local", "--workers=2"]
    words = [*launcher, "--program=keras_resnet/evaluation.py", "--", *flags, f"--data_dir={data_dir}"]
    words = [sys.executable, *words, f"--output_dir={tmp_path / 'two'}"]
    subprocess.run(words, cwd=ROOT, env=environment, check=True, capture_output=True)
    one, two = (json.loads(Path(name, "evaluation.json").read_text()) for name in ("one", "two"))
    assert (one["replicas"], two["replicas"]) == (1, 2)
    assert two["images"] == 355
    assert two["figures"] == pytest.approx(one["figures"], rel=1e-5)
