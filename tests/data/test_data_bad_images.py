"""A folder as people have them: what can be converted is, the rest is left out, counted and listed."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from helpers.dirty_images import by_pillow, convertible, encoded, photo, unusable
from PIL import Image

from keras_resnet.data import (
    BadImages,
    Transform,
    dataset_statistics,
    evaluation_batches,
    open_dataset,
    raw_images,
    sources,
    training_batches,
)
from keras_resnet.data.check import check, find_unusable
from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization

PLAIN = Normalization((0.0,) * 3, (1.0,) * 3)
SOME = Normalization((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))

PREPARED = Transform.create(16, SOME).preprocessing


def make_dirty(folder):
    """Adds every kind to two classes of a folder; returns the unusable ones' paths and reasons."""
    bad = {}
    for number, (name, file) in enumerate(convertible().items()):
        (folder / "ab"[number % 2] / f"convertible {name}.JPEG").write_bytes(file)
    for number, (name, (file, reason)) in enumerate(unusable().items()):
        path = folder / "ab"[number % 2] / f"bad {name}.JPEG"
        path.write_bytes(file)
        bad[str(path)] = reason
    for name, target, reason in (
        ("a/loop", "a/loop", "Too many levels of symbolic links"),
        ("a/dangling", "nowhere", "No such file"),
        ("b/up", "b", "a folder where an image was expected"),
        ("up", ".", "a link to a folder that contains it"),
    ):
        (folder / name).symlink_to(folder / target)
        bad[str(folder / name)] = reason
    return bad


def fill(folder, count):
    files = [encoded("JPEG", photo(40 + i, 36), quality=80 + i) for i in range(10)]
    for number in range(count):
        path = folder / "ab"[number % 2] / f"good {number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(files[number % 10])


def assert_lists(rows, bad):
    assert [path for path, *_ in rows] == sorted(bad)
    for path, *_, reason in rows:
        assert bad[path] in reason


@pytest.fixture(scope="module")
def dirty(tmp_path_factory):
    """`(folder, its unusable paths and reasons)`: as train and as val."""
    root = tmp_path_factory.mktemp("dirty")
    fill(root / "train", 12)
    fill(root / "val", 12)
    return root, make_dirty(root / "train"), make_dirty(root / "val")


# Images are decoded whole or in part.
@pytest.mark.parametrize("augmentation", ["none", "inception"])
def test_an_epoch_lists_exactly_the_bad_ones(dirty, augmentation):
    root, bad_train, bad_val = dirty
    dataset = open_dataset(f"folder:{root}")
    transform = Transform.create(16, SOME, augmentation)
    split, bad = dataset.split("train"), BadImages()
    outside = sum(reason.startswith("a link") for reason in bad_train.values())
    for epoch in range(2):
        batches = training_batches(split, transform, global_batch=5, seed=0, epoch=epoch, bad=bad)
        batches = list(batches.as_numpy_iterator())
        weights = np.concatenate([batch["weights"] for batch in batches])
        images = np.concatenate([batch["images"] for batch in batches])
        labels = np.concatenate([batch["labels"] for batch in batches])
        assert len(weights) == len(split) // 5 * 5
        assert not images[weights == 0].any()
        assert not labels[weights == 0].any()
        assert np.abs(images[weights == 1]).max((1, 2, 3)).min() > 0
    # An epoch leaves out what fills no batch.
    assert {path for path, _, _ in bad.rows()} <= set(bad_train)
    val = BadImages()
    batches = evaluation_batches(dataset.split("val"), transform.preprocessing, global_batch=5, bad=val)
    weights = np.concatenate([batch["weights"] for batch in batches.as_numpy_iterator()])
    assert weights.sum() == len(dataset.split("val")) - len(bad_val) + outside
    assert_lists(val.rows(), bad_val)


def test_bad_images_change_no_other_example(dirty, tmp_path):
    """Each good image has the same draws and pixels as in a run without a collector."""
    fill(tmp_path, 20)
    transform = Transform.create(16, SOME, "scale_crop_flip")
    split = open_dataset(f"folder:{tmp_path}").split("train")
    arguments = {"global_batch": 8, "seed": 1, "epoch": 2}
    clean = list(training_batches(split, transform, **arguments).as_numpy_iterator())
    bad = BadImages()
    same = list(training_batches(split, transform, **arguments, bad=bad).as_numpy_iterator())
    assert bad.count == 0
    Path(os.fsdecode(split.images[3])).write_bytes(b"\xff\xd8\xff")
    spoiled = list(training_batches(split, transform, **arguments, bad=bad).as_numpy_iterator())
    assert bad.count == 1
    for one, two, three in zip(clean, same, spoiled, strict=True):
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
            good = three["weights"] == 1
            np.testing.assert_array_equal(one[key][good], three[key][good])
    assert sum(batch["weights"].sum() for batch in spoiled) == 8 * len(clean) - 1
    with pytest.raises(tf.errors.InvalidArgumentError):
        list(training_batches(split, transform, **arguments))


def test_workers_see_the_same_batches_and_each_its_own_bad_images(dirty):
    root, _, _ = dirty
    workers, replicas = 2, 2
    split = open_dataset(f"folder:{root}").split("train")
    transform = Transform.create(16, SOME, "inception")
    arguments = {"global_batch": 4, "seed": 1, "epoch": 0}
    whole, bad = BadImages(), [BadImages() for _ in range(workers)]
    expected = list(training_batches(split, transform, **arguments, bad=whole).as_numpy_iterator())
    parts = [
        list(
            training_batches(
                split, transform, **arguments, workers=workers, worker=w, replicas=replicas, bad=bad[w]
            ).as_numpy_iterator()
        )
        for w in range(workers)
    ]
    for step, batch in enumerate(expected):
        pieces = [piece for part in parts for piece in part[step * replicas : (step + 1) * replicas]]
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([piece[key] for piece in pieces]), value)
    assert {row for some in bad for row in some.rows()} == set(whole.rows())


def test_what_is_converted_is_what_pillow_makes_of_it(dirty):
    root, _, _ = dirty
    split = open_dataset(f"folder:{root}").split("val")
    transform = Transform.create(75, PLAIN)
    turned = [i for i, path in enumerate(split.images) if b"convertible jpeg turned" in path]
    some = type(split)("some", split.images[turned], split.classes[turned], files=True)
    converted = np.concatenate([images for images, _ in raw_images(some, transform.preprocessing)])
    assert len(converted) == len(turned) > 0
    for path, image in zip(some.images, converted, strict=True):
        pixels = by_pillow(Path(path.decode()).read_bytes()).astype("uint8")
        expected = tf.image.resize(pixels, (75, 75), antialias=True)
        np.testing.assert_allclose(image, expected, atol=1e-2)


def test_statistics_and_raw_images_leave_the_bad_ones_out(dirty, tmp_path):
    root, _, bad_val = dirty
    split, bad = open_dataset(f"folder:{root}").split("val"), BadImages()
    transform = Transform.create(16, PLAIN)
    images = np.concatenate([images for images, _ in raw_images(split, transform.preprocessing)])
    assert len(images) == len(split) - len(bad_val) + 1
    found = dataset_statistics(split, 16, bad=bad)
    np.testing.assert_allclose(found.mean, images.mean((0, 1, 2), dtype="float64"), rtol=1e-6)
    assert bad.count == len(bad_val) - 1
    one = next(i for i, path in enumerate(split.images) if b"bad text" in path)
    nothing = type(split)("one", split.images[one : one + 1], split.classes[:1], files=True)
    with pytest.raises(InputError, match="not one image of the split 'one' can be decoded"):
        dataset_statistics(nothing, 16)


def test_records_are_named_by_their_number(imagenet_dir, monkeypatch):
    dataset = open_dataset("imagenet2012", imagenet_dir)
    whole = dataset.split("train")
    images = whole.images.copy()
    images[[3, 40]] = [b"", images[40][:200]]
    encoded_split = type(whole)("train", images, whole.classes)
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)
    large = open_dataset("imagenet2012", imagenet_dir).split("train")

    def parse(record):
        image, label = large.parse(record)
        return tf.where(label % 10 == 7, tf.strings.substr(image, 0, 150), image), label

    broken = dataclasses.replace(large, parse=parse)
    transform = Transform.create(16, SOME, "inception")
    for split, names in (
        (encoded_split, ["record 3", "record 40"]),
        (broken, [f"record {index}" for index, y in enumerate(whole.classes) if y % 10 == 7]),
    ):
        bad = BadImages()
        list(training_batches(split, transform, global_batch=53, seed=0, epoch=0, bad=bad))
        assert sorted(path for path, _, _ in bad.rows()) == sorted(names)
        assert {reason for _, _, reason in bad.rows()} <= {"empty", "truncated", "damaged"}


def test_records_without_a_valid_label(imagenet_dir, large, monkeypatch):
    """Those of large datasets are listed; only the first is looked at when the split is opened."""
    monkeypatch.setattr(sources._Loader, "_classes", 50)  # of 53
    bad, transform = BadImages(), Transform.create(16, SOME, "inception")
    split = large.split("train")
    (batch,) = training_batches(split, transform, global_batch=53, seed=0, epoch=0, bad=bad)
    assert batch["weights"].numpy().sum() == 50
    assert [reason for _, _, reason in bad.rows()] == ["without a valid label"] * 3
    monkeypatch.undo()
    monkeypatch.setattr(sources._Loader, "_classes", 50)
    with pytest.raises(InputError, match="'train' of imagenet2012 has the label 52; it has 50 classes"):
        open_dataset("imagenet2012", imagenet_dir).split("train")


def test_check_finds_what_training_would(dirty, early_progress, capsys):
    root, bad_train, bad_val = dirty
    assert_lists(find_unusable(open_dataset(f"folder:{root}"))[0], bad_train | bad_val)
    assert check(str(root)) == 1
    printed, progress = (stream.splitlines() for stream in capsys.readouterr())
    assert progress[0].startswith("decoding: ")
    assert progress[0].endswith(" bad")
    images = 2 * len(open_dataset(f"folder:{root}").split("train"))
    assert printed[0].split("|")[1].strip() == "path"
    assert printed[-1] == f"{images} images, {len(bad_train | bad_val)} cannot be used"
    assert sum("truncated" in line for line in printed) >= 6


def test_check_prints_names_without_control_characters(tmp_path, capsys):
    fill(tmp_path, 10)
    (tmp_path / "a" / "\x1b]0;owned\x07|\udce4.jpg").write_bytes(b"")
    assert check(str(tmp_path)) == 1
    printed = capsys.readouterr().out
    assert "\ufffd]0;owned\ufffd\\|\ufffd.jpg" in printed
    assert not {"\x1b", "\x07"} & set(printed)


def test_a_read_error_that_passes_costs_nothing_and_one_that_stays_one_image(tmp_path):
    """The file system fails the first attempts on two files: one of them twice, before it is whole again."""
    fill(tmp_path, 30)
    split = open_dataset(f"folder:{tmp_path}").split("train")
    expected = list(evaluation_batches(split, PREPARED, global_batch=4).as_numpy_iterator())
    failures = {split.images[1]: 1, split.images[5]: 2}

    def read(paths):
        (path,) = paths
        if failures.get(path, 0):
            failures[path] -= 1
            raise OSError("stale file handle")
        return Path(path.decode()).read_bytes()

    class Failing(type(split)):
        def fetch(self, index):
            images, classes = self.tensors
            file = tf.numpy_function(read, [tf.gather(images, [index])], tf.string)
            return tf.ensure_shape(file, ()), tf.gather(classes, index)

    failing, bad = Failing("some", split.images, split.classes, files=True), BadImages()
    found = list(evaluation_batches(failing, PREPARED, global_batch=4, bad=bad).as_numpy_iterator())
    ((name, _, reason),) = bad.rows()
    assert (name, "two attempts to read" in reason) == (split.images[5].decode(), True)
    images, others = (np.concatenate([batch["images"] for batch in some]) for some in (found, expected))
    assert not images[5].any()
    images[5] = others[5]
    np.testing.assert_array_equal(images, others)


def test_check_of_a_good_folder(tmp_path, capsys):
    fill(tmp_path, 10)
    assert check(str(tmp_path)) == 0
    assert capsys.readouterr().out == "10 images, 0 cannot be used\n"
    with pytest.raises(InputError, match="there is no folder"):
        check(tmp_path / "nowhere")


@pytest.mark.slow
def test_check_is_a_command(dirty):
    done = subprocess.run(
        [sys.executable, "-m", "keras_resnet.data", "check", str(dirty[0])], capture_output=True, text=True
    )
    assert done.returncode == 1, done.stderr
    assert "cannot be used" in done.stdout.splitlines()[-1]


@pytest.mark.slow
def test_every_kind_among_three_hundred_good_images(tmp_path):
    fill(tmp_path, 300)
    bad = make_dirty(tmp_path)
    split = open_dataset(f"folder:{tmp_path}").split("train[:]")
    everything = type(split)(
        "train", split.images, split.classes, files=True, skipped_files=split.skipped_files
    )
    test = open_dataset(f"folder:{tmp_path}").split("test")
    collected = BadImages()
    transform = Transform.create(32, SOME, "inception")
    counted = 0
    for part in (everything, test):
        batches = training_batches(part, transform, global_batch=1, seed=0, epoch=0, bad=collected)
        counted += sum(int(batch["weights"].sum()) for batch in batches.as_numpy_iterator())
    assert_lists(sorted((path, reason) for path, _, reason in collected.rows()), bad)
    assert counted == 300 + len(convertible())


def test_the_tests_folder_has_every_kind(dirty):
    """Otherwise the tests above would miss some."""
    root, bad_train, _ = dirty
    names = [path.name for path in (root / "train").rglob("*.JPEG")]
    assert sum(name.startswith("convertible") for name in names) == len(convertible())
    assert len(bad_train) == len(unusable()) + 4
    (gray,) = (root / "train").rglob("convertible gray png.JPEG")
    assert Image.open(gray).format == "PNG"
