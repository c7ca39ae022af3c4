"""Runs in a store that is in memory; test_s3.py has a real one."""

import json
import tempfile

import pytest
from helpers.commands import run as run_here
from helpers.runs import break_off, tiny_recipe

from keras_resnet.classification import train
from keras_resnet.classification.__main__ import COMMAND as EVALUATE
from keras_resnet.detection import build_detector
from keras_resnet.detection.__main__ import COMMAND as DETECTION
from keras_resnet.errors import InputError
from keras_resnet.export.__main__ import COMMAND as EXPORT
from keras_resnet.files import sha256
from keras_resnet.models.config import get_config
from keras_resnet.training import RunOptions

URL = "s3://bucket/runs/one"


@pytest.fixture
def recipe():
    return tiny_recipe()


def test_a_run_is_broken_off_and_resumed_evaluated_and_exported(recipe, store, tmp_path, capsys, monkeypatch):
    """With the same result as in a local folder."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "staging"))
    (tmp_path / "staging").mkdir()
    data = tmp_path / "data"
    options = RunOptions(strategy="one_device", data_dir=str(data), checkpoint_every=2)
    train(recipe, tmp_path / "local", options)
    with break_off(7):
        train(recipe, URL, options)
    assert "checkpoints/step-000000006.h5" in store.names()
    last = train(recipe, URL, options)
    assert last["step"] == 10
    assert "resuming after step 6 of 10" in capsys.readouterr().err
    names = store.names()
    assert store.read("model.weights.h5") == (tmp_path / "local/model.weights.h5").read_bytes()
    assert [name for name in names if name.startswith("checkpoints/")] == [
        "checkpoints/step-000000008.h5",
        "checkpoints/step-000000010.h5",
    ]
    assert {"recipe.json", "history.csv", "curves.png", "lock"} <= set(names)
    assert sum(name.startswith("tensorboard/") for name in names) == 2  # one per process

    with pytest.raises(InputError, match=f"^{URL} holds another run \\(epochs 2.0 there, 3.0 now\\)"):
        train(recipe.replace(epochs=3), URL, options)
    assert store.names() == names

    flags = [f"--workdir={URL}", f"--data_dir={data}"]
    assert run_here(EVALUATE, *flags, "--strategy=one_device") == 0
    assert f"see {URL}/evaluation/digits-single_crop" in capsys.readouterr().out
    assert run_here(EXPORT, *flags, "--formats=onnx") == 0
    assert str(tmp_path / "staging") not in capsys.readouterr().out
    assert {
        "export/model.onnx",
        "export/parity.json",
        "evaluation/digits-single_crop/evaluation.json",
    } <= set(store.names())
    assert f"--workdir={URL}" in store.read("export/MODEL_CARD.md").decode()
    assert list((tmp_path / "staging").glob(".keras_resnet.*")) == []


def test_a_detector_is_evaluated(store, tmp_path):
    network = get_config("cifar_resnet20", stage_depths=(1, 1, 1), stage_filters=(8, 8, 8))
    small = {"proposals": 10, "proposal_candidates": 50, "shorter_side": 64, "longer_side": 96}
    detector = build_detector(
        "faster_rcnn_cifar_resnet20_c4", classes=list("0123456789"), network=network, **small
    )
    detector.save_weights(tmp_path / "a.weights.h5")
    store.write("model.weights.h5", (tmp_path / "a.weights.h5").read_bytes())
    flags = ["--dataset=scenes/digits", "--split=test[:3]", f"--output={tmp_path / 'out'}"]
    assert run_here(DETECTION, "evaluate", *flags, f"--weights={URL}") == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert content["weights"] == f"{URL}/model.weights.h5"
    assert content["sha256"] == sha256(tmp_path / "a.weights.h5")
    assert store.names() == ["model.weights.h5"]
