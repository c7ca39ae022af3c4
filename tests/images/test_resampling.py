"""How far TensorFlow's resizing, in training and evaluation, is from Pillow's, in `Preprocessing`."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from sklearn.datasets import load_sample_images

from keras_resnet.images.ops import evaluation_view
from keras_resnet.images.preprocessing import Normalization, Preprocessing

ROUNDING = 1.01
"""Levels by which the two may differ where nothing is clipped: Pillow rounds after each of two passes."""

PIXELS = Normalization.identity(3)


def differences(image, size, resize, interpolation):
    by_pillow = Preprocessing(size, resize, interpolation, PIXELS)(image)
    by_tensorflow = evaluation_view(tf.constant(image), resize, size, 3, interpolation)
    return np.abs(by_pillow - by_tensorflow.numpy())


SIZES = [(224, 256), (224, 232), (224, None), (61, 73), (600, 700)]


@pytest.mark.parametrize(("size", "resize"), SIZES)
@pytest.mark.parametrize("photo", [0, 1], ids=["china", "flower"])
def test_photos(photo, size, resize):
    """Beside hard edges the cubic overshoots; Pillow clips after each pass, TensorFlow's side at the end."""
    image = load_sample_images().images[photo]
    assert differences(image, size, resize, "bilinear").max() < ROUNDING
    cubic = differences(image, size, resize, "bicubic")
    assert cubic.mean() < 0.3
    assert (cubic > ROUNDING).mean() < 0.0025
    assert cubic.max() < (9 if size > min(image.shape[:2]) else 5.5)


@pytest.mark.parametrize(("height", "width"), [(37, 50), (45, 61), (300, 411), (20, 25)])
@pytest.mark.parametrize(("size", "resize"), [(24, 28), (24, None), (64, 70)])
def test_noise(height, width, size, resize):
    """The worst case, half of it clipped: pixels that are black or white, each by itself."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (height, width, 3), "uint8")
    black_or_white = np.where(noise < 128, 0, 255).astype("uint8")
    for image, most in ((noise, 18), (black_or_white, 32)):
        assert differences(image, size, resize, "bilinear").max() < ROUNDING
        assert differences(image, size, resize, "bicubic").max() < most


@pytest.mark.parametrize("resize", [256, None])
def test_very_wide_and_very_high_images(resize):
    noise = np.random.default_rng(0).integers(0, 256, (40, 50_000, 3), "uint8")
    assert differences(noise, 224, resize, "bilinear").max() < ROUNDING
    assert differences(noise.transpose(1, 0, 2), 224, resize, "bilinear").max() < ROUNDING


def test_sides_beyond_32_bits():
    view = tf.function(lambda image: evaluation_view(image, 3_000, 8, 3)).get_concrete_function(
        tf.TensorSpec((None, None, 3), tf.uint8)
    )
    np.testing.assert_allclose(view(tf.fill([1, 1_000_000, 3], tf.constant(7, tf.uint8))), 7, rtol=1e-5)


WIDE_PNG = """
import resource, struct, zlib
import tensorflow as tf
from keras_resnet.images.decode import decode_image
from keras_resnet.images.ops import evaluation_view

def chunk(kind, data):
    checksum = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + checksum

width = 1_000_000
header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, 1, 1, 0, 0, 0, 0))
pixels = chunk(b"IDAT", zlib.compress(bytes(1 + width // 8), 9))
file = b"\\x89PNG\\r\\n\\x1a\\n" + header + pixels + chunk(b"IEND", b"")
view = tf.function(lambda encoded: evaluation_view(decode_image(encoded), 224, 256, 3))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
view(tf.constant(file))
print(len(file), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_very_wide_image_takes_little_memory():
    """201 bytes that took 5.9 GB when the heights were resized first."""
    done = subprocess.run(
        [sys.executable, "-c", WIDE_PNG],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    size, mebibytes = map(int, done.stdout.split())
    assert size < 1000
    assert mebibytes < 600
