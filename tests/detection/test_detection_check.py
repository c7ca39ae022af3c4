"""`check` lists all faults of a dataset, not only the first."""

import json

import numpy as np
import pytest
from helpers.data_helpers import write_image

from keras_resnet.detection import open_detection_dataset
from keras_resnet.detection.data.annotations import DetectionSplit, Objects
from keras_resnet.detection.data.check import check, find_faults, unreached_share


@pytest.fixture
def folder(tmp_path):
    images = [{"id": i, "file_name": f"{i}.png", "width": 30, "height": 20} for i in range(5)]
    images.append({"id": 9, "file_name": "9.png", "width": -1, "height": 20})
    boxes = {
        1: [0, 0, 10, 10],
        2: [0, 0, 0, 10],
        3: [float("nan"), 0, 1, 1],
        4: [0, 0, 40, 10],
        5: [1, 1, 29.5, 2],
    }
    things = [{"id": i, "image_id": 0, "category_id": 1, "bbox": box} for i, box in boxes.items()]
    things.append({"id": 6, "image_id": 9, "category_id": 1, "bbox": [0, 0, 1, 1]})
    value = {"images": images, "annotations": things, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "train.json").write_text(json.dumps(value))
    for index in range(4):
        write_image(tmp_path / f"{index}.png", np.zeros((20, 30, 3), "uint8"))
    write_image(tmp_path / "2.png", np.zeros((20, 31, 3), "uint8"))
    (tmp_path / "3.png").write_bytes((tmp_path / "0.png").read_bytes()[:-20])
    return tmp_path


def test_all_faults_are_listed(folder):
    rows, summaries = find_faults(open_detection_dataset(f"coco:{folder}"))
    assert {split for split, _, _ in rows} == {"train"}
    texts = [f"{file}: {what}" for _, file, what in rows]
    for expected in (
        "annotation 2 of image 0",
        "annotation 3 of image 0",
        "annotation 4 of image 0",
        "image 9 (9.png) has width -1",
        "image 4 (4.png) has no file",
        "2.png has 31 x 20 pixels",
        "3.png is not a usable image: truncated",
    ):
        assert sum(expected in text for text in texts) == 1, (expected, texts)
    assert len(rows) == 7
    assert summaries[0].startswith(
        "train: 4 images, 2 objects, 3 images without objects, 1 boxes clipped to their image"
    )


def test_the_command(folder, early_progress, capsys):
    assert check(f"coco:{folder}") == 1
    printed, progress = capsys.readouterr()
    assert progress.startswith("decoding train: 1 of 4 images, ")
    assert "| split | file" in printed
    assert printed.splitlines()[-1] == f"coco:{folder}: 7 faults"


def test_a_split_that_cannot_be_read_is_one_row(folder):
    value = json.loads((folder / "train.json").read_text())
    (folder / "val.json").write_text(
        json.dumps(value | {"categories": [{"id": 2, "name": "another, longer"}]})
    )
    rows, _ = find_faults(open_detection_dataset(f"coco:{folder}"))
    assert any("different categories" in what for _, _, what in rows)


def test_boxes_that_no_anchor_reaches():
    """At 800 pixels: 8 pixels (unreached by 32), 40, and 700 x 40, an aspect that no anchor has."""
    boxes = [(0, 0, 8, 8), (0, 0, 40, 40), (0, 0, 700, 40), (0, 0, 400, 400)]
    objects = Objects.from_rows([(box, 0, False, False, 1.0) for box in boxes])
    sizes = np.array([[800, 800]], "int32")
    split = DetectionSplit("x", ("a",), (1,), (0,), sizes, (objects,), lambda index: np.zeros(0))
    assert unreached_share(split) == 0.5
