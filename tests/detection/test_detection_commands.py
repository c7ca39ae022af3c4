"""`python -m keras_resnet detection`, in this process."""

from helpers.commands import run

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
