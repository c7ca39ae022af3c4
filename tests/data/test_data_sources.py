import os
import shutil

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from helpers.data_helpers import write_image, write_tfds

from keras_resnet.data import (
    BadImages,
    IndexedSplit,
    Transform,
    open_dataset,
    training_batches,
)
from keras_resnet.errors import InputError
from keras_resnet.images.decode import decode_image
from keras_resnet.images.preprocessing import Normalization


def fails(pattern, function, *arguments):
    with pytest.raises(InputError, match=pattern) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return str(caught.value)


def test_slices(digits):
    whole = digits.split("train")
    for spec, part in {
        "train[:100]": slice(100),
        "train[100:]": slice(100, None),
        "train[-7:]": slice(-7, None),
        "train[:10%]": slice(144),
        "train[10%:20%]": slice(144, 288),
        "train[:]": slice(None),
    }.items():
        split = digits.split(spec)
        np.testing.assert_array_equal(split.images, whole.images[part])
        np.testing.assert_array_equal(split.classes, whole.classes[part])


def test_bad_splits(digits):
    fails("unknown split of digits 'trian'; did you mean train", digits.split, "trian")
    fails("cannot read the split 'train\\[1-2\\]'", digits.split, "train[1-2]")
    fails("'train\\[5:5\\]' of digits is empty; train has 1442", digits.split, "train[5:5]")


def test_unknown_dataset_names_the_nearest(tmp_path):
    fails("unknown dataset 'cifr10'; did you mean .*cifar10", open_dataset, "cifr10", tmp_path)
    fails("unknown dataset 'digit'; did you mean digits", open_dataset, "digit", tmp_path)
    fails("unknown dataset ''", open_dataset, "", tmp_path)
    fails("cannot open dataset 'cifar10/nope'", open_dataset, "cifar10/nope", tmp_path)


def test_not_an_image_classification_dataset(tmp_path):
    fails(
        "'imdb_reviews' is not for image classification.*text \\(Text\\)",
        open_dataset,
        "imdb_reviews",
        tmp_path,
    )
    fails("'lfw' is not for image classification", open_dataset, "lfw", tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_dataset_fails_fast_without_a_network(tmp_path, monkeypatch):
    from tensorflow_datasets.core.download import downloader

    tried = []

    def unreachable(url, **kwargs):
        tried.append(downloader.MAX_RETRIES)
        raise ConnectionError(f"no route\nto {url}")

    monkeypatch.setattr(downloader, "_open_with_requests", unreachable)
    message = fails("'cifar10' is not prepared in", open_dataset, "cifar10", tmp_path)
    assert str(tmp_path) in message
    assert "no route to https://" in message
    assert f"tfds build cifar10 --data_dir={tmp_path}`" in message
    assert tried == [4]
    assert downloader.MAX_RETRIES > 4
    assert not list((tmp_path / "cifar10").iterdir())


def test_digits_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("in the way")
    fails(
        "'digits' is not prepared in .*; install scikit-learn and", open_dataset, "digits", tmp_path / "file"
    )


def test_manual_dataset_says_what_is_missing(tmp_path):
    message = fails("'imagenet2012' is not prepared in", open_dataset, "imagenet2012", tmp_path)
    assert "manual" in message


def test_cifar10_is_indexed(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    examples = [{"id": str(i), "image": images[i], "label": i % 10} for i in range(12)]
    write_tfds(tmp_path, "cifar10", {"train": examples, "test": examples[:5]})
    dataset = open_dataset("cifar10", tmp_path)
    split = dataset.split("train")
    assert isinstance(split, IndexedSplit)
    assert split.decoded
    assert dataset.classes == 10
    assert sorted(dataset.split_names) == ["test", "train"]
    assert dataset.test_split == "test"
    # TFDS stores examples in an order of its own; pixels must stay with their labels.
    stored = {image.tobytes(): label for image, label in zip(split.images, split.classes, strict=True)}
    assert stored == {image.tobytes(): i % 10 for i, image in enumerate(images)}


def test_images_of_many_sizes_stay_encoded(imagenet_dir):
    split = open_dataset("imagenet2012", imagenet_dir).split("train")
    assert isinstance(split, IndexedSplit)
    assert not split.decoded
    for index in (0, 52):
        encoded, label = split.fetch(tf.constant(index, tf.int64))
        assert decode_image(encoded).shape == (40 + int(label) % 7, 50 - int(label) % 11, 3)


def test_unlabeled_test_split(large, imagenet_dir):
    for dataset in (large, open_dataset("imagenet2012", imagenet_dir)):
        fails("'test' of imagenet2012 has no labels", dataset.split, "test")
        assert dataset.test_split == "validation"


def numbered(folder, classes, count):
    """A folder of `count` empty PNG heads a class: nothing decodes them."""
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            (folder / name / f"{index:03}.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    return f"folder:{folder}"


def test_folder_holds_out_about_a_fifth_of_each_class_whatever_is_added(tmp_path):
    dataset = open_dataset(numbered(tmp_path, "abcd", 100))
    train, test = dataset.split("train"), dataset.split("test")
    assert len(train) + len(test) == 400
    assert not set(train.images) & set(test.images)
    assert all(10 <= count <= 30 for count in np.bincount(test.classes))
    assert list(test.images) == sorted(test.images)
    before = {"train": set(train.images), "test": set(test.images)}
    for name in "abcd":  # first, last and between
        for added in ("", "050b", "~", *(f"{index}x" for index in range(10))):
            (tmp_path / name / f"{added}0.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    after = open_dataset(f"folder:{tmp_path}")
    assert after.sizes != dataset.sizes
    for name, files in before.items():
        assert files <= set(after.split(name).images)


@pytest.mark.parametrize("count", [5, 6, 7, 11])
def test_folder_holds_out_one_image_or_more_of_small_classes(tmp_path, count):
    dataset = open_dataset(numbered(tmp_path, "abcdefgh", count))
    for split in ("train", "test"):
        assert np.bincount(dataset.split(split).classes, minlength=8).min() >= 1


def test_slices_of_a_folder_have_all_classes_and_nothing_in_common(tmp_path):
    numbered(tmp_path / "train", "ab", 40)
    numbered(tmp_path / "train", "c", 20)
    numbered(tmp_path / "test", "abc", 1)
    dataset = open_dataset(f"folder:{tmp_path}")
    whole = dataset.split("train")
    parts = [dataset.split(spec) for spec in ("train[:80%]", "train[80%:90%]", "train[90:]")]
    assert [len(part) for part in parts] == [80, 10, 10]
    assert [np.bincount(part.classes).tolist() for part in parts] == [[32, 32, 16], [4, 4, 2], [4, 4, 2]]
    assert sorted(path for part in parts for path in part.images) == list(whole.images)
    for part in parts:
        assert list(part.images) == sorted(part.images)
        assert [path.split(b"/")[-2] for path in part.images] == [b"abc"[y : y + 1] for y in part.classes]
    again = open_dataset(f"folder:{tmp_path}").split("train[:80%]")
    assert list(again.images) == list(parts[0].images)
    np.testing.assert_array_equal(dataset.split("train[:]").images, whole.images)


def test_class_names_are_text(image_folder):
    for name in (os.fsdecode(b"caf\xe9"), "a\nb", "\x1b]0;owned\x07", "a\u2028b"):
        (image_folder / "cats").rename(image_folder / name)
        fails("must be UTF-8 text without control characters", open_dataset, f"folder:{image_folder}")
        (image_folder / name).rename(image_folder / "cats")
    (image_folder / "cats").rename(image_folder / "käse $_$")
    assert open_dataset(f"folder:{image_folder}").class_names == ("dogs", "käse $_$")


def test_damaged_records_are_one_line(imagenet_dir, tmp_path):
    shutil.copytree(imagenet_dir, tmp_path, dirs_exist_ok=True)
    for file in tmp_path.rglob("*train.tfrecord-*"):
        file.write_bytes(file.read_bytes()[:500])
    fails(
        "the files of dataset 'imagenet2012' cannot be read: .*truncated",
        open_dataset("imagenet2012", tmp_path).split,
        "train",
    )


def test_folder_with_splits(image_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("splits")
    for split in ("train", "val"):
        shutil.copytree(image_folder, root / split)
    dataset = open_dataset(f"folder:{root}")
    assert dataset.sizes == {"train": 17, "val": 17}
    assert dataset.test_split == "val"
    (root / "val" / "cats").rename(root / "val" / "birds")
    fails("train and val have different classes; 'birds'", open_dataset, f"folder:{root}")
    shutil.rmtree(root / "val")
    fails("has train/ but none of test/, validation/, val/", open_dataset, f"folder:{root}")


def test_folder_errors(image_folder, tmp_path_factory):
    path = f"folder:{image_folder}"
    fails("there is no folder", open_dataset, f"{path}/nowhere")
    fails("00.jpg' is not a folder", open_dataset, f"{path}/cats/00.jpg")
    fails("no class folders", open_dataset, f"{path}/cats")
    (image_folder / "empty").mkdir()
    fails("class folder '.*/empty' has no files; the layout is FOLDER/class/image", open_dataset, path)
    (image_folder / "empty" / "deep").mkdir()
    fails("class folder '.*/empty' has no files", open_dataset, path)
    (image_folder / "empty" / "notes.txt").write_text("no image")
    fails("class folder '.*/empty' has no JPEG, PNG, GIF or BMP image", open_dataset, path)
    shutil.rmtree(image_folder / "empty")
    shutil.rmtree(image_folder / "dogs")
    fails("only the class folder 'cats'", open_dataset, path)
    small = tmp_path_factory.mktemp("small")
    for name in "ab":
        write_image(small / name / "1.png", np.zeros((4, 4, 3), np.uint8))
    fails("no class has 5 images", open_dataset, f"folder:{small}")


def test_what_is_in_a_class_folder_is_an_example_and_what_is_no_file_is_listed(image_folder):
    cats = image_folder / "cats"
    (cats / "notes.txt").write_text("no image")
    (cats / "self").symlink_to(cats / "self")
    (cats / "up").symlink_to(image_folder)
    (cats / "deep").mkdir()
    os.mkfifo(cats / "pipe")
    (cats / "piped").symlink_to(cats / "pipe")
    (cats / "zero").symlink_to("/dev/zero")
    (cats / "sparse.jpg").write_bytes(b"\xff\xd8\xff")
    os.truncate(cats / "sparse.jpg", 3_000_000_000)
    (image_folder / "self").symlink_to(image_folder / "self")
    (image_folder / "up").symlink_to(image_folder.parent)
    (image_folder / "dangling").symlink_to(image_folder / "nowhere")
    dataset = open_dataset(f"folder:{image_folder}")
    assert dataset.class_names == ("cats", "dogs")
    assert sum(dataset.sizes.values()) == 7 + 3 + 10
    split = dataset.split("train")
    assert [(path.removeprefix(f"{image_folder}/"), reason) for path, reason in split.skipped_files] == [
        ("dangling", "a link to nothing, or to itself"),
        ("self", "a link to nothing, or to itself"),
        ("up", "a link to a folder that contains it"),
        ("cats/deep", "a folder where an image was expected"),
        ("cats/pipe", "not a regular file where an image was expected"),
        ("cats/piped", "not a regular file where an image was expected"),
        ("cats/sparse.jpg", "a file of 3000000000 bytes; the limit is 300000000"),
        ("cats/zero", "not a regular file where an image was expected"),
    ]
    assert dataset.split("test").skipped_files == dataset.split("train[3:]").skipped_files == ()


def test_a_class_folder_that_is_a_link_is_a_class(image_folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "birds"
    (image_folder / "dogs").rename(elsewhere)
    (image_folder / "dogs").symlink_to(elsewhere)
    dataset = open_dataset(f"folder:{image_folder}")
    assert dataset.class_names == ("cats", "dogs")
    assert dataset.split("train").skipped_files == ()


@pytest.mark.parametrize(
    ("name", "splits"), [("imagenet_v2", ["test"]), ("imagenette", ["train", "validation"])]
)
def test_imagenets_relatives_are_tfds_names(name, splits, tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    examples = [{"image": image, "label": label, "file_name": f"{label}.jpeg"} for label in (3, 5)]
    examples = [{key: example[key] for key in tfds.builder(name).info.features} for example in examples]
    write_tfds(tmp_path, name, dict.fromkeys(splits, examples))
    dataset = open_dataset(name, tmp_path)
    assert dataset.split_names == tuple(splits)
    assert dataset.test_split == splits[-1]
    split = dataset.split(splits[-1])
    assert sorted(split.classes.tolist()) == [3, 5]
    assert decode_image(split.fetch(tf.constant(1, tf.int64))[0]).shape == (30, 40, 3)


def test_a_million_examples_are_skipped_without_a_look_at_them(tmp_path):
    """No file is there: the one example that is read is the first failure."""
    paths = np.array([f"{tmp_path}/{index}.jpg".encode() for index in range(1_000_000)], dtype=object)
    split = IndexedSplit("train", paths, np.zeros(len(paths), "int32"), files=True)
    transform = Transform.create(8, Normalization.identity(1))
    bad = BadImages()
    batches = training_batches(split, transform, global_batch=10, seed=0, epoch=0, first_step=99_999, bad=bad)
    (batch,) = batches.as_numpy_iterator()
    assert not batch["weights"].any()
    assert bad.count == 10
