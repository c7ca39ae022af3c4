"""TFDS' voc and coco, on records written with their own features."""

import os
import shutil

import numpy as np
import pytest
from helpers.data_helpers import write_tfds

from keras_resnet.detection import open_detection_dataset
from keras_resnet.detection.data.annotations import Faults
from keras_resnet.errors import InputError


def bbox(x1, y1, x2, y2, width=50, height=40):
    return np.array([y1 / height, x1 / width, y2 / height, x2 / width], "float32")


def pixels(index):
    return np.full((40, 50, 3), index * 20, "uint8")


@pytest.fixture(scope="module")
def voc_dir(tmp_path_factory):
    def example(index, count):
        thing = {"label": "dog", "bbox": bbox(1, 5, 50, 40), "pose": "left", "is_truncated": False}
        return {
            "image": pixels(index),
            "image/filename": f"{index:06}.jpg",
            "objects": [thing | {"is_difficult": position == 1} for position in range(count)],
            "labels": [],
            "labels_no_difficult": [],
        }

    splits = {"train": [example(i, i % 3) for i in range(7)], "test": [example(i, 0) for i in (8, 9)]}
    return write_tfds(tmp_path_factory.mktemp("voc"), "voc/2012", splits, shards=2)


@pytest.fixture(scope="module")
def coco_dir(tmp_path_factory):
    things = [
        {"id": 1, "area": 77, "bbox": bbox(10.25, 3, 20, 30.5), "label": 79, "is_crowd": True},
        {"id": 2, "area": 0, "bbox": bbox(10, 3, 10, 30), "label": 0, "is_crowd": False},
    ]
    example = {"image": pixels(3), "image/filename": "000000000139.jpg", "image/id": 139, "objects": things}
    bad = {**example, "image/id": 140, "objects": [{**things[0], "label": -1}]}
    splits = {"train": [example], "validation": [example, bad]}
    return write_tfds(tmp_path_factory.mktemp("coco"), "coco/2017", splits)


def test_voc(voc_dir):
    """The records hold VOC's coordinates, which count from 1."""
    dataset = open_detection_dataset("voc/2012", voc_dir)
    assert dataset.class_names[:2] == ("aeroplane", "bicycle")
    split = dataset.split("train")
    assert len(split) == 7
    for index in (6, 0, 3):
        number = int(split.image_ids[index].removesuffix(".jpg"))
        assert abs(split.read_image(index).astype(int) - number * 20).max() <= 2
        objects = split.objects[index]
        assert len(objects) == number % 3
        np.testing.assert_array_equal(objects.boxes, np.tile([[0, 4, 50, 40]], (number % 3, 1)))
        assert (objects.labels == 11).all()
    assert sum(objects.difficult.sum() for objects in split.objects) == 2
    np.testing.assert_array_equal(split.sizes, np.tile([[40, 50]], (7, 1)))
    assert dataset.identity["split_sizes"] == {"train": 7, "test": 2}
    assert dataset.identity["files"] == "voc/2012/5.0.0"
    with pytest.raises(InputError, match="'test' of voc/2012 has no objects; use another split"):
        dataset.split("test")


def test_coco(coco_dir):
    dataset = open_detection_dataset("coco/2017", coco_dir)
    assert dataset.classes == 80
    faults = Faults()
    split = dataset.loaders["train"](faults)
    assert (split.image_ids, split.image_names) == ((139,), ("000000000139.jpg",))
    assert (split.class_ids[0], split.class_ids[11], split.class_ids[-1]) == (1, 13, 90)
    (objects,) = split.objects
    np.testing.assert_array_equal(objects.boxes, [[10.25, 3, 20, 30.5]])
    assert (objects.labels, objects.crowd, objects.areas) == (79, True, 77)
    assert faults.repaired["boxes without area left out"] == 1
    with pytest.raises(InputError, match=r"coco/2017: object 1 of .* has the label -1; labels are 0 to 79"):
        dataset.split("validation")


@pytest.mark.parametrize("cut", ["within a record", "between records"])
def test_truncated_records(voc_dir, tmp_path, cut):
    shutil.copytree(voc_dir, tmp_path, dirs_exist_ok=True)
    split = open_detection_dataset("voc/2012", tmp_path).split("train")
    *_, file = sorted(tmp_path.rglob("*-train.tfrecord-*"))
    length = 16 + int.from_bytes(file.read_bytes()[:8], "little")  # of the first record, with its checksums
    os.truncate(file, length if cut == "between records" else length - 7)
    count = "has 1 records instead of" if cut == "between records" else "'voc/2012' cannot be read: "
    with pytest.raises(InputError, match=count) as raised:
        open_detection_dataset("voc/2012", tmp_path).split("train")
    assert "\n" not in str(raised.value)
    with pytest.raises(InputError, match="'voc/2012' cannot be read: ") as raised:
        split.read_image(6)
    assert "\n" not in str(raised.value)


def test_datasets_of_another_kind(tmp_path):
    with pytest.raises(InputError, match=r"'cifar10' is not for detection: .* it has id \(Text\), image"):
        open_detection_dataset("cifar10", tmp_path)
    with pytest.raises(InputError, match="unknown dataset 'vox/2007'"):
        open_detection_dataset("vox/2007", tmp_path)
    assert not list(tmp_path.iterdir())
