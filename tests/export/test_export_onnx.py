"""ONNX files compute what the Keras model computes, in every layout, opset, precision and size."""

import collections
import logging
import os
import tempfile

import keras
import numpy as np
import pytest
from helpers.export_networks import LATER_ODD, PER_PIXEL, SMALL_CIFAR, photo_batches, serving, spec_of
from test_export_formats import SMALL_NETWORKS

from keras_resnet import __version__
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import LEAST_CALIBRATION_IMAGES, NEWEST_OPSET, OLDEST_OPSET, OPSET
from keras_resnet.export.serving import serving_function
from keras_resnet.export.writers.onnx import to_onnx
from keras_resnet.quiet import quiet

NETWORKS = {**SMALL_NETWORKS, "cifar, per pixel": ("cifar_resnet20", SMALL_CIFAR, None)}
NHWC_TO_NCHW = (0, 3, 1, 2)


@pytest.fixture(scope="module")
def network():
    """Gives (spec, serving model, photos, the model's outputs for them), each built once."""
    built = {}

    def give(name):
        if name not in built:
            row, overrides, size = NETWORKS[name]
            normalization = PER_PIXEL if "per pixel" in name else None
            spec = spec_of(row, overrides, size, normalization, classes=10)
            model = serving(spec)
            images = photos(spec)
            built[name] = spec, model, images, reference(model, images)
        return built[name]

    return give


def photos(spec):
    return np.concatenate([images for images, _ in photo_batches(spec)]).astype("float32")


def calibration(images, count=LEAST_CALIBRATION_IMAGES):
    """The photos and dimmer ones, in batches of unequal size."""
    factors = np.linspace(1, 0.5, -(-count // len(images)))
    several = np.concatenate([images * factor for factor in factors])[:count].astype("float32")
    return [several[:5], several[5:]]


def reference(model, images):
    return {name: np.asarray(value) for name, value in model(images, training=False).items()}


def run(path, images):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    assert names == ["logits", "probabilities"]
    return dict(zip(names, session.run(names, {"images": images}), strict=True))


def error(results, expected, name="logits"):
    """The largest difference relative to the largest number."""
    assert results[name].dtype == np.float32
    assert results[name].shape == expected[name].shape
    return np.abs(results[name] - expected[name]).max() / np.abs(expected[name]).max()


def check_equal(results, expected, tolerance=1e-5):
    for name in ("logits", "probabilities"):
        assert error(results, expected, name) <= tolerance, name


def operators(path):
    import onnx

    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def axes(tensor):
    shape = tensor.type.tensor_type.shape
    return tuple(dim.dim_param or dim.dim_value for dim in shape.dim)


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-5),
        ({"layout": "nchw", "opset": OLDEST_OPSET}, 1e-5),
        ({"dynamic_size": True, "io_dtype": "uint8"}, 1e-5),
        ({"precision": "float16"}, 0.01),
        ({"precision": "int8"}, 0.1),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["bottleneck v1", *LATER_ODD])
def test_openvino_reads_it(network, name, options, tolerance, tmp_path):
    import openvino

    _, model, images, _ = network(name)
    images = np.rint(images)
    path = to_onnx(model, tmp_path / "model.onnx", calibration=calibration(images), **options)
    compiled = openvino.Core().compile_model(str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    fed = images.transpose(NHWC_TO_NCHW) if options.get("layout") == "nchw" else images
    results = compiled(fed.astype(options.get("io_dtype", "float32")))
    results = {name: results[compiled.output(name)] for name in ("logits", "probabilities")}
    assert error(results, reference(model, images)) <= tolerance


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
@pytest.mark.parametrize("name", NETWORKS)
def test_it_equals_the_keras_model(network, name, layout, tmp_path):
    _, model, images, expected = network(name)
    path = to_onnx(model, tmp_path / "model.onnx", layout=layout)
    fed = images if layout == "nhwc" else images.transpose(NHWC_TO_NCHW)
    check_equal(run(path, fed), expected)
    check_equal(run(path, fed[:1]), {key: value[:1] for key, value in expected.items()})
    found = operators(path)
    assert found["Transpose"] == (layout == "nhwc")
    assert found["Softmax"] == 1
    assert not found.keys() & {"BatchNormalization", "Identity", "Cast", "Reshape", "ReduceMean"}


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 18, 21, NEWEST_OPSET])
@pytest.mark.parametrize("precision", ["float32", "float16", "int8"])
def test_opsets(network, precision, opset, tmp_path):
    import onnx

    # Option A subsamples and pads channels, so it has the most operators.
    _, model, images, expected = network("basic A")
    path = to_onnx(
        model, tmp_path / "model.onnx", precision=precision, opset=opset, calibration=calibration(images)
    )
    proto = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in proto.opset_import] == [("", opset)]
    assert proto.ir_version == onnx.helper.find_min_ir_version_for(proto.opset_import)
    assert error(run(path, images), expected) <= {"float32": 1e-5, "float16": 0.01, "int8": 0.05}[precision]


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_bytes_as_input(network, layout, tmp_path):
    import onnx

    _, model, images, _ = network("basic B")
    images = np.rint(images).astype("uint8")
    path = to_onnx(model, tmp_path / "model.onnx", layout=layout, io_dtype="uint8")
    (tensor,) = onnx.load(path).graph.input
    assert tensor.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    fed = images if layout == "nhwc" else images.transpose(NHWC_TO_NCHW)
    check_equal(run(path, fed), reference(model, images.astype("float32")))


@pytest.mark.parametrize("layout", ["nhwc", pytest.param("nchw", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["bottleneck v1.5", "D", "preactivation"])
def test_images_of_any_size(network, name, layout, tmp_path):
    import onnx

    _, model, images, expected = network(name)
    path = to_onnx(model, tmp_path / "model.onnx", layout=layout, dynamic_size=True)
    names = ("batch", "height", "width", 3) if layout == "nhwc" else ("batch", 3, "height", "width")
    proto = onnx.load(path)
    assert [axes(tensor) for tensor in proto.graph.input] == [names]
    assert [axes(tensor) for tensor in proto.graph.output] == [("batch", 10)] * 2

    pairs = [(images, expected)]
    for size in (66, 71):
        other_spec = spec_of(*NETWORKS[name][:2], size, classes=10)
        other = serving(other_spec)
        other.set_weights(model.get_weights())
        larger = photos(other_spec)
        pairs.append((larger, reference(other, larger)))
    for fed, results in pairs:
        fed = fed if layout == "nhwc" else fed.transpose(NHWC_TO_NCHW)
        check_equal(run(path, fed), results)


@pytest.mark.parametrize("precision", ["float16", "int8"])
@pytest.mark.parametrize("name", LATER_ODD)
def test_later_families_in_less_precision(network, name, precision, tmp_path):
    """With images of any size, channels first, and with the runtime's optimizations on and off."""
    import onnxruntime

    _, model, images, expected = network(name)
    path = to_onnx(
        model,
        tmp_path / "model.onnx",
        precision=precision,
        layout="nchw",
        dynamic_size=True,
        calibration=calibration(images),
    )
    fed = images.transpose(NHWC_TO_NCHW)
    bound = {"float16": 0.01, "int8": 0.1}[precision]
    assert error(run(path, fed), expected) <= bound
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"images": fed})
    assert error({"logits": logits}, expected) <= bound


def test_every_kind_of_operation(tmp_path, early_progress, capfd):
    """Covers operations that no network of the zoo needs, too."""
    layers = keras.layers
    x = images = keras.Input((24, 20, 3), name="images")
    x = layers.Rescaling([0.01, 0.02, 0.03], [-1.0, 0.5, 0.25], name="normalization")(x)
    x = layers.Conv2D(12, (3, 5), groups=3, dilation_rate=(2, 1), padding="same", activation="relu")(x)
    x = layers.MaxPooling2D((2, 1), (2, 3), name="logits")(layers.ZeroPadding2D(((1, 2), (0, 3)))(x))
    x = layers.BatchNormalization(name="behind_the_pool")(x)  # folded into nothing
    x = layers.ZeroPadding2D(((0, 1), (2, 0)))(x)
    x = layers.Activation("relu")(x)
    x = layers.AveragePooling2D((2, 3), (1, 2))(x)
    x = layers.AveragePooling2D((2, 3), (2, 2), padding="same")(x)
    x = layers.Add()([x, layers.Conv2D(12, 1, use_bias=False)(x)])
    x = layers.Dropout(0.5)(layers.GlobalAveragePooling2D()(x))
    x = layers.BatchNormalization(name="of_features")(x)
    x = layers.Dense(7, name="images_")(x)
    outputs = {"logits": x, "probabilities": layers.Softmax()(x)}
    model = keras.Model(images, outputs, name="every_kind")
    random = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, layers.BatchNormalization):
            layer.set_weights([random.uniform(0.5, 1.5, w.shape) for w in layer.get_weights()])
    pixels = random.uniform(0, 255, (5, 24, 20, 3)).astype("float32")
    expected = reference(model, pixels)

    path = to_onnx(model, tmp_path / "model.onnx")
    check_equal(run(path, pixels), expected)
    found = operators(path)
    assert found["Pad"] == 2  # the one before the maximum is wider than the window
    assert found["Transpose"] == 1
    assert error(run(to_onnx(model, path, precision="float16"), pixels), expected) <= 0.01
    batches = [random.uniform(0, 255, (40, 24, 20, 3))]
    to_onnx(model, path, precision="int8", calibration=batches)
    assert "int8 calibration: 1 of 5 batches, " in capfd.readouterr().err
    assert error(run(path, pixels), expected) <= 0.05


def test_it_equals_another_converter(network, tmp_path):
    """tf2onnx reads Keras' own graph, with batch normalization in it, and shares no code with ours."""
    import tensorflow as tf

    _, model, images, _ = network("bottleneck v1")
    with quiet():
        import tf2onnx

        signature = [tf.TensorSpec(model.input_shape, tf.float32, name="images")]
        proto, _ = tf2onnx.convert.from_function(
            serving_function(model), input_signature=signature, opset=OPSET
        )
    theirs = tmp_path / "theirs.onnx"
    theirs.write_bytes(proto.SerializeToString())
    check_equal(run(to_onnx(model, tmp_path / "ours.onnx"), images), run(theirs, images))


def test_half_precision(network, tmp_path):
    import onnx

    _, model, images, expected = network("bottleneck v1")
    full = to_onnx(model, tmp_path / "float32.onnx")
    half = to_onnx(model, tmp_path / "float16.onnx", precision="float16")
    check_equal(run(half, images), expected, 0.01)
    assert error(run(half, images), expected) > 1e-5  # float16 was used
    assert half.stat().st_size < 0.52 * full.stat().st_size
    types = {tensor.name: tensor.data_type for tensor in onnx.load(half).graph.initializer}
    assert types["conv1_conv/kernel"] == types["conv1_conv/bias"] == onnx.TensorProto.FLOAT16
    assert types["predictions/kernel"] == types["normalization/scale"] == onnx.TensorProto.FLOAT
    assert operators(half)["Cast"] == 2  # behind the normalization, and before the mean


def test_weights_too_large_for_half_precision(tmp_path):
    spec = spec_of("cifar_resnet20", SMALL_CIFAR)
    model = serving(spec, scale=1e8)
    with pytest.raises(InputError, match=r"conv1_conv/\w+ holds numbers up to .*, too large for float16"):
        to_onnx(model, tmp_path / "model.onnx", precision="float16")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["basic A", "bottleneck v1", "cifar, per pixel", *LATER_ODD])
def test_eight_bits(network, name, tmp_path):
    import onnx

    _, model, images, expected = network(name)
    full = to_onnx(model, tmp_path / "float32.onnx")
    path = to_onnx(model, tmp_path / "int8.onnx", precision="int8", calibration=calibration(images))
    results = run(path, images)
    assert error(results, expected) <= 0.1
    sure = np.sort(expected["logits"])[:, -1] - np.sort(expected["logits"])[:, -2] > 0.1 * np.ptp(
        expected["logits"]
    )
    np.testing.assert_array_equal(results["logits"].argmax(-1)[sure], expected["logits"].argmax(-1)[sure])
    np.testing.assert_allclose(results["probabilities"].sum(-1), 1, rtol=1e-5)

    proto = onnx.load(path)
    types = {tensor.name: tensor.data_type for tensor in proto.graph.initializer}
    convolutions = [node for node in proto.graph.node if node.op_type == "Conv"]
    producers = {output: node for node in proto.graph.node for output in node.output}
    for node in convolutions:
        kernel = producers[node.input[1]]
        assert kernel.op_type == "DequantizeLinear"
        assert types[kernel.input[0]] == onnx.TensorProto.INT8
        (scales,) = [t for t in proto.graph.initializer if t.name == kernel.input[1]]
        assert len(scales.dims) == 1  # a scale per channel
        assert producers[node.input[0]].op_type == "DequantizeLinear"
    found = operators(path)
    assert found["Conv"] == operators(full)["Conv"]
    assert found["QuantizeLinear"] >= found["Conv"]
    # The unsigned range cuts below zero, but behind a normalization of its own, which stays float32.
    assert found["Relu"] == found["Mul"] - 1
    kernels = sum(np.prod(weight.shape) for weight in model.trainable_weights if len(weight.shape) > 1)
    overhead = path.stat().st_size - kernels
    assert overhead < 0.15 * full.stat().st_size + 30_000  # biases, scales and the graph
    onnx.checker.check_model(proto, full_check=True)


@pytest.mark.parametrize("layout", ["nhwc", "nchw"])
def test_eight_bits_from_bytes_of_any_size(network, layout, tmp_path):
    _, model, images, _ = network("basic B")
    images = np.rint(images)
    path = to_onnx(
        model,
        tmp_path / "model.onnx",
        precision="int8",
        layout=layout,
        io_dtype="uint8",
        dynamic_size=True,
        calibration=iter(calibration(images)),
    )
    fed = images if layout == "nhwc" else images.transpose(NHWC_TO_NCHW)
    assert error(run(path, fed.astype("uint8")), reference(model, images)) <= 0.05
    assert operators(path)["Transpose"] == (layout == "nhwc")
    larger = np.zeros((2, 71, 64, 3) if layout == "nhwc" else (2, 3, 71, 64), "uint8")
    assert run(path, larger)["logits"].shape == (2, 10)


def test_quantizing_leaves_nothing_behind(network, tmp_path, capfd, monkeypatch):
    _, model, images, _ = network("basic B")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    handlers = list(logging.getLogger().handlers)
    to_onnx(model, tmp_path / "model.onnx", precision="int8", calibration=calibration(images))
    assert sorted(os.listdir(tmp_path)) == ["elsewhere", "model.onnx"]
    assert os.listdir(elsewhere) == []
    assert tempfile.tempdir == str(elsewhere)
    assert logging.getLogger().handlers == handlers
    assert capfd.readouterr() == ("", "")


def test_header(network, tmp_path):
    import onnx

    _, model, images, _ = network("basic B")
    metadata = {"labels": '["cat", "dog"]', "license": "MIT"}
    for precision in ("float32", "int8"):
        path = to_onnx(
            model, tmp_path / precision, metadata, precision=precision, calibration=calibration(images)
        )
        proto = onnx.load(path)
        assert (proto.producer_name, proto.producer_version) == ("keras_resnet", __version__)
        assert (proto.graph.name, proto.graph.doc_string) == (model.name, "")
        assert {entry.key: entry.value for entry in proto.metadata_props} == metadata
        assert [axes(tensor) for tensor in proto.graph.input] == [("batch", 48, 48, 3)]
        assert [axes(tensor) for tensor in proto.graph.output] == [("batch", 10)] * 2
        assert {"conv1_conv", "predictions", "probabilities"} <= {node.name for node in proto.graph.node}
        to_onnx(model, path)  # one of ours may be replaced
        assert {entry.key for entry in onnx.load(path).metadata_props} == {"license"}


def test_two_exports_write_the_same_bytes(network, tmp_path):
    _, model, images, _ = network("basic A")
    for precision in ("float32", "int8"):
        first, second = (
            to_onnx(model, tmp_path / name, precision=precision, calibration=calibration(images)).read_bytes()
            for name in ("first", "second")
        )
        assert first == second, precision


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "bfloat16"}, "unknown precision 'bfloat16'; did you mean float16"),
        ({"layout": "hwcn"}, "unknown layout 'hwcn'"),
        ({"io_dtype": "uint16"}, "unknown io_dtype 'uint16'; did you mean uint8"),
        ({"opset": OLDEST_OPSET - 1}, f"with opset {OLDEST_OPSET} to [0-9]+; got {OLDEST_OPSET - 1}"),
        ({"opset": NEWEST_OPSET + 1}, f"; got {NEWEST_OPSET + 1}"),
        ({"precision": "int8"}, "int8 needs at least 32 calibration images; got 0"),
        ({"precision": "int8", "calibration": [np.zeros((5, 32, 32, 3))]}, "images; got 5"),
        (
            {"precision": "int8", "calibration": [np.zeros((40, 3, 32, 32))]},
            r"calibration batches must be \(n, 32, 32, 3\); got \(40, 3, 32, 32\)",
        ),
        ({"precision": "int8", "calibration": [np.zeros((32, 32, 3))]}, r"got \(32, 32, 3\)"),
        ({"dynamic_size": True}, r"dynamic_size needs a normalization per channel; layer 'normalization'"),
    ],
)
def test_unsupported_options(network, options, message, tmp_path):
    model = network("cifar, per pixel")[1]
    with pytest.raises(InputError, match=message) as caught:
        to_onnx(model, tmp_path / "model.onnx", **options)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_a_file_of_another_program_stays(network, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x07\x12\x07pytorch")
    with pytest.raises(InputError, match="was not written by an export"):
        to_onnx(network("basic B")[1], path)
    assert path.read_bytes() == b"\x08\x07\x12\x07pytorch"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_a_full_disk_is_one_clear_line(network, precision, tmp_path, monkeypatch):
    import pathlib

    _, model, images, _ = network("basic B")

    def refuse(self, content):
        with open("/dev/full", "wb", buffering=0) as full:
            full.write(content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", refuse)
    with pytest.raises(InputError, match=r"cannot write .*No space left"):
        to_onnx(model, tmp_path / "model.onnx", precision=precision, calibration=calibration(images))
    assert os.listdir(tmp_path) == []
