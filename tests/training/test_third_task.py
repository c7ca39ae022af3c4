"""A task that the library does not have: the mean brightness of an image, by regression."""

from pathlib import Path

import pytest
from helpers.pages import blocks, imported, section
from helpers.runs import history

import keras_resnet
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import Recipe, RunOptions, checkpoints, train


@pytest.fixture(scope="module")
def brightness(tmp_path_factory):
    """The task of CONTRIBUTING.md."""
    page = Path(keras_resnet.__file__).parents[1] / "CONTRIBUTING.md"
    ((_, text),) = blocks(section(page, "Add a task"))
    return imported(text, tmp_path_factory.mktemp("task") / "brightness.py").Brightness


def result(path):
    """The weights file, the arrays of the last checkpoint, and the history."""
    folder = RunFolder(path)
    arrays = checkpoints.load(checkpoints.list_checkpoints(folder.checkpoints)[-1]).arrays
    return folder.weights.read_bytes(), {name: a.tobytes() for name, a in arrays.items()}, history(path)


@pytest.mark.parametrize("strategy", ["one_device", pytest.param("mirrored", marks=pytest.mark.slow)])
def test_a_resumed_run_of_a_new_task_ends_with_the_same_bytes(
    tmp_path, data_dir, strategy, break_off, brightness
):
    network = {"stage_depths": (1,), "stage_filters": (4,)}
    recipe = Recipe("cifar_resnet20", "digits", network, "train[:48]", "test[:20]", batch_size=16, epochs=4)
    recipe = recipe.replace(learning_rate=0.01, schedule="plateau", ema_decay=0.5)
    options = RunOptions(strategy=strategy, data_dir=data_dir, checkpoint_every=7)
    train(brightness(recipe), tmp_path / "whole", options)
    with break_off(8):
        train(brightness(recipe), tmp_path / "broken", options)
    steps = []
    train(brightness(recipe), tmp_path / "broken", options, lambda trainer, first, rows: steps.append(first))
    assert steps == [7, 8, 9, 10, 11]
    weights, arrays, rows = result(tmp_path / "whole")
    assert result(tmp_path / "broken") == (weights, arrays, rows)
    assert {name.split("/")[0] for name in arrays} >= {"weights", "velocity", "average"}
    columns = "epoch step learning_rate train_loss val_loss val_median_error"
    assert list(rows[0]) == columns.split()
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"]) / 2
