"""Each operation on pixels against Pillow's, on real photographs."""

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps
from sklearn.datasets import load_sample_image

from keras_resnet.data.augmentation import color

SIZE = 128


@pytest.fixture(scope="module", params=["china.jpg", "flower.jpg"])
def photo(request):
    """A square of a photograph, uint8."""
    return load_sample_image(request.param)[150 : 150 + SIZE, 200 : 200 + SIZE]


def ours(operation, photo, *arguments):
    """What the operation makes of the photo, rounded down as RandAugment does."""
    return np.floor(operation(tf.constant(photo, tf.float32), *arguments).numpy()).astype(int)


def theirs(image):
    return np.asarray(image).astype(int)


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.73, 1.0, 1.27, 1.9])
@pytest.mark.parametrize(
    ("operation", "enhancer"),
    [
        (color.brightness, ImageEnhance.Brightness),
        (color.contrast, ImageEnhance.Contrast),
        (color.saturation, ImageEnhance.Color),
        (color.sharpness, ImageEnhance.Sharpness),
    ],
)
def test_blends_are_pillows(photo, operation, enhancer, factor):
    expected = theirs(enhancer(Image.fromarray(photo)).enhance(factor))
    difference = np.abs(ours(operation, photo, factor) - expected)
    assert difference.max() <= 1
    assert difference.mean() < 0.001
    if factor != 1:
        assert np.abs(expected - photo).mean() > 1


@pytest.mark.parametrize("bits", [1, 4, 7, 8])
def test_posterize_is_pillows(photo, bits):
    expected = ImageOps.posterize(Image.fromarray(photo), bits)
    np.testing.assert_array_equal(ours(color.posterize, photo, bits), theirs(expected))


@pytest.mark.parametrize("threshold", [0.0, 127.5, 178.0, 255.0])
def test_solarize_is_pillows(photo, threshold):
    expected = ImageOps.solarize(Image.fromarray(photo), threshold)
    np.testing.assert_array_equal(ours(color.solarize, photo, threshold), theirs(expected))


def pale(photo):
    return (photo // 3 + np.array([20, 60, 100])).astype("uint8")


def test_equalize_is_pillows(photo):
    one_color = np.full_like(photo, 77)
    two_colors = np.where(photo > 100, 200, 31).astype("uint8")
    for image in (photo, pale(photo), one_color, two_colors, photo[:9, :9]):
        expected = theirs(ImageOps.equalize(Image.fromarray(image)))
        np.testing.assert_array_equal(ours(color.equalize, image), expected)
    assert np.abs(theirs(ImageOps.equalize(Image.fromarray(pale(photo)))) - photo).mean() > 5


def test_autocontrast_is_pillows(photo):
    for image in (photo, pale(photo), np.full_like(photo, 77)):
        difference = np.abs(
            ours(color.autocontrast, image) - theirs(ImageOps.autocontrast(Image.fromarray(image)))
        )
        assert difference.max() <= 1
        assert difference.mean() < 0.05
    stretched = ours(color.autocontrast, pale(photo))
    assert stretched.min((0, 1)).tolist() == [0, 0, 0]
    assert stretched.max((0, 1)).tolist() == [255, 255, 255]


@pytest.mark.parametrize("amount", [-0.3, -0.09, 0.0, 0.17, 0.3])
@pytest.mark.parametrize(
    ("coefficients", "bound"),
    [
        # Halfway between two pixels of a shear, Pillow's fixed point may take the other one.
        (lambda amount: (1, amount, 0, 0, 1, 0), 0.01),
        (lambda amount: (1, 0, 0, amount, 1, 0), 0.01),
        (lambda amount: (1, 0, -round(100 * amount), 0, 1, 0), 1e-9),
        (lambda amount: (1, 0, 0, 0, 1, -round(100 * amount)), 1e-9),
    ],
)
def test_shears_and_translations_are_pillows(photo, coefficients, bound, amount):
    numbers = coefficients(amount)
    expected = Image.fromarray(photo).transform(
        (SIZE, SIZE), Image.Transform.AFFINE, numbers, Image.Resampling.NEAREST
    )
    differs = (ours(color.affine, photo, numbers[:3], numbers[3:]) != theirs(expected)).any(-1)
    assert differs.mean() < bound


@pytest.mark.parametrize("degrees", [-30.0, -9.0, 0.0, 9.0, 21.0])
def test_rotations_are_pillows(photo, degrees):
    for image in (photo, photo[:61, :90]):
        expected = theirs(Image.fromarray(image).rotate(degrees))
        assert (ours(color.rotate, image, degrees) != expected).any(-1).mean() < 0.01


@pytest.mark.parametrize("magnitude", [0, 9, 30])
def test_randaugments_operations_have_torchvisions_magnitudes(photo, magnitude):
    """The ranges of torchvision.transforms.RandAugment, `_augmentation_space`, for 31 bins."""

    def affine(*numbers):
        return lambda image: image.transform((SIZE, SIZE), Image.Transform.AFFINE, numbers)

    def enhanced(enhancer):
        return lambda image: enhancer(image).enhance(1 + factor)

    share = magnitude / 30
    bits = {0: 8, 9: 7, 30: 4}[magnitude]
    shift = {0: 0, 9: 17, 30: 58}[magnitude]  # 150 / 331 of 128 pixels
    for sign in (1.0, -1.0):
        shear, factor = sign * 0.3 * share, sign * 0.9 * share
        expected = {
            "Identity": lambda image: image,
            "ShearX": affine(1, shear, 0, 0, 1, 0),
            "ShearY": affine(1, 0, 0, shear, 1, 0),
            "TranslateX": affine(1, 0, -sign * shift, 0, 1, 0),
            "TranslateY": affine(1, 0, 0, 0, 1, -sign * shift),
            "Rotate": lambda image, sign=sign: image.rotate(sign * 30 * share),
            "Brightness": enhanced(ImageEnhance.Brightness),
            "Color": enhanced(ImageEnhance.Color),
            "Contrast": enhanced(ImageEnhance.Contrast),
            "Sharpness": enhanced(ImageEnhance.Sharpness),
            "Posterize": lambda image: ImageOps.posterize(image, bits),
            "Solarize": lambda image: ImageOps.solarize(image, 255 - 255 * share),
            "AutoContrast": ImageOps.autocontrast,
            "Equalize": ImageOps.equalize,
        }
        operations = color.randaugment_operations(SIZE, magnitude)
        assert list(operations) == list(expected)
        for name, operation in operations.items():
            result = ours(operation, photo, sign)
            difference = np.abs(result - theirs(expected[name](Image.fromarray(photo))))
            assert (difference > 1).any(-1).mean() < 0.01, name
            assert result.min() >= 0, name
            assert result.max() <= 255, name


def test_gray_images_are_treated_as_gray_photographs(photo):
    gray = np.asarray(Image.fromarray(photo).convert("L"))
    for name, operation in color.randaugment_operations(SIZE, 20).items():
        one = ours(operation, gray[..., None], 1.0)
        three = ours(operation, np.repeat(gray[..., None], 3, -1), 1.0)
        assert one.shape == (SIZE, SIZE, 1), name
        assert np.abs(one - three).max() <= 1, name


def test_the_principal_components_are_orthonormal():
    vectors = np.array(color.EIGENVECTORS)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=2e-4)
    assert sum(color.GRAY) == pytest.approx(1)
