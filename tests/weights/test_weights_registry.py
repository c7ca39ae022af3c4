"""The table of pretrained weights is consistent, and error messages suggest valid names."""

import collections
import re
import urllib.parse
from pathlib import PurePosixPath

import keras
import pytest

from keras_resnet import InputError
from keras_resnet.images.preprocessing import INTERPOLATIONS, Normalization
from keras_resnet.models.config import MODELS
from keras_resnet.weights.labels import labels
from keras_resnet.weights.registry import ENTRIES, find_entries, get_entry, list_weights

NETWORKS = list(dict.fromkeys(entry.model for entry in ENTRIES))
TORCHVISION_TWICE = [
    *("resnet50_v1_5", "resnet101_v1_5", "resnet152_v1_5"),
    *("resnext50_32x4d", "resnext101_32x8d", "wide_resnet50_2", "wide_resnet101_2"),
]

each = pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: f"{entry.model}/{entry.name}")


def refusal(name, model):
    """Returns the one-line error message for weights."""
    with pytest.raises(InputError) as error:
        get_entry(name, model)
    assert "\n" not in str(error.value)
    return str(error.value)


@each
def test_the_network_is_one_of_the_zoo(entry):
    assert entry.model in MODELS


@each
def test_the_url_is_secure_and_of_a_known_format(entry):
    address = urllib.parse.urlsplit(entry.url)
    assert address.scheme == "https"
    assert address.netloc in {"download.pytorch.org", "github.com", "storage.googleapis.com"}
    assert PurePosixPath(address.path).suffix in {".pth", ".pt", ".safetensors", ".h5", ".hdf5"}


@each
def test_the_digest_is_complete_or_that_in_the_name(entry):
    algorithm, _, digits = entry.digest.partition(":")
    if algorithm == "md5":
        assert re.fullmatch("[0-9a-f]{32}", digits)
    else:
        assert algorithm == "sha256"
        assert re.fullmatch("[0-9a-f]{8,64}", digits)
        assert entry.url.endswith(f"-{digits}.pth")


@each
def test_the_accuracies_are_percent_and_have_a_source(entry):
    assert 65 < entry.top1 < entry.top5 < 97
    assert entry.metrics_source
    assert entry.license in {"BSD-3-Clause", "MIT", "Apache-2.0"}


@each
def test_the_crop_is_a_part_of_the_resized_image(entry):
    given = entry.preprocessing
    assert given.size in {224, 288, 299, 320}
    assert 0.85 * given.resize < given.size <= given.resize
    assert given.interpolation in INTERPOLATIONS


@each
def test_there_is_a_label_for_each_logit(entry):
    assert len(labels(entry.labels)) == MODELS[entry.model].classes


def test_names_urls_and_digests_are_unique():
    for fields in ("model", "name"), ("url",), ("digest",):
        found = collections.Counter(tuple(getattr(entry, f) for f in fields) for entry in ENTRIES)
        assert [key for key, count in found.items() if count > 1] == []


@pytest.mark.parametrize("model", NETWORKS)
def test_each_network_has_one_default_which_is_the_first(model):
    entries = [get_entry(name, model) for name in list_weights(model)]
    assert {entry.name for entry in entries} == {entry.name for entry in ENTRIES if entry.model == model}
    assert [entry.default for entry in entries] == [True] + [False] * (len(entries) - 1)
    assert get_entry("imagenet", model) is entries[0]


def test_the_defaults_are_the_publishers():
    """Where torchvision has the network, its `DEFAULT`, the latest version."""
    for model in TORCHVISION_TWICE:
        assert get_entry("imagenet", model).name == "torchvision_v2"
    for model in ("resnet18", "resnet34", "resnext101_64x4d"):
        assert get_entry("imagenet", model).name == "torchvision_v1"
    for model in ("resnet50", "resnet101", "resnet152", "resnet50_v2", "resnet101_v2", "resnet152_v2"):
        assert list_weights(model) == ["keras_applications"]
    for model in ("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d"):
        assert get_entry("imagenet", model).name == "timm_ra2"


def test_torchvisions_second_version_is_more_accurate():
    for model in TORCHVISION_TWICE:
        assert get_entry("torchvision_v2", model).top1 > get_entry("torchvision_v1", model).top1 + 2


@pytest.mark.parametrize(
    ("model", "name", "fields", "crop"),
    [
        # torchvision/models/resnet.py, ResNet50_Weights
        (
            "resnet50_v1_5",
            "torchvision_v2",
            ("https://download.pytorch.org/models/resnet50-11ad3fa6.pth", 80.858, 95.434),
            (224, 232, "bilinear"),
        ),
        # timm/models/resnet.py, resnet50.a3_in1k, and its results-imagenet.csv
        (
            "resnet50_v1_5",
            "timm_a3",
            (
                "https://github.com/huggingface/pytorch-image-models/releases/download/"
                "v0.1-rsb-weights/resnet50_a3_0-59cae1ef.pth",
                78.048,
                93.780,
            ),
            (224, 235, "bicubic"),
        ),
        # keras/src/applications/resnet.py, and the README of keras-applications
        (
            "resnet152_v2",
            "keras_applications",
            (
                "https://storage.googleapis.com/tensorflow/keras-applications/resnet/"
                "resnet152v2_weights_tf_dim_ordering_tf_kernels.h5",
                78.032,
                94.162,
            ),
            (299, 341, "bicubic"),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_entry_of_each_publisher(model, name, fields, crop):
    entry = get_entry(name, model)
    assert (entry.url, entry.top1, entry.top5) == fields
    given = entry.preprocessing
    assert (given.size, given.resize, given.interpolation) == crop


@pytest.mark.parametrize(
    ("model", "module"),
    [("resnet50", keras.applications.resnet), ("resnet50_v2", keras.applications.resnet_v2)],
)
def test_normalization_of_keras_applications_in_rgb_order(model, module):
    pixels = keras.random.uniform((2, 2, 3), 0, 255, seed=3)
    ours = get_entry("imagenet", model).preprocessing.normalization(pixels)
    theirs = module.preprocess_input(keras.ops.convert_to_numpy(pixels).copy(), data_format="channels_last")
    theirs = theirs[..., ::-1] if model == "resnet50" else theirs
    assert abs(keras.ops.convert_to_numpy(ours) - theirs).max() < 1e-4


def test_normalization_of_other_publishers_is_imagenets():
    for entry in ENTRIES:
        if entry.name != "keras_applications":
            assert entry.preprocessing.normalization == Normalization.imagenet()


def test_full_names_are_in_the_zoos_order():
    names = list_weights()
    assert len(names) == len(ENTRIES) == len(set(names))
    assert names[:2] == ["resnet18/torchvision_v1", "resnet18/timm_a1"]
    networks = list(dict.fromkeys(name.split("/")[0] for name in names))
    assert networks == [model for model in MODELS if model in NETWORKS]
    assert all(get_entry(*reversed(name.split("/"))) for name in names)


def test_find_entries():
    assert [entry.model for entry in find_entries("timm_ra2")] == [
        *("resnet18d", "resnet34d", "resnet50d", "resnet101d", "resnet152d")
    ]
    assert [entry.model for entry in find_entries("timm_c2")] == ["resnet50_v1_5"]


def test_find_default_entries():
    found = find_entries("imagenet")
    assert sorted(entry.model for entry in found) == sorted(NETWORKS)
    assert all(entry is get_entry("imagenet", entry.model) for entry in found)


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(InputError, match="unknown weights 'torchvison_v2'; did you mean torchvision_v2"):
        find_entries("torchvison_v2")


@pytest.mark.parametrize("call", [list_weights, lambda model: get_entry("imagenet", model)])
def test_an_unknown_network_suggests_the_nearest(call):
    with pytest.raises(InputError, match="unknown model 'resnet_18'; did you mean resnet18"):
        call("resnet_18")


@pytest.mark.parametrize("model", ["plain18", "cifar_resnet20"])
def test_a_network_without_weights(model):
    assert list_weights(model) == []
    assert refusal("imagenet", model) == (
        f"{model} has no pretrained weights: none are published for it; "
        "pass a file's path, or see list_weights()"
    )
    assert refusal("timm_a1", model).startswith(f"{model} has no weights 'timm_a1': none are published")


def test_a_mistyped_name_suggests_the_nearest():
    assert refusal("torchvison_v1", "resnet18") == (
        "unknown weights of resnet18 'torchvison_v1'; did you mean torchvision_v1?"
    )


@pytest.mark.parametrize(
    ("name", "model", "owners"),
    [
        ("torchvision_v1", "resnet50", "resnet50_v1_5"),
        ("keras_applications", "resnet50_v1_5", "resnet50, resnet50_v2"),
        ("timm_ra2", "resnet101_v1_5", "resnet101d"),
        ("torchvision_v2", "resnet18", "resnet50_v1_5, resnet101_v1_5, resnet152_v1_5"),
    ],
)
def test_a_name_of_another_network_names_that_network(name, model, owners):
    assert refusal(name, model) == (
        f"{model} has no weights {name!r}: they are for {owners}; "
        f"for {model} there are {', '.join(list_weights(model))}"
    )
