"""Whether a dataset has changed since a run was started, and whether it has the classes of weights."""

import json
import shutil

import numpy as np
import pytest
from helpers.data_helpers import write_tfds
from helpers.evaluation_networks import tiny_spec

from keras_resnet.data import open_dataset
from keras_resnet.data.folder import SPLIT_RULE
from keras_resnet.data.identity import check_classes, data_changes
from keras_resnet.data.sources import Dataset
from keras_resnet.errors import InputError
from keras_resnet.weights.labels import labels


def identity(*names, train=10, files="a/1.0.0", rule=""):
    sizes = {"train": train, "test": 2}
    return {"class_names": list(names), "split_sizes": sizes, "files": files, "split_rule": rule}


def old_identity(**changes):
    """As versions without a rule stored it."""
    return {key: value for key, value in identity("cat", "dog", **changes).items() if key != "split_rule"}


@pytest.mark.parametrize(
    ("now", "changes"),
    [
        (identity("cat", "dog"), []),
        (identity("dog", "kitten"), ["renamed classes: 'cat' there, 'kitten' now"]),
        (identity("dog", "cat"), ["reordered classes: class 0 is 'cat' there, 'dog' now"]),
        (
            identity("cat", "cow", "dog", train=12),
            ["added classes: 'cow'", "train has 10 images there, 12 now"],
        ),
        (identity("dog"), ["removed classes: 'cat'"]),
        (
            identity("bat", "cow", "eel"),
            ["removed classes: 'cat', 'dog'", "added classes: 'bat', 'cow', 'eel'"],
        ),
        (identity("cat", "dog", files="a/2.0.0"), ["files a/1.0.0 there, a/2.0.0 now"]),
    ],
)
def test_what_differs_is_named(now, changes):
    assert data_changes(identity("cat", "dog"), now) == changes


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        (None, "", []),
        ({}, "", []),
        (old_identity(), "", []),
        (identity("cat", "dog", rule="a hash"), "", []),
        (identity("cat", "dog"), "a hash", []),
        (None, "a hash", ["images were selected for splits by their order, now by a hash"]),
        (old_identity(train=3), "a hash", ["images were selected for splits by their order, now by a hash"]),
        (identity("cat", "dog", rule="a"), "b", ["images were selected for splits by a, now by b"]),
    ],
)
def test_another_versions_selection_of_images_is_named(before, now, changes):
    assert data_changes(before, identity("cat", "dog", rule=now)) == changes


def test_a_run_on_array_records_continues_on_either_format():
    before = identity("cat", "dog", files="a/1.0.0, array_record")
    assert data_changes(before, identity("cat", "dog")) == []


@pytest.mark.parametrize("before", [7, "text", {"class_names": 1, "split_sizes": 2}, identity([], {})])
def test_an_identity_that_somebody_edited(before):
    assert data_changes(before, identity("cat", "dog")) == ["the identity stored there is not valid"]


def test_a_folder_is_identified_by_its_relative_paths(image_folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("splits")
    for split in ("train", "val"):
        shutil.copytree(image_folder, root / split)
    there = open_dataset(f"folder:{root}").identity()
    assert json.loads(json.dumps(there)) == there
    moved = root.rename(root.with_name("moved"))
    assert open_dataset(f"folder:{moved}/").identity() == there
    image = moved / "val" / "cats" / "03.png"
    image.rename(image.with_name("03b.png"))
    dataset = open_dataset(f"folder:{moved}")
    (change,) = data_changes(there, dataset.identity())
    assert change.startswith("files paths-sha256:")
    rules = [dataset.identity("train", spec)["split_rule"] for spec in ("val", "val[:]", "val[:50%]")]
    rules.append(open_dataset(f"folder:{moved / 'val'}").identity()["split_rule"])
    assert rules == ["", "", SPLIT_RULE, SPLIT_RULE]


def test_a_tfds_dataset_is_identified_by_its_version(tmp_path):
    example = {"id": "0", "image": np.zeros((32, 32, 3), "uint8"), "label": 0}
    write_tfds(tmp_path, "cifar10", {"train": [example] * 3, "test": [example]})
    found = open_dataset("cifar10", tmp_path).identity()
    assert found["files"].startswith("cifar10/3.")
    assert found["split_sizes"] == {"train": 3, "test": 1}
    assert found["class_names"] == [str(index) for index in range(10)]
    assert json.loads(json.dumps(found)) == found


def named(*names):
    return Dataset("pets", names, {}, None)


@pytest.mark.parametrize(
    ("theirs", "classes", "message"),
    [
        ((), 3, "mine has 3 classes, dataset pets has 2"),
        (("dog", "cat"), 2, "class 0 is 'dog' in mine, but 'cat' in dataset pets"),
        (("cat", "cow"), 2, "class 1 is 'cow' in mine, but 'dog' in dataset pets"),
    ],
)
def test_weights_for_other_classes_are_refused(theirs, classes, message):
    with pytest.raises(InputError, match=message):
        check_classes("mine", tiny_spec(classes, labels=theirs), named("cat", "dog"))


def test_imagenets_classes_go_by_their_identifiers_or_their_names():
    identifiers, names = zip(*labels("imagenet"), strict=True)
    spec = tiny_spec(1000, labels=names)
    check_classes("mine", spec, named(*identifiers))
    check_classes("mine", tiny_spec(1000), named(*reversed(identifiers)))
    with pytest.raises(InputError, match="class 0 is 'tench' in mine, but 'n15075141' in dataset pets"):
        check_classes("mine", spec, named(*reversed(identifiers)))
