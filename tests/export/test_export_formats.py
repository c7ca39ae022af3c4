"""Every format equals the Keras model on real photos and has the right signature."""

import keras
import numpy as np
import pytest
from helpers.export_networks import (
    LATER_ODD,
    NARROW,
    PER_PIXEL,
    SMALL,
    SMALL_CIFAR,
    photo_batches,
    randomize,
    serving,
    spec_of,
)

from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import ARTIFACTS, FORMATS, Options
from keras_resnet.export.images import random_crops
from keras_resnet.export.pipeline import write_artifact
from keras_resnet.export.runtimes import open_artifact
from keras_resnet.export.serving import network_for_export, serving_model
from keras_resnet.export.verification import verify
from keras_resnet.weights import save_weights

SMALL_NETWORKS = {
    "basic A": ("resnet18", {**SMALL, "shortcut": "A"}, 48),
    "basic B": ("resnet18", SMALL, 48),
    "bottleneck v1": ("resnet50", SMALL, 48),
    "bottleneck v1.5": ("resnet50_v1_5", SMALL, 48),
    "plain": ("plain18", SMALL, 48),
    "without batch normalization": ("cifar_resnet20", {**SMALL_CIFAR, "batch_norm": False}, None),
    **LATER_ODD,
}
# Each SavedModel is opened in a process of its own, which takes seconds.
FILES = tuple(name for name in ARTIFACTS if not name.startswith("saved_model"))
LABELS = tuple(f"class {index}" for index in range(10))


def write_all(model, folder, options, names=FORMATS):
    return {name: write_artifact(name, model, folder / ARTIFACTS[name].file_name, options) for name in names}


def check_parity(spec, folder):
    model = serving(spec)
    options = Options(labels=LABELS if spec.classes == 10 else ())
    artifacts = write_all(model, folder, options)
    report = verify(model, artifacts, photo_batches(spec), options)
    assert report.images == 8
    assert list(report.formats) == list(FORMATS)
    for name, entry in report.formats.items():
        assert entry.problems == (), name
        assert entry.equal, name
        assert entry.max_relative_difference <= 1e-5, name
        assert entry.top1_agreement == 1, name
        assert entry.top1 == report.top1, name
    return report


def test_a_small_network_is_equal(tmp_path):
    """The one with most operators. TFLite and ONNX have tests of all; SavedModels are TFLite's source."""
    model, overrides, size = SMALL_NETWORKS["basic A"]
    check_parity(spec_of(model, overrides, size, classes=10), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("network", [name for name in SMALL_NETWORKS if name != "basic A"])
def test_the_saved_model_of_a_small_network_is_equal(network, tmp_path):
    model, overrides, size = SMALL_NETWORKS[network]
    spec = spec_of(model, overrides, size, classes=10)
    artifacts = write_all(serving(spec), tmp_path, Options(), ["saved_model"])
    assert verify(serving(spec), artifacts, photo_batches(spec)).equal


@pytest.mark.slow
def test_grouped_convolutions_run_without_onednn(tmp_path, monkeypatch):
    """TensorFlow uses oneDNN by default only on CPUs with AVX-512 VNNI and newer instructions."""
    monkeypatch.setenv("TF_ENABLE_ONEDNN_OPTS", "0")  # for the process that opens the file
    model, overrides, size = SMALL_NETWORKS["grouped"]
    spec = spec_of(model, overrides, size, classes=10)
    network = serving(spec)
    artifacts = write_all(network, tmp_path, Options(), ["saved_model"])
    assert verify(network, artifacts, photo_batches(spec)).equal


@pytest.mark.slow
def test_a_full_network_in_every_variant(tmp_path):
    check_every_variant(spec_of("resnet18"), tmp_path)


def check_every_variant(spec, folder, model=None, names=tuple(ARTIFACTS)):
    model = model or serving(spec)
    options = Options(calibration=[random_crops(*spec.input_shape, 32)])
    artifacts = write_all(model, folder, options, names)
    report = verify(model, artifacts, photo_batches(spec), options)
    assert set(report.formats) == set(names)
    for name, entry in report.formats.items():
        assert entry.problems == (), name
        assert entry.equal, (name, entry)
        assert entry.tolerance == ARTIFACTS[name].tolerance, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides", "size"),
    [
        ("wide_resnet50_2", NARROW, 45),
        ("resnet50_v2", {**NARROW, "shortcut": None}, 45),
        ("resnet50_v2", {**NARROW, "stem": "cifar", "shortcut": "A"}, 33),
        ("resnet50_v2", {**NARROW, "stem": "deep", "shortcut": "C"}, 45),
        ("resnet18d", {}, 97),
    ],
)
def test_unusual_networks_in_every_precision(name, overrides, size, tmp_path):
    spec = spec_of(name, overrides, size, classes=10)
    # Moderate logits, as trained ones are.
    check_every_variant(spec, tmp_path, serving(spec, scale=0.5), FILES)


@pytest.mark.slow
def test_grouped_convolutions_in_a_saved_model(tmp_path):
    spec = spec_of(*LATER_ODD["grouped"], classes=10)
    names = ("saved_model", "saved_model_bfloat16")
    check_every_variant(spec, tmp_path, serving(spec, scale=0.5), names)


@pytest.mark.slow
def test_a_dilated_network(tmp_path):
    """ResNet-D with an output stride: average pooling in the shortcut has stride 1 and needs padding."""
    spec = spec_of("resnet50d", NARROW, 49, classes=10)
    with_stride = serving(spec)
    network = spec.build(output_stride=4)
    network.set_weights(with_stride.get_layer(spec.model).get_weights())
    assert network.get_layer("conv3_block1_0_pool").strides == (1, 1)
    names = ("tflite", "onnx", "onnx_int8")
    check_every_variant(spec, tmp_path, serving_model(network, spec.normalization), names)


def test_weights_of_a_training_in_mixed_precision(tmp_path):
    """Variables are float32 or float16; the artifacts compute in float32."""
    for policy in ("mixed_bfloat16", "mixed_float16", "float16"):
        spec = spec_of("resnet18", SMALL, 48, classes=10)
        before = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            save_weights(randomize(spec.build()), tmp_path / "model.weights.h5", spec)
        finally:
            keras.config.set_dtype_policy(before)
        network = network_for_export(spec, str(tmp_path / "model.weights.h5"))
        assert {variable.dtype for variable in network.variables} == {"float32"}
        model = serving_model(network, spec.normalization)
        check_every_variant(spec, tmp_path / policy, model, ("onnx", "onnx_float16"))


@pytest.mark.slow
def test_the_deepest_network_is_equal(tmp_path):
    """Only as a SavedModel: the converters take minutes for each of the other formats."""
    spec = spec_of("cifar_resnet1202")
    model = serving(spec, scale=0.05)  # 600 blocks would double their input's variance to infinity
    path = write_artifact("saved_model", model, tmp_path / "saved_model", Options())
    report = verify(model, {"saved_model": path}, photo_batches(spec))
    assert report.equal, report


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    """Spec, serving model, artifacts and report of cifar_resnet20 with a per-pixel mean."""
    folder = tmp_path_factory.mktemp("cifar")
    spec = spec_of("cifar_resnet20", SMALL_CIFAR, normalization=PER_PIXEL)
    report = check_parity(spec, folder)
    artifacts = {name: folder / ARTIFACTS[name].file_name for name in FORMATS}
    artifacts["saved_model"] /= "1"
    return spec, serving(spec), artifacts, report


def test_the_report_describes_the_files(cifar):
    _, _, artifacts, report = cifar
    for name in ("tflite", "onnx"):
        assert report.formats[name].bytes == artifacts[name].stat().st_size
    assert len({entry.sha256 for entry in report.formats.values()}) == 3


@pytest.mark.parametrize("name", ["tflite", "onnx"])
@pytest.mark.parametrize("batch", [1, 7])
def test_names_and_dynamic_batch(cifar, name, batch):
    spec, _, artifacts, _ = cifar
    images = np.random.default_rng(0).uniform(0, 255, (batch, *spec.input_shape)).astype("float32")
    with open_artifact(name, artifacts[name]) as artifact:
        assert artifact.inputs == {"images": ("float32", (None, 32, 32, 3))}
        assert artifact.outputs == {
            "logits": ("float32", (None, 10)),
            "probabilities": ("float32", (None, 10)),
        }
        results = artifact.run(images)
    assert {key: value.shape for key, value in results.items()} == {
        "logits": (batch, 10),
        "probabilities": (batch, 10),
    }
    np.testing.assert_allclose(results["probabilities"].sum(-1), 1, rtol=1e-5)


def test_onnx_header(cifar):
    import onnx

    proto = onnx.load(cifar[2]["onnx"])
    onnx.checker.check_model(proto, full_check=True)
    assert {entry.domain: entry.version for entry in proto.opset_import}[""] == 17
    assert proto.producer_name == "keras_resnet"
    assert proto.producer_version
    for tensor in (*proto.graph.input, *proto.graph.output):
        assert tensor.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert {entry.key: entry.value for entry in proto.metadata_props}["license"] == "Apache-2.0"


def test_onnx_holds_no_variables_as_inputs(cifar):
    import onnx

    proto = onnx.load(cifar[2]["onnx"])
    assert [tensor.name for tensor in proto.graph.input] == ["images"]
    operators = {node.op_type for node in proto.graph.node}
    assert "BatchNormalization" not in operators  # folded into the convolutions


def test_a_damaged_file_is_one_clear_line(cifar, tmp_path):
    _, model, artifacts, _ = cifar
    for name in ("tflite", "onnx"):
        broken = tmp_path / artifacts[name].name
        broken.write_bytes(artifacts[name].read_bytes()[:5000])
        with pytest.raises(InputError, match="cannot be opened by") as caught:
            verify(model, {name: broken}, [])
        assert "\n" not in str(caught.value)
        with pytest.raises(InputError, match="there is no"):
            verify(model, {name: tmp_path / "missing"}, [])


def test_a_damaged_saved_model_is_one_clear_line(cifar, tmp_path):
    import shutil

    _, model, artifacts, _ = cifar
    broken = tmp_path / "saved_model"
    shutil.copytree(artifacts["saved_model"], broken)
    graph = broken / "saved_model.pb"
    graph.write_bytes(graph.read_bytes()[:-5000])
    with pytest.raises(InputError, match="cannot be opened by TensorFlow") as caught:
        verify(model, {"saved_model": broken}, [])
    assert "\n" not in str(caught.value)
