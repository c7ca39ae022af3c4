"""Batches of images with objects: the same for any number of workers and replicas."""

import numpy as np
import pytest

from keras_resnet.data import BadImages
from keras_resnet.data.examples import Shard
from keras_resnet.detection import DetectionAugmentation, DetectionSplit, Objects, get_detector_config
from keras_resnet.detection.data.annotations import concatenate
from keras_resnet.detection.data.batches import ABSENT, CROWD, OBJECT, DetectionBatches
from keras_resnet.errors import InputError

SIZES = np.array([[20, 40], [40, 20], [30, 40], [32, 32], [20, 40], [40, 30], [40, 20], [24, 40]], "int32")
CONFIG = get_detector_config(
    "faster_rcnn_cifar_resnet20_c4", shorter_side=32, longer_side=56, size_multiple=16
)
POLICY = DetectionAugmentation(True, (0.8, 1.4))


def read(index):
    if index == 4:
        raise InputError("4.png is not an image")
    return np.full((*SIZES[index], 3), 20 * index + 10, "uint8")


@pytest.fixture(scope="module")
def split():
    """Eight images, three of them portrait; image 0 has no object, and image 4 cannot be decoded."""
    row = ((2.0, 4.0, 12.0, 14.0), 3, False, False, 100.0)
    crowd = ((0.0, 0.0, 20.0, 20.0), 5, True, False, 400.0)
    difficult = ((5.0, 5.0, 15.0, 15.0), 6, False, True, 100.0)
    objects = [Objects.from_rows(rows) for rows in ([], [row], [row, crowd, difficult])]
    return DetectionSplit(
        name="train",
        class_names=tuple("abcdefgh"),
        class_ids=tuple(range(8)),
        image_ids=tuple(range(8)),
        sizes=SIZES,
        objects=tuple(objects[min(index, 2)] for index in range(8)),
        read=read,
    )


def values(dataset):
    return [{name: value.numpy() for name, value in batch.items()} for batch in dataset]


def joined(parts):
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def test_every_image_once_unaugmented(split):
    bad = BadImages()
    batches = DetectionBatches(split, CONFIG, 2)
    assert (batches.canvas, batches.epoch_steps, batches.evaluation_steps) == ((32, 64), 3, 5)
    found = values(batches.evaluation(Shard(2), bad))
    assert [batch["images"].shape[1:3] for batch in found] == [(32, 64)] * 3 + [(64, 32)] * 2
    whole = joined([{k: v for k, v in batch.items() if k != "images"} for batch in found])
    assert whole["indices"].tolist() == [0, 2, 3, 4, 7, -1, 1, 5, 6, -1]
    assert whole["weights"].tolist() == [1, 1, 1, 0, 1, 0, 1, 1, 1, 0]
    assert bad.rows() == [("4", "train", "4.png is not an image")]
    assert whole["sizes"][[0, 1, 2, 6]].tolist() == [[28, 56], [32, 42], [32, 32], [56, 28]]
    # Image 2, of 30 x 40 pixels, is enlarged by 32 / 30; its difficult object is left out.
    assert whole["kinds"][1].tolist() == [OBJECT, CROWD, ABSENT]
    np.testing.assert_allclose(whole["boxes"][1, 0], [2.1, 4.2667, 12.6, 14.9333], rtol=1e-3)
    assert whole["kinds"][0].tolist() == [ABSENT] * 3
    assert not whole["boxes"][0].any()
    assert not found[0]["images"][0, 28:].any()  # padding
    assert found[0]["images"][0, :28, :56].all()


def test_no_epoch_waits_for_the_autotuner(split):
    """As in the pipeline of classification."""
    batches, bad = DetectionBatches(split, CONFIG, 2), BadImages()
    training = batches.training(Shard(2), POLICY, seed=3, epoch=1, bad=bad)
    for dataset in (training, batches.evaluation(Shard(2), bad)):
        assert dataset.options().autotune.enabled is False


def test_a_global_batch_does_not_depend_on_workers_and_replicas(split):
    batches = DetectionBatches(split, CONFIG, 2)
    place = {"seed": 3, "epoch": 1}
    whole = values(batches.training(Shard(2), POLICY, **place, bad=BadImages()))
    assert len(whole) == 3
    replicas = values(batches.training(Shard(2, 1, 0, 2), POLICY, **place, bad=BadImages()))
    workers = [values(batches.training(Shard(2, 2, w), POLICY, **place, bad=BadImages())) for w in (0, 1)]
    resumed = values(batches.training(Shard(2), POLICY, **place, first_step=1, bad=BadImages()))
    for step, expected in enumerate(whole):
        others = [joined(replicas[2 * step : 2 * step + 2]), joined([each[step] for each in workers])]
        others += [resumed[step - 1]] if step else []
        for other in others:
            for name, value in expected.items():
                np.testing.assert_array_equal(other[name], value)
    assert len({index for batch in whole for index in batch["indices"].tolist()}) == 6
    again = values(batches.training(Shard(2), POLICY, seed=3, epoch=2, bad=BadImages()))
    assert [batch["indices"].tolist() for batch in again] != [batch["indices"].tolist() for batch in whole]


def test_a_rare_orientation_is_one_batch_with_repeated_images(split):
    """Whatever the workers; only if the other orientation fills a batch."""
    batches = DetectionBatches(split, CONFIG, 4)  # five landscape images and three portrait ones
    assert batches.epoch_steps == 2
    for epoch in range(2):
        place = {"seed": 0, "epoch": epoch, "bad": BadImages()}
        found = values(batches.training(Shard(4), POLICY, **place))
        (portrait,) = [batch for batch in found if batch["images"].shape[1:3] == (64, 32)]
        *own, again = portrait["indices"].tolist()
        assert sorted(own) == [1, 5, 6]
        assert portrait["weights"].tolist() == [1, 1, 1, 0]
        # Not zeros, which would enter the statistics of batch normalization.
        assert portrait["images"][3].any()
        for name in ("images", "sizes", "boxes", "labels", "kinds"):
            np.testing.assert_array_equal(portrait[name][3], portrait[name][own.index(again)])
        workers = [values(batches.training(Shard(4, 2, worker), POLICY, **place)) for worker in (0, 1)]
        for parts, whole in zip(zip(*workers, strict=True), found, strict=True):
            np.testing.assert_array_equal(joined(parts)["indices"], whole["indices"])


def test_an_unreadable_image_is_an_error_without_a_list(split):
    batches = DetectionBatches(split, CONFIG, 8)
    with pytest.raises(InputError, match="has no 8 images of one orientation for a batch: "):
        _ = batches.epoch_steps
    with pytest.raises(Exception, match=r"4\.png is not an image"):
        values(batches.evaluation(Shard(8)))


def test_splits_are_concatenated(split):
    both = concatenate("train+train", [split.part("a", 0, 3), split.part("b", 5, 8)])
    assert (len(both), both.name) == (6, "train+train")
    assert both.image_ids == (0, 1, 2, 5, 6, 7)
    assert both.read_image(4)[0, 0, 0] == 20 * 6 + 10
    assert both.sizes.tolist() == SIZES[[0, 1, 2, 5, 6, 7]].tolist()
