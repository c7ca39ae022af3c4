"""What the first edition wrote still resumes, loads, evaluates and exports: see fixtures/first_edition."""

import csv
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import onnxruntime
import pytest
from ai_edge_litert.interpreter import Interpreter
from helpers.commands import run

from export.__main__ import COMMAND as EXPORT
from keras_resnet.classification.__main__ import COMMAND as EVALUATE
from keras_resnet.commands.recipes import TRAIN

FIXTURES = Path(__file__).parent / "fixtures" / "first_edition"


def copied(name, folder):
    return Path(shutil.copytree(FIXTURES / name, folder / name))


def arrays(path):
    """Every tensor of an HDF5 file, by its name in the file."""
    found = {}
    with h5py.File(path) as file:
        file.visititems(lambda name, item: found.update({name: item[()]} if hasattr(item, "shape") else {}))
    return found


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


def test_a_stopped_run_resumes(tmp_path, data_dir):
    """From the middle of an epoch, with averaged weights and mixed images, to the same end.

    The same end to rounding: the fixture's last bits are those of the machine that made it.
    """
    stopped = copied("stopped", tmp_path)
    recipe = json.loads((stopped / "recipe.json").read_text())
    settings = ("batch_size", "train_split", "val_split", "image_size", "channels", "ema_decay", "mixup")
    status = run(
        TRAIN,
        *("--recipe=digits", "--epochs=2", "--seed=3", f"--workdir={stopped}", f"--data_dir={data_dir}"),
        *(f"--set={name}={recipe[name]}" for name in settings),
        *(f"--set=model.{name}={value}" for name, value in recipe["model_overrides"].items()),
    )
    assert status == 0
    expected, resumed = rows(FIXTURES / "finished/history.csv"), rows(stopped / "history.csv")
    assert len(resumed) == len(expected) == 2
    for ours, theirs in zip(resumed, expected, strict=True):
        assert list(ours) == list(theirs)
        for column in set(ours) - {"images_per_second"}:
            assert float(ours[column]) == pytest.approx(float(theirs[column]), rel=1e-3), column
    ours, theirs = arrays(stopped / "model.weights.h5"), arrays(FIXTURES / "finished/model.weights.h5")
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[name], value, rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_finished_run_is_evaluated(tmp_path, data_dir):
    finished = copied("finished", tmp_path)
    flags = [f"--workdir={finished}", "--split=test", f"--data_dir={data_dir}"]
    assert run(EVALUATE, *flags, f"--output_dir={tmp_path / 'evaluation'}") == 0
    evaluation = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    parity = json.loads((finished / "export" / "parity.json").read_text())
    assert evaluation["figures"]["top1"] == parity["top1"]  # of 355 images


@pytest.mark.slow
def test_a_finished_run_is_exported_to_the_same_numbers(tmp_path, data_dir):
    finished = copied("finished", tmp_path)
    flags = [f"--workdir={finished}", "--formats=onnx,tflite", f"--data_dir={data_dir}"]
    assert run(EXPORT, *flags, f"--output_dir={tmp_path / 'anew'}") == 0
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 1)).astype("float32")
    for runtime, name in ((in_onnx_runtime, "model.onnx"), (in_litert, "model.tflite")):
        old, new = (runtime(folder / name, images) for folder in (finished / "export", tmp_path / "anew"))
        assert old.keys() == new.keys() == {"logits", "probabilities"}
        for output in old:
            assert old[output].tobytes() == new[output].tobytes(), (name, output)


def in_onnx_runtime(path, images):
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def in_litert(path, images):
    results = Interpreter(str(path)).get_signature_runner("serving_default")(images=images)
    return {name: np.array(value) for name, value in results.items()}
