import dataclasses
import os

import numpy as np
import pytest
import tensorflow as tf
from helpers.data_helpers import write_image, write_tfds
from helpers.evaluation_networks import tiny_spec
from helpers.torch_files import state_dict
from safetensors.numpy import save_file

from keras_resnet import InputError
from keras_resnet.classification import PROTOCOLS, evaluate, load_evaluated_model
from keras_resnet.classification.batches import fits_batches, view_batches
from keras_resnet.data import BadImages, IndexedSplit, evaluation_batches, open_dataset, sources
from keras_resnet.data.examples import Shard
from keras_resnet.images.preprocessing import Normalization, Preprocessing
from keras_resnet.weights import open_weights

IMAGES = 13  # no batch size but 1 and 13 divides it
SPLIT = f"test[:{IMAGES}]"


def log_softmax(logits):
    logits = np.asarray(logits, "float64")
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def scores_by_hand(model, images, protocol):
    """Probabilities (images, classes), view by view through the network with its own pooling."""
    network = model.network(any_size=True)
    rows = []
    for image in images:
        views = PROTOCOLS[protocol].views(tf.constant(image), model.preprocessing)
        logits = np.concatenate([network(view, training=False).numpy() for view in views])
        rows.append(np.exp(log_softmax(logits)).mean(0))
    return np.array(rows)


def loss_of(probabilities, labels):
    return -np.log(probabilities[np.arange(len(labels)), labels]).mean()


@pytest.fixture(scope="module")
def split(digits):
    return digits.split(SPLIT)


# Ten-crop and multi-scale batches on one device: see the ensemble and the folder of images of any size.
@pytest.mark.parametrize(
    ("protocol", "devices", "batch_size"),
    [
        ("single_crop", 1, 8),
        pytest.param("single_crop", 2, 64, marks=pytest.mark.slow),
        ("ten_crop", 2, 4),
        pytest.param("multi_scale", 2, 4, marks=pytest.mark.slow),
    ],
)
def test_every_protocol_is_the_mean_over_its_views_and_counts_every_image_once(
    digits, split, weights_of, one_device, two_devices, protocol, devices, batch_size
):
    model = load_evaluated_model(weights_of())
    distribution = {1: one_device, 2: two_devices}[devices]
    arguments = {"distribution": distribution, "split": SPLIT, "batch_size": batch_size}
    found = evaluate([model], digits, protocol, **arguments)
    assert found.replicas == devices
    assert found.metrics.images == IMAGES
    probabilities = scores_by_hand(model, split.images, protocol)
    labels = split.classes
    figures = found.metrics.figures()
    assert figures["loss"] == pytest.approx(loss_of(probabilities, labels), rel=1e-4)
    assert figures["top1"] == (probabilities.argmax(1) == labels).mean()
    for axis, classes in ((0, probabilities.argmax(1)), (1, labels)):
        np.testing.assert_array_equal(found.metrics.confusion.sum(axis), np.bincount(classes, minlength=10))
    if devices == 1:  # it repeats itself to the last bit
        assert evaluate([model], digits, protocol, **arguments).metrics.figures() == figures


def test_an_ensemble_averages_probabilities(digits, split, weights_of, one_device):
    """Of networks with sizes and statistics of their own."""
    other = tiny_spec(size=20, normalization=Normalization((0.0,) * 3, (99.0,) * 3))
    models = [
        load_evaluated_model(weights_of(name="a")),
        load_evaluated_model(weights_of(other, seed=1, name="b")),
    ]
    found = evaluate(models, digits, "ten_crop", distribution=one_device, split=SPLIT)
    each = [scores_by_hand(model, split.images, "ten_crop") for model in models]
    for metrics, probabilities in zip(found.model_metrics, each, strict=True):
        assert metrics.figures()["loss"] == pytest.approx(loss_of(probabilities, split.classes), rel=1e-4)
    together = np.mean(each, axis=0)
    figures = found.metrics.figures()
    assert figures["loss"] == pytest.approx(loss_of(together, split.classes), rel=1e-4)
    assert figures["top1"] == (together.argmax(1) == split.classes).mean()
    assert not np.array_equal(*(metrics.confusion for metrics in found.model_metrics))


@pytest.fixture
def folder(tmp_path):
    """5 images of sizes and colours of their own."""
    for index in range(5):
        shape = (20 + index, 30 - 2 * index, 1 if index % 3 == 0 else 3)
        image = np.random.default_rng(index).integers(0, 256, shape, dtype=np.uint8)
        write_image(tmp_path / "images" / "test" / "ab"[index % 2] / f"{index:02}.png", image)
        write_image(tmp_path / "images" / "train" / "ab"[index % 2] / f"{index:02}.png", image)
    return open_dataset(f"folder:{tmp_path / 'images'}")


def decoded(split):
    images = [tf.io.decode_png(tf.io.read_file(path), channels=3).numpy() for path in split.images]
    return images, split.classes


@pytest.mark.parametrize(
    ("protocol", "channels"), [("single_crop", 1), pytest.param("multi_scale", 3, marks=pytest.mark.slow)]
)
def test_a_folder_of_images_of_any_size(folder, weights_of, one_device, protocol, channels):
    spec = tiny_spec(classes=2, channels=channels, labels=("a", "b"), resize=18)
    model = load_evaluated_model(weights_of(spec))
    found = evaluate([model], folder, protocol, distribution=one_device, batch_size=2)
    assert found.split == "test"
    assert found.batch_size == (1 if protocol == "multi_scale" else 2)
    images, labels = decoded(folder.split("test"))
    expected = loss_of(scores_by_hand(model, images, protocol), labels)
    assert found.metrics.images == 5
    assert found.metrics.figures()["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("resize", [18, pytest.param(None, marks=pytest.mark.slow)])
def test_single_crops_are_the_images_of_trainings_validation(folder, resize):
    preprocessing = Preprocessing(16, resize, "bilinear", Normalization.imagenet())
    split = folder.split("test")
    views = view_batches(split, PROTOCOLS["single_crop"], [preprocessing], Shard(3), BadImages())
    for ours, theirs in zip(views, evaluation_batches(split, preprocessing, global_batch=3), strict=True):
        shown = ours["weights"] > 0
        np.testing.assert_array_equal(ours["views"][0][0][:, 0][shown], theirs["images"][shown])
        np.testing.assert_array_equal(ours["weights"], theirs["weights"])


def test_images_that_cannot_be_decoded_are_an_error_or_left_out(
    folder, weights_of, one_device, early_progress, capsys
):
    model = load_evaluated_model(weights_of(tiny_spec(classes=2)))
    split = folder.split("test")
    path = os.fsdecode(split.images[1])
    with open(path, "rb+") as file:
        file.truncate(200)
    with pytest.raises(InputError, match=r"1 images cannot be used, 0 are allowed.*is truncated"):
        evaluate([model], folder, distribution=one_device)
    found = evaluate([model], folder, distribution=one_device, batch_size=2, max_bad_images=1)
    assert "evaluating: 1 of 5 images, " in capsys.readouterr().err  # the other of two is damaged
    assert found.metrics.images == 4
    assert found.bad_images == ((path, "test", "truncated"),)
    others = [image for index, image in enumerate(split.images) if index != 1]
    images = [tf.io.decode_png(tf.io.read_file(image), channels=3).numpy() for image in others]
    labels = np.delete(split.classes, 1)
    expected = loss_of(scores_by_hand(model, images, "single_crop"), labels)
    assert found.metrics.figures()["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_gray_and_coloured_networks_in_one_ensemble(folder, weights_of, one_device):
    specs = {f"of{channels}": tiny_spec(2, channels=channels) for channels in (1, 3)}
    models = [load_evaluated_model(weights_of(spec, name=name)) for name, spec in specs.items()]
    found = evaluate(models, folder, distribution=one_device)
    images, labels = decoded(folder.split("test"))
    for model, metrics in zip(models, found.model_metrics, strict=True):
        expected = loss_of(scores_by_hand(model, images, "single_crop"), labels)
        assert metrics.figures()["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """ImageNet's format: 13 images in 3 files, with labels that are all different."""
    random = np.random.default_rng(0)
    examples = [
        {
            "image": random.integers(0, 256, (24 + i, 30 - i, 3), dtype=np.uint8),
            "label": 70 * i,
            "file_name": f"{i}.JPEG",
        }
        for i in range(13)
    ]
    splits = {
        "train": examples,
        "validation": examples,
        "test": [{**example, "label": -1} for example in examples],
    }
    write_tfds(tmp_path, "imagenet2012", splits, shards=3)
    monkeypatch.setattr(sources, "INDEXED_BYTES", 0)
    return open_dataset("imagenet2012", tmp_path)


def test_a_dataset_that_is_read_from_its_files(large, weights_of, two_devices):
    model = load_evaluated_model(weights_of(tiny_spec(classes=1000)))
    found = evaluate([model], large, distribution=two_devices, batch_size=4)
    assert found.split == "validation"
    assert found.metrics.images == 13
    assert np.flatnonzero(found.metrics.confusion.sum(1)).tolist() == [70 * i for i in range(13)]
    assert not fits_batches(large.split("validation"), PROTOCOLS["multi_scale"])


def test_a_record_that_cannot_be_decoded(large):
    split = large.split("validation")

    def parse(record):
        image, label = split.parse(record)
        return tf.where(label == 140, tf.strings.substr(image, 0, 300), image), label

    def read(split, bad):
        preprocessing = Preprocessing(8, None, "bilinear", Normalization.identity(3))
        batches = view_batches(split, PROTOCOLS["single_crop"], [preprocessing], Shard(1), bad)
        return [(int(batch["labels"][0]), float(batch["weights"][0])) for batch in batches]

    bad = BadImages()
    found = read(dataclasses.replace(split, parse=parse), bad)
    whole = [label for label, _ in read(split, bad)]
    assert found == [(0, 0.0) if label == 140 else (label, 1.0) for label in whole]
    assert bad.rows() == [(f"record {whole.index(140)}", "validation", "truncated")]


@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (1, 2), (2, 2), (3, 1)])
def test_workers_and_replicas_share_the_images(workers, replicas):
    images = np.zeros((17, 8, 8, 3), "uint8")
    split = IndexedSplit("test", images, np.arange(17, dtype="int32"))
    preprocessing = Preprocessing(8, None, "bilinear", Normalization.identity(3))
    shards = [Shard(2 * workers * replicas, workers, worker, replicas) for worker in range(workers)]
    seen = [
        list(view_batches(split, PROTOCOLS["single_crop"], [preprocessing], shard, BadImages()))
        for shard in shards
    ]
    assert len({len(batches) for batches in seen}) == 1
    assert len(seen[0]) % replicas == 0
    steps = range(0, len(seen[0]), replicas)
    order = [batch for step in steps for batches in seen for batch in batches[step : step + replicas]]
    labels = np.concatenate([batch["labels"] for batch in order])
    weights = np.concatenate([batch["weights"] for batch in order])
    assert set(np.concatenate([batch["labels"].shape for batch in order])) == {2}
    np.testing.assert_array_equal(labels[:17], np.arange(17))
    np.testing.assert_array_equal(weights, np.arange(len(weights)) < 17)


def test_views_are_channels_first_where_keras_says_so(split, monkeypatch):
    monkeypatch.setattr("keras.config.image_data_format", lambda: "channels_first")
    preprocessing = Preprocessing(16, None, "bilinear", Normalization.imagenet())
    batches = view_batches(split, PROTOCOLS["ten_crop"], [preprocessing], Shard(3), BadImages())
    batch = next(iter(batches))
    assert batch["views"][0][0].shape == (3, 10, 3, 16, 16)
    (expected,) = PROTOCOLS["ten_crop"].views(tf.constant(split.images[0]), preprocessing)
    np.testing.assert_array_equal(np.moveaxis(batch["views"][0][0][0], 1, -1), expected)


def test_weights_that_give_no_numbers_are_named(digits, weights_of, one_device):
    model = load_evaluated_model(weights_of(scale=np.nan, name="diverged"))
    with pytest.raises(InputError, match=r"diverged.weights.h5 gives scores that are not numbers"):
        evaluate([model], digits, distribution=one_device, split=SPLIT)


def test_published_weights_are_seen_as_their_entry_says(tmp_path, monkeypatch):
    path = tmp_path / "theirs.safetensors"
    save_file(state_dict("basic", (2, 2, 2, 2), (64, 128, 256, 512), classes=10), path)
    monkeypatch.setattr("keras_resnet.weights.weight_file.fetch", lambda url, digest: path)
    model = load_evaluated_model("torchvision_v1", "resnet18")
    assert (model.spec.classes, model.file.path) == (10, path)
    assert model.preprocessing == Preprocessing(224, 256, "bilinear", Normalization.imagenet())
    network = model.network(any_size=True)
    expected = open_weights(path).tensors()["fc.bias"]
    np.testing.assert_array_equal(network.get_layer("predictions").bias, expected)


def test_an_evaluation_of_nothing(digits, one_device):
    with pytest.raises(InputError, match="at least one network"):
        evaluate([], digits, distribution=one_device)
