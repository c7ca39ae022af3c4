import io
import os
import re
import struct

import numpy as np
import pytest
import tensorflow as tf
from helpers.dirty_images import (
    by_pillow,
    chunk,
    convertible,
    encoded,
    exif,
    flat_png,
    inks,
    photo,
    png16,
    unusable,
)
from helpers.exif_data import directory, with_exif
from helpers.image_bombs import frames_gif, scans_jpeg, texts_png
from PIL import Image

from keras_resnet.classification.protocols import PROTOCOLS
from keras_resnet.data.augmentation.crop import resized_crop
from keras_resnet.data.examples import BadImages
from keras_resnet.data.sources import file_error
from keras_resnet.errors import InputError
from keras_resnet.images import decode as decoding
from keras_resnet.images import ops
from keras_resnet.images.decode import decode_error, try_each
from keras_resnet.images.preprocessing import Normalization, Preprocessing

KINDS = convertible()


@pytest.fixture(scope="module")
def decode():
    return tf.function(decoding.decode_image, input_signature=[tf.TensorSpec((), tf.string)])


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_are_pillows(decode, kind):
    found, expected = decode(KINDS[kind]).numpy().astype(int), by_pillow(KINDS[kind])
    assert found.shape == expected.shape
    # Pillow rounds the product of inks otherwise.
    assert np.abs(found - expected).max() <= (1 if "cmyk" in kind or "ycck" in kind else 0)
    assert decode_error(KINDS[kind]) is None


@pytest.mark.parametrize("channels", [1, 3])
def test_of_sixteen_bits_the_upper_eight_are_kept(decode, channels):
    """Pillow clips gray of 16 bits instead; for colors it keeps the upper bits, too."""
    file = png16(channels)
    upper = tf.io.decode_png(file, dtype=tf.uint16).numpy() >> 8
    np.testing.assert_array_equal(decode(file).numpy(), np.broadcast_to(upper, (75, 101, 3)))


@pytest.mark.parametrize("kind", unusable())
def test_the_unusable_are_refused_with_a_reason(decode, kind):
    file, reason = unusable()[kind]
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode(file)
    assert reason in decode_error(file)


def test_size_is_read_before_anything_is_decoded(decode, monkeypatch):
    file = encoded("PNG")
    assert decode(file).shape == (75, 101, 3)
    monkeypatch.setattr(decoding, "MAX_PIXELS", 75 * 101)
    assert decode_error(file) is None
    monkeypatch.setattr(decoding, "MAX_PIXELS", 75 * 101 - 1)
    monkeypatch.setattr(tf.io, "decode_image", None)
    assert decode_error(file) == "101 x 75 pixels; the limit is 7574"


@pytest.mark.parametrize("kind", ["jpeg", "png", "gif", "bmp"])
def test_files_cut_within_their_first_64_bytes_are_refused(kind):
    for size in range(1, 65):
        assert decode_error(KINDS[kind][:size]) in (
            "truncated",
            "damaged",
            "not a JPEG, PNG, GIF or BMP image",
        )


def test_many_scans_texts_and_bits_are_refused(decode):
    deep = flat_png(8, 8, bits=16, color=6)
    deep = deep[:16] + struct.pack(">II", 5_900, 5_900) + deep[24:]
    for file, sentence in (
        (scans_jpeg(2_000, 600), "2000 x 2000 pixels; too many scans, texts or bits"),
        (
            deep[:16] + struct.pack(">II", 5_900, 5_900) + deep[24:],
            "5900 x 5900 pixels; too many scans, texts or bits",
        ),
        (texts_png(40), "8 x 8 pixels; too many scans, texts or bits"),
    ):
        assert decode_error(file) == sentence
        with pytest.raises(tf.errors.InvalidArgumentError):
            decode(file)
    assert decode_error(scans_jpeg(200, 600)) is None
    assert decode_error(texts_png(200, 10)) is None


def test_of_a_gif_only_the_first_frame_is_read(decode):
    several = frames_gif(2, 40, 30)
    second = several.rindex(b",\x00\x00\x00\x00")
    expected = by_pillow(several)
    for file in (several, several[:second] + b"not a frame", several[:second]):
        np.testing.assert_array_equal(decode(file), expected)
        assert decode_error(file) is None
    moved = several.replace(b",\x00\x00\x00\x00", b",\x03\x00\x02\x00")
    assert decode_error(moved) == "damaged"  # beyond the screen
    larger = decode(moved[:6] + b"\x2d\x00\x21\x00" + moved[10:]).numpy()  # 45 x 33
    np.testing.assert_array_equal(larger[2:32, 3:43], expected)
    assert larger.shape == (33, 45, 3)
    assert larger.sum() == expected.sum()
    commented = several[: several.index(b",")] + b"!\xfe\x02ab\x01c\x00" + several[several.index(b",") :]
    np.testing.assert_array_equal(decode(commented), expected)


ICC = b"\xff\xe2" + (5_002).to_bytes(2, "big") + bytes(5_000)
MANY = [(tag, 3, 1, 1) for tag in range(0x0100, 0x0112)] + [(0x0112, 3, 1, 6)]


@pytest.mark.parametrize(
    ("format_name", "data", "place"),
    [
        ("JPEG", directory("<", [(0x0112, 3, 1, 6)]), None),
        ("JPEG", directory(">", [(0x0112, 3, 1, 8)]), None),
        ("JPEG", directory("<", [(0x0112, 3, 1, 6)], offset=20, gap=12), None),
        ("JPEG", directory("<", [(0x0112, 4, 1, 6)]), None),
        ("JPEG", directory(">", [(0x0112, 4, 1, 3)]), None),
        ("JPEG", directory(">", MANY), None),
        ("JPEG", directory("<", [(0x0112, 3, 1, 6)]), "behind a profile"),
        ("PNG", directory("<", [(0x0112, 3, 1, 5)]), "behind a profile"),
        ("PNG", directory(">", [(0x0112, 3, 1, 7)]), "behind the pixels"),
        ("JPEG", directory("<", [(0x0112, 3, 1, 2), (0x0112, 3, 1, 6)]), None),
        ("JPEG", directory("<", [(0x0112, 3, 1, 9)]), None),
        ("JPEG", directory("<", [(0x0112, 7, 1, 6)]), None),
        ("JPEG", directory("<", [(0x0112, 3, 1, 6)], offset=60_000), None),
    ],
    ids=[
        *("little", "big", "behind a gap", "long", "big long", "the 18th", "jpeg profile", "png profile"),
        *("behind the pixels", "two", "9", "no number", "beyond the end"),
    ],
)
def test_orientations_are_those_that_pillow_reads(decode, format_name, data, place):
    file = encoded(format_name)
    if place == "behind a profile" and format_name == "JPEG":
        file, place = file[:2] + ICC + file[2:], 2 + len(ICC)
    elif place == "behind a profile":
        profile = chunk(b"iCCP", b"name\x00\x00" + np.random.default_rng(0).bytes(6_000))
        file, place = file[:33] + profile + file[33:], 33 + len(profile)
    elif place == "behind the pixels":
        place = len(file) - 12
    file = with_exif(file, data, place)
    found, expected = decode(file).numpy(), by_pillow(file)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found, expected)


def test_faults_of_files(tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "good").write_bytes(encoded("PNG"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "sparse").write_bytes(b"\xff\xd8\xff")
    os.truncate(tmp_path / "sparse", 3_000_000_000)
    for name, reason in {
        "loop": "unreadable: Too many levels of symbolic links",
        "dangling": "unreadable: No such file or directory",
        "": "a folder where an image was expected",
        "pipe": "not a regular file where an image was expected",
        "sparse": "a file of 3000000000 bytes; the limit is 300000000",
        "good": None,
    }.items():
        assert file_error(str(tmp_path / name)) == reason


def test_an_orientation_elsewhere_than_in_the_directory_is_none(decode):
    """The thumbnail's directory, and bytes that only look like the tag."""
    tag = b"\x12\x01\x03\x00\x01\x00\x00\x00\x06\x00\x00\x00"
    for tiff in (
        b"II*\x00\x08\x00\x00\x00\x00\x00" + bytes(5) + tag,
        b"II*\x00\x1a\x00\x00\x00\x01\x00" + tag,
        b"no tiff at all" + tag,
    ):
        file = encoded("JPEG")
        segment = b"Exif\x00\x00" + tiff
        file = file[:2] + b"\xff\xe1" + (len(segment) + 2).to_bytes(2, "big") + segment + file[2:]
        assert int(decoding.read_header(tf.constant(file))[3]) == 0
        assert decode(file).shape == (75, 101, 3)


WINDOWS = [(0.0, 0.0, 75.0, 101.0), (3.0, 5.0, 20.0, 24.0), (31.0, 40.0, 44.0, 61.0), (60.0, 90.0, 9.0, 7.0)]
FRACTIONAL = [(0.3, 2.7, 40.4, 40.4), (17.9, 33.2, 57.1, 66.6), (0.0, 0.0, 75.0, 75.0)]
CUT = ["jpeg", "jpeg 4:2:2", "progressive jpeg", "gray jpeg", "cmyk jpeg", "png", "jpeg turned 3"]


@pytest.mark.parametrize("kind", [*CUT, "jpeg with a tail"])
@pytest.mark.parametrize("size", [16, 40])
def test_a_decoded_window_is_the_window_of_the_decoded_image(decode, kind, size):
    whole = tf.constant(decode(KINDS[kind]))
    for windows, whole_pixels, bound in ((FRACTIONAL, False, 0.02), (WINDOWS, True, 2.0)):
        for window in windows:

            def choose(shape, window=window):
                assert shape.numpy().tolist() == [75, 101]
                return tf.constant(window)

            part = resized_crop(tf.constant(KINDS[kind]), choose, size, whole_pixels)
            expected = resized_crop(whole, choose, size, whole_pixels)
            assert part.shape == (size, size, 3)
            np.testing.assert_allclose(part, expected, atol=bound)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_window_is_chosen_in_the_upright_image(orientation):
    """With all chroma samples there, the pixels are the same ones."""
    file = encoded("JPEG", subsampling=0, exif=exif(orientation))
    upright = by_pillow(file)
    shapes = []

    def choose(shape):
        shapes.append(shape.numpy().tolist())
        return tf.constant((3.0, 5.0, 24.0, 24.0))

    part = resized_crop(tf.constant(file), choose, 24, True).numpy()
    np.testing.assert_array_equal(part, upright[3:27, 5:29])
    assert shapes == [list(upright.shape[:2])]


@pytest.mark.parametrize("orientation", [2, 5, 6, 7, 8])
def test_views_are_turned_instead_of_images(orientation, monkeypatch):
    """Transposing a large image takes longer than decoding it."""
    file = tf.constant(encoded("PNG", exif=exif(orientation)))
    upright = tf.constant(by_pillow(file.numpy()).astype("uint8"))
    turned, transpose = [], tf.transpose
    monkeypatch.setattr(
        tf, "transpose", lambda image, axes: turned.append(image.dtype) or transpose(image, axes)
    )
    box = tf.constant([4.5, 7.0, 31.0, 29.0])
    views = [resized_crop(file, lambda shape: box, 20, whole) for whole in (False, True)]
    expected = [resized_crop(upright, lambda shape: box, 20, whole) for whole in (False, True)]
    prepared = Preprocessing(24, 29, "bilinear", Normalization.identity(3))
    for protocol in PROTOCOLS.values():
        pixels, transposed = decoding.decode_mirrored(file)
        views += protocol.views(pixels, prepared, transposed)
        expected += protocol.views(upright, prepared)
    for view, other in zip(views, expected, strict=True):
        np.testing.assert_allclose(view, other, atol=1e-3)
    assert set(turned) == {tf.float32}


def test_a_truncated_file_is_refused_wherever_its_window_lies():
    file = encoded("JPEG", photo(200, 200))
    with pytest.raises(tf.errors.InvalidArgumentError):
        resized_crop(tf.constant(file[:-30]), lambda shape: tf.constant((0.0, 0.0, 20.0, 20.0)), 20, True)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(2, 50, 61, 3), (1, 20, 90, 1)])
def test_resizing_in_two_passes_has_the_bits_of_one(shape, interpolation):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    for resized, corner in (((24, 30), (0, 3)), ((90, 111), (40, 50))):
        once = tf.raw_ops.ScaleAndTranslate(
            images=images,
            size=[24, 24],
            scale=np.float32(resized) / np.float32(shape[1:3]),
            translation=-np.float32(corner),
            kernel_type={"bilinear": "triangle", "bicubic": "keyscubic"}[interpolation],
            antialias=True,
        )
        cut = ops.resize_and_crop(tf.constant(images), resized, corner, 24, interpolation)
        np.testing.assert_array_equal(cut, np.clip(once, 0, 255))


def test_quick_resizing_is_the_mean_of_the_area_or_bilinear():
    image = np.random.default_rng(1).integers(0, 256, (48, 72, 3), dtype=np.uint8)
    means = image.reshape(24, 2, 24, 3, 3).mean((1, 3))
    np.testing.assert_allclose(ops.resize_area(tf.constant(image), 24), means, atol=1e-3)
    expected = tf.image.resize(image, (60, 60))
    np.testing.assert_allclose(ops.resize_area(tf.constant(image), 60), expected, atol=1e-3)


@pytest.mark.parametrize("size", [4, 1])
def test_elements_that_fail_are_zeros_and_the_others_as_without_them(size):
    def double(number, name):
        with tf.control_dependencies([tf.debugging.Assert(number % 3 != 1, ["no"])]):
            return tf.fill([2], number * 2), name + b"!"

    data = (
        tf.data.Dataset.range(8).map(lambda n: (n, tf.strings.as_string(n))).batch(size, drop_remainder=True)
    )
    data = data.map(lambda *some: try_each(double, some))
    results = [((first, names), done) for (first, names), done in data.as_numpy_iterator()]
    first = np.concatenate([first for (first, _), _ in results])
    np.testing.assert_array_equal(first[:, 0], [0, 0, 4, 6, 0, 10, 12, 0])
    np.testing.assert_array_equal(first[:, 1], first[:, 0])
    names = np.concatenate([names for (_, names), _ in results])
    assert names.tolist() == [b"0!", b"", b"2!", b"3!", b"", b"5!", b"6!", b""]
    succeeded = np.concatenate([done for _, done in results])
    assert succeeded.tolist() == [number % 3 != 1 for number in range(8)]


def test_bad_images_are_counted_once_and_kept_in_a_file(tmp_path):
    bad, path = BadImages(), tmp_path / "bad_images.csv"
    for _ in range(2):
        bad.add("b, with a comma.jpg", "train", "empty")
        bad.add("a\udcff.jpg", "train", "truncated")
        bad.add("a\udcff.jpg", "val", "truncated")
    assert bad.count == 3
    bad.check(3)
    with pytest.raises(InputError, match=re.escape("3 images cannot be used, 2 are allowed")) as caught:
        bad.check(2)
    assert "\n" not in str(caught.value)
    bad.write(path)
    assert path.read_bytes().splitlines() == [
        b"path,split,reason",
        b"a\xff.jpg,train,truncated",
        b"a\xff.jpg,val,truncated",
        b'"b, with a comma.jpg",train,empty',
    ]
    assert [file.name for file in tmp_path.iterdir()] == ["bad_images.csv"]
    other = BadImages()
    other.add("c.jpg", "train", "empty")
    other.read(path)
    assert other.rows() == [*bad.rows(), ("c.jpg", "train", "empty")]
    other.read(tmp_path / "not there")
    path.write_text("something else\n")
    with pytest.raises(InputError, match="is not a list of bad images"):
        other.read(path)
    path.write_text("")
    with pytest.raises(InputError, match="cannot read"):
        other.read(path)


def test_the_inks_of_the_tests_differ():
    """Otherwise the tests above could not notice a missing inversion."""
    assert np.ptp(np.array(inks())[..., 3]) > 200
    assert Image.open(io.BytesIO(KINDS["cmyk jpeg without Adobe's segment"])).mode == "CMYK"
    assert b"Adobe" not in KINDS["cmyk jpeg without Adobe's segment"]
