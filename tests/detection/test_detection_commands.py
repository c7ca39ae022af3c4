"""`python -m keras_resnet detection`, in this process."""

import pytest
from helpers.commands import run
from PIL import Image

from keras_resnet.detection.__main__ import COMMAND
from keras_resnet.detection.config import list_detectors


def cells(output):
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in output.splitlines()[2:]]


def test_list(capsys):
    assert run(COMMAND, "list") == 0
    assert [row[0] for row in cells(capsys.readouterr().out)] == list_detectors()


def test_list_counts_the_parameters_of_named_detectors(capsys):
    assert run(COMMAND, "list", "faster_rcnn_cifar_resnet20_c4") == 0
    ((name, style, *_, parameters),) = cells(capsys.readouterr().out)
    assert (name, style) == ("faster_rcnn_cifar_resnet20_c4", "c4")
    assert int(parameters.replace(",", "")) > 269_722 - 650  # the classifier without its last layer


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


def test_check_of_a_missing_folder_is_one_line(capsys):
    assert run(COMMAND, "check", "--dataset=coco:/nowhere") == 2
    assert "/nowhere" in capsys.readouterr().err
