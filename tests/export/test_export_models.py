"""`export_model` and `--keras`: classifiers that are not networks of the zoo."""

import dataclasses
import json
import re

import keras
import numpy as np
import pytest
from helpers.commands import run as run_command
from helpers.export_networks import SMALL_CIFAR, randomize, spec_of
from test_export_formats import check_every_variant

from export.__main__ import COMMAND
from keras_resnet import Normalization, Preprocessing
from keras_resnet.errors import InputError
from keras_resnet.export import export_model, pipeline
from keras_resnet.export.artifacts import Options
from keras_resnet.export.graph import KerasLayer, fold
from keras_resnet.export.images import sample_photos
from keras_resnet.export.keras_models import to_logits
from keras_resnet.export.serving import serving_model
from keras_resnet.export.writers.onnx import to_onnx
from keras_resnet.export.writers.tensorflow_ops import compute, weight_arrays
from keras_resnet.models.complexity import complexity

layers = keras.layers
SCALED = Normalization((127.5,) * 3, (127.5,) * 3)
PREPROCESSING = Preprocessing(20, 24, "bilinear", SCALED)
PHOTOS = sample_photos(20, 20)


@pytest.fixture(autouse=True)
def no_timing(monkeypatch):
    monkeypatch.setattr(pipeline, "time_artifact", lambda *arguments: {})


def head(*more, size=20):
    """A small network that ends in the given layers."""
    first = [keras.Input((size, size, 3)), layers.Conv2D(8, 3, strides=2), layers.BatchNormalization()]
    return randomize(keras.Sequential([*first, layers.ReLU(), *more]))


def serving(model, photos=PHOTOS, normalization=SCALED):
    return serving_model(*rebuilt(model, photos, normalization))


def rebuilt(model, photos=PHOTOS, normalization=SCALED):
    network, activation = to_logits(model, normalization(photos[:2]).astype("float32"))
    return network, normalization, activation


def onnx_results(path, photos=PHOTOS):
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = ["logits", "probabilities"]
    return dict(zip(names, session.run(names, {"images": photos}), strict=True))


def branches():
    """All kinds of layers that the zoo does not have, and that have types of nodes."""
    images = keras.Input((19, 20, 3))
    x = layers.RandomFlip()(images)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 0.25, 2.0])(x)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="relu6")(x)
    x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    x = layers.GroupNormalization(4, gamma_initializer="random_normal")(x)
    y = layers.DepthwiseConv2D(3, padding="same", depth_multiplier=2, use_bias=False)(x)
    y = layers.ReLU(0.75)(layers.BatchNormalization()(y))
    x = layers.Concatenate()(
        [x, layers.DepthwiseConv2D((3, 2), strides=2, padding="same")(layers.UpSampling2D()(y))]
    )
    features = [layers.GlobalMaxPooling2D()(x), layers.GlobalAveragePooling2D()(x), layers.Flatten()(x)]
    x = layers.Dense(12, activation="relu")(layers.Dropout(0.5)(layers.Concatenate()(features)))
    x = layers.Dense(9, activation="sigmoid")(layers.GaussianNoise(1.0)(x))
    return randomize(keras.Model(images, layers.Dense(5, activation="sigmoid")(x), name="branches"))


BRANCHES_PHOTOS = sample_photos(19, 20)


def test_layers_that_the_zoo_does_not_have(tmp_path):
    model = branches()
    served = serving(model, BRANCHES_PHOTOS)
    folded = fold(served)
    assert (folded.keras_layers, folded.activation, folded.classes) == ((), "sigmoid", 5)
    expected = np.asarray(model(SCALED(BRANCHES_PHOTOS), training=False))
    found = compute(folded, BRANCHES_PHOTOS, weight_arrays(folded.nodes))
    assert found["features"].shape == (8, 9)
    for results in (found, onnx_results(to_onnx(served, tmp_path / "model.onnx"), BRANCHES_PHOTOS)):
        np.testing.assert_allclose(results["probabilities"], expected, atol=1e-5)
    with pytest.raises(InputError, match=r"dynamic_size needs layers for any size; 'conv2d.*' fits one"):
        to_onnx(served, tmp_path / "any.onnx", dynamic_size=True)
    # The kernel of a depthwise convolution is used at each of its output pixels.
    depthwise = [layer for layer in model.layers if isinstance(layer, layers.DepthwiseConv2D)]
    counts = [np.prod(layer.output.shape[1:]) * np.prod(layer.kernel.shape[:2]) for layer in depthwise]
    dense = sum(np.prod(layer.kernel.shape) for layer in model.layers if isinstance(layer, layers.Dense))
    assert complexity(model).multiply_adds == 10 * 10 * 8 * 27 + sum(counts) + dense


@pytest.mark.slow
def test_layers_that_the_zoo_does_not_have_in_every_precision(tmp_path):
    spec = dataclasses.replace(spec_of("cifar_resnet20", size=19), input_shape=(19, 20, 3))
    check_every_variant(spec, tmp_path, serving(branches(), BRANCHES_PHOTOS))


ENDS = {
    "layer": ([layers.Flatten(), layers.Dense(4), layers.Softmax()], "softmax"),
    "activation": ([layers.Flatten(), layers.Dense(4), layers.Activation("sigmoid")], "sigmoid"),
    "linear": (
        [layers.Flatten(), layers.Dense(4, activation="softmax"), layers.Activation("linear")],
        "softmax",
    ),
    "convolution": ([layers.Conv2D(4, 9, activation="softmax"), layers.Flatten()], "softmax"),
    "logits": ([layers.GlobalAveragePooling2D(), layers.Dense(4)], "softmax"),
    "one logit": ([layers.GlobalMaxPooling2D(), layers.Dense(1)], "sigmoid"),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_end_of_a_model(end):
    more, activation = ENDS[end]
    model = head(*[type(layer).from_config(layer.get_config()) for layer in more])
    served, results = serving(model), np.asarray(model(SCALED(PHOTOS)))
    folded = fold(served)
    assert (folded.activation, folded.keras_layers) == (activation, ())
    found = compute(folded, PHOTOS, weight_arrays(folded.nodes))
    name = "logits" if "logit" in end else "probabilities"
    np.testing.assert_allclose(found[name], results, atol=1e-5 * np.abs(results).max())
    expected = getattr(keras.activations, activation)(np.asarray(found["logits"]))
    np.testing.assert_allclose(found["probabilities"], expected, atol=1e-6)
    assert not np.allclose(found["logits"], found["probabilities"])


def used_twice(kind):
    """The layer or model that computes the end is also called before."""
    images = keras.Input((20, 20, 3))
    x = layers.Dense(4)(layers.GlobalAveragePooling2D()(layers.Conv2D(8, 3, strides=2)(images)))
    last = layers.Softmax() if kind == "softmax" else layers.Dense(4, activation="softmax")
    if kind == "model":
        last = keras.Sequential([keras.Input((4,)), last, layers.Dropout(0.5)])
    x = layers.Rescaling(9.0)(last(x))
    return keras.Model(images, last(layers.Dense(4)(x)))


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("kind", ["softmax", "dense", "model"])
def test_an_end_that_is_also_called_before(kind, policy):
    """Only the softmax of the last call is left out."""
    twin, before = used_twice(kind), keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = used_twice(kind)
    finally:
        keras.config.set_dtype_policy(before)
    model.set_weights(twin.get_weights())
    network, _, activation = rebuilt(model)
    assert activation == "softmax"
    pixels = SCALED(PHOTOS)
    found = keras.ops.softmax(network(pixels))
    np.testing.assert_allclose(found, twin(pixels), atol=1e-5)
    assert np.ptp(found, axis=0).max() > 0.01


@pytest.mark.parametrize("activation", [keras.ops.softmax, layers.Softmax()], ids=["function", "layer"])
def test_a_softmax_of_another_spelling(activation):
    """A model inside the model, at the end, that changes nothing hides no softmax either."""
    nothing = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5)])
    model = head(layers.Flatten(), layers.Dense(4, activation=activation), nothing)
    network, _, found = rebuilt(model)
    assert found == "softmax"
    pixels = SCALED(PHOTOS)
    np.testing.assert_allclose(keras.ops.softmax(network(pixels)), model(pixels), atol=1e-5)


def on_our_backbone():
    """A head of several layers on a backbone that is a model inside the model."""
    backbone = randomize(spec_of("cifar_resnet20", SMALL_CIFAR).build(include_top=False))
    images = keras.Input((32, 32, 3))
    x = layers.GlobalAveragePooling2D()(backbone(layers.RandomRotation(0.2)(images), training=False))
    x = layers.Dense(16, activation="relu")(layers.Dropout(0.5)(x))
    x = layers.Dropout(0.3)(layers.BatchNormalization()(x))
    return randomize(keras.Model(images, layers.Dense(5, activation="softmax")(x), name="mine"))


@pytest.mark.parametrize("formats", ["onnx", pytest.param("tflite,onnx", marks=pytest.mark.slow)])
def test_a_head_of_several_layers(formats, tmp_path, capsys):
    model, preprocessing = on_our_backbone(), Preprocessing(32, 36, "bicubic", Normalization.imagenet())
    labels = ("a", "b", "c", "d", "e")
    before = model.get_weights()
    report = export_model(model, preprocessing, tmp_path, formats, labels=labels)
    assert report.equal, capsys.readouterr().out
    assert ",".join(report.formats) == formats
    assert (report.model, report.classes, report.resize, report.activation) == ("mine", 5, 36, "softmax")
    assert report.keras_layers == ()
    parity = json.loads((tmp_path / "parity.json").read_text())
    assert parity["keras_layers"] == []
    images = sample_photos(32, 32)
    expected = np.asarray(model(preprocessing.normalization(images), training=False))
    results = onnx_results(tmp_path / "model.onnx", images)
    np.testing.assert_allclose(results["probabilities"], expected, atol=1e-5)
    card = (tmp_path / "MODEL_CARD.md").read_text()
    assert "the Keras model `mine`" in card
    assert "The license of the model is not known here." in card
    assert "He et al." not in card
    for array, other in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(array, other)
    # A second export replaces the files of the first.
    assert export_model(model, preprocessing, tmp_path, "onnx", labels=labels).equal


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16"])
def test_files_of_mixed_precision_compute_in_float32(policy):
    twin, before = head(layers.Flatten(), layers.Dense(4)), keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = head(layers.Flatten(), layers.Dense(4), layers.Activation("softmax", dtype="float32"))
    finally:
        keras.config.set_dtype_policy(before)
    twin.set_weights(model.get_weights())
    network, _, activation = rebuilt(model)
    assert (activation, {layer.compute_dtype for layer in network.layers}) == ("softmax", {"float32"})
    assert {variable.dtype for variable in network.variables} == {"float32"}
    pixels = SCALED(PHOTOS)
    np.testing.assert_allclose(network(pixels), twin(pixels), rtol=1e-5, atol=1e-5)
    serving_model(network, SCALED, activation)  # refuses other precisions


class Halved(layers.Conv2D):
    """Keras' convolution with other results."""

    def call(self, inputs):
        return 0.5 * super().call(inputs)


def unknown_layers():
    images = keras.Input((20, 20, 3))
    x = layers.Normalization(mean=0.5, variance=0.25, invert=True, name="inverted")(images)
    x = layers.Conv2D(6, 3, strides=2, padding="same", activation="silu", name="silu")(x)
    x = layers.LayerNormalization(name="norm")(layers.BatchNormalization()(x))
    x = keras.ops.split(Halved(6, 1, name="halved")(x), 2, axis=-1)
    x = layers.Average(name="average")([x[1], 0.5 * x[0]])
    x = layers.Activation("gelu", name="gelu")(layers.GlobalAveragePooling2D()(x))
    outputs = layers.Dense(4, activation="softmax")(x)
    return randomize(keras.Model(images, outputs, name="unknown"))


UNKNOWN = {
    "inverted (Normalization)",
    "silu (Conv2D)",
    "norm (LayerNormalization)",
    "gelu (Activation)",
    "halved (Halved)",
    "average (Average)",
}


@pytest.mark.parametrize("formats", ["onnx", pytest.param("saved_model,tflite,onnx", marks=pytest.mark.slow)])
def test_layers_without_a_type_of_node(formats, tmp_path, capsys):
    options = Options(layout="nchw", io_dtype="uint8")
    report = export_model(unknown_layers(), PREPROCESSING, tmp_path, formats, options=options)
    printed = capsys.readouterr().out
    assert report.equal, printed
    assert set(report.keras_layers) >= UNKNOWN
    assert not any("BatchNormalization" in layer or "Dense" in layer for layer in report.keras_layers)
    assert "not folded, computed by Keras' own code: inverted (Normalization), silu (Conv2D), norm" in printed
    assert "norm (LayerNormalization)" in (tmp_path / "MODEL_CARD.md").read_text()


def test_what_files_of_unknown_layers_cannot_have(tmp_path):
    served = serving(unknown_layers())
    assert any(isinstance(node, KerasLayer) for node in fold(served).nodes)
    for options, message in (
        ({"precision": "float16"}, "LayerNormalization.* exists in float32 only, not in float16"),
        ({"dynamic_size": True}, "dynamic_size does not support .*LayerNormalization"),
        ({"opset": 19}, "LayerNormalization.* is written with opset 13 to 18"),
    ):
        with pytest.raises(InputError, match=message):
            to_onnx(served, tmp_path / "model.onnx", **options)
    assert list(tmp_path.iterdir()) == []


def test_a_changed_weight_is_different(tmp_path, monkeypatch, capsys):
    def fold_changed(served):
        (norm,) = [layer for layer in served.get_layer("unknown").layers if layer.name == "norm"]
        norm.beta.assign_add(np.full(6, 0.1))
        folded = fold(served)
        path = to_onnx(folded, tmp_path / "changed.onnx")
        norm.beta.assign_sub(np.full(6, 0.1))
        changed.append(path)
        return folded

    changed = []
    monkeypatch.setattr(pipeline, "fold", fold_changed)
    monkeypatch.setattr(
        pipeline, "write_artifact", lambda name, graph, path, options: changed[0].rename(path)
    )
    report = export_model(unknown_layers(), PREPROCESSING, tmp_path / "out", "onnx")
    assert not report.equal
    assert report.formats["onnx"].verdict == "DIFFERENT"
    assert not (tmp_path / "out" / "model.onnx").exists()
    assert "not published" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet50", "MobileNetV2"])
def test_keras_applications(name, tmp_path, capsys):
    more = {"alpha": 0.35} if name == "MobileNetV2" else {}
    model = getattr(keras.applications, name)(weights=None, input_shape=(40, 40, 3), classes=6, **more)
    randomize(model, scale=0.5)
    preprocessing = Preprocessing(40, None, "bilinear", SCALED)
    report = export_model(model, preprocessing, tmp_path, "saved_model,tflite,onnx")
    assert report.equal, capsys.readouterr().out
    assert report.keras_layers == ()


@pytest.fixture(scope="module")
def keras_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("keras") / "mine.keras"
    keras.utils.set_random_seed(0)
    head(layers.Flatten(), layers.Dense(2, activation="softmax")).save(path)
    return path


def test_the_command(keras_file, tmp_path, capsys):
    labels, output = tmp_path / "labels.txt", tmp_path / "out"
    labels.write_text("cat\ndög\n", encoding="utf-8")
    flags = [f"--keras={keras_file}", "--formats=onnx", "--mean=127.5", "--std=128,127.5,127", "--resize=22"]
    assert run_command(COMMAND, *flags, f"--labels={labels}", f"--output_dir={output}") == 0
    assert capsys.readouterr().out.count(" equal") == 1

    import onnx

    metadata = {entry.key: entry.value for entry in onnx.load(output / "model.onnx").metadata_props}
    assert json.loads(metadata["labels"]) == ["cat", "dög"]
    assert metadata["license"] == "NOASSERTION"
    model, images = keras.saving.load_model(keras_file), PHOTOS
    expected = np.asarray(model((images - 127.5) / np.float32([128, 127.5, 127])))
    results = onnx_results(output / "model.onnx")
    np.testing.assert_allclose(results["probabilities"], expected, atol=1e-5)
    card = (output / "MODEL_CARD.md").read_text()
    assert (
        f"python -m keras_resnet export --keras={keras_file} --mean=127.5 --std=128,127.5,127 --resize=22"
        in card
    )


def error_of(capsys, *flags):
    assert run_command(COMMAND, *flags) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    return printed.err


def test_keras_files_that_are_refused(keras_file, tmp_path, capsys):
    unsafe, damaged, any_size = (tmp_path / f"{name}.keras" for name in ("unsafe", "damaged", "any_size"))
    head(layers.GlobalMaxPooling2D(), layers.Dense(2), size=None).save(any_size)
    head(layers.Lambda(lambda x: 2 * x), layers.Flatten(), layers.Dense(2)).save(unsafe)
    damaged.write_bytes(keras_file.read_bytes()[:2000])
    own, output = f"--keras={keras_file}", f"--output_dir={tmp_path / 'out'}"
    for flags, message in (
        ([f"--keras={unsafe}"], r"unsafe\.keras cannot be loaded in safe mode: .*Lambda"),
        (
            [f"--keras={any_size}"],
            r"of the shape \(None, None, 3\); the command needs three fixed",
        ),
        ([f"--keras={damaged}"], r"damaged\.keras cannot be loaded in safe mode: "),
        ([f"--keras={tmp_path / 'missing.keras'}"], r"there is no .*missing\.keras"),
        ([f"--keras={tmp_path / 'model.h5'}"], r"ends with \.keras, not from .*model\.h5"),
        ([own, "--model=resnet18"], "--keras and --model exclude each other"),
        ([own, "--mean=1,2"], "--mean must be one number, or 3 separated by commas; got '1,2'"),
        ([own, f"--labels={keras_file}"], "cannot read the labels"),
        (["--model=resnet18", "--weights=none", "--std=2"], "--std applies to --keras only"),
    ):
        assert re.search(message, error_of(capsys, *flags, output)), message
    assert not (tmp_path / "out").exists()


class Forgetful(layers.Layer):
    """A layer whose config lacks an attribute that changes its results."""

    def __init__(self, **options):
        super().__init__(**options)
        self.factor = 1.0

    def call(self, inputs):
        return inputs * self.factor


def forgetful():
    layer = Forgetful(name="forgetful")
    layer.factor = 3.0
    return head(layer, layers.Flatten(), layers.Dense(2))


def two_inputs():
    images = [keras.Input((20, 20, 3)), keras.Input((20, 20, 3))]
    return keras.Model(images, layers.Dense(2)(layers.Flatten()(layers.Add()(images))))


def half_softmax(x):
    return keras.ops.softmax(x / 2)


def own_softmax():
    return head(layers.Flatten(), layers.Dense(2, activation=half_softmax))


def channels_first():
    images = keras.Input((20, 20, 3))
    x = layers.Conv2D(2, 3, data_format="channels_first", name="turned")(images)
    return keras.Model(images, layers.Dense(2)(layers.Flatten()(x)))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (two_inputs, "needs one input and one output; .* has 2 and 1"),
        (lambda: head(), r"to \(batch, classes\); .* goes from \(None, 20, 20, 3\) to \(None, 9, 9, 8\)"),
        (lambda: keras.Sequential([layers.Flatten()]), "a Sequential one that is built; .* is neither"),
        (lambda: head(layers.Flatten(), layers.Dense(2), size=22), r"images of the shape \(22, 22, 3\); the"),
        (channels_first, "layer 'turned' is channels first; export needs channels last"),
        (forgetful, "cannot be rebuilt from the configs and weights of its layers: the outputs differ by"),
        (
            lambda: head(layers.RandomCrop(4, 4), layers.Flatten(), layers.Dense(2)),
            r"does not run on its own images: Exception encountered when calling",
        ),
        (
            lambda: head(layers.Flatten(), layers.Dense(2, activation="tanh")),
            r"ends in 'tanh'; give that layer no activation, or a softmax or sigmoid of Keras",
        ),
        (own_softmax, "returns probabilities, but does not end in a softmax or sigmoid of Keras; its logits"),
        (lambda: head(layers.Flatten(), layers.Dense(3)), "2 labels do not fit 3 classes"),
        (lambda: head, "export_model takes a Model, not function"),
    ],
)
def test_models_that_are_refused(build, message, tmp_path):
    with pytest.raises(InputError, match=message) as error:
        export_model(build(), PREPROCESSING, tmp_path / "out", "onnx", labels=("cat", "dog"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("labels", ["ab", (1, 2), None], ids=repr)
def test_labels_that_are_no_texts(labels, tmp_path):
    model = head(layers.Flatten(), layers.Dense(2))
    with pytest.raises(InputError, match="labels must be strings, one per class; got"):
        export_model(model, PREPROCESSING, tmp_path / "out", "onnx", labels=labels)
    assert not (tmp_path / "out").exists()
