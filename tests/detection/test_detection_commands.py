"""`python -m keras_resnet detection`, in this process."""

import json
import shutil

import numpy as np
import pytest
from helpers.commands import run
from helpers.data_helpers import write_image
from PIL import Image

from keras_resnet.detection import build_detector, weight_files
from keras_resnet.detection.__main__ import COMMAND, DETECT
from keras_resnet.detection.config import list_detectors
from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config


def cells(output):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()[2:]]


def test_list(capsys):
    assert run(COMMAND, "list") == 0
    assert [row[0] for row in cells(capsys.readouterr().out)] == list_detectors()


def test_list_counts_the_parameters_of_named_detectors(capsys):
    assert run(COMMAND, "list", "faster_rcnn_cifar_resnet20_c4") == 0
    ((name, style, *_, parameters, multiply_adds),) = cells(capsys.readouterr().out)
    assert (name, style) == ("faster_rcnn_cifar_resnet20_c4", "c4")
    assert int(parameters.replace(",", "")) > 269_722 - 650  # the classifier without its last layer
    assert float(multiply_adds) > 300 * 1e6


def test_an_unknown_detector_is_one_line(capsys):
    assert run(COMMAND, "list", "faster_rcnn_resnet50_fpn") == 2
    assert capsys.readouterr().err.startswith(
        "error: unknown detector 'faster_rcnn_resnet50_fpn'; did you mean"
    )


def preview(output, *flags, dataset="scenes/digits"):
    return run(COMMAND, "preview", f"--dataset={dataset}", f"--output={output}", "--images=2", *flags)


def test_preview_draws_a_row_per_image_the_same_twice(tmp_path, capsys):
    first, second = tmp_path / "a" / "x.png", tmp_path / "y.png"
    for path in (first, second):
        assert preview(path, "--draws=1", "--scale=0.5,2") == 0
        assert capsys.readouterr().out == f"{path}: 2 images, 1 draws of each\n"
    assert Image.open(first).size[0] > 2 * 320
    assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"dataset": "scene"}, "scene"),
        ({"split": "val"}, "unknown split"),
        ({"scale": "2"}, "--scale must be two numbers, such as 0.5,2; got 2"),
        ({"scale": "nan,2"}, "the range of the scale must lie between 0.05 and 20"),
        ({"draws": "0"}, "--draws must be from 1 to 32; got 0"),
        ({"output": "sheet.jpg"}, "--output must end with .png; got sheet.jpg"),
    ],
)
def test_bad_input_of_a_preview_is_one_line(tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    values = {"dataset": "scenes/digits", "output": "x.png"} | flags
    assert run(COMMAND, "preview", *(f"--{name}={value}" for name, value in values.items())) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(tmp_path.iterdir()) == []


def test_faulty_annotations_can_be_left_out(tmp_path, capsys):
    images = [{"id": 1, "file_name": "a.png", "width": 16, "height": 8}]
    objects = [{"id": i, "image_id": 1, "category_id": 1, "bbox": [2, 2, 4, i]} for i in (0, 3)]
    value = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "dog"}]}
    (tmp_path / "train.json").write_text(json.dumps(value))
    write_image(tmp_path / "a.png", np.zeros((8, 16, 3), "uint8"))
    dataset, output = f"coco:{tmp_path}", tmp_path / "x.png"
    assert preview(output, dataset=dataset) == 2
    assert "--skip_faulty, for a recipe --set=skip_faulty=true, leaves them out" in capsys.readouterr().err
    assert not output.exists()
    assert preview(output, "--skip_faulty", dataset=dataset) == 0
    error = capsys.readouterr().err
    assert error.startswith("1 faulty annotations left out, the first: ")
    assert "annotation 0 of image 1 (a.png) has the bbox [2, 2, 4, 0]" in error


def test_check_of_a_missing_folder_is_one_line(capsys):
    assert run(COMMAND, "check", "--dataset=coco:/nowhere") == 2
    assert "/nowhere" in capsys.readouterr().err


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A small detector without training, whose file names it; its scores are about 1 / 3."""
    path = tmp_path_factory.mktemp("detector") / "tiny.weights.h5"
    small = {"proposals": 10, "proposal_candidates": 50, "shorter_side": 64, "longer_side": 96}
    build_detector("faster_rcnn_cifar_resnet20_c4", classes=("dog", "猫"), **small).save_weights(path)
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "a.jpg")
    Image.fromarray(pixels).save(folder / "a.png")
    (folder / "broken.jpg").write_bytes((folder / "a.jpg").read_bytes()[:500])
    (folder / "notes.txt").write_text("no image")
    return folder


def detect(*photos, **flags):
    return run(DETECT, *photos, *(f"--{name}={value}" for name, value in flags.items()))


def test_a_folder_of_photos_with_a_damaged_one(photos, weights, tmp_path, early_progress, capsys):
    output, table = tmp_path / "out", tmp_path / "out.json"
    assert detect(photos, weights=weights, output=output, json=table, score=0) == 1
    printed = capsys.readouterr()
    (error,) = [line for line in printed.err.splitlines() if not line.startswith("detecting objects: ")]
    assert "broken.jpg is not a usable image: truncated" in error
    assert "detecting objects: 1 of 3 photos, " in printed.err
    assert sorted(path.name for path in output.iterdir()) == ["a-2.png", "a.png"]
    assert Image.open(output / "a.png").size == (320, 240)
    content = json.loads(table.read_text())
    found = {row["photo"]: row for row in content["photos"]}
    objects = found[str(photos / "a.png")]["objects"]
    rows = [row for row in cells(printed.out) if row[0] == str(photos / "a.png")]
    assert [row[1] for row in rows] == [one["class"] for one in objects]
    assert len(objects) > 0
    assert "truncated" in found[str(photos / "broken.jpg")]["error"]


def test_one_photo_and_a_contact_sheet(photos, weights, tmp_path, capsys):
    picture, sheet = tmp_path / "boxes.png", tmp_path / "sheet.png"
    assert detect(photos / "a.png", weights=weights, output=picture) == 0
    assert detect(photos / "a.png", photos / "a.jpg", weights=weights, output=sheet) == 0
    assert Image.open(picture).size == (320, 240)
    assert Image.open(sheet).size[0] > 640
    assert "objects in 2 photos" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output": "{photos}/a.png"}, "would replace a photo"),
        ({"output": "{photos}"}, "would replace a photo"),
        ({"output": "{photos}/notes.txt"}, "is a file; pass a folder"),
        ({"output": "x.png", "json": "x.txt"}, "--json must end with .json"),
        ({"output": "x.png", "score": "nan"}, "--score must be from 0 to 1"),
        ({"output": "x.png", "scales": "48,6x"}, "--scales takes whole numbers, such as 400,600; got 48,6x"),
        ({"output": "x.png", "scales": "48,48"}, "scales must be different shorter sides"),
        ({"output": "x.png", "ensemble": "missing.weights.h5"}, "missing.weights.h5"),
        ({"output": "x.png", "weights": "coco"}, "add --detector=NAME"),
        ({"output": "x.png", "weights": "cocoo"}, "unknown weights of a detector 'cocoo'"),
        ({"output": "x.png", "weights": "missing.pth"}, "add --detector=NAME"),
        ({"output": "x.png", "weights": "missing.weights.h5"}, "missing.weights.h5"),
        ({"output": "x.png", "detector": "retinanet_resnet50_v1_5_fpn"}, "faster_rcnn_cifar_resnet20_c4"),
        ({"photo": "nowhere.jpg", "output": "x.png"}, "there is no photo or folder 'nowhere.jpg'"),
        ({"photo": "{photos}/broken.jpg", "output": "x.png"}, "is not a usable image: truncated"),
        ({"photo": "{photos}/notes.txt", "output": "x.png"}, "not a JPEG, PNG, GIF or BMP image"),
    ],
)
def test_bad_input_of_detect_is_one_line(photos, weights, monkeypatch, tmp_path, capsys, changes, message):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    values = {"photo": "{photos}/a.png", "weights": str(weights)} | changes
    values = {name: value.format(photos=photos) for name, value in values.items()}
    before = sorted(path.name for path in photos.iterdir())
    assert detect(values.pop("photo"), **values) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert message in error
    assert list(here.iterdir()) == []
    assert sorted(path.name for path in photos.iterdir()) == before


@pytest.mark.parametrize(
    ("weights", "detector", "message"),
    [
        ("coco", "faster_rcnn_resnet50_v1_5_fpn", "no download of https://"),
        ("faster_rcnn_resnet50_v1_5_fpn/coco", None, "no download of https://"),
        ("coco", None, "add --detector=NAME: weights 'coco' are published as"),
        ("photos", None, "the folder photos holds no recipe.json and no model.weights.h5"),
    ],
)
def test_a_folder_without_a_run_hides_no_published_weights(
    photos, tmp_path, monkeypatch, capsys, weights, detector, message
):
    def fetch(url, digest):
        raise InputError(f"no download of {url}, {digest}")

    monkeypatch.setattr(weight_files, "fetch", fetch)
    monkeypatch.chdir(tmp_path)
    (tmp_path / weights).mkdir(parents=True, exist_ok=True)
    flags = {} if detector is None else {"detector": detector}
    assert detect(photos / "a.png", weights=weights, output="x.png", **flags) == 2
    assert message in capsys.readouterr().err


def test_evaluate_writes_a_report(tmp_path, capsys):
    path = tmp_path / "digits.weights.h5"
    network = get_config("cifar_resnet20", stage_depths=(1, 1, 1), stage_filters=(8, 8, 8))
    small = {"proposals": 10, "proposal_candidates": 50, "shorter_side": 64, "longer_side": 96}
    small["network"] = network
    digits = tuple(map(str, range(10)))
    build_detector("faster_rcnn_cifar_resnet20_c4", classes=digits, **small).save_weights(path)
    values = {"dataset": "scenes/digits", "split": "test[:3]", "weights": path, "output": tmp_path / "out"}
    assert run(COMMAND, "evaluate", *(f"--{name}={value}" for name, value in values.items())) == 0
    assert "test[:3] of scenes/digits (composited): 3 images" in capsys.readouterr().out
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert written == {"evaluation.json", "per_class.csv", "precision_recall.png"}
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (content["refine"], content["scales"], content["ensemble"]) == (False, [], [])
    (run_folder := tmp_path / "run").mkdir()
    copy = shutil.copy(path, run_folder / "model.weights.h5")
    values |= {"refine": "true", "scales": "48,64", "ensemble": run_folder}
    assert run(COMMAND, "evaluate", *(f"--{name}={value}" for name, value in values.items())) == 0
    content = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert (content["refine"], content["scales"]) == (True, [48, 64])
    assert content["ensemble"] == [{"weights": str(copy), "sha256": content["sha256"]}]
    assert "--refine=True --scales=48,64 --ensemble=" in content["command"]
    assert content["detector"] == "2 x faster_rcnn_cifar_resnet20_c4"
