"""The wheel with each extra alone, in an empty folder: what its users run first.

All commands are also checked for start-up messages of TensorFlow: see `Environment.run`.
"""

import json

import numpy as np
import pytest
from helpers.torch_files import state_dict
from PIL import Image
from safetensors.numpy import save_file

from keras_resnet.__main__ import COMMAND
from keras_resnet.models.config import MODELS

pytestmark = pytest.mark.wheel

ON_JAX = {"KERAS_BACKEND": "jax", "JAX_PLATFORMS": "cpu"}
BUILD = """
import sys
import numpy as np
import keras_resnet
model = keras_resnet.CifarResNet20(shortcut="B")
print(model(np.zeros((1, 32, 32, 3), "float32")).shape)
assert "tensorflow" not in sys.modules
"""
LOAD = """
import keras_resnet
print(keras_resnet.build_model("resnet18", weights="ours.weights.h5").output_shape)
"""
DETECTOR = """
from keras_resnet.detection import build_detector
small = {"proposals": 10, "proposal_candidates": 50, "shorter_side": 64, "longer_side": 96}
detector = build_detector("faster_rcnn_cifar_resnet20_c4", classes=("cat", "dog"), **small)
detector.save_weights("tiny.weights.h5")
"""


@pytest.fixture(scope="module")
def base(make_environment):
    """Without any extra, and without a backend of Keras."""
    return make_environment()


@pytest.fixture(scope="module")
def training(make_environment):
    return make_environment("train")


@pytest.fixture(scope="module")
def run_folder(training, tmp_path_factory):
    """A folder with a run of one epoch on the digits."""
    folder = tmp_path_factory.mktemp("empty")
    training.run("train", "--recipe=digits", "--epochs=1", "--workdir=run", cwd=folder)
    return folder


def imported(done):
    """The modules that a process with PYTHONPROFILEIMPORTTIME imported."""
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines}


def test_the_installed_command_lists_all_verbs(everything, tmp_path):
    done = everything.run("--help", cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.startswith("usage: keras-resnet [--version] COMMAND")
    listed = done.stdout.split("commands:\n")[1].split("\n\n")[0]
    verbs = [line.split()[0] for line in listed.splitlines()]
    assert verbs == [verb for verb in COMMAND.commands if verb != "experiments"]  # only in a checkout


@pytest.mark.parametrize(
    "words",
    [("--help",), *((verb, "--help") for verb in COMMAND.commands if verb != "experiments"), ("recipes",)],
    ids=" ".join,
)
def test_help_is_light(base, tmp_path, words):
    done = base.run(*words, cwd=tmp_path, PYTHONPROFILEIMPORTTIME="1")
    assert "absl.flags" in imported(done)
    assert imported(done) & {"keras", "tensorflow", "matplotlib"} == set()


def test_without_an_extra_networks_are_built_on_any_backend(make_environment, tmp_path):
    environment = make_environment(others=("jax",))
    assert environment.run("-c", BUILD, cwd=tmp_path, **ON_JAX).stdout == "(1, 10)\n"


def test_without_an_extra_commands_name_the_one_that_they_need(base, tmp_path):
    for words, extra in ((("train",), "train"), (("export", "--workdir=run"), "export")):
        done = base.run(*words, cwd=tmp_path, status=2)
        expected = f"install what this command needs: pip install 'keras-resnet-zoo[{extra}]'"
        assert done.stderr == f"error: tensorflow is not installed; {expected}\n"
    assert list(tmp_path.iterdir()) == []


def test_workers_run_the_installed_command(base, tmp_path):
    done = base.run("launch", "--workers=1", "--", "--help", cwd=tmp_path)
    assert done.stdout.startswith("[0] usage: python -m keras_resnet train ")


def test_the_train_extra_trains_and_evaluates(training, run_folder):
    assert [path.name for path in run_folder.iterdir()] == ["run"]
    assert (run_folder / "run" / "curves.png").is_file()
    done = training.run("evaluate", "--workdir=run", cwd=run_folder)
    assert "single_crop on test of digits" in done.stdout
    assert len(list(run_folder.glob("run/evaluation/*/*"))) == 3


def test_the_export_extra_exports_and_verifies(make_environment, run_folder):
    make_environment("export").run("export", "--workdir=run", cwd=run_folder)
    report = json.loads((run_folder / "run" / "export" / "parity.json").read_text())
    assert report["equal"] is True
    assert set(report["files"]) == {"saved_model", "tflite", "onnx"}


def test_the_detection_extra_detects(make_environment, tmp_path):
    environment = make_environment("detection")
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), "uint8")
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    environment.run("-c", DETECTOR, cwd=tmp_path, TF_CPP_MIN_LOG_LEVEL="3")
    flags = ["--weights=tiny.weights.h5", "--score=0", "--output=boxes.png", "--json=boxes.json"]
    environment.run("detect", "photo.png", *flags, cwd=tmp_path)
    (photo,) = json.loads((tmp_path / "boxes.json").read_text())["photos"]
    assert (photo["height"], photo["width"]) == (48, 64)
    assert Image.open(tmp_path / "boxes.png").size == (320, 240)


def test_the_convert_extra_converts(make_environment, tmp_path):
    """With any backend."""
    environment = make_environment("convert", others=("jax",))
    config = MODELS["resnet18"]
    tensors = state_dict(config.block, config.stage_depths, config.stage_filters, 7)
    save_file(tensors, tmp_path / "theirs.safetensors")
    words = ["theirs.safetensors", "--model=resnet18", "--output=ours.weights.h5"]
    environment.run("weights", "convert", *words, cwd=tmp_path, **ON_JAX)
    assert environment.run("-c", LOAD, cwd=tmp_path, **ON_JAX).stdout == "(None, 7)\n"
