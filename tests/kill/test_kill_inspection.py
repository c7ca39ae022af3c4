"""The kill test's inspection sees what it is to see."""

import shutil

import numpy as np
import pytest
from kill import inspection
from kill.scenarios import shares

from keras_resnet.run_folder import RunFolder
from keras_resnet.training import checkpoints

ROW = {"epoch": 1.0, "step": 3, "val_top1": 0.5, "images_per_second": 100.0}


@pytest.fixture
def whole(tmp_path):
    folder = RunFolder(tmp_path / "whole")
    rows = [ROW, {**ROW, "epoch": 2.0, "step": 6}]
    for step in (3, 6):
        checkpoint = checkpoints.Checkpoint(step, {"kernel": np.arange(9.0)}, {"history": rows})
        checkpoints.save(folder.checkpoints, checkpoint, 2)
    folder.write_history(tuple(ROW), rows)
    folder.weights.write_bytes(b"weights")
    version = folder.path / "export" / "saved_model" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"graph")
    return folder.path


@pytest.fixture
def killed(whole):
    return shutil.copytree(whole, whole.with_name("killed"))


def test_another_speed_and_a_second_version_are_no_difference(whole, killed):
    history = killed / "history.csv"
    history.write_text(history.read_text().replace("100.0", "50.0"))
    shutil.copytree(killed / "export" / "saved_model" / "1", killed / "export" / "saved_model" / "2")
    assert inspection.broken(killed, whole) == []
    assert inspection.differences(killed, whole) == []
    assert inspection.leftovers(killed, whole) == []


def test_an_unfinished_run_has_no_broken_files(whole, killed):
    history = killed / "history.csv"
    history.write_text("".join(history.read_text().splitlines(keepends=True)[:-1]))
    (killed / "model.weights.h5").unlink()
    assert inspection.broken(killed, whole) == []
    assert inspection.differences(killed, whole) == ["no model.weights.h5", "history.csv"]


@pytest.mark.parametrize(
    "name",
    [
        "model.weights.h5",
        "history.csv",
        "checkpoints/step-000000003.h5",
        "export/saved_model/1/saved_model.pb",
    ],
)
def test_half_a_file_is_broken(whole, killed, name):
    content = (killed / name).read_bytes()
    (killed / name).write_bytes(content[: len(content) // 2])
    assert inspection.broken(killed, whole) == [name]
    assert name in inspection.differences(killed, whole)


def test_half_a_version_is_broken(whole, killed):
    (killed / "export" / "saved_model" / "2").mkdir()
    assert inspection.broken(killed, whole) == [
        "export/saved_model/2 lacks export/saved_model/1/saved_model.pb"
    ]


def test_another_checkpoint_is_a_difference(whole, killed):
    checkpoint = checkpoints.load(killed / "checkpoints" / "step-000000006.h5")
    checkpoint.arrays["kernel"][0] += 1
    checkpoints.save(killed / "checkpoints", checkpoint, 2)
    assert inspection.broken(killed, whole) == []
    assert inspection.differences(killed, whole) == ["the last checkpoint"]


@pytest.mark.parametrize("name", [".history.csv.x7", "checkpoints/.step-000000003.h5.x7", "old"])
def test_other_files_are_leftovers(whole, killed, name):
    (killed / name).write_bytes(b"")
    assert inspection.leftovers(killed, whole) == [name]


def test_a_folder_is_one_leftover(whole, killed):
    version = killed / "export" / ".saved_model.x7" / "1"
    version.mkdir(parents=True)
    (version / "saved_model.pb").write_bytes(b"graph")
    assert inspection.leftovers(killed, whole) == ["export/.saved_model.x7"]


def test_more_checkpoints_than_the_run_keeps_are_leftovers(whole, killed):
    shutil.copy(killed / "checkpoints" / "step-000000003.h5", killed / "checkpoints" / "step-000000004.h5")
    assert inspection.leftovers(killed, whole) == ["checkpoints/step-000000003.h5"]


def test_shares_add_up():
    assert shares(100, [30, 15, 10, 12, 3, 30]) == [30, 15, 10, 12, 3, 30]
    assert sum(shares(5, [30, 15, 10, 12, 3, 30])) == 5
