"""Images prepared as torchvision's evaluation does it: the same pixels, from the same photos."""

import numpy as np
import pytest
from helpers.torch_zoo import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_resnet.images.preprocessing import Normalization, Preprocessing

pytestmark = pytest.mark.torch


def prepared_there(photo, size, resize, interpolation):
    """float32 (size, size, 3), as pixels 0-255 before the normalization."""
    transforms = torchvision().transforms
    preset = transforms._presets.ImageClassification(
        crop_size=size,
        resize_size=resize,
        interpolation=transforms.InterpolationMode(interpolation),
    )
    statistics = Normalization.imagenet()
    normalized = np.moveaxis(preset(Image.fromarray(photo)).numpy(), 0, -1)
    return normalized, normalized * statistics.std + statistics.mean


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize(
    ("size", "resize"),
    [(224, 256), (224, 232), (224, 224), (288, 300), (223, 255), (384, 500)],
)
def test_photos(size, resize, interpolation):
    """(384, 500) enlarges: the photos are 427 pixels high."""
    ours = Preprocessing(size, resize, interpolation, Normalization.imagenet())
    statistics = Normalization.imagenet()
    for photo in load_sample_images().images:
        for turned in (photo, photo.swapaxes(0, 1)):
            normalized, pixels = prepared_there(turned, size, resize, interpolation)
            found = ours(turned)
            assert np.abs(found - normalized).max() < 1e-5
            # The wanted accuracy, in the words in which it was asked for.
            assert np.abs(found * statistics.std + statistics.mean - pixels).mean() <= 1 / 255


def test_the_interpolations_differ():
    """The test of the tests above: another filter would not pass."""
    photo = load_sample_images().images[0]
    (linear, _), (cubic, _) = (
        prepared_there(photo, 224, 256, interpolation) for interpolation in ("bilinear", "bicubic")
    )
    assert np.abs(linear - cubic).max() > 0.1
