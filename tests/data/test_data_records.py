"""TFRecord files read in any order, through an index of their records."""

import dataclasses
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_resnet.data import (
    BadImages,
    RecordSplit,
    Transform,
    convert,
    dataset_statistics,
    evaluation_batches,
    open_dataset,
    records,
    training_batches,
)
from keras_resnet.data.preview import sample_examples
from keras_resnet.data.records import INDEX_SUFFIX, open_tfrecords
from keras_resnet.data.sources import pipeline_errors
from keras_resnet.errors import InputError, TryAgain
from keras_resnet.images.preprocessing import Normalization

TRANSFORM = Transform.create(8, Normalization.identity(3), "scale_crop_flip")
COUNTS = (5, 0, 9, 3)


def write_records(folder, counts=COUNTS):
    """Writes files of records of several lengths; returns the files and the records."""
    files, contents = [], []
    for number, count in enumerate(counts):
        files.append(f"{folder}/part-{number}")
        with tf.io.TFRecordWriter(files[-1]) as writer:
            for _ in range(count):
                contents.append(b"%d:" % len(contents) + b"x" * (7 * len(contents) % 50))
                writer.write(contents[-1])
    return files, contents


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """An empty cache of the user."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("KERAS_HOME", str(folder))
    return folder


@pytest.fixture
def finds(monkeypatch):
    """The files that are read for an index."""
    found, find = [], records._find_records

    def counted(file, *arguments):
        found.append(file)
        return find(file, *arguments)

    monkeypatch.setattr(records, "_find_records", counted)
    return found


def refused(pattern, function, *arguments):
    with pytest.raises(InputError, match=pattern) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["", "ram://"])
def test_every_record_is_found(tmp_path, cache, scheme):
    """Also in files that only TensorFlow can read, whose index is in the cache."""
    tf.io.gfile.makedirs(f"{scheme}{tmp_path}")
    files, contents = write_records(f"{scheme}{tmp_path}")
    opened = open_tfrecords("some", files, COUNTS)
    assert [opened[index] for index in range(len(opened))] == contents
    for start, stop in ((0, 6), (4, 15), (16, None)):
        assert [*open_tfrecords("some", files, COUNTS, start, stop)] == contents[start:stop]
    folder = cache if scheme else tmp_path
    assert [path.name.endswith("some" + INDEX_SUFFIX) for path in folder.rglob("*.npz")] == [True]


@pytest.mark.parametrize("spec", ["train", "train[:20]", "train[20:]", "train[13:15]", "train[10%:90%]"])
def test_a_split_has_the_examples_of_tfds_in_its_order(large, imagenet_dir, spec):
    split = large.split(spec)
    assert isinstance(split, RecordSplit)
    expected = tfds.builder("imagenet2012", data_dir=imagenet_dir).as_dataset(
        split=spec,
        decoders={"image": tfds.decode.SkipDecoding()},
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    found = [split.fetch(tf.constant(index)) for index in range(len(split))]
    assert [(image.numpy(), int(label)) for image, label in found] == [
        (example["image"], example["label"]) for example in expected.as_numpy_iterator()
    ]


@pytest.fixture(scope="module")
def array_record_dir(imagenet_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("array_record")
    convert("imagenet2012", folder, imagenet_dir)
    return str(folder)


@pytest.mark.parametrize("kind", ["tfrecord", "array_record"])
@pytest.mark.parametrize(("workers", "replicas"), [(1, 2), (2, 1), (4, 2)])
@pytest.mark.usefixtures("large")
def test_global_batches_depend_on_seed_and_epoch_only(
    imagenet_dir, array_record_dir, kind, workers, replicas
):
    data_dir = array_record_dir if kind == "array_record" else imagenet_dir
    split = open_dataset("imagenet2012", data_dir).split("train")
    options = {"global_batch": 16, "seed": 1, "epoch": 2}
    whole = list(training_batches(split, TRANSFORM, **options).as_numpy_iterator())
    assert len(whole) == 3
    first = 1  # as a run that resumes there
    parts = [
        list(
            training_batches(
                split,
                TRANSFORM,
                workers=workers,
                worker=worker,
                replicas=replicas,
                first_step=first,
                **options,
            ).as_numpy_iterator()
        )
        for worker in range(workers)
    ]
    for step, batch in enumerate(whole[first:]):
        pieces = [piece for part in parts for piece in part[step * replicas : (step + 1) * replicas]]
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([piece[key] for piece in pieces]), value)


def test_an_epoch_is_a_permutation_of_its_own(large):
    split = large.split("train")
    orders = []
    for seed, epoch in ((0, 0), (0, 0), (0, 1), (1, 0)):
        (batch,) = training_batches(split, TRANSFORM, global_batch=53, seed=seed, epoch=epoch)
        orders.append(batch["labels"].numpy().tolist())
        assert sorted(orders[-1]) == list(range(53))
    assert orders[0] == orders[1]
    assert len({tuple(order) for order in orders}) == 3
    # Neighbors in a file are not close to each other, as they would be with a small buffer.
    stored = [int(split.fetch(tf.constant(index))[1]) for index in range(53)]
    places = [stored.index(label) for label in orders[0]]
    assert np.abs(np.diff(places)).mean() > 53 / 5


def test_a_worker_reads_its_own_records_only(large, monkeypatch):
    split = large.split("train")
    reads = []

    class Noted(records.TFRecords):
        def fetch(self, index):
            noted = tf.numpy_function(lambda index: reads.append(int(index)) or index, [index], tf.int64)
            return super().fetch(tf.ensure_shape(noted, ()))

    monkeypatch.setattr(split.records, "__class__", Noted)
    options = {"global_batch": 16, "seed": 0, "epoch": 0, "workers": 4, "first_step": 1}
    each = []
    for worker in range(4):
        reads.clear()
        assert len(list(training_batches(split, TRANSFORM, worker=worker, **options))) == 2
        assert len(reads) == 8
        each += reads
    assert len(set(each)) == 32


def test_records_are_skipped_without_a_look_at_them(tmp_path):
    """Records without an image: the skipped ones would fail."""
    count, shards = 20_000, 4
    files, _ = write_records(tmp_path, [count // shards] * shards)
    opened = open_tfrecords("numbers", files, [count // shards] * shards)
    split = RecordSplit("train", opened, lambda record: (record, tf.constant(0)))
    bad = BadImages()
    first = count // 10 - 2
    batches = training_batches(split, TRANSFORM, global_batch=10, seed=0, epoch=0, first_step=first, bad=bad)
    assert len(list(batches)) == 2
    assert bad.count == 20
    assert {reason for _, _, reason in bad.rows()} == {"not a JPEG, PNG, GIF or BMP image"}


def test_an_index_is_used_until_a_file_changes(tmp_path, finds):
    files, contents = write_records(tmp_path)
    open_tfrecords("some", files, COUNTS)
    assert sorted(finds) == files
    finds.clear()
    assert [*open_tfrecords("some", files, COUNTS)] == contents
    assert finds == []
    # Another order of the same lengths: only the time tells.
    file = Path(files[2])
    with tf.io.TFRecordWriter(str(file)) as writer:
        for content in contents[13:4:-1]:
            writer.write(content)
    changed = [*contents[:5], *contents[13:4:-1], *contents[14:]]
    assert [*open_tfrecords("some", files, COUNTS)] == changed
    assert sorted(finds) == files
    finds.clear()
    file.rename(file.with_name("other"))
    files[2] = str(file.with_name("other"))
    assert [*open_tfrecords("some", files, COUNTS)] == changed
    assert sorted(finds) == sorted(files)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[: len(content) // 2],
        lambda content: content.replace(b"bounds", b"bonds!"),
        lambda content: content[:-400] + bytes(400),
        lambda content: content.replace(b"<i8", b"<f8"),
    ],
)
def test_a_damaged_index_is_made_again(tmp_path, finds, damage):
    files, contents = write_records(tmp_path)
    open_tfrecords("some", files, COUNTS)
    index = tmp_path / f"some{INDEX_SUFFIX}"
    whole = index.read_bytes()
    index.write_bytes(damage(whole))
    assert index.read_bytes() != whole
    assert [*open_tfrecords("some", files, COUNTS)] == contents
    assert len(finds) == 2 * len(files)
    assert index.read_bytes() == whole


@pytest.mark.parametrize(
    ("key", "place", "add"), [("bounds", 2, -30), ("bounds", -1, 9), ("sizes", 0, 1), ("modified", 0, 1)]
)
def test_an_index_with_other_numbers_is_made_again(tmp_path, finds, key, place, add):
    files, contents = write_records(tmp_path)
    open_tfrecords("some", files, COUNTS)
    index = tmp_path / f"some{INDEX_SUFFIX}"
    with np.load(index) as arrays:
        found = dict(arrays)
    found[key][place] += add
    np.savez(index, **found)
    assert [*open_tfrecords("some", files, COUNTS)] == contents
    assert len(finds) == 2 * len(files)


def test_an_index_is_kept_in_the_cache_where_the_data_cannot_be_written(tmp_path, cache, finds):
    files, contents = write_records(tmp_path)
    beside = tmp_path / f"some{INDEX_SUFFIX}"
    beside.mkdir()  # nothing can be written there, not even by root
    assert [*open_tfrecords("some", files, COUNTS)] == contents
    (stored,) = (cache / "datasets").iterdir()
    finds.clear()
    assert [*open_tfrecords("some", files, COUNTS)] == contents
    assert finds == []
    shutil.rmtree(cache)
    cache.write_text("a file")  # nor here
    assert [*open_tfrecords("some", files, COUNTS)] == contents
    assert len(finds) == len(files)
    assert not stored.exists()
    assert {path.name for path in tmp_path.iterdir()} == {beside.name, *(Path(file).name for file in files)}


def test_several_processes_may_make_an_index_at_once(tmp_path):
    files, contents = write_records(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        opened = list(pool.map(lambda _: open_tfrecords("some", files, COUNTS), range(24)))
    assert all([*some] == contents for some in opened)
    assert len(list(tmp_path.iterdir())) == len(files) + 1


def damaged(content, how):
    """A file's content with damage at the sixth record, and what the file is called then."""
    content, record = bytearray(content), 0
    for _ in range(5):  # a record is its length (8 bytes), a checksum (4), the content and another checksum
        record += 16 + int.from_bytes(content[record : record + 8], "little")
    if how == "flipped":
        content[record + 20] ^= 1
    if how in ("length", "long"):
        content[record] ^= 1
    if how == "long":  # beyond the end of the file
        content[record + 5] ^= 1
    keep = {"cut": record + 100, "cut between records": record, "cut in a length": record + 7}
    return bytes(content[: keep.get(how, len(content))])


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("cut", "cannot be read after record 5: truncated, or not written yet"),
        ("cut between records", "cannot be read after record 5: truncated, or not written yet"),
        ("cut in a length", "cannot be read after record 5: truncated, or not written yet"),
        ("length", "cannot be read after record 5: the next one is damaged"),
        ("long", "cannot be read after record 5: the next one is damaged"),
        ("missing", "cannot be read: No such file"),
        ("more", r"has \d+ records instead of \d+; prepare the dataset again"),
    ],
)
def test_a_file_that_is_damaged_before_it_is_opened_is_named(large, imagenet_dir, tmp_path, how, message):
    shutil.copytree(imagenet_dir, tmp_path, dirs_exist_ok=True)
    file = sorted(tmp_path.glob("*/*/*train.tfrecord-*"))[2]
    if how == "missing":
        file.unlink()
    elif how == "more":
        content = file.read_bytes()
        file.write_bytes(content + content[: 16 + int.from_bytes(content[:8], "little")])
    else:
        file.write_bytes(damaged(file.read_bytes(), how))
    dataset = open_dataset("imagenet2012", tmp_path)
    refused(f"^{re.escape(str(file))} {message}", dataset.split, "train")
    assert len(dataset.split("validation")) == 11


@pytest.mark.parametrize("how", ["cut", "cut between records", "missing"])
def test_a_file_that_is_lost_while_it_is_read_is_named(large, imagenet_dir, tmp_path, how):
    shutil.copytree(imagenet_dir, tmp_path, dirs_exist_ok=True)
    split = open_dataset("imagenet2012", tmp_path).split("train")
    file = sorted(tmp_path.glob("*/*/*train.tfrecord-*"))[2]
    if how == "missing":
        file.unlink()
        message = "cannot be read after record .*No such file"
    else:
        file.write_bytes(damaged(file.read_bytes(), how))
        message = "cannot be read after record 5: truncated, or not written yet"

    def train():
        with pipeline_errors():
            list(training_batches(split, TRANSFORM, global_batch=53, seed=0, epoch=0, bad=BadImages()))

    message = f"^{re.escape(str(file))} {message}"
    refused(message, train)
    refused(message, dataset_statistics, split, 8)
    refused(message, sample_examples, split, [str(label) for label in range(53)], 53, TRANSFORM)


def test_a_damaged_record_is_a_bad_image(large, imagenet_dir, tmp_path):
    shutil.copytree(imagenet_dir, tmp_path, dirs_exist_ok=True)
    split = open_dataset("imagenet2012", tmp_path).split("train")
    first, _, file = sorted(tmp_path.glob("*/*/*train.tfrecord-*"))[:3]
    lengths = tfds.builder("imagenet2012", data_dir=str(tmp_path)).info.splits["train"].shard_lengths
    bad = BadImages()
    file.write_bytes(damaged(file.read_bytes(), "flipped"))
    batches = evaluation_batches(split, TRANSFORM.preprocessing, global_batch=53, bad=bad)
    (batch,) = batches.as_numpy_iterator()
    ((name, where, reason),) = bad.rows()
    index = int(name.removeprefix("record "))
    assert np.flatnonzero(batch["weights"] == 0).tolist() == [index]
    assert (where, reason) == ("train", f"damaged (record 5 of {file})")
    assert index == sum(lengths[:2]) + 5
    with pytest.raises(InputError, match=f"1 images cannot be used, 0 are allowed .* damaged .*{file.name}"):
        bad.check(0)
    message = f"record {index} of 'train' is damaged \\(record 5 of {re.escape(str(file))}\\)"
    refused(message, sample_examples, split, [str(label) for label in range(53)], 53, TRANSFORM)
    # The first record is read when a split is opened.
    content = bytearray(first.read_bytes())
    content[40] ^= 1
    first.write_bytes(content)
    refused(
        r"'imagenet2012' cannot be read: damaged \(record 0 of ",
        open_dataset("imagenet2012", tmp_path).split,
        "train",
    )


def test_a_failure_that_may_pass_is_not_a_damaged_file(large, monkeypatch):
    split = large.split("train")
    failures = []

    class Failing(records.TFRecords):
        def fetch(self, index):
            def fail(index):
                if int(index) == 17 and failures:
                    failures.pop()
                    raise tf.errors.UnavailableError(None, None, "the file server does not answer")
                return index

            return super().fetch(tf.ensure_shape(tf.numpy_function(fail, [index], tf.int64), ()))

    monkeypatch.setattr(split.records, "__class__", Failing)
    options = {"global_batch": 53, "seed": 0, "epoch": 0}
    (expected,) = training_batches(split, TRANSFORM, **options).as_numpy_iterator()
    failures.append("once")
    bad = BadImages()
    (found,) = training_batches(split, TRANSFORM, **options, bad=bad).as_numpy_iterator()
    assert (bad.count, failures) == (0, [])
    np.testing.assert_array_equal(found["images"], expected["images"])
    failures += ["again"] * 3
    with (
        pytest.raises(TryAgain, match=r"cannot be read after record .* does not answer") as caught,
        pipeline_errors(),
    ):
        list(training_batches(split, TRANSFORM, **options, bad=bad))
    assert "\n" not in str(caught.value)
    assert bad.count == 0


def test_an_epoch_of_another_parse_reads_the_same_records(large):
    """`dataclasses.replace` keeps the index."""
    split = large.split("train")
    other = dataclasses.replace(split, parse=lambda record: (record, tf.constant(3)))
    assert other.records is split.records
    assert other.fetch(tf.constant(5))[0].numpy() == split.record(5)
