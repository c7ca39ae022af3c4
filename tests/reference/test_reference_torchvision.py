"""Every ResNet of torchvision: its state dict gives here what it gives there, on photos."""

import keras
import pytest
from helpers.torch_zoo import load, photos, reference, run, torchvision
from helpers.zoo_networks import relative_difference

from keras_resnet import feature_maps

pytestmark = pytest.mark.torch

# From our names to torchvision's.
NETWORKS = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50_v1_5": "resnet50",
    "resnet101_v1_5": "resnet101",
    "resnet152_v1_5": "resnet152",
    "resnext50_32x4d": "resnext50_32x4d",
    "resnext101_32x8d": "resnext101_32x8d",
    "resnext101_64x4d": "resnext101_64x4d",
    "wide_resnet50_2": "wide_resnet50_2",
    "wide_resnet101_2": "wide_resnet101_2",
}
ONE_OF_EACH_FAMILY = ["resnet18", "resnet50_v1_5", "resnext50_32x4d", "wide_resnet50_2"]


def check_logits(name, batch, folder, **arguments):
    theirs = reference("torchvision", NETWORKS[name])
    ours = load(name, theirs, folder, **arguments)
    assert relative_difference(ours(batch), run(theirs, batch)) <= 1e-4


@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name, tmp_path):
    check_logits(name, photos(), tmp_path)


@pytest.mark.parametrize("name", ONE_OF_EACH_FAMILY)
def test_logits_of_odd_sizes(name, tmp_path):
    check_logits(name, photos(225, 193), tmp_path, input_shape=(225, 193, 3))


def test_no_network_of_torchvision_is_left_out():
    models = torchvision().models
    theirs = {name for name in models.list_models(models) if "resne" in name}
    assert theirs == set(NETWORKS.values())


def last_feature_map(network):
    """torchvision's `ResNet.forward` without its head."""

    def forward(x):
        for name, part in network.named_children():
            x = part(x) if name not in ("avgpool", "fc") else x
        return x

    return forward


@pytest.mark.parametrize(("output_stride", "size"), [(8, (161, 129)), (16, (160, 160))])
@pytest.mark.parametrize("name", ["resnet50_v1_5", "resnext50_32x4d"])
def test_dilated(name, output_stride, size, tmp_path):
    dilation = [False, output_stride == 8, True]
    theirs = reference("torchvision", NETWORKS[name], replace_stride_with_dilation=dilation)
    shape = (*size, 3)
    ours = load(name, theirs, tmp_path, input_shape=shape, output_stride=output_stride)
    batch, last = photos(*size), feature_maps(ours)["C5"]
    expected = run(last_feature_map(theirs), batch)
    assert expected.shape[1:3] == tuple(-(-length // output_stride) for length in size)
    assert relative_difference(keras.Model(ours.input, last)(batch), expected) <= 1e-4
    assert relative_difference(ours(batch), run(theirs, batch)) <= 1e-4
