import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_resnet.data import (
    IndexedSplit,
    Transform,
    dataset_statistics,
    evaluation_batches,
    open_dataset,
    raw_images,
    steps_per_epoch,
    training_batches,
)
from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import Normalization

PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
SOME = Normalization((120.0, 110.0, 100.0), (60.0, 61.0, 62.0))


def listed(batches):
    return list(batches.as_numpy_iterator())


@pytest.fixture(
    params=["indexed", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("folder", "records"))]
)
def source(request):
    """`(split, transform)` of each kind; labels tell the examples apart except in the folder."""
    if request.param == "indexed":
        split = request.getfixturevalue("pixels")
        return split, Transform.create(12, SOME, "pad_crop_flip")
    if request.param == "folder":
        split = open_dataset(f"folder:{request.getfixturevalue('image_folder')}").split("train")
        return split, Transform.create(8, SOME, "pad_crop_flip")
    split = request.getfixturevalue("large").split("train")
    return split, Transform.create(16, SOME, "scale_crop_flip")


def test_an_epoch_is_a_function_of_seed_and_epoch_that_any_step_continues(source):
    split, transform = source
    make = {"global_batch": 4, "seed": 3, "epoch": 2}
    whole = listed(training_batches(split, transform, **make))
    assert len(whole) == steps_per_epoch(split, 4) == len(split) // 4
    for first in (1, 3):
        rest = listed(training_batches(split, transform, **make, first_step=first))
        assert len(rest) == len(whole) - first
        for one, other in zip(rest, whole[first:], strict=True):
            np.testing.assert_array_equal(one["images"], other["images"])
            np.testing.assert_array_equal(one["labels"], other["labels"])
    assert listed(training_batches(split, transform, **make, first_step=len(whole))) == []
    for change in ({"seed": 2}, {"epoch": 1}):
        other = listed(training_batches(split, transform, **make | change).take(1))
        assert not np.array_equal(other[0]["images"], whole[0]["images"])


@pytest.mark.parametrize("training", [True, False])
def test_the_division_does_not_change_a_global_batch(source, training):
    """Among workers and replicas at once."""
    split, transform = source
    workers, replicas = 2, 3
    arguments = {"global_batch": 12}
    if training:
        arguments |= {"seed": 5, "epoch": 1}
    make = training_batches if training else evaluation_batches
    transform = transform if training else transform.preprocessing
    whole = listed(make(split, transform, **arguments))
    parts = [
        listed(make(split, transform, **arguments, workers=workers, worker=worker, replicas=replicas))
        for worker in range(workers)
    ]
    assert {len(part) for part in parts} == {len(whole) * replicas}
    for step, batch in enumerate(whole):
        pieces = [piece for part in parts for piece in part[step * replicas : (step + 1) * replicas]]
        for key, value in batch.items():
            np.testing.assert_array_equal(np.concatenate([piece[key] for piece in pieces]), value)


def test_no_epoch_waits_for_the_autotuner(pixels, large):
    """An iterator ends only when the autotuner's thread does, which can sleep for a minute."""
    for split, transform in (
        (pixels, Transform.create(12, SOME, "pad_crop_flip")),
        (large.split("train"), Transform.create(16, SOME, "scale_crop_flip")),
    ):
        training = training_batches(split, transform, global_batch=4, seed=0, epoch=0)
        evaluation = evaluation_batches(split, transform.preprocessing, global_batch=4)
        for batches in (training, evaluation):
            assert batches.options().autotune.enabled is False


def test_all_cores_decode_but_few_batches_are_joined_at_once(large, monkeypatch):
    """Each of them takes up to 150 MB."""
    monkeypatch.setattr("keras_resnet.data.examples.cores", lambda: list(range(64)))
    threads, plain_map = [], tf.data.Dataset.map

    def recorded(dataset, *arguments, num_parallel_calls=None, **options):
        threads.append(num_parallel_calls)
        return plain_map(dataset, *arguments, num_parallel_calls=num_parallel_calls, **options)

    monkeypatch.setattr(tf.data.Dataset, "map", recorded)
    transform = Transform.create(16, SOME, "scale_crop_flip")
    training_batches(large.split("train"), transform, global_batch=4, seed=0, epoch=0)
    assert [number for number in threads if number is not None] == [64, 16]


def test_training_takes_each_example_once(pixels, large):
    for split, size in ((pixels, 12), (large.split("train"), 16)):
        transform = Transform.create(size, SOME)
        orders = []
        for epoch in range(2):
            batches = listed(training_batches(split, transform, global_batch=5, seed=0, epoch=epoch))
            orders.append(np.concatenate([batch["labels"] for batch in batches]).tolist())
            assert all((batch["weights"] == 1).all() for batch in batches)
            assert len(set(orders[-1])) == len(orders[-1]) == len(split) // 5 * 5
        assert orders[0] != orders[1] != sorted(orders[1])


def test_draws_belong_to_the_example_not_to_its_place(pixels):
    # The first 40 of the same images are shuffled otherwise, but each is cropped as before.
    part = IndexedSplit("train", pixels.images[:40], pixels.classes[:40])
    transform = Transform.create(12, SOME, "pad_crop_flip")
    by_label = []
    for split in (pixels, part):
        batches = listed(training_batches(split, transform, global_batch=10, seed=4, epoch=4))
        by_label.append({y: x for b in batches for x, y in zip(b["images"], b["labels"], strict=True)})
    for label, image in by_label[1].items():
        np.testing.assert_array_equal(image, by_label[0][label])


@pytest.mark.parametrize(
    ("kind", "count", "workers", "replicas", "batch"),
    [
        ("indexed", 10, 2, 1, 4),
        ("indexed", 1, 3, 2, 6),  # two workers have no example
        ("indexed", 12, 2, 2, 4),
        ("indexed", 3, 1, 2, 20),
        pytest.param("records", 7, 2, 1, 6, marks=pytest.mark.slow),
        ("records", 1, 2, 2, 4),
    ],
)
def test_evaluation_counts_each_example_once(request, kind, count, workers, replicas, batch):
    if kind == "indexed":
        whole = request.getfixturevalue("pixels")
        split = IndexedSplit("test", whole.images[:count], whole.classes[:count])
    else:
        split = request.getfixturevalue("large").split(f"train[:{count}]")
    seen, lengths = [], []
    for worker in range(workers):
        batches = evaluation_batches(
            split,
            Transform.create(12, SOME).preprocessing,
            global_batch=batch,
            workers=workers,
            worker=worker,
            replicas=replicas,
        )
        part = batch // workers // replicas
        assert batches.element_spec["images"].shape == (part, 12, 12, 3)
        assert batches.element_spec["labels"] == tf.TensorSpec((part,), tf.int32)
        batches = listed(batches)
        lengths.append(len(batches))
        for item in batches:
            real = item["weights"] == 1
            assert set(item["weights"]) <= {0.0, 1.0}
            seen += item["labels"][real].tolist()
            assert not item["images"][~real].any()
            assert not item["labels"][~real].any()
    assert set(lengths) == {-(-count // batch) * replicas}
    expected = [
        int(y) for _, labels in raw_images(split, Transform.create(12, SOME).preprocessing) for y in labels
    ]
    assert sorted(seen) == sorted(expected)
    assert len(seen) == len(set(seen)) == count


def test_normalized_raw_images_are_the_evaluations(source):
    split, transform = source
    evaluated = [
        batch for batch in listed(evaluation_batches(split, transform.preprocessing, global_batch=5))
    ]
    images = np.concatenate([batch["images"] for batch in evaluated])[: len(split)]
    labels = np.concatenate([batch["labels"] for batch in evaluated])[: len(split)]
    raw = list(raw_images(split, transform.preprocessing))
    assert raw[0][0].dtype == np.float32
    assert raw[0][1].dtype == np.int32
    np.testing.assert_array_equal(
        transform.preprocessing.normalization(np.concatenate([x for x, _ in raw])), images
    )
    np.testing.assert_array_equal(np.concatenate([y for _, y in raw]), labels)
    assert sum(len(y) for _, y in raw_images(split, transform.preprocessing, limit=6)) == 6


def test_the_evaluation_crops_where_training_does():
    assert Transform.create(32, PLAIN, "pad_crop").preprocessing.resize is None
    assert Transform.create(224, PLAIN, "scale_crop_flip").preprocessing.resize == 256


def test_gray_is_repeated_and_color_turned_gray(digits, pixels):
    split = digits.split("test[:3]")
    batch = next(iter(evaluation_batches(split, Transform.create(8, PLAIN).preprocessing, global_batch=3)))
    np.testing.assert_array_equal(batch["images"], np.repeat(split.images, 3, -1).astype("float32"))
    one = Normalization((0.0,), (1.0,))
    batch = next(iter(evaluation_batches(split, Transform.create(8, one).preprocessing, global_batch=3)))
    np.testing.assert_array_equal(batch["images"], split.images.astype("float32"))
    gray = next(raw_images(pixels, Transform.create(12, one).preprocessing))[0]
    expected = pixels.images @ np.array([0.2989, 0.587, 0.114])
    np.testing.assert_allclose(gray[..., 0], expected, atol=1e-3)


def test_padding_is_zero_after_normalization(pixels):
    transform = Transform.create(12, Normalization((300.0,) * 3, (1.0,) * 3), "pad_crop")
    batch = next(iter(training_batches(pixels, transform, global_batch=50, seed=0, epoch=0)))[
        "images"
    ].numpy()
    # Every pixel of an image is at most -45 here, so zeros are padding.
    borders = (batch == 0).all(-1)
    assert 0.1 < borders.mean() < 0.6
    assert not borders[:, 4:8, 4:8].any()


def test_channels_first(pixels, monkeypatch):
    transform = Transform.create(12, SOME, "pad_crop_flip")
    arguments = {"global_batch": 10, "seed": 0, "epoch": 0}
    last = listed(training_batches(pixels, transform, **arguments))
    monkeypatch.setattr(keras.config, "image_data_format", lambda: "channels_first")
    first = training_batches(pixels, transform, **arguments)
    assert first.element_spec["images"].shape == (10, 3, 12, 12)
    for one, other in zip(listed(first), last, strict=True):
        np.testing.assert_array_equal(one["images"].transpose(0, 2, 3, 1), other["images"])


def test_statistics(pixels, digits, early_progress, capsys):
    images = pixels.images.astype("float64")
    channel = dataset_statistics(pixels, 12, 3, per_pixel=False)
    np.testing.assert_allclose(channel.mean, images.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(channel.std, images.std((0, 1, 2)), rtol=1e-9)
    pixel = dataset_statistics(pixels, 12, 3, per_pixel=True)
    np.testing.assert_allclose(pixel.mean, images.mean(0), rtol=1e-12)
    assert tuple(pixel.std) == (1.0, 1.0, 1.0)
    transform = Transform.create(12, pixel, "pad_crop_flip")
    batch = next(iter(evaluation_batches(pixels, transform.preprocessing, global_batch=50)))["images"]
    assert np.abs(np.mean(batch, 0)).max() < 1e-3
    capsys.readouterr()
    gray = dataset_statistics(digits.split("train"), 8, 1, per_pixel=False)
    about = f"mean and standard deviation of the pixels: 64 of {len(digits.split('train')):,} images, "
    assert capsys.readouterr().err.startswith(about)
    dataset_statistics(digits.split("train"), 8, 1, show_progress=False)
    assert capsys.readouterr().err == ""
    np.testing.assert_allclose(gray.mean, [digits.split("train").images.mean(dtype="float64")], rtol=1e-12)
    flat = IndexedSplit("flat", np.full((4, 2, 2, 3), 100, np.uint8), np.zeros(4, "int32"))
    assert dataset_statistics(flat, 2).std == (1.0, 1.0, 1.0)


def test_bad_input_is_one_line(pixels):
    transform = Transform.create(12, SOME)

    def train(**arguments):
        return training_batches(pixels, transform, **{"global_batch": 10, "seed": 0, "epoch": 0} | arguments)

    for pattern, call in {
        "51 is larger than the split 'train', 50 examples": lambda: train(global_batch=51),
        "at least 1, not 0": lambda: train(global_batch=0),
        "must be at least 1, not -2": lambda: evaluation_batches(
            pixels, transform.preprocessing, global_batch=-2
        ),
        "10 cannot be divided among 6 replicas \\(2 workers x 3\\)": lambda: train(workers=2, replicas=3),
        "there is no worker 2 of 2": lambda: train(workers=2, worker=2),
        "must not be negative: -1, 0": lambda: train(seed=-1),
        "unknown augmentation 'pad_crop_flop'; did you mean pad_crop_flip": lambda: Transform.create(
            8, SOME, "pad_crop_flop"
        ),
        "channels must be 1 or 3, not 4": lambda: Transform.create(8, SOME.for_channels(4)),
        "the size must be a positive integer of pixels, not 0": lambda: Transform.create(0, SOME),
    }.items():
        with pytest.raises(InputError, match=pattern) as caught:
            call()
        assert "\n" not in str(caught.value)
