"""Datasets converted to ArrayRecord files: the same records, read in any order."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.data_helpers import write_tfds

from keras_resnet import InputError
from keras_resnet.data import (
    BadImages,
    IndexedSplit,
    RecordSplit,
    Transform,
    convert,
    open_dataset,
    training_batches,
)
from keras_resnet.data.preview import sample_examples
from keras_resnet.data.records import INDEX_SUFFIX
from keras_resnet.images.preprocessing import Normalization

TRANSFORM = Transform.create(8, Normalization.identity(3), "inception")


@pytest.fixture(scope="module")
def converted_dir(imagenet_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("array_record")
    written = convert("imagenet2012", folder, imagenet_dir)
    assert written == next(folder.glob("imagenet2012/*"))
    return str(folder)


def test_the_files_of_a_conversion(imagenet_dir, converted_dir):
    before, after = (next(Path(folder, "imagenet2012").iterdir()) for folder in (imagenet_dir, converted_dir))
    files = [path for path in before.iterdir() if not path.name.endswith(INDEX_SUFFIX)]
    expected = {path.name.replace("tfrecord", "array_record") for path in files}
    assert {path.name for path in after.iterdir()} == expected
    assert json.loads((after / "dataset_info.json").read_text())["fileFormat"] == "array_record"


def test_the_examples_are_those_of_the_tfrecord_files(large, converted_dir):
    dataset = open_dataset("imagenet2012", converted_dir)
    assert dataset.identity("train") == large.identity("train")
    for spec in ("train", "train[7:30]", "validation"):
        split, original = dataset.split(spec), large.split(spec)
        assert isinstance(split, RecordSplit)
        assert [*split.records] == [*original.records]
        encoded, label = split.fetch(tf.constant(3))
        expected = original.fetch(tf.constant(3))
        assert (encoded.numpy(), int(label)) == tuple(value.numpy() for value in expected)
    options = {"global_batch": 8, "seed": 1, "epoch": 2}
    batches = [training_batches(some.split("train"), TRANSFORM, **options) for some in (dataset, large)]
    for one, other in zip(*batches, strict=True):
        np.testing.assert_array_equal(one["images"], other["images"])
    with pytest.raises(InputError, match="'test' of imagenet2012 has no labels"):
        dataset.split("test")


def test_small_datasets_are_kept_in_memory_in_either_format(imagenet_dir, tmp_path):
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (12, 28, 28, 1), dtype=np.uint8)
    examples = [{"image": image, "label": index % 10} for index, image in enumerate(images)]
    write_tfds(tmp_path / "a", "fashion_mnist", {"train": examples, "test": examples[:5]})
    convert("fashion_mnist", tmp_path / "b", tmp_path / "a")
    first, second = (open_dataset("fashion_mnist", tmp_path / name).split("train") for name in "ab")
    assert isinstance(second, IndexedSplit)
    assert second.decoded
    np.testing.assert_array_equal(first.images, second.images)
    np.testing.assert_array_equal(first.classes, second.classes)


@pytest.mark.usefixtures("large")
def test_a_preview(converted_dir):
    dataset = open_dataset("imagenet2012", converted_dir)
    few, titles = sample_examples(dataset.split("train"), dataset.class_names, 3, TRANSFORM)
    assert len(few) == len(titles) == 3


@pytest.mark.usefixtures("large")
def test_a_damaged_record_is_a_bad_image(converted_dir, tmp_path):
    shutil.copytree(converted_dir, tmp_path / "copy")
    file = sorted((tmp_path / "copy").glob("*/*/*train*"))[1]
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)
    split = open_dataset("imagenet2012", tmp_path / "copy").split("train")
    bad = BadImages()
    weights = [
        float(weight)
        for batch in training_batches(split, TRANSFORM, global_batch=53, seed=0, epoch=0, bad=bad)
        for weight in batch["weights"]
    ]
    assert 0 < bad.count < 20  # of one of four files
    assert weights.count(0.0) == bad.count
    assert all(name.startswith("record ") and "unreadable" in reason for name, _, reason in bad.rows())


@pytest.mark.usefixtures("large")
def test_what_cannot_be_read_or_converted(converted_dir, imagenet_dir, tmp_path):
    with pytest.raises(InputError, match="is stored as array_record; prepare it as tfrecord"):
        convert("imagenet2012", tmp_path / "again", converted_dir)
    with pytest.raises(InputError, match="exists; delete it, or choose another --output_dir"):
        convert("imagenet2012", converted_dir, imagenet_dir)
    shutil.copytree(converted_dir, tmp_path / "copy")
    for file in (tmp_path / "copy").glob("*/*/*train*"):
        file.write_bytes(b"")
    with pytest.raises(InputError, match="files of dataset 'imagenet2012' cannot be read"):
        open_dataset("imagenet2012", tmp_path / "copy").split("train")
    shutil.copytree(imagenet_dir, tmp_path / "torn")
    file = sorted((tmp_path / "torn").glob("*/*/*train*"))[0]
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(InputError, match="cannot be read"):
        convert("imagenet2012", tmp_path / "new", tmp_path / "torn")
    assert not list((tmp_path / "new").glob("*/*"))
