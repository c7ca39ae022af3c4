"""RoIAlign and its gradient against ONNX Runtime's kernel."""

import numpy as np
import onnx
import pytest
import tensorflow as tf
from helpers.onnx_operators import run_operator

from keras_resnet.detection import roi_align as module
from keras_resnet.detection.roi_align import multilevel_roi_align, roi_align, roi_levels

STRIDE = 16


def reference(features, rois, output_size, stride=STRIDE):
    """ONNX Runtime's result for (batch, height, width, channels) and (batch, n, 4), in our layout."""
    batch, count = rois.shape[:2]
    inputs = {
        "features": np.moveaxis(features, -1, 1).copy(),
        "rois": rois.reshape(-1, 4),
        "images": np.repeat(np.arange(batch), count),
    }
    pooled = run_operator(
        "RoiAlign",
        inputs,
        onnx.TensorProto.FLOAT,
        output_height=output_size,
        output_width=output_size,
        sampling_ratio=2,
        spatial_scale=1 / stride,
        coordinate_transformation_mode="output_half_pixel",
    )
    return np.moveaxis(pooled, 1, -1).reshape(batch, count, output_size, output_size, -1)


def random_maps(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def random_rois(batch, count, height, width, seed=0):
    """Inside, over all borders, far outside, under one cell, empty, and the whole image; sides in pixels."""
    random = np.random.default_rng(seed)
    limits = np.array([width, height])
    corner = random.uniform(-0.2, 1.0, (batch, count, 2)) * limits
    rois = np.concatenate([corner, corner + random.uniform(0, 0.6, (batch, count, 2)) * limits], -1)
    rois[:, ::5, 2:] = rois[:, ::5, :2] + random.uniform(0, STRIDE, (batch, len(rois[0, ::5]), 2))
    rois[:, 1::20, :2] = limits - random.uniform(0, STRIDE, (batch, len(rois[0, 1::20]), 2))
    rois[:, 1::20, 2:] = limits
    rois[:, 2::20, 2:] = rois[:, 2::20, :2]
    rois[:, 3] = [3 * width, 3 * height, 4 * width, 4 * height]
    rois[:, 4] = [0, 0, width, height]
    return rois.astype("float32")


@pytest.mark.parametrize("output_size", [7, 14])
def test_400_regions(output_size):
    features = np.random.default_rng(0).random((2, 25, 34, 8), "float32")
    rois = random_rois(2, 200, 25 * STRIDE, 34 * STRIDE)
    expected = reference(features, rois, output_size)
    found = tf.function(roi_align)(features, rois, output_size, STRIDE)
    assert found.shape == (2, 200, output_size, output_size, 8)
    assert np.abs(found - expected).max() <= 1e-5
    outside = (expected == 0).all((2, 3, 4))
    assert 2 <= outside.sum() < 100  # zeros where all samples are outside, and not everywhere


def jacobian(shape, rois, output_size):
    """The pooled map of each cell: ONNX Runtime's pooling of maps that are 1 in one cell and 0 elsewhere."""
    cells = shape[1] * shape[2]
    maps = np.eye(cells, dtype="float32").reshape(cells, *shape[1:3], 1)
    return reference(maps, np.repeat(rois[None], cells, 0), output_size)


@pytest.mark.parametrize("chunk", [1, 200, 2**22], ids=["one region", "several chunks", "one chunk"])
@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_gradient(monkeypatch, graph, chunk):
    monkeypatch.setattr(module, "_CHUNK", chunk)
    shape, rois = (2, 5, 6, 3), random_rois(2, 21, 5 * STRIDE, 6 * STRIDE)
    upstream = random_maps(2, 21, 2, 2, 3, seed=1)

    def gradient(features):
        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = tf.reduce_sum(roi_align(features, rois, 2, STRIDE) * upstream)
        return tape.gradient(loss, features)

    found = (tf.function(gradient) if graph else gradient)(tf.constant(random_maps(*shape)))
    for image in range(2):
        shares = jacobian(shape, rois[image], 2)[..., 0]  # (cells, n, 2, 2)
        expected = np.einsum("cnij,nijk->ck", shares, upstream[image]).reshape(5, 6, 3)
        np.testing.assert_allclose(found[image], expected, atol=1e-5)


def test_gradient_has_the_same_bytes_each_time():
    """`crop_and_resize`'s own gradient of such regions may differ from call to call."""
    features, rois = tf.constant(random_maps(1, 40, 40, 32)), random_rois(1, 256, 640, 640)
    upstream = random_maps(1, 256, 7, 7, 32, seed=1)

    @tf.function
    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = tf.reduce_sum(roi_align(features, rois, 7, STRIDE) * upstream)
        return tape.gradient(loss, features)

    assert len({gradient().numpy().tobytes() for _ in range(5)}) == 1


def test_no_gradient_passes_through_the_regions():
    features, rois = tf.constant(random_maps(1, 5, 6, 3)), tf.constant(random_rois(1, 8, 80, 96))
    with tf.GradientTape() as tape:
        tape.watch([features, rois])
        loss = tf.reduce_sum(roi_align(features, rois, 2, STRIDE))
    assert tape.gradient(loss, [features, rois])[1] is None


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_regions_are_float32_whatever_the_features(dtype):
    """Corners around 1,333 are whole pixels in float16."""
    features = tf.cast(random_maps(1, 4, 90, 3), dtype)
    rois = np.array([[[1322.3, 10.3, 1375.7, 50.9], [1400.1, 3.3, 1433.3, 60.1]]], "float32")
    with tf.GradientTape() as tape:
        tape.watch(features)
        found = roi_align(features, rois, 7, STRIDE)
    assert found.dtype == tape.gradient(found, features).dtype == dtype
    expected = reference(tf.cast(features, "float32").numpy(), rois, 7)
    half_a_unit = 2**-11 if dtype == "float16" else 2**-8
    np.testing.assert_allclose(tf.cast(found, "float32"), expected, rtol=half_a_unit, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1])
@pytest.mark.parametrize("levels", [1, 4])
def test_none_and_one_region(count, levels):
    maps = [tf.constant(random_maps(2, 16 // 2**i, 16 // 2**i, 3)) for i in range(levels)]
    rois = np.tile(np.array([[[8, 8, 24, 24]]], "float32"), [2, count, 1])

    @tf.function
    def run():
        with tf.GradientTape() as tape:
            tape.watch(maps)
            pooled = multilevel_roi_align(maps, rois, 2, [4, 8, 16, 32][:levels])
        return pooled, tape.gradient(pooled, maps)

    pooled, gradients = run()
    assert pooled.shape == (2, count, 2, 2, 3)
    np.testing.assert_allclose(pooled, reference(maps[0].numpy(), rois, 2, 4) if count else pooled, atol=1e-5)
    assert [bool(gradient.numpy().any()) for gradient in gradients] == [bool(count)] + [False] * (levels - 1)


def test_levels_at_their_borders():
    """FPN, equation 1: a region of 224 pixels belongs to P4; torchvision's tolerance is 1e-6 of a level."""
    sides = np.array([112, 224, 448], "float32")
    for factor, expected in [(1 - 1e-6, [2, 3, 4]), (1.0, [3, 4, 5]), (1 + 1e-6, [3, 4, 5])]:
        scaled = (sides * factor).astype("float32")
        rois = np.stack([0 * scaled, 0 * scaled, scaled, scaled], 1)
        assert roi_levels(rois).numpy().tolist() == expected
    tall = np.array([[10, 10, 10 + 56, 10 + 896], [0, 0, 1, 1], [0, 0, 5000, 5000], [5, 5, 5, 9]], "float32")
    assert roi_levels(tall).numpy().tolist() == [4, 2, 5, 2]


def test_each_region_is_pooled_from_its_level():
    strides = [4, 8, 16, 32]
    maps = [random_maps(2, 512 // stride, 640 // stride, 4, seed=stride) for stride in strides]
    rois = np.tile(random_rois(2, 50, 512, 640), [1, 2, 1])
    rois[:, 50:, 2:] = rois[:, 50:, :2] + 0.3 * (rois[:, 50:, 2:] - rois[:, 50:, :2])  # smaller ones
    levels = roi_levels(rois).numpy()
    assert set(levels.ravel()) == {2, 3, 4, 5}
    found = tf.function(multilevel_roi_align)(maps, rois, 7, strides)
    for level in range(4):
        expected = reference(maps[level], rois, 7, strides[level])
        own = levels == level + 2
        np.testing.assert_allclose(found.numpy()[own], expected[own], atol=1e-4)


def test_gradient_of_a_pyramid():
    """Each map's gradient is that of its own regions alone."""
    maps = [tf.constant(random_maps(2, 40, 40, 3)), tf.constant(random_maps(2, 20, 20, 3))]
    rois = random_rois(2, 30, 160, 160)
    rois[:, ::3] = [0, 0, 130, 130]
    upstream = random_maps(2, 30, 2, 2, 3, seed=1)
    with tf.GradientTape() as tape:
        tape.watch(maps)
        loss = tf.reduce_sum(multilevel_roi_align(maps, rois, 2, [4, 8]) * upstream)
    found = tape.gradient(loss, maps)
    levels = roi_levels(rois, 2, 3).numpy()
    for level, (features, stride) in enumerate(zip(maps, [4, 8], strict=True)):
        own = (levels == level + 2)[..., None, None, None]
        with tf.GradientTape() as tape:
            tape.watch(features)
            loss = tf.reduce_sum(roi_align(features, rois, 2, stride) * upstream * own)
        assert own.any()
        np.testing.assert_allclose(found[level], tape.gradient(loss, features), atol=1e-5)


def test_as_many_strides_as_maps():
    with pytest.raises(ValueError, match="longer"):
        multilevel_roi_align([tf.zeros([1, 4, 4, 1])], tf.zeros([1, 1, 4]), 2, [4, 8])
