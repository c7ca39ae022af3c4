"""`python -m export` and the functions that it calls."""

import contextlib
import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.commands import run as run_here
from helpers.export_networks import SMALL, SMALL_CIFAR, randomize, serving, spec_of
from helpers.torch_files import state_dict, torch_forward
from safetensors.numpy import save_file

from export.__main__ import COMMAND
from keras_resnet.commands import export as command
from keras_resnet.data import open_dataset
from keras_resnet.errors import InputError
from keras_resnet.export import images as image_sources
from keras_resnet.export import pipeline, request
from keras_resnet.export.artifacts import Options
from keras_resnet.export.graph import fold
from keras_resnet.export.images import sample_photos
from keras_resnet.export.report import ArtifactReport, ExportReport
from keras_resnet.export.runtimes import time_artifact
from keras_resnet.export.writers.tflite_metadata import read_labels
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.models.config import MODELS
from keras_resnet.weights import get_entry, save_weights
from keras_resnet.weights import weight_file as pretrained

REPOSITORY = Path(__file__).parents[2]
FORMATS = ["--formats=onnx,tflite"]  # SavedModel is slow, and is tested elsewhere
LABELS = [f"{index}" for index in range(10)]
SPEC = spec_of("cifar_resnet20", SMALL_CIFAR, labels=LABELS)
SPEC = dataclasses.replace(
    SPEC, preprocessing=dataclasses.replace(SPEC.preprocessing, resize=36, interpolation="bicubic")
)


def run(*arguments, cwd=REPOSITORY):
    command = [sys.executable, "-m", "export", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "cifar.weights.h5"
    return save_weights(randomize(SPEC.build()), path, SPEC)


@pytest.fixture(autouse=True)
def no_timing(monkeypatch):
    """Latencies take seconds per artifact; the tests of export/zoo.py look at them."""
    monkeypatch.setattr(pipeline, "time_artifact", lambda *arguments: {})


@pytest.fixture
def workdir(weights, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.weights.h5").write_bytes(weights.read_bytes())
    recipe = {"model": "cifar_resnet20", "dataset": "toy", "augmentation": "scale_crop_flip", "epochs": 3}
    recipe["data"] = {"class_names": LABELS}
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return folder


@pytest.fixture
def toy_dataset(monkeypatch):
    images = sample_photos(32, 32)
    asked = []

    def dataset_images(spec, dataset, data_dir, calibration_images, trained_on):
        asked.append((dataset, data_dir, trained_on))
        return image_sources.Images(
            lambda: [(images, np.arange(8))], f"the test split of {dataset}", lambda: [images] * 8
        )

    monkeypatch.setattr(request, "dataset_images", dataset_images)
    return asked


@pytest.mark.slow
def test_weights_from_the_command_line(weights, tmp_path):
    output = tmp_path / "out"
    result = run("--model=cifar_resnet20", f"--weights={weights}", f"--output_dir={output}", *FORMATS)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count(" equal") == 2
    assert result.stderr == ""  # the converters' output is hidden
    entries = sorted(path.name for path in output.iterdir())
    reports = ["parity.json", "predictions.png", "samples.png"]
    assert entries == ["MODEL_CARD.md", "model.onnx", "model.tflite", *reports]
    parity = json.loads((output / "parity.json").read_text())
    assert set(parity["formats"]) == {"tflite", "onnx"}
    for entry in parity["formats"].values():
        assert entry["equal"]
        assert entry["top1"] is None
        assert entry["images"] == 8
        assert entry["max_relative_difference"] <= 1e-5


def test_bad_input_is_one_line_and_status_2(tmp_path, capsys):
    assert run_here(COMMAND, "--workdir=nowhere", "--formats=onx", f"--output_dir={tmp_path / 'out'}") == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err == "error: unknown format 'onx'; did you mean onnx?\n"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("equal", "more", "status"), [(True, [], 0), (False, [], 1), (True, ["--model=resnet18"], 2)]
)
def test_status_follows_the_comparison(equal, more, status, monkeypatch):
    monkeypatch.setattr(command, "export", lambda request: SimpleNamespace(passes=lambda strict: equal))
    assert run_here(COMMAND, "--workdir=somewhere", *more) == status


def test_how_much_top1_may_fall(monkeypatch):
    requests, strictness = [], []
    report = SimpleNamespace(passes=strictness.append)
    monkeypatch.setattr(command, "export", lambda request: requests.append(request) or report)
    run_here(COMMAND, "--workdir=somewhere", "--strict", "--max_top1_drop=2.5")
    assert strictness == [True]
    assert (requests[0].strict, requests[0].max_top1_drop) == (True, 2.5)
    assert (
        "--max_top1_drop=2.5 --strict=True" in request.ExportRequest(max_top1_drop=2.5, strict=True).command
    )
    for wrong in (-1, 101, float("nan")):
        with pytest.raises(InputError, match="max_top1_drop must be 0 to 100; got"):
            request.ExportRequest(max_top1_drop=wrong)


def test_workdir(workdir, toy_dataset, tmp_path, capsys, monkeypatch):
    assert pipeline.export_workdir(workdir, "tflite,onnx", data_dir="data") is True
    assert toy_dataset == [("toy", "data", {"class_names": LABELS})]
    output = workdir / "export"
    parity = json.loads((output / "parity.json").read_text())
    assert list(parity["formats"]) == ["tflite", "onnx"]
    assert parity["top1"] is not None
    assert (parity["input_shape"], parity["sample_labels"]) == ([32, 32, 3], list(range(8)))
    assert "the test split of toy" in capsys.readouterr().out

    card = (output / "MODEL_CARD.md").read_text()
    for expected in (
        "cifar_resnet20",
        "| epochs | 3 |",
        "9 9",
        "Resize the shorter side of each image to 36 pixels (bicubic)",
        "Image.Resampling.BICUBIC",
        "Apache-2.0",
        "the test split of toy",
        f"python -m keras_resnet export --workdir={workdir} --data_dir=data",
        parity["formats"]["onnx"]["sha256"],
        f"{parity['formats']['tflite']['bytes']:,}",
    ):
        assert expected in re.sub(" +", " ", card)  # tables are padded
    assert "class_names" not in card

    from PIL import Image

    samples = np.asarray(Image.open(output / "samples.png"))
    np.testing.assert_array_equal(samples, np.concatenate(np.rint(sample_photos(32, 32)), axis=1))

    # The card's code runs.
    Image.fromarray(np.arange(40 * 50 * 3, dtype="uint8").reshape(40, 50, 3)).save(output / "photo.jpg")
    monkeypatch.chdir(output)
    prepare, *snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    answers = []
    for snippet in snippets:
        names = {}
        exec(prepare + snippet, names)
        answers.append(names["probabilities"])
    assert [answer.shape for answer in answers] == [(1, 10), (1, 10)]
    np.testing.assert_allclose(answers[0], answers[1], atol=1e-4)

    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load("model.onnx").metadata_props}
    assert json.loads(metadata["labels"]) == LABELS
    assert json.loads(metadata["normalization"])["scale"][0] == pytest.approx(1 / 58.395)


def test_a_difference_is_reported(workdir, toy_dataset, monkeypatch, capsys):
    """Artifacts of other weights than the Keras model's; all are written from one graph."""
    folded = []

    def fold_changed(model):
        bias = model.get_layer(SPEC.model).get_layer("predictions").bias
        bias.assign_add(np.full(10, 1.0))
        folded.append(fold(model))
        bias.assign_sub(np.full(10, 1.0))
        return folded[-1]

    monkeypatch.setattr(pipeline, "fold", fold_changed)
    assert pipeline.export_workdir(workdir, ["tflite", "onnx"]) is False
    output = workdir / "export"
    printed = capsys.readouterr().out
    assert printed.count("DIFFERENT") == 2
    assert f"not published: {output}/.rejected/model.tflite, {output}/.rejected/model.onnx" in printed
    assert len(folded) == 1
    assert sorted(path.name for path in output.iterdir()) == [
        ".rejected",
        "MODEL_CARD.md",
        "parity.json",
        "predictions.png",
        "samples.png",
    ]
    parity = json.loads((output / "parity.json").read_text())
    assert parity["equal"] is False
    for path in parity["files"].values():
        assert (output / path).is_file()


@pytest.mark.parametrize(
    ("equal", "place"),
    [(True, "saved_model/3"), (False, ".rejected/saved_model/1")],
    ids=["equal", "different"],
)
def test_a_version_gets_its_number_after_its_verification(equal, place, tmp_path, monkeypatch):
    """TensorFlow Serving loads the newest number that it sees."""
    (tmp_path / "saved_model" / "2").mkdir(parents=True)
    (tmp_path / ".rejected" / "model.onnx").mkdir(parents=True)  # of an earlier export

    def write(name, graph, path, options):
        (path / "1").mkdir(parents=True)
        (path / "1" / "saved_model.pb").write_bytes(b"graph")
        return path / "1"

    def verified(model, artifacts, *arguments):
        assert [path.name for path in (tmp_path / "saved_model").iterdir()] == ["2"]
        entry = ArtifactReport(0.0, 0.0, 0.0, 1e-5, 0.0, 1.0, None, None, 1, equal, (), 5, "digest")
        return ExportReport(SPEC.model, 1, None, {}, {"saved_model": entry})

    monkeypatch.setattr(pipeline, "write_artifact", write)
    monkeypatch.setattr(pipeline, "verify", verified)
    report = pipeline.export_and_verify(SPEC, serving(SPEC), tmp_path, ["saved_model"])
    assert report.files == {"saved_model": place}
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    reports = {"MODEL_CARD.md", "parity.json", "predictions.png", "samples.png"}
    folders = {"saved_model", "saved_model/2", str(Path(place).parent), place}
    assert files == reports | folders | {f"{place}/saved_model.pb"} | ({".rejected"} if not equal else set())


def test_sigterm_leaves_nothing_behind(weights, tmp_path, monkeypatch):
    def interrupted(name, graph, path, options):
        path.write_bytes(b"half")
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr(pipeline, "write_artifact", interrupted)
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        flags = ["--model=cifar_resnet20", f"--weights={weights}", f"--output_dir={tmp_path}"]
        assert run_here(COMMAND, *flags, "--formats=onnx") == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert list(tmp_path.iterdir()) == []


def test_bad_workdirs(workdir, toy_dataset, tmp_path):
    with pytest.raises(InputError, match="there is no workdir"):
        pipeline.export_workdir(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"holds no model\.weights\.h5"):
        pipeline.export_workdir(tmp_path / "empty")
    recipe = workdir / "recipe.json"
    for content, problem in (
        ("{", "is not JSON"),
        ("[]", "not a recipe"),
        ('{"dataset": "x"}', "no model"),
    ):
        recipe.write_text(content)
        with pytest.raises(InputError, match=problem):
            pipeline.export_workdir(workdir)
    recipe.write_text('{"dataset": "x", "model": "resnet18"}')
    with pytest.raises(InputError, match="recipe is for resnet18, but the weights are for cifar_resnet20"):
        pipeline.export_workdir(workdir)
    recipe.unlink()
    with pytest.raises(InputError, match=r"holds no recipe\.json"):
        pipeline.export_workdir(workdir)
    assert not (workdir / "export").exists()


def test_bad_output_folder(workdir, toy_dataset, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="cannot write"):
        pipeline.export_workdir(workdir, "onnx", output_dir=tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_bad_weights(weights, tmp_path):
    output = tmp_path / "out"
    with pytest.raises(InputError, match="unknown model 'resnet51'"):
        pipeline.export_weights("resnet51", weights, output_dir=output)
    with pytest.raises(InputError, match=r"weight file .*missing\.h5 does not exist"):
        pipeline.export_weights("resnet50", tmp_path / "missing.h5", output_dir=output)
    with pytest.raises(
        InputError, match="unknown weights of resnet50_v1_5 'torchvision_v3'; did you mean torchv"
    ):
        pipeline.export_weights("resnet50_v1_5", "torchvision_v3", output_dir=output)
    with pytest.raises(InputError, match="cifar_resnet20 has no pretrained weights"):
        pipeline.export_weights("cifar_resnet20", "imagenet", output_dir=output)
    with pytest.raises(InputError, match=r"--model=resnet50, .*cifar_resnet20"):
        pipeline.export_weights("resnet50", weights, output_dir=output)
    with pytest.raises(InputError, match=r"--classes=12, .*classes 10"):
        pipeline.export_weights("cifar_resnet20", weights, classes=12, output_dir=output)
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(InputError, match="not an HDF5"):
        pipeline.export_weights("cifar_resnet20", tmp_path / "text.h5", output_dir=output)
    assert not output.exists()


def test_weights_without_a_description(tmp_path):
    """A file that Keras wrote; the network is the zoo's."""
    spec = spec_of("cifar_resnet20", classes=4)
    path = tmp_path / "plain.weights.h5"
    spec.build().save_weights(path)
    assert pipeline.export_weights("cifar_resnet20", path, 4, "tflite", tmp_path / "out")
    parity = json.loads((tmp_path / "out" / "parity.json").read_text())
    assert parity["classes"] == 4


@pytest.fixture
def tiny_resnet18(monkeypatch):
    """Makes the zoo's resnet18 small; returns a function from a number of classes to its tensors."""
    row = MODELS["resnet18"].replace(**SMALL, input_size=48)
    monkeypatch.setitem(MODELS, "resnet18", row)
    return lambda classes: state_dict(row.block, row.stage_depths, row.stage_filters, classes)


def test_a_file_of_another_zoo(tiny_resnet18, tmp_path):
    tensors = tiny_resnet18(7)
    path, output = tmp_path / "other.safetensors", tmp_path / "out"
    save_file(tensors, path)
    assert pipeline.export_weights("resnet18", str(path), formats="onnx", output_dir=output)

    import onnxruntime

    session = onnxruntime.InferenceSession(str(output / "model.onnx"), providers=["CPUExecutionProvider"])
    images = sample_photos(48, 48)
    (logits,) = session.run(["logits"], {"images": images})
    expected = torch_forward(tensors, Normalization.imagenet()(images))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    properties = session.get_modelmeta().custom_metadata_map
    assert (properties["license"], properties["labels"]) == ("NOASSERTION", "[]")
    card = (output / "MODEL_CARD.md").read_text()
    assert "The weights are those of `other.safetensors`, another zoo's file." in card
    assert "The license of the weights is not known here." in card
    assert "Apache" not in card

    with pytest.raises(InputError, match=r"--classes=12, .*other\.safetensors has weights of classes 7"):
        pipeline.export_weights("resnet18", path, classes=12, output_dir=output)
    with pytest.raises(InputError, match=r"other\.safetensors does not fit resnet34: missing: "):
        pipeline.export_weights("resnet34", path, output_dir=output)


@pytest.mark.parametrize(
    ("name", "side", "interpolation"),
    [pytest.param("torchvision_v1", 256, "bilinear", marks=pytest.mark.slow), ("timm_a3", 235, "bicubic")],
)
def test_published_weights_by_their_name(tiny_resnet18, name, side, interpolation, tmp_path, monkeypatch):
    path, output, asked = tmp_path / "cached.safetensors", tmp_path / "out", []
    save_file(tiny_resnet18(1000), path)
    monkeypatch.setattr(pretrained, "fetch", lambda url, digest: asked.append((url, digest)) or path)
    assert pipeline.export_weights("resnet18", name, formats="onnx,tflite", output_dir=output)
    entry = get_entry(name, "resnet18")
    assert set(asked) == {(entry.url, entry.digest)}
    parity = json.loads((output / "parity.json").read_text())
    assert (parity["resize"], parity["interpolation"]) == (side, interpolation)
    for file in parity["formats"].values():
        assert file["problems"] == []

    import onnx

    properties = {entry.key: entry.value for entry in onnx.load(output / "model.onnx").metadata_props}
    labels = json.loads(properties["labels"])
    assert (len(labels), labels[0], labels[-1]) == (1000, "tench", "toilet tissue")
    assert tuple(labels) == read_labels(output / "model.tflite")
    assert properties["license"] == entry.license
    card = (output / "MODEL_CARD.md").read_text()
    for expected in (
        f"The weights are `{name}` for `resnet18`, published at {entry.url}.",
        f"top-1 {entry.top1:.2f} %",
        f"Resize the shorter side of each image to {side} pixels ({interpolation})",
        f"Image.Resampling.{interpolation.upper()}",
        f"{entry.license} for the weights",
        f"python -m keras_resnet export --model=resnet18 --weights={name}",
        "  0 tench",
    ):
        assert expected in card


def test_a_real_dataset(weights, tmp_path):
    """Digits, resized as for the evaluation; another number of classes is an error."""
    output = tmp_path / "out"
    assert pipeline.export_weights("cifar_resnet20", weights, None, "onnx", output, dataset="digits")
    parity = json.loads((output / "parity.json").read_text())
    assert parity["images_from"] == "the test split of digits"
    assert parity["images"] == parity["formats"]["onnx"]["images"] > 300
    assert 0 <= parity["top1"] <= 1
    other = spec_of("cifar_resnet20", SMALL_CIFAR, classes=7)
    path = save_weights(other.build(), tmp_path / "seven.weights.h5", other)
    with pytest.raises(InputError, match="has 7 classes, dataset digits has 10"):
        pipeline.export_weights("cifar_resnet20", path, dataset="digits", output_dir=output)


@pytest.mark.slow
def test_less_precise_files(weights, tmp_path, early_progress, capfd):
    """With every option that changes the inputs; the card's code still runs."""
    options = Options(io_dtype="uint8", layout="nchw", opset=18)
    output = tmp_path / "out"
    arguments = {"output_dir": output, "dataset": "digits", "options": options, "calibration_images": 64}
    arguments["max_top1_drop"] = 100  # the weights are random
    assert pipeline.export_weights(
        "cifar_resnet20", weights, precision="float16,int8", formats="onnx,tflite", **arguments
    )
    progress = capfd.readouterr().err
    assert "int8 calibration: 1 of 64 samples, " in progress  # TFLite
    assert "int8 calibration: 1 of 8 batches, " in progress  # ONNX
    assert "comparing: 64 of 355 images, " in progress
    parity = json.loads((output / "parity.json").read_text())
    assert list(parity["formats"]) == ["tflite_float16", "tflite_int8", "onnx_float16", "onnx_int8"]
    assert parity["options"] == options.choices
    for name, entry in parity["formats"].items():
        assert entry["problems"] == [], name
        assert entry["top1_drop"] == pytest.approx(parity["top1"] - entry["top1"])
    card = (output / "MODEL_CARD.md").read_text()
    assert "--precision=float16,int8 --io_dtype=uint8 --opset=18 --layout=nchw" in card
    assert card.count(" close ") == 4

    from PIL import Image

    Image.fromarray(np.arange(40 * 50 * 3, dtype="uint8").reshape(40, 50, 3)).save(output / "photo.jpg")
    prepare, *snippets = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    answers = []
    with contextlib.chdir(output):
        for snippet in snippets:
            names = {}
            exec(prepare + snippet, names)
            answers.append(names["probabilities"])
    # The code for ONNX in float16 and int8 is the same; TFLite in int8 returns uint8.
    assert len(answers) == 3
    assert "`model_int8.onnx` can be used in the same way." in card
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=0.2)


@pytest.mark.slow
@pytest.mark.parametrize(("batch_size", "precision"), [(1, "float32,int8"), (3, "float32")])
def test_tflite_files_of_a_fixed_batch_size(batch_size, precision, weights, tmp_path):
    """No tensor has an axis of unknown size; the files are still compared on all images."""
    from ai_edge_litert import schema_py_generated as schema

    options, output = Options(batch_size=batch_size), tmp_path / "out"
    given = {"output_dir": output, "options": options, "max_top1_drop": 100}
    given |= {"calibration_images": 32} if "int8" in precision else {}
    assert pipeline.export_weights("cifar_resnet20", weights, formats="tflite", precision=precision, **given)
    parity = json.loads((output / "parity.json").read_text())
    assert parity["options"]["batch_size"] == batch_size
    for name, file in parity["files"].items():
        assert parity["formats"][name]["images"] == 8
        model = schema.ModelT.InitFromPackedBuf((output / file).read_bytes())
        (graph,) = model.subgraphs
        for tensor in graph.tensors:
            signature = () if tensor.shapeSignature is None else tuple(tensor.shapeSignature)
            assert min(signature, default=1) > 0, tensor.name
        shapes = [tuple(graph.tensors[index].shape) for index in (*graph.inputs, *graph.outputs)]
        assert shapes == [(batch_size, 32, 32, 3), (batch_size, 10), (batch_size, 10)]
    card = (output / "MODEL_CARD.md").read_text()
    assert f"--batch_size={batch_size}" in card
    assert f"take exactly {batch_size} image{'s' if batch_size > 1 else ''} per call" in card


def test_other_batch_sizes_are_refused():
    with pytest.raises(InputError, match="batch_size must be at least 1; got 0"):
        Options(batch_size=0)
    with pytest.raises(
        InputError, match="batch_size applies to TFLite files, which are not among the formats"
    ):
        request.ExportRequest(formats="onnx,saved_model", options=Options(batch_size=1))


def test_too_few_calibration_images(weights, tmp_path):
    with pytest.raises(InputError, match="int8 needs at least 32 calibration images; got 5"):
        pipeline.export_weights(
            "cifar_resnet20",
            weights,
            formats="tflite",
            output_dir=tmp_path / "out",
            precision="float32,int8",
            calibration_images=5,
        )
    assert not list(tmp_path.glob("out/*"))


def test_the_picture_shows_images_and_predictions(tmp_path):
    from PIL import Image

    from keras_resnet.export.model_card import draw_predictions

    model = serving(SPEC)
    images = sample_photos(32, 32)
    best = model(images)["probabilities"].numpy().argmax(-1)
    draw_predictions(model, (images, best), SPEC.labels, tmp_path / "right.png")
    # Labels are not formulas; a character that the font lacks would be a warning, which is an error here.
    labels = [f"$_$ 猫 {label}" for label in SPEC.labels]
    draw_predictions(model, (images, (best + 1) % 10), labels, tmp_path / "wrong.png")
    right, wrong = (
        np.asarray(Image.open(tmp_path / f"{name}.png").convert("RGB"), int) for name in ("right", "wrong")
    )
    assert right.std() > 40  # not a blank page
    red = [((p[..., 0] > 200) & (p[..., 1] < 60) & (p[..., 2] < 60)).sum() for p in (right, wrong)]
    assert red[1] > red[0] + 100


def test_files_of_other_programs_are_not_replaced(weights, tmp_path):
    (tmp_path / "MODEL_CARD.md").write_text("# My own notes")
    with pytest.raises(InputError, match=r"MODEL_CARD\.md exists and was not written by an export"):
        pipeline.export_weights("cifar_resnet20", weights, formats="onnx", output_dir=tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["MODEL_CARD.md"]
    with pytest.raises(InputError, match="calibration_images must be at least 1; got 0"):
        pipeline.export_weights(
            "cifar_resnet20", weights, precision="int8", formats="onnx", calibration_images=0
        )


def test_images_of_datasets_are_preprocessed_as_the_weights_describe():
    """As Pillow resizes. Bicubic and bilinear differ clearly because the digits are enlarged from 8x8."""
    images = image_sources.dataset_images(SPEC, "digits", None, 64)
    seen, labels = next(iter(images.batches()))
    assert seen.shape[1:] == (32, 32, 3)
    assert seen.min() >= 0
    assert seen.max() <= 255
    test = open_dataset("digits").split("test")
    identity = Normalization((0.0,) * 3, (1.0,) * 3)
    pixels, expected_labels = (np.stack(values) for values in zip(*map(test.fetch, range(20)), strict=True))
    expected = Preprocessing(32, 36, "bicubic", identity)(pixels)
    np.testing.assert_array_equal(labels[:20], expected_labels)
    assert np.abs(seen[:20] - expected).mean() < 1
    bilinear = Preprocessing(32, 36, "bilinear", identity)(pixels)
    assert np.abs(seen[:20] - bilinear).mean() > 2
    assert sum(map(len, images.calibration())) == 64


def test_datasets_are_for_square_inputs():
    wide = dataclasses.replace(SPEC, input_shape=(32, 40, 3))
    with pytest.raises(InputError, match="datasets give square images; the network takes 32x40"):
        image_sources.dataset_images(wide, "digits", None, 64)


def test_the_order_of_the_classes_must_be_that_of_the_dataset():
    swapped = dataclasses.replace(SPEC, labels=("1", "0", *LABELS[2:]))
    with pytest.raises(InputError, match="class 0 is '1' in the network, but '0' in dataset digits"):
        image_sources.dataset_images(swapped, "digits", None, 64)


def test_a_dataset_that_has_changed_since_the_training_is_refused():
    now = open_dataset("digits").identity()
    assert image_sources.dataset_images(SPEC, "digits", None, 64, now).source == "the test split of digits"
    before = {**now, "split_sizes": {**now["split_sizes"], "test": 3}}
    changed = r"changed since the training \(test has 3 images there, 355 now\); .* give --dataset=digits "
    with pytest.raises(InputError, match=changed):
        image_sources.dataset_images(SPEC, "digits", None, 64, before)


@pytest.mark.parametrize("model", ["resnet50_v2", pytest.param("resnet152_v2", marks=pytest.mark.slow)])
def test_random_weights_are_finite_and_not_trivial(model):
    spec = spec_of(model, size=33, classes=10)
    images = spec.normalization(sample_photos(33, 33))
    logits = np.asarray(request.network_with_random_weights(spec)(images))
    assert 0.01 < logits.std() < 1000
    assert np.ptp(logits, axis=0).max() > 0.01  # logits depend on the image


def test_an_artifact_that_does_not_run_has_no_latency(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"no ONNX")
    assert time_artifact("onnx", tmp_path / "model.onnx", (32, 32, 3)) == {}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 18}, "opset applies to ONNX files, which are not among the formats"),
        ({"layout": "nchw"}, "layout applies to ONNX files, which"),
        ({"dynamic_size": True}, "dynamic_size applies to ONNX files, which"),
        ({"io_dtype": "uint8"}, "io_dtype applies to TFLite and ONNX files, which"),
        ({"output_dir": "gs://bucket/x"}, "gs://bucket/x is a URL; give a local path"),
        ({"calibration_images": 64}, "calibration_images applies to int8 files, which are not among"),
    ],
)
def test_options_that_are_refused(options, message, weights, tmp_path, capsys):
    flags = ["--formats=saved_model", f"--output_dir={tmp_path / 'out'}"]
    flags += [f"--{name}={value}" for name, value in options.items()]
    for model, file in (("cifar_resnet20", weights), ("all", "none")):
        assert run_here(COMMAND, f"--model={model}", f"--weights={file}", *flags) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith(f"error: {message}")
        assert printed.err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    if "io_dtype" in options:
        request.ExportRequest(formats="saved_model,tflite", options=Options(**options))


def test_options_are_checked_before_anything_is_written():
    for options, message in (
        ({"opset": 12}, "ONNX files are written with opset 13 to 23; got 12"),
        ({"layout": "chwn"}, "unknown layout 'chwn'"),
        ({"io_dtype": "int8"}, "unknown io_dtype 'int8'"),
    ):
        with pytest.raises(InputError, match=message):
            Options(**options)
