"""Datasets converted to ArrayRecord files: the same records, read in any order."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.data_helpers import write_tfds

from keras_resnet import InputError
from keras_resnet.data import (
    ArrayRecordSplit,
    BadImages,
    IndexedSplit,
    Transform,
    convert,
    evaluation_batches,
    open_dataset,
    sources,
    training_batches,
)
from keras_resnet.data.preview import sample_examples
from keras_resnet.images.preprocessing import Normalization

TRANSFORM = Transform.create(8, Normalization.identity(3), "inception")


@pytest.fixture(scope="module")
def converted_dir(imagenet_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("array_record")
    written = convert("imagenet2012", folder, imagenet_dir)
    assert written == next(folder.glob("imagenet2012/*"))
    return str(folder)


@pytest.fixture
def large(monkeypatch):
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)


def test_the_files_of_a_conversion(imagenet_dir, converted_dir):
    before, after = (next(Path(folder, "imagenet2012").iterdir()) for folder in (imagenet_dir, converted_dir))
    expected = {path.name.replace("tfrecord", "array_record") for path in before.iterdir()}
    assert {path.name for path in after.iterdir()} == expected
    assert json.loads((after / "dataset_info.json").read_text())["fileFormat"] == "array_record"


def test_the_records_are_those_of_the_stream(streamed, converted_dir):
    dataset = open_dataset("imagenet2012", converted_dir)
    assert dataset.identity("train") != streamed.identity("train")  # the order of the examples differs
    for spec in ("train", "train[7:30]", "validation"):
        split = dataset.split(spec)
        assert isinstance(split, ArrayRecordSplit)
        stream = streamed.split(spec)
        assert len(split) == len(stream)
        for index, (_, record) in enumerate(stream.records()):
            assert split.records[index] == record.numpy()
        encoded, label = split.fetch(tf.constant(3))
        assert (encoded.numpy(), int(label)) == tuple(
            value.numpy() for value in stream.fetch(tf.constant(split.records[3]))
        )
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
def test_batches_do_not_depend_on_the_number_of_workers(converted_dir):
    split = open_dataset("imagenet2012", converted_dir).split("train")
    options = {"global_batch": 8, "seed": 1, "epoch": 2}
    whole = list(training_batches(split, TRANSFORM, **options))
    assert len(whole) == 6
    assert len({int(label) for batch in whole for label in batch["labels"]}) == 48
    parts = [
        list(training_batches(split, TRANSFORM, workers=2, worker=worker, first_step=2, **options))
        for worker in (0, 1)
    ]
    for batch, *halves in zip(whole[2:], *parts, strict=True):
        for key, value in batch.items():
            np.testing.assert_array_equal(value, np.concatenate([half[key] for half in halves]))
    evaluated = evaluation_batches(split, TRANSFORM.preprocessing, global_batch=16)
    assert sum(float(tf.reduce_sum(batch["weights"])) for batch in evaluated) == 53


@pytest.mark.usefixtures("large")
def test_a_preview(converted_dir):
    dataset = open_dataset("imagenet2012", converted_dir)
    few, titles = sample_examples(dataset.split("train"), dataset.class_names, 3, TRANSFORM)
    assert len(few) == len(titles) == 3


@pytest.mark.usefixtures("large")
def test_a_worker_reads_its_own_examples_only(converted_dir):
    split = open_dataset("imagenet2012", converted_dir).split("train")
    read = []

    class Counted(list):
        def __getitem__(self, index):
            read.append(index)
            return super().__getitem__(index)

    counted = dataclasses.replace(split, records=Counted(split.records))
    options = {"global_batch": 16, "seed": 0, "epoch": 0, "workers": 4, "first_step": 1}
    each = []
    for worker in range(4):
        read.clear()
        assert len(list(training_batches(counted, TRANSFORM, worker=worker, **options))) == 2
        assert len(read) == 8
        each += read
    assert len(set(each)) == 32


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
