"""From pixels to a network's input: what Pillow and torchvision's evaluation make of an image."""

import dataclasses

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from keras_resnet.errors import InputError
from keras_resnet.images.preprocessing import INTERPOLATIONS, Normalization, Preprocessing

IMAGENET = Normalization.imagenet()
PLAIN = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))  # leaves the resized pixels to be looked at
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def photo(name):
    found = load_sample_images()
    return dict(zip(("china", "flower"), found.images, strict=True))[name]  # 427 x 640, both


def noise(*shape):
    """Pixels of which many are black or white: the cubic's overshoots have to be clipped."""
    random = np.random.default_rng(list(shape))
    pixels = random.integers(-128, 384, shape)
    return np.clip(pixels, 0, 255).astype("uint8")


def pillow(image, height, width, interpolation):
    """Pillow's resizing, width first: in two calls, as in one it chooses the order since version 13."""
    resized = Image.fromarray(image)
    resized = resized.resize((width, resized.height), FILTERS[interpolation])
    return np.asarray(resized.resize((width, height), FILTERS[interpolation]))


def torchvision_size(height, width, side):
    """torchvision's `_compute_resized_output_size` for one number: (height, width)."""
    short, long = sorted((height, width))
    new_short, new_long = side, int(side * long / short)
    return (new_short, new_long) if height <= width else (new_long, new_short)


def torchvision_crop(image, size):
    """torchvision's `center_crop` of an image that is large enough."""
    top = int(round((image.shape[0] - size) / 2.0))  # noqa: RUF046 (as it is written there)
    left = int(round((image.shape[1] - size) / 2.0))  # noqa: RUF046
    return image[top : top + size, left : left + size]


def torchvision_normalized(image):
    """`ToTensor` and `Normalize` with the published numbers, which are in units of 255."""
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return (image.astype("float32") / 255 - np.float32(mean)) / np.float32(std)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("height", "width", "size"),
    [
        (33, 57, 20),
        (57, 33, 20),
        (64, 64, 32),
        (61, 62, 60),  # barely
        (7, 5, 31),  # up
        (40, 9, 17),  # down and up
        (9, 40, 17),
        (17, 30, 17),  # one pass only
        (30, 17, 17),
        (17, 17, 17),  # none
        (1, 500, 8),
        (500, 1, 8),
        (3, 2, 1),
        (1, 1, 5),
        (2, 3, 100),  # several of the blocks in which the sums are computed
    ],
)
def test_whole_images_are_resized_bit_for_bit_as_by_pillow(height, width, size, interpolation):
    image = noise(height, width, 3)
    resized = Preprocessing(size, None, interpolation, PLAIN)(image)
    np.testing.assert_array_equal(resized, pillow(image, size, size, interpolation))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize(
    ("height", "width", "resize", "size"),
    [
        (33, 57, 24, 20),
        (57, 33, 24, 20),
        (48, 64, 28, 21),  # 28 x 37: corners at 3.5 and 8, of which the first goes to the even 4
        (50, 64, 26, 21),  # a corner at 2.5, which goes to the even 2
        (20, 30, 20, 16),  # the crop only
        (9, 14, 40, 37),  # up
        (31, 31, 17, 17),  # no room around the crop
        (1, 500, 8, 8),
        (500, 1, 8, 5),
        (1, 100, 256, 224),  # only the crop of 256 x 25600 is computed
        (3, 2, 7, 4),
        (2, 3, 1, 1),
    ],
)
def test_the_crop_equals_torchvisions_of_the_whole_resized_image(height, width, resize, size, interpolation):
    image = noise(height, width, 3)
    whole = pillow(image, *torchvision_size(height, width, resize), interpolation)
    cut = Preprocessing(size, resize, interpolation, PLAIN)(image)
    np.testing.assert_array_equal(cut, torchvision_crop(whole, size))


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("resize", [232, 256])
@pytest.mark.parametrize("name", ["china", "flower"])
def test_photos_are_prepared_as_by_torchvision(name, resize, interpolation):
    image = photo(name)
    height, width = torchvision_size(*image.shape[:2], resize)
    resized = np.asarray(Image.fromarray(image).resize((width, height), FILTERS[interpolation]))
    expected = torchvision_normalized(torchvision_crop(resized, 224))
    prepared = Preprocessing(224, resize, interpolation, IMAGENET)(image)
    assert prepared.dtype == "float32"
    assert prepared.shape == (224, 224, 3)
    np.testing.assert_allclose(prepared, expected, rtol=0, atol=2e-6)  # rounding to float32


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_float_pixels_are_resized_without_rounding_and_clipping(interpolation):
    image = noise(57, 33, 3)
    preprocessing = Preprocessing(20, 24, interpolation, PLAIN)
    # Pillow's own float images, a channel each, are not rounded either.
    channels = [pillow(image[..., c].astype("float32"), 41, 24, interpolation) for c in range(3)]
    expected = torchvision_crop(np.stack(channels, axis=-1), 20)
    assert (expected != np.round(expected)).any()
    assert (interpolation == "bicubic") == (expected.max() > 255)
    for dtype in ("float32", "float64", "float16"):
        np.testing.assert_allclose(preprocessing(image.astype(dtype)), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
def test_a_constant_image_stays_constant(interpolation):
    for value in (0, 1, 128, 255):
        image = np.full((37, 91, 3), value, "uint8")
        prepared = Preprocessing(32, 33, interpolation, IMAGENET)(image)
        expected = (value - np.float32(IMAGENET.mean)) / np.float32(IMAGENET.std)
        np.testing.assert_allclose(prepared, np.broadcast_to(expected, (32, 32, 3)), rtol=1e-6, atol=1e-6)


def test_a_batch_and_a_list_give_what_their_images_give():
    preprocessing = Preprocessing(12, 14, "bicubic", IMAGENET)
    batch = noise(3, 20, 31, 3)
    alone = np.stack([preprocessing(image) for image in batch])
    assert alone.shape == (3, 12, 12, 3)
    np.testing.assert_array_equal(preprocessing(batch), alone)
    np.testing.assert_array_equal(preprocessing(tuple(batch)), alone)
    different = [batch[0], noise(40, 13, 3), batch[1].astype("float32"), noise(9, 15)]
    np.testing.assert_array_equal(
        preprocessing(different), np.stack([preprocessing(image) for image in different])
    )
    assert preprocessing(batch[:1]).shape == preprocessing([batch[0]]).shape == (1, 12, 12, 3)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "bfloat16"])
def test_keras_tensors_give_what_arrays_give(dtype):
    preprocessing = Preprocessing(12, 14, "bilinear", IMAGENET)
    batch = noise(2, 20, 31, 3)
    tensor = keras.ops.cast(keras.ops.convert_to_tensor(batch), dtype)
    array = keras.ops.convert_to_numpy(keras.ops.cast(tensor, "uint8" if dtype == "uint8" else "float32"))
    for crop in (True, False):
        prepared = preprocessing(tensor, crop=crop)
        assert type(prepared) is np.ndarray
        np.testing.assert_array_equal(prepared, preprocessing(array, crop=crop))
        np.testing.assert_array_equal(preprocessing([tensor[0], array[1]], crop=crop), prepared)


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64"])
def test_without_the_crop_images_are_only_normalized(dtype):
    preprocessing = Preprocessing(12, 14, "bilinear", IMAGENET)
    batch = noise(2, 20, 31, 3).astype(dtype)
    expected = (batch - np.array(IMAGENET.mean)) / np.array(IMAGENET.std)
    for images, wanted in ((batch, expected), (list(batch), expected), (batch[1], expected[1])):
        prepared = preprocessing(images, crop=False)
        assert prepared.dtype == "float32"
        np.testing.assert_allclose(prepared, wanted, rtol=0, atol=2e-6)


def test_nothing_is_written_into_the_images():
    image = np.ones((5, 5, 3), "float32")
    prepared = Preprocessing(5, None, "bilinear", PLAIN)(image, crop=False)
    prepared += 1
    assert (image == 1).all()


@pytest.mark.parametrize("crop", [True, False])
def test_gray_images_are_repeated_for_three_channels(crop):
    preprocessing = Preprocessing(12, 14, "bicubic", IMAGENET)
    gray = noise(20, 31, 1)
    expected = preprocessing(np.repeat(gray, 3, axis=-1), crop=crop)
    np.testing.assert_array_equal(preprocessing(gray, crop=crop), expected)
    np.testing.assert_array_equal(preprocessing(gray[..., 0], crop=crop), expected)
    np.testing.assert_array_equal(preprocessing(gray[None], crop=crop), expected[None])


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_any_number_of_channels_that_the_normalization_has(channels):
    normalization = Normalization(tuple(range(channels)), tuple(range(1, channels + 1)))
    image = noise(20, 31, channels)
    prepared = Preprocessing(12, 14, "bicubic", normalization)(image)
    assert prepared.shape == (12, 12, channels)
    for channel in range(channels):
        cut = torchvision_crop(pillow(image[..., channel], 14, 21, "bicubic"), 12)
        np.testing.assert_allclose(
            prepared[..., channel], (cut - np.float32(channel)) / (channel + 1), rtol=1e-6
        )


def test_per_pixel_statistics_are_for_the_cut_image():
    mean = noise(12, 12, 3).astype("float64")
    preprocessing = Preprocessing(12, 14, "bilinear", Normalization(mean.tolist(), (2.0, 2.0, 2.0)))
    image = noise(20, 31, 3)
    cut = dataclasses.replace(preprocessing, normalization=PLAIN)(image)
    np.testing.assert_array_equal(preprocessing(image), (cut - mean) / 2)
    with pytest.raises(InputError, match=r"for images of \(12, 12\) pixels, not of \(20, 31\)$"):
        preprocessing(image, crop=False)


BATCH = np.zeros((2, 8, 8, 3), "uint8")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BATCH[0, 0, :, 0], r"must be \(height, width, channels\) or a batch .*, not of shape \(8,\)"),
        (BATCH[None], r"must be \(height, width, channels\) or a batch .*, not of shape \(1, 2, 8, 8, 3\)"),
        ([BATCH], r"must be \(height, width, channels\), not of shape \(2, 8, 8, 3\)"),
        ([], "the list of images is empty"),
        (BATCH[:0], r"must have pixels, but this has the shape \(0, 8, 8, 3\)"),
        (BATCH[:, :0], r"must have pixels, but this has the shape \(2, 0, 8, 3\)"),
        (np.zeros((8, 8, 4), "uint8"), "4 channels and the normalization 3; their last axis"),
        (np.zeros((3, 8, 8), "float32"), "8 channels and the normalization 3; their last axis"),
        ([BATCH[0], np.zeros((8, 8, 2), "uint8")], "2 channels and the normalization 3"),
        (BATCH.astype(bool), "must be uint8 or float, 0-255, not bool"),
        (BATCH.astype("int64"), "must be uint8 or float, 0-255, not int64"),
        (BATCH.astype(complex), "must be uint8 or float, 0-255, not complex128"),
        (BATCH.astype(object), "must be uint8 or float, 0-255, not object"),
        (BATCH.astype(str), "must be uint8 or float, 0-255, not <U"),
        (np.full((8, 8, 3), np.nan), "must hold finite numbers"),
        (np.full((8, 8, 3), -np.inf, "float16"), "must hold finite numbers"),
        (np.full((8, 8, 3), 1e300), "must hold finite numbers"),
        ("photo.jpg", "must be arrays or tensors of pixels 0-255, not str"),
        ([[[[1, 2, 3]]]], "must be arrays or tensors of pixels 0-255, not list"),
        (None, "must be arrays or tensors of pixels 0-255, not NoneType"),
        (keras.KerasTensor((1, 8, 8, 3)), "not be symbolic as this KerasTensor"),
    ],
)
@pytest.mark.parametrize("crop", [True, False])
def test_what_is_no_image_is_refused(images, message, crop):
    with pytest.raises(InputError, match=message) as caught:
        Preprocessing(4, 6, "bilinear", IMAGENET)(images, crop=crop)
    assert "\n" not in str(caught.value)


def test_colors_are_not_silently_turned_gray():
    gray = Preprocessing(4, 6, "bilinear", Normalization((100.0,), (50.0,)))
    with pytest.raises(InputError, match="3 channels and the normalization 1; convert them to gray first"):
        gray(BATCH)


def test_gray_is_repeated_for_three_channels_only():
    with pytest.raises(InputError, match="1 channels and the normalization 4"):
        Preprocessing(4, 6, "bilinear", Normalization((0.0,) * 4, (1.0,) * 4))(BATCH[..., :1])


def test_without_the_crop_a_list_must_be_of_one_size():
    images = [BATCH[0], np.zeros((8, 9, 3), "uint8")]
    preprocessing = Preprocessing(4, 6, "bilinear", IMAGENET)
    assert preprocessing(images).shape == (2, 4, 4, 3)
    with pytest.raises(InputError, match=r"must be of one size, not \(8, 8\) and \(8, 9\)$"):
        preprocessing(images, crop=False)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("size", 0, "the size must be a positive integer of pixels, not 0"),
        ("size", -224, "the size must be a positive integer of pixels, not -224"),
        ("size", 224.0, "the size must be a positive integer of pixels, not 224.0"),
        ("size", True, "the size must be a positive integer of pixels, not True"),
        ("size", None, "the size must be a positive integer of pixels, not None"),
        ("resize", 223, "None or an integer of at least the size, 224, not 223"),
        ("resize", 256.0, "None or an integer of at least the size, 224, not 256.0"),
        ("resize", "256", "None or an integer of at least the size, 224, not '256'"),
        ("interpolation", "bilinaer", "unknown interpolation 'bilinaer'; did you mean bilinear?"),
        ("interpolation", 3, "unknown interpolation 3; choose one of bicubic, bilinear"),
        ("interpolation", ["bicubic"], "unknown interpolation"),
        ("normalization", None, "the normalization must be a Normalization, not NoneType"),
    ],
)
def test_fields_are_checked(field, value, message):
    fields = {"size": 224, "resize": 256, "interpolation": "bilinear", "normalization": IMAGENET}
    Preprocessing(**fields)
    with pytest.raises(InputError) as caught:
        Preprocessing(**fields | {field: value})
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_statistics_for_one_channel_are_averages():
    gray = IMAGENET.for_channels(1)
    np.testing.assert_allclose(gray.mean, [np.mean(IMAGENET.mean)])
    np.testing.assert_allclose(gray.std, [np.mean(IMAGENET.std)])


@pytest.mark.parametrize(("channels", "order"), [(2, [0, 1]), (4, [0, 1, 2, 0]), (7, [0, 1, 2, 0, 1, 2, 0])])
def test_statistics_for_more_channels_repeat_cyclically(channels, order):
    adapted = IMAGENET.for_channels(channels)
    assert adapted.mean == tuple(IMAGENET.mean[i] for i in order)
    assert adapted.std == tuple(IMAGENET.std[i] for i in order)


def test_statistics_of_as_many_channels_stay():
    per_pixel = Normalization(noise(2, 4, 3).tolist(), (1.0, 1.0, 1.0))
    assert IMAGENET.for_channels(3) is IMAGENET
    assert per_pixel.for_channels(3) is per_pixel
    assert Normalization((5.0,), (2.0,)).for_channels(3) == Normalization((5.0,) * 3, (2.0,) * 3)


def test_per_pixel_statistics_have_their_channels():
    per_pixel = Normalization(noise(2, 4, 3).tolist(), (1.0, 1.0, 1.0))
    with pytest.raises(InputError, match=r"per-pixel statistics of 3 channels cannot be converted to 1$"):
        per_pixel.for_channels(1)


@pytest.mark.parametrize("channels", [0, -1, 3.0, True, None])
def test_a_number_of_channels_is_a_positive_integer(channels):
    with pytest.raises(InputError, match=f"must be a positive integer, not {channels}$"):
        IMAGENET.for_channels(channels)


@pytest.mark.parametrize(
    ("mean", "std"),
    [((1.0, 2.0, 3.0), (1.0, 2.0)), ((), ()), (1.0, 1.0), (((1.0, 2.0, 3.0),), (1.0, 1.0, 1.0))],
    ids=["unequal", "empty", "scalars", "rank_2"],
)
def test_statistics_must_be_for_channels(mean, std):
    normalization = Normalization(mean, std)
    with pytest.raises(InputError, match="need one number per channel, or the mean one per pixel"):
        normalization.for_channels(3)
    with pytest.raises(InputError, match="need one number per channel, or the mean one per pixel"):
        Preprocessing(4, 6, "bilinear", normalization)(BATCH)


def test_preprocessing_for_channels_changes_the_statistics_only():
    preprocessing = Preprocessing(12, 14, "bicubic", IMAGENET)
    adapted = preprocessing.for_channels(4)
    assert adapted == Preprocessing(12, 14, "bicubic", IMAGENET.for_channels(4))
    assert adapted(noise(20, 31, 4)).shape == (12, 12, 4)
    assert preprocessing.for_channels(3) == preprocessing


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [(256, 299, 342), (256, 112, 128), (232, 32, 33), (224, 64, 64), (None, 96, None)],
)
def test_another_size_cuts_out_the_same_share(resize, size, expected):
    preprocessing = Preprocessing(224, resize, "bicubic", IMAGENET)
    assert preprocessing.for_size(size) == Preprocessing(size, expected, "bicubic", IMAGENET)
    assert preprocessing.for_size(224) == preprocessing


def test_pillow_images():
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype("uint8")
    prepare = Preprocessing(24, 32, "bilinear", Normalization.imagenet())
    np.testing.assert_array_equal(prepare(Image.fromarray(pixels)), prepare(pixels))
    gray = Image.fromarray(pixels[..., 0])
    np.testing.assert_array_equal(prepare([gray]), prepare([pixels[..., 0]]))
    with pytest.raises(InputError, match="must have mode RGB or L, not P"):
        prepare(Image.fromarray(pixels).convert("P"))
