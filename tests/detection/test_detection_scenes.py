"""Composited scenes: the same bytes in any order and process, tight boxes, and the rules of composition."""

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from helpers.data_helpers import write_tfds

from keras_resnet.data.digits import digits_examples
from keras_resnet.detection import open_detection_dataset
from keras_resnet.detection.boxes import iou
from keras_resnet.detection.data.scenes import open_scenes
from keras_resnet.errors import InputError

_SCRIPT = """
import hashlib, sys
from keras_resnet.detection.data.scenes import open_scenes
split = open_scenes("scenes/digits", sizes={"train": 40}).split("train")
for index in map(int, sys.argv[1:]):
    content = split.read_image(index).tobytes() + split.objects[index].boxes.tobytes()
    print(hashlib.sha256(content).hexdigest())
"""


@pytest.fixture(scope="module")
def scenes():
    return open_scenes("scenes/digits", sizes={"train": 300, "test": 20})


def digest(split, index):
    content = split.read_image(index).tobytes() + split.objects[index].boxes.tobytes()
    return hashlib.sha256(content).hexdigest()


def test_a_scene_does_not_depend_on_order_and_size_of_the_split(scenes):
    split = scenes.split("train")
    here = [digest(split, index) for index in (17, 3, 39)]
    assert digest(scenes.split("train[10:]"), 7) == here[0]
    few = open_scenes("scenes/digits", sizes={"train": 40}).split("train")
    assert [digest(few, index) for index in (39, 3, 17)] == here[::-1]


@pytest.mark.slow
def test_a_scene_is_the_same_in_another_process(scenes):
    split = scenes.split("train")
    indices = [17, 3, 39]
    here = [digest(split, index) for index in indices]
    command = [sys.executable, "-c", _SCRIPT, *map(str, reversed(indices))]
    there = subprocess.run(command, text=True, capture_output=True, check=True).stdout.split()
    assert there == here[::-1]


def test_seeds_and_splits_give_other_scenes(scenes):
    other = open_scenes("scenes/digits", seed=1, sizes={"train": 5, "test": 5})
    digests = {digest(data.split(name), 0) for data in (scenes, other) for name in ("train", "test")}
    assert len(digests) == 4
    assert other.identity != scenes.identity


def test_rules_of_composition(scenes):
    split = scenes.split("train")
    counts = np.array([len(objects) for objects in split.objects])
    assert 0.05 < np.mean(counts == 0) < 0.16
    assert counts.max() == 6
    boxes = np.concatenate([objects.boxes for objects in split.objects])
    assert boxes.min() >= 0
    assert boxes.max() <= 128
    longer = np.max(boxes[:, 2:] - boxes[:, :2], 1)
    assert 15 <= longer.min() <= 18
    assert 60 <= longer.max() <= 64
    for objects in split.objects:
        overlaps = iou(objects.boxes, objects.boxes).numpy()
        assert (overlaps - np.eye(len(objects))).max(initial=0) < 0.3
    assert {label for objects in split.objects for label in objects.labels} == set(range(10))


def test_boxes_are_tight(scenes):
    """A single object differs from the same scene without it, inside its box only, and up to its edges."""
    split = scenes.split("train")
    source = digits_examples(False)[1]
    index = next(i for i, objects in enumerate(split.objects) if len(objects) == 1)
    x1, y1, x2, y2 = split.objects[index].boxes[0].astype(int)
    image = split.read_image(index).astype(int)
    assert image.shape == (128, 128, 3)
    assert image.dtype == int
    # Bright strokes touch the edges: along each edge some pixel differs from its neighbor outside.
    edges = {
        "left": abs(image[y1:y2, x1] - image[y1:y2, x1 - 1]) if x1 else None,
        "right": abs(image[y1:y2, x2 - 1] - image[y1:y2, x2]) if x2 < 128 else None,
        "top": abs(image[y1, x1:x2] - image[y1 - 1, x1:x2]) if y1 else None,
        "bottom": abs(image[y2 - 1, x1:x2] - image[y2, x1:x2]) if y2 < 128 else None,
    }
    assert all(edge is None or edge.max() > 20 for edge in edges.values())
    assert source.shape[1:] == (8, 8)


def test_garments_where_they_are_prepared(tmp_path):
    """Labels are those of the pasted examples, of the split of that name."""
    black = np.zeros((28, 28, 1), "uint8")

    def garment(label):
        image = black.copy()
        image[4:24, 10 - label : 12 + label] = 250  # the label can be read from the aspect
        return image

    splits = {
        "train": [{"image": garment(label), "label": label} for label in (1, 2, 3)],
        "test": [{"image": garment(label), "label": label} for label in (7, 8)],
    }
    write_tfds(tmp_path, "fashion_mnist", splits)
    dataset = open_detection_dataset("scenes", tmp_path)
    assert dataset.name == "scenes/fashion_mnist"
    assert dataset.title == "scenes/fashion_mnist (composited)"
    assert dataset.class_names[:3] == ("T-shirt/top", "Trouser", "Pullover")
    assert "fashion_mnist" in dataset.identity["files"]
    for name, labels in (("train", {1, 2, 3}), ("test", {7, 8})):
        split = dataset.split(f"{name}[:60]")
        assert {label for objects in split.objects for label in objects.labels} == labels
        for objects in split.objects:
            sides = objects.boxes[:, 2:] - objects.boxes[:, :2]
            np.testing.assert_allclose(sides[:, 0] / sides[:, 1], (2 + 2 * objects.labels) / 20, atol=0.07)


def test_names(tmp_path):
    assert open_detection_dataset("scenes", tmp_path).name == "scenes/digits"
    large = open_detection_dataset("scenes/digits/64")
    assert large.name == "scenes/digits/64"
    assert large.split("test[:1]").read_image(0).shape == (64, 64, 3)
    assert large.identity["split_sizes"] == {"train": 5000, "test": 500}
    for name in ("scenes/cifar10", "scenes/digits/7"):
        with pytest.raises(InputError, match="unknown scenes"):
            open_detection_dataset(name, tmp_path)
    with pytest.raises(InputError, match="between 32 and 2048 pixels; got 9999"):
        open_detection_dataset("scenes/digits/9999")
