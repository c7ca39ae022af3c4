"""timm's ResNets where they differ from torchvision's, and what timm makes of any of them."""

import keras
import numpy as np
import pytest
from helpers.torch_zoo import load, photos, reference, run, timm
from helpers.zoo_networks import relative_difference

from keras_resnet import feature_maps

pytestmark = pytest.mark.torch

# From our names to timm's.
DEEP_STEM = {f"resnet{depth}d": f"resnet{depth}d" for depth in (18, 34, 50, 101, 152)}
# torchvision has no dilated basic blocks, and neither stem nor shortcuts of resnet..d.
VARIED = {
    "resnet18": "resnet18",
    "resnet50_v1_5": "resnet50",
    "resnet18d": "resnet18d",
    "resnet50d": "resnet50d",
}


@pytest.mark.parametrize("name", DEEP_STEM)
def test_logits(name, tmp_path):
    theirs = reference("timm", DEEP_STEM[name])
    ours, batch = load(name, theirs, tmp_path), photos()
    assert relative_difference(ours(batch), run(theirs, batch)) <= 1e-4


@pytest.mark.parametrize("name", ["resnet18d", "resnet50d"])
def test_logits_of_odd_sizes(name, tmp_path):
    theirs = reference("timm", DEEP_STEM[name])
    ours, batch = load(name, theirs, tmp_path, input_shape=(225, 193, 3)), photos(225, 193)
    assert relative_difference(ours(batch), run(theirs, batch)) <= 1e-4


@pytest.mark.parametrize(
    ("indices", "size"), [((0, 1, 2, 3, 4), (161, 129)), ((1, 3), (160, 160))], ids=["all", "two"]
)
@pytest.mark.parametrize("name", VARIED)
def test_features(name, indices, size, tmp_path):
    """timm counts the stem as 0 and takes its output before the pooling."""
    theirs = reference("timm", VARIED[name])
    arguments = {"features_only": True, "out_indices": indices}
    extractor = load(name, theirs, tmp_path, input_shape=(*size, 3), **arguments)
    batch = photos(*size)
    found = extractor(batch)
    assert list(found) == [f"C{index + 1}" for index in indices]
    extracting = timm().create_model(VARIED[name], **arguments).eval()
    extracting.load_state_dict(theirs.state_dict(), strict=False)
    for ours, expected in zip(found.values(), run(extracting, batch), strict=True):
        assert relative_difference(ours, expected) <= 1e-4


@pytest.mark.parametrize(("output_stride", "size"), [(8, (161, 129)), (16, (160, 160))])
@pytest.mark.parametrize("name", VARIED)
def test_dilated(name, output_stride, size, tmp_path):
    theirs = reference("timm", VARIED[name], output_stride=output_stride)
    ours = load(name, theirs, tmp_path, input_shape=(*size, 3), output_stride=output_stride)
    batch, last = photos(*size), feature_maps(ours)["C5"]
    expected = run(theirs.forward_features, batch)
    assert expected.shape[1:3] == tuple(-(-length // output_stride) for length in size)
    assert relative_difference(keras.Model(ours.input, last)(batch), expected) <= 1e-4
    assert relative_difference(ours(batch), run(theirs, batch)) <= 1e-4


@pytest.mark.parametrize(
    ("name", "channels"), [("resnet18", 1), ("resnet18", 2), ("resnet18d", 4), ("resnet18d", 13)]
)
def test_other_input_channels(name, channels, tmp_path):
    """The weights of a network that takes colours, in one that takes other channels."""
    colours = reference("timm", name)
    ours = load(name, colours, tmp_path, input_shape=(96, 96, channels))

    state = colours.state_dict()
    first = "conv1.0.weight" if name.endswith("d") else "conv1.weight"
    state[first] = timm().models.adapt_input_conv(channels, state[first])
    theirs = timm().create_model(name, in_chans=channels).eval()
    theirs.load_state_dict(state)
    batch = photos(96, 96, channels)
    # Each channel something else: else a wrong order of the channels would be without effect.
    batch = batch + np.random.default_rng(0).normal(size=batch.shape).astype("float32")
    assert relative_difference(ours(batch), run(theirs, batch)) <= 1e-4
