"""`python -m export` for detectors: the report, the rejected files, and refused flags."""

import dataclasses
import json
import re
import types
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import run
from helpers.export_detectors import C4, build, scenes
from PIL import Image

from export.__main__ import COMMAND
from keras_resnet import classification, detection
from keras_resnet.commands import train as train_command
from keras_resnet.commands.recipes import TRAIN
from keras_resnet.detection.export import pipeline
from keras_resnet.detection.export.onnx import detector_to_onnx
from keras_resnet.detection.export.request import DetectorExportRequest
from keras_resnet.errors import InputError

DIGITS = tuple(map(str, range(10)))
RECIPE = {"model": C4, "dataset": "scenes/digits/64", "val_split": "test[:6]", "epochs": 3}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return build(C4, classes=DIGITS).save_weights(tmp_path_factory.mktemp("weights") / "tiny.weights.h5")


@pytest.fixture
def workdir(weights, tmp_path):
    return make_run(tmp_path / "run", weights)


@pytest.fixture
def no_openvino(monkeypatch):
    monkeypatch.setattr(pipeline, "find_spec", lambda name: None)


def make_run(folder, weights):
    folder.mkdir()
    (folder / "model.weights.h5").write_bytes(weights.read_bytes())
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    return folder


def flat(path):
    return re.sub(" +", " ", path.read_text())  # tables are padded


def test_a_run(workdir, no_openvino, early_progress, capsys, monkeypatch):
    assert run(COMMAND, f"--workdir={workdir}", "--formats=onnx") == 0
    printed, progress = capsys.readouterr()
    for operation in ("detecting objects", "comparing"):
        assert f"{operation}: 1 of 6 images, " in progress
    output = workdir / "export"
    assert sorted(path.name for path in output.iterdir()) == [
        "MODEL_CARD.md",
        "detections.png",
        "model.onnx",
        "parity.json",
    ]
    parity = json.loads((output / "parity.json").read_text())
    entry = parity["formats"]["onnx"]
    assert (parity["model"], parity["images"], parity["equal"], entry["verdict"]) == (C4, 6, True, "equal")
    found = entry["verification"]
    assert found["detections"] > 6
    assert found["least_iou"] > 0.99
    assert found["ap"] == pytest.approx(parity["ap"], abs=1e-3)
    assert "the split test[:6] of scenes/digits/64 (composited)" in printed
    assert "model.onnx" in printed
    assert Image.open(output / "detections.png").size[0] > 640

    card = flat(output / "MODEL_CARD.md")
    for expected in (
        f"`{C4}`",
        "| epochs | 3 |",
        "9 9",
        "Apache-2.0",
        "the split test[:6] of scenes/digits/64 (composited)",
        f"python -m keras_resnet export --workdir={workdir} --formats=onnx",
        entry["sha256"],
        "from 0 to 255, of any size",
    ):
        assert expected in card

    # The card's code runs.
    Image.fromarray(scenes(1)[0]).save(output / "photo.png")
    Image.fromarray(scenes(1)[0]).save(output / "photo.jpg")
    monkeypatch.chdir(output)
    names = {}
    exec("".join(re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)), names)
    assert names["boxes"].shape == (names["count"][0], 4)
    (own,) = detection.load_detector(workdir / "model.weights.h5").detect(
        [names["images"][0].astype("uint8")]
    )
    np.testing.assert_allclose(names["boxes"], own.boxes, atol=0.05)


def test_a_difference_is_reported(workdir, no_openvino, capsys, monkeypatch):
    def write_changed(detector, path, **options):
        bias = detector.model.get_layer("roi_logits").bias
        before = bias.numpy()
        bias.assign(before + np.linspace(0, 0.1, 11))
        written = detector_to_onnx(detector, path, **options)
        bias.assign(before)
        return written

    monkeypatch.setattr(pipeline, "detector_to_onnx", write_changed)
    assert run(COMMAND, f"--workdir={workdir}", "--formats=onnx") == 1
    output = workdir / "export"
    printed = capsys.readouterr().out
    assert "DIFFERENT" in printed
    assert f"not published: {output}/.rejected/model.onnx" in printed
    assert (output / ".rejected" / "model.onnx").is_file()
    assert not (output / "model.onnx").exists()
    assert json.loads((output / "parity.json").read_text())["equal"] is False
    assert "import onnxruntime" not in (output / "MODEL_CARD.md").read_text()


@pytest.mark.slow
def test_weights_in_all_formats(weights, tmp_path, capsys):
    output = tmp_path / "out"
    flags = [f"--model={C4}", f"--weights={weights}", f"--output_dir={output}"]
    assert run(COMMAND, *flags) == 0
    printed = capsys.readouterr().out
    assert printed.count(" equal") == 4  # three formats, and ONNX in OpenVINO
    assert "scikit-learn's two sample photos" in printed
    assert f"{output}/saved_model/1" in printed
    assert f"{output}/model.tflite" in printed
    assert f"{output}/model.onnx in OpenVINO" in printed
    assert json.loads((output / "parity.json").read_text())["ap"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"layout": "nchw"}, "--layout applies to classifiers only"),
        ({"dynamic_size": "true"}, "--dynamic_size applies to classifiers only"),
        ({"batch_size": "1"}, "--batch_size applies to classifiers only"),
        ({"strict": "true"}, "--strict applies to classifiers only"),
        ({"precision": "float32,bfloat16"}, "bfloat16 does not exist; choose from float32"),
        ({"formats": "onnx", "precision": "int8"}, "onnx has no precision int8; choose from float32"),
        ({"image_size": "64"}, "--image_size must be HEIGHT,WIDTH in pixels; got 64"),
        ({"images": "0"}, "images must be at least 1; got 0"),
        ({"dataset": "scene"}, "scene"),
        ({"model": C4}, "--workdir and --model exclude each other"),
        ({"opset": "15"}, "opset 16 to 23; got 15"),
        (
            {"image_size": "64,64", "formats": "onnx"},
            "image_size applies to TFLite files, which are not among",
        ),
        (
            {"opset": "18", "formats": "saved_model,tflite"},
            "opset applies to ONNX files, which are not among",
        ),
        ({"io_dtype": "uint8", "formats": "saved_model"}, "io_dtype applies to TFLite and ONNX files, which"),
        ({"output_dir": "gs://bucket/x"}, "gs://bucket/x is a URL; give a local path"),
        ({"calibration_images": "64"}, "calibration_images applies to int8 files, which are not among"),
    ],
)
def test_bad_input_is_one_line_and_status_2(flags, message, workdir, capsys):
    assert run(COMMAND, f"--workdir={workdir}", *(f"--{key}={value}" for key, value in flags.items())) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert not list(workdir.glob("export/*"))


def test_retinanet_has_no_tflite_file(tmp_path, capsys):
    name = "retinanet_resnet50_v1_5_fpn"
    weights = build(name, classes=2).save_weights(tmp_path / "r.weights.h5")
    assert run(COMMAND, f"--model={name}", f"--weights={weights}", f"--output_dir={tmp_path / 'out'}") == 2
    assert f"{name} is a one-stage detector, which cannot be exported to TFLite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_openvino_does_not_end_an_export(workdir, monkeypatch, capsys):
    verify = pipeline.verify

    def fails_in_openvino(detector, format, *arguments):
        if format == "openvino":
            raise InputError("model.onnx cannot be opened by OpenVINO: no")
        return verify(detector, format, *arguments)

    monkeypatch.setattr(pipeline, "verify", fails_in_openvino)
    monkeypatch.setattr(pipeline, "find_spec", lambda name: True)
    assert run(COMMAND, f"--workdir={workdir}", "--formats=onnx", "--images=2") == 0
    printed = capsys.readouterr().out
    assert "onnx in OpenVINO: model.onnx cannot be opened by OpenVINO: no" in printed
    assert "OpenVINO's rows are for information" in (workdir / "export" / "MODEL_CARD.md").read_text()


def test_the_license_of_the_weights_is_in_the_file(workdir):
    import onnx

    source = DetectorExportRequest(workdir=workdir, formats="onnx").source()
    path = detector_to_onnx(source.detector, workdir / "m.onnx", license="BSD-3-Clause")
    properties = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert properties["license"] == "BSD-3-Clause"
    assert source.license == "Apache-2.0"
    other = dataclasses.replace(source, origin=types.SimpleNamespace(entry=None))
    assert other.license == "NOASSERTION"


def test_flags_of_detectors_are_refused_for_classifiers(capsys):
    assert run(COMMAND, "--model=resnet18", "--weights=none", "--images=3") == 2
    assert capsys.readouterr().err == "error: --images applies to detectors only\n"


def test_bad_workdirs(workdir):
    request = DetectorExportRequest(workdir=workdir, formats="onnx")
    recipe = workdir / "recipe.json"
    recipe.write_text(json.dumps(RECIPE | {"data": {"class_names": ["x"], "split_sizes": {}, "files": ""}}))
    with pytest.raises(InputError, match="the data have changed since the training"):
        request.source()
    recipe.write_text(json.dumps(RECIPE | {"model": "faster_rcnn_resnet50_c4"}))
    with pytest.raises(InputError, match="the recipe is for faster_rcnn_resnet50_c4, but the weights are"):
        request.source()
    (workdir / "model.weights.h5").unlink()
    with pytest.raises(InputError, match=r"holds no model\.weights\.h5; train first"):
        request.source()


@pytest.mark.parametrize("recipe", ["digits", "detect_scenes"])
@pytest.mark.parametrize(
    ("strategy", "index", "exports"),
    [
        ("multi_worker", 1, False),
        ("multi_worker", 0, True),
        ("auto", 1, False),
        ("one_device", 1, True),
    ],
)
def test_only_the_first_worker_exports(recipe, strategy, index, exports, tmp_path, monkeypatch):
    exported = []
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    monkeypatch.setattr(train_command, "export_run", lambda workdir, *more: exported.append(workdir) or 1)
    for task in (classification, detection):
        monkeypatch.setattr(task, "train", lambda *arguments: None)
    flags = [f"--recipe={recipe}", f"--workdir={tmp_path}", f"--strategy={strategy}", "--export=onnx"]
    assert run(TRAIN, *flags) == int(exports)  # the status of the export
    assert exported == [str(tmp_path)] * exports


def test_training_exports(weights, tmp_path, no_openvino, monkeypatch, capsys):
    monkeypatch.setattr(detection, "train", lambda recipe, workdir, options: make_run(Path(workdir), weights))
    assert run(TRAIN, "--recipe=detect_scenes", f"--workdir={tmp_path / 'run'}", "--export=onnx") == 0
    assert (tmp_path / "run" / "export" / "model.onnx").is_file()
