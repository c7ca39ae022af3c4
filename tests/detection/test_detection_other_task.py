"""A dataset or a weight file of the other task is refused in one line that says what is right."""

import numpy as np
import pytest
from helpers.commands import run
from PIL import Image
from safetensors.numpy import save_file

from keras_resnet import InputError, ResNet50
from keras_resnet.__main__ import COMMAND
from keras_resnet.classification import get_recipe as get_classification_recipe
from keras_resnet.data.sources import open_dataset
from keras_resnet.detection import build_detector, get_recipe, open_detection_dataset
from keras_resnet.run_folder import RunFolder
from keras_resnet.training.recipe import check_run_folder
from keras_resnet.weights import ModelSpec, save_weights

C4 = "faster_rcnn_cifar_resnet20_c4"
DATASETS = ["scenes", "scenes/digits/64", "coco:data", "voc:data", "coco/2017", "voc/2007", "coco", "voc"]
COMMANDS = {
    "train": ("--recipe=digits", "--workdir=run"),
    "evaluate": ("--model=cifar_resnet20", "--output_dir=evaluation"),
    "export": ("--model=cifar_resnet20", "--formats=onnx", "--output_dir=exported"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    options = {"stage_depths": (1, 1, 1), "stage_filters": (4, 4, 4)}
    spec = ModelSpec.default("cifar_resnet20", overrides=options)
    save_weights(spec.build(), folder / "classifier.weights.h5", spec)
    detector = build_detector(C4, classes=10, network=spec.config, proposals=5)
    detector.save_weights(folder / "detector.weights.h5")
    kernel = np.zeros((64, 3, 7, 7), "float32")
    save_file({"conv1.weight": kernel, "fc.weight": kernel}, folder / "classifier.safetensors")
    save_file({"backbone.body.conv1.weight": kernel}, folder / "detector.safetensors")
    return folder


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Runs a command that must fail, write nothing, and print one line, which is returned."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((8, 8, 3), "uint8")).save("photo.png")

    def refuse(*arguments):
        assert run(COMMAND, *arguments) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == ["photo.png"]
        return error

    return refuse


@pytest.mark.parametrize("dataset", DATASETS)
def test_detection_datasets_for_classification(dataset):
    with pytest.raises(
        InputError, match=rf"dataset .{dataset}. is for object detection.* detection evaluate"
    ):
        open_dataset(dataset)


@pytest.mark.parametrize("command", COMMANDS)
def test_detection_datasets_in_classifications_commands(command, files, refused):
    weights = [] if command == "train" else [f"--weights={files}/classifier.weights.h5"]
    error = refused(command, *COMMANDS[command], *weights, "--dataset=scenes")
    assert "dataset 'scenes' is for object detection, not for image classification" in error


def test_recipes_of_detectors_in_classifications_commands(refused):
    error = refused("data", "preview", "--recipe=detect_scenes", "--output=x.png")
    assert "scenes/64 is an object detection dataset; draw it with `python -m keras_resnet detection" in error


def test_a_run_of_the_other_task_is_not_resumed(tmp_path):
    folder = RunFolder(tmp_path)
    folder.write_recipe(get_recipe("detect_scenes").to_dict())
    with pytest.raises(InputError, match="holds a run of another kind of recipe, of the model 'faster_rcnn_"):
        check_run_folder(folder, get_classification_recipe("digits"), 0, "float32")


@pytest.mark.parametrize("dataset", ["folder:data", "digits", "cifar10"])
def test_classification_datasets_for_detection(dataset):
    with pytest.raises(InputError, match=f"dataset '{dataset}' is not for detection"):
        open_detection_dataset(dataset)


@pytest.mark.parametrize("file", ["detector.weights.h5", "detector.safetensors"])
@pytest.mark.parametrize("command", COMMANDS)
def test_detectors_in_classifications_commands(command, file, files, refused):
    dataset = [] if command == "export" else ["--dataset=digits"]
    error = refused(command, *COMMANDS[command], *dataset, f"--weights={files / file}")
    assert "holds a detector, not a classifier" in error


@pytest.mark.parametrize("file", ["detector.weights.h5", "detector.safetensors"])
def test_detectors_in_python(file, files):
    with pytest.raises(InputError, match=r"holds a detector, not a classifier; .* detect`"):
        ResNet50(weights=files / file)
    with pytest.raises(InputError, match="holds a detector, not a classifier"):
        build_detector(C4, backbone_weights=files / file)


@pytest.mark.parametrize("file", ["classifier.weights.h5", "classifier.safetensors"])
@pytest.mark.parametrize(
    "command",
    [
        ("detect", "photo.png", "--output=boxes.png"),
        ("detection", "evaluate", "--dataset=scenes/digits", "--split=test[:2]", "--output=evaluation"),
    ],
)
def test_classifiers_in_detections_commands(command, file, files, refused):
    error = refused(*command, f"--weights={files / file}", f"--detector={C4}")
    assert "holds a classifier" in error
    assert "not a detector; pass it to build_detector as backbone_weights" in error
