"""`python -m export --model=all`: every network, the index, and resuming."""

import json

import pytest
from helpers.export_networks import SMALL_CIFAR, randomize, spec_of

from export import zoo
from export.zoo import export_zoo
from keras_resnet.errors import InputError
from keras_resnet.export import pipeline
from keras_resnet.export.artifacts import Options
from keras_resnet.weights import save_weights

MODELS = ["cifar_resnet20", "cifar_plain20"]


@pytest.fixture
def no_timing(monkeypatch):
    monkeypatch.setattr(pipeline, "time_artifact", lambda *arguments: {})


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("zoo")
    assert export_zoo("none", "onnx", folder, models=MODELS)
    return folder


def test_the_index(exported):
    assert {entry.name for entry in exported.iterdir()} == {*MODELS, "index.json", "index.md"}
    entries = json.loads((exported / "index.json").read_text())["networks"]
    assert [entry["model"] for entry in entries] == MODELS
    for entry in entries:
        assert entry["parameters"] == 269_722  # with option A as many as the plain network
        assert entry["weights"] == "none"
        onnx = entry["formats"]["onnx"]
        assert onnx["equal"]
        assert (exported / onnx["file"]).stat().st_size == onnx["bytes"]
        assert set(onnx["latency"]) == {"1", "32"}
        assert 0 < onnx["latency"]["1"] < onnx["latency"]["32"]
        assert onnx["peak_memory"] > 2**20
    table = (exported / "index.md").read_text()
    for expected in ("cifar_plain20", "269,722", "multiply-adds", "batch 32"):
        assert expected in table


def test_resuming(exported, no_timing, capsys, monkeypatch):
    calls = []
    write = zoo.export_weights
    monkeypatch.setattr(
        zoo, "export_weights", lambda model, *a, **k: calls.append(model) or write(model, *a, **k)
    )
    assert export_zoo("none", "onnx", exported, models=MODELS)
    assert calls == []
    assert capsys.readouterr().out.count("done before") == 2
    (exported / "cifar_plain20" / "model.onnx").write_bytes(b"keras_resnet, but damaged")
    assert export_zoo("none", "onnx", exported, models=MODELS)
    assert calls == ["cifar_plain20"]
    # Other options: the network is exported again.
    assert export_zoo("none", "onnx", exported, models=MODELS[:1], options=Options(layout="nchw"))
    assert calls == ["cifar_plain20", "cifar_resnet20"]


@pytest.mark.slow
def test_a_folder_of_weights(no_timing, tmp_path):
    spec = spec_of("cifar_resnet20", SMALL_CIFAR)
    (tmp_path / "weights").mkdir()
    with pytest.raises(InputError, match="holds no file like resnet50"):
        export_zoo(tmp_path / "weights", "onnx", tmp_path / "out")
    with pytest.raises(InputError, match="is none or a folder"):
        export_zoo(tmp_path / "missing", "onnx", tmp_path / "out")
    file = save_weights(randomize(spec.build()), tmp_path / "weights" / "cifar_resnet20.weights.h5", spec)
    assert export_zoo(tmp_path / "weights", "onnx", tmp_path / "out")
    before = (tmp_path / "out" / "cifar_resnet20" / "model.onnx").read_bytes()
    save_weights(randomize(spec.build(), seed=1), file, spec)
    assert export_zoo(tmp_path / "weights", "onnx", tmp_path / "out")
    assert (tmp_path / "out" / "cifar_resnet20" / "model.onnx").read_bytes() != before
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {
        "cifar_resnet20",
        "index.json",
        "index.md",
    }


def test_an_index_of_another_program_is_not_replaced(tmp_path):
    (tmp_path / "index.md").write_text("mine")
    with pytest.raises(InputError, match=r"index\.md exists and was not written by an export"):
        export_zoo("none", "onnx", tmp_path, models=MODELS[:1])
    assert [entry.name for entry in tmp_path.iterdir()] == ["index.md"]
