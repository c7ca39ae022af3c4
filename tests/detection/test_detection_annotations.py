"""Splits, slices, faults and identities of detection datasets, without any files."""

import dataclasses

import numpy as np
import pytest

from keras_resnet.data.identity import data_changes
from keras_resnet.detection.data.annotations import DetectionDataset, DetectionSplit, Faults, Objects
from keras_resnet.errors import InputError


def one_object(shift=0.0):
    return Objects.from_rows([((1 + shift, 2, 11, 22), 1, False, True, 200.0)])


def made_dataset(shift=0.0, count=5):
    def load(faults):
        objects = (one_object(shift), *(Objects.from_rows([]) for _ in range(count - 1)))
        sizes = np.full((count, 2), 32, "int32")
        images = np.arange(count, dtype="uint8")[:, None, None, None] + np.zeros((32, 32, 3), "uint8")
        ids = tuple(range(10, 10 + count))
        return DetectionSplit("train", ("cat", "dog"), (3, 7), ids, sizes, objects, lambda i: images[i])

    return DetectionDataset("made", ("cat", "dog"), {"train": load})


def test_objects_have_their_dtypes_also_when_there_are_none():
    for objects in (one_object(), Objects.from_rows([])):
        assert objects.boxes.shape == (len(objects), 4)
        dtypes = [getattr(objects, name).dtype for name in ("boxes", "labels", "crowd", "difficult", "areas")]
        assert dtypes == ["float32", "int32", "bool", "bool", "float32"]
    assert len(one_object().select(np.array([False]))) == 0


def test_slices_keep_images_with_their_objects():
    dataset = made_dataset()
    part = dataset.split("train[1:4]")
    assert (part.name, len(part), part.image_ids) == ("train[1:4]", 3, (11, 12, 13))
    assert part.read_image(0)[0, 0, 0] == 1
    assert part.read_image(-1)[0, 0, 0] == 3
    assert [len(objects) for objects in dataset.split("train").objects] == [1, 0, 0, 0, 0]
    with pytest.raises(IndexError):
        part.read_image(3)


def test_bad_splits():
    with pytest.raises(InputError, match="unknown split of made 'trian'; did you mean train"):
        made_dataset().split("trian")
    with pytest.raises(InputError, match=r"'train\[5:\]' of made is empty; train has 5 examples"):
        made_dataset().split("train[5:]")
    with pytest.raises(InputError, match=r"cannot read the split 'train\[1-2\]'"):
        made_dataset().split("train[1-2]")


@pytest.mark.parametrize(
    ("box", "label", "message"),
    [
        ((1, 2, 3, 4), 2, "image 8 has an object with the label 2; labels are 0 to 1"),
        ((1, 2, 3, 4), -1, "image 8 has an object with the label -1"),
        ((1, float("nan"), 3, 4), 0, "image 8 has the box .* coordinates must be finite"),
    ],
)
def test_splits_that_cannot_be_right(box, label, message):
    objects = Objects.from_rows([]), Objects.from_rows([(box, label, False, False, 4.0)])
    with pytest.raises(InputError, match=message):
        DetectionSplit("x", ("cat", "dog"), (3, 7), (7, 8), np.full((2, 2), 32), objects, one_object)
    with pytest.raises(InputError, match="a split needs a size and objects for each image"):
        DetectionSplit("x", ("cat", "dog"), (3, 7), (7,), np.full((2, 2), 32), objects, one_object)


def test_what_is_skipped_is_known_and_part_of_the_identity():
    def load(faults):
        faults.add("a.json", "wrong")
        return made_dataset().split("train")

    dataset = DetectionDataset("made", ("cat", "dog"), {"train": load}, {"train": 5}, "made/1.0")
    skipping = dataclasses.replace(dataset, skip_faulty=True)
    with pytest.raises(InputError, match="wrong"):
        dataset.split("train")
    assert skipping.split("train[:2]").skipped == (("a.json", "wrong"),)
    assert data_changes(dataset.identity, skipping.identity) == [
        "files made/1.0 there, made/1.0 skip_faulty now"
    ]


def test_a_split_with_nothing_usable():
    def load(faults):
        faults.add("a.json", "has no images")
        return made_dataset(count=1).split("train").part("train", 0, 0)

    dataset = DetectionDataset("made", ("cat", "dog"), {"train": load}, skip_faulty=True)
    with pytest.raises(InputError, match="the split 'train' of made has no usable image"):
        dataset.split("train[:1]")


def test_identity_tells_annotations_apart():
    identity = made_dataset().identity
    assert identity == made_dataset().identity
    assert data_changes(identity, made_dataset(shift=0.5).identity)[0].startswith("files annotations-sha256:")
    assert data_changes(identity, made_dataset(count=6).identity) == ["train has 5 images there, 6 now"]


def test_faults_raise_or_are_collected():
    with pytest.raises(
        InputError, match=r"^a.json: wrong \(`detection check` lists all faults; --skip_faulty"
    ):
        Faults().add("a.json", "wrong")
    faults = Faults(collect=True)
    faults.add("a.json", "wrong")
    assert faults.rows == [("a.json", "wrong")]
