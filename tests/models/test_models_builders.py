"""Names, arguments, layers, feature maps and initialization of the networks."""

import dataclasses
import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf
from helpers.zoo_networks import (
    ALL_SMALL,
    EVERY_KIND,
    images,
    randomize,
    relative_difference,
    small_config,
    zeros_for_weights,
)

import keras_resnet
from keras_resnet import (
    InputError,
    ResNetConfig,
    build_model,
    build_resnet,
    complexity,
    feature_info,
    feature_maps,
    freeze,
)
from keras_resnet.models.config import ConfigOverrides
from keras_resnet.models.layers import BatchNormalization
from keras_resnet.models.resnet import build_stages, build_stem
from keras_resnet.weights import ModelSpec, save_weights

FUNCTIONS = {
    "resnet18": "ResNet18",
    "resnet34": "ResNet34",
    "resnet50": "ResNet50",
    "resnet101": "ResNet101",
    "resnet152": "ResNet152",
    "resnet50_v1_5": "ResNet50V1_5",
    "resnet101_v1_5": "ResNet101V1_5",
    "resnet152_v1_5": "ResNet152V1_5",
    "plain18": "PlainNet18",
    "plain34": "PlainNet34",
    **{f"cifar_resnet{depth}": f"CifarResNet{depth}" for depth in (20, 32, 44, 56, 110, 1202)},
    **{f"cifar_plain{depth}": f"CifarPlainNet{depth}" for depth in (20, 32, 44, 56, 110)},
    **{f"resnet{depth}d": f"ResNet{depth}D" for depth in (18, 34, 50, 101, 152)},
    **{f"resnet{depth}_v2": f"ResNet{depth}V2" for depth in (50, 101, 152)},
    "resnext50_32x4d": "ResNeXt50_32x4d",
    "resnext101_32x8d": "ResNeXt101_32x8d",
    "resnext101_64x4d": "ResNeXt101_64x4d",
    "wide_resnet50_2": "WideResNet50_2",
    "wide_resnet101_2": "WideResNet101_2",
}
TINY = {"stage_depths": (1, 1), "stage_filters": (64, 72)}


def shapes(model):
    return [tuple(weight.shape) for weight in model.weights]


@pytest.fixture(scope="module")
def resnet50():
    with zeros_for_weights():
        return build_model("resnet50", input_shape=(64, 96, 3), classes=2)


def test_names():
    assert keras_resnet.list_models() == list(FUNCTIONS)
    for name, function in FUNCTIONS.items():
        assert getattr(keras_resnet, function).__name__ == function
        assert function in keras_resnet.__all__
        assert name in getattr(keras_resnet, function).__doc__
    for public in keras_resnet.__all__:
        assert hasattr(keras_resnet, public)
    assert set(FUNCTIONS.values()) < set(dir(keras_resnet)) == set(keras_resnet.__all__)


def test_config_overrides_are_the_configs_fields():
    fields = {field.name: field.type for field in dataclasses.fields(ResNetConfig)}
    assert fields.pop("classes") is int  # a separate argument
    assert ConfigOverrides.__annotations__ == fields


@pytest.mark.parametrize("function", FUNCTIONS.values())
def test_signature_is_that_of_keras_applications(function):
    theirs = inspect.signature(keras.applications.ResNet50).parameters
    ours = dict(inspect.signature(getattr(keras_resnet, function)).parameters)
    assert ours.pop("config_overrides").kind is inspect.Parameter.VAR_KEYWORD
    for more in ("features_only", "out_indices", "output_stride"):
        assert ours.pop(more).kind is inspect.Parameter.KEYWORD_ONLY
    assert list(ours) == list(theirs)
    expected = {"weights": None, "classes": None, "name": None}  # those of the config
    for parameter, value in theirs.items():
        assert ours[parameter].kind is value.kind
        assert ours[parameter].default == expected.get(parameter, value.default)


def test_functions_build_what_their_names_say():
    by_position = keras_resnet.CifarPlainNet20(False, None, None, (40, 24, 1), "avg")
    by_name = build_model("cifar_plain20", include_top=False, input_shape=(40, 24, 1), pooling="avg")
    assert by_position.name == "cifar_plain20"
    assert by_position.output_shape == (None, 64)
    assert shapes(by_position) == shapes(by_name)
    overridden = keras_resnet.ResNet18(shortcut="A", classes=7, name="mine", **TINY)
    assert (overridden.name, overridden.output_shape) == ("mine", (None, 7))


def test_default_inputs():
    assert build_model("resnet18", **TINY).input_shape == (None, 224, 224, 3)
    assert build_model("resnet18", include_top=False, **TINY).input_shape == (None, None, None, 3)
    assert build_model("cifar_resnet20").input_shape == (None, 32, 32, 3)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(40, 40), (33, 70), (None, None), (None, 48)])
def test_input_shapes(size, channels):
    model = build_model("resnet18", input_shape=(*size, channels), classes=3, **TINY)
    concrete = [side or 37 for side in size]
    probabilities = model(images(2, *concrete, channels)).numpy()
    assert probabilities.shape == (2, 3)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


def test_any_size_equals_a_fixed_size():
    fixed = randomize(build_model("resnet18", input_shape=(45, 38, 3), **TINY))
    dynamic = build_model("resnet18", input_shape=(None, None, 3), **TINY)
    dynamic.set_weights(fixed.get_weights())
    batch = images(2, 45, 38, 3)
    np.testing.assert_array_equal(fixed(batch), dynamic(batch))


def test_include_top_and_pooling():
    batch = images(2, 40, 40, 3)
    maps = randomize(build_model("resnet18", include_top=False, **TINY))
    outputs = {}
    for pooling in ("avg", "max"):
        pooled = build_model("resnet18", include_top=False, pooling=pooling, **TINY)
        pooled.set_weights(maps.get_weights())
        outputs[pooling] = pooled(batch).numpy()
        assert pooled.layers[-1].name == f"{pooling}_pool"
    last = maps(batch).numpy()
    assert last.shape == (2, 5, 5, 72)
    np.testing.assert_allclose(outputs["avg"], last.mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(outputs["max"], last.max((1, 2)))


def test_classifier_activation():
    arguments = {"classes": 4, "input_shape": (32, 32, 3), **TINY}
    logits = randomize(build_model("resnet18", classifier_activation=None, **arguments))
    probabilities = build_model("resnet18", **arguments)
    sigmoid = build_model("resnet18", classifier_activation=keras.activations.sigmoid, **arguments)
    probabilities.set_weights(logits.get_weights())
    sigmoid.set_weights(logits.get_weights())
    batch = images(2, 32, 32, 3)
    raw = logits(batch)
    np.testing.assert_allclose(probabilities(batch), tf.nn.softmax(raw), rtol=1e-5)
    np.testing.assert_allclose(sigmoid(batch), tf.nn.sigmoid(raw), rtol=1e-5)


def test_input_tensor():
    inputs = keras.Input((40, 40, 3))
    model = build_model("resnet18", input_tensor=keras.layers.Rescaling(0.5)(inputs), classes=3, **TINY)
    assert model.input is inputs
    bare = build_model("resnet18", input_shape=(40, 40, 3), classes=3, **TINY)
    model.set_weights(bare.get_weights())
    batch = images(2, 40, 40, 3)
    np.testing.assert_allclose(model(batch), bare(0.5 * batch), rtol=1e-5)


def test_input_tensor_and_input_shape_must_agree():
    inputs = keras.Input((40, 40, 3))
    assert build_model("resnet18", input_tensor=inputs, input_shape=(40, 40, 3), **TINY).input is inputs
    with pytest.raises(InputError, match="differs from input_tensor"):
        build_model("resnet18", input_tensor=inputs, input_shape=(32, 32, 3), **TINY)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"classes": 0}, "classes must be a positive integer; got 0"),
        ({"classes": 2.5}, "classes must be a positive integer; got 2.5"),
        ({"classes": True}, "classes must be a positive integer; got True"),
        ({"pooling": "mean"}, "pooling must be None, 'avg' or 'max'; got 'mean'"),
        ({"input_shape": (31, 64, 3)}, "at least 32x32 pixels"),
        ({"input_shape": (64, 31, 3)}, "at least 32x32 pixels"),
        ({"input_shape": (64, 64)}, "input_shape must be"),
        ({"input_shape": (64, 64, None)}, "positive number of channels"),
        ({"input_shape": (64, 64, 0)}, "positive number of channels"),
        ({"input_tensor": "an image"}, "input_tensor"),
        ({"shortcut": "E"}, "shortcut must be one of 'A', 'B', 'C', 'D', None; got 'E'"),
        ({"groups": 32}, "groups and width_per_group are a bottleneck's"),
        ({"block": "bottleneck", "groups": 0}, "groups must be a positive integer; got 0"),
        ({"block": "bottleneck", "width_per_group": 0.5}, "width_per_group must be a positive integer"),
        (
            {"block": "bottleneck", "width_per_group": 1, "stage_filters": (64, 128, 256, 32)},
            "leaves stage_filters (64, 128, 256, 32) no filters",
        ),
        ({"block": "preactivation", "shortcut": "D"}, "shortcut option A, B, C or None; got 'D'"),
        ({"input_shape": 32}, "input_shape must be (height, width, channels); got 32"),
        ({"output_stride": 64}, "output_stride must be one of 4, 8, 16, 32; got 64"),
        ({"output_stride": "8"}, "output_stride must be one of"),
        ({"out_indices": (1,)}, "out_indices selects among the maps of features_only=True"),
        ({"features_only": True, "pooling": "avg"}, "it cannot be combined with pooling='avg'"),
        ({"features_only": True, "out_indices": (5,)}, "integers from 0 (C1) to 4 (C5); got (5,)"),
        ({"features_only": True, "out_indices": (1, -4)}, "must be different integers"),
        ({"features_only": True, "out_indices": ()}, "must be different integers"),
        ({"features_only": True, "out_indices": ("C2",)}, "must be different integers"),
        ({"block": "wide"}, "block must be one of"),
        ({"stem": "mnist"}, "stem must be one of"),
        ({"bottleneck_stride": 1}, "bottleneck_stride must be one of"),
        ({"stage_depths": (1, 0, 1, 1)}, "stage_depths must be a tuple of positive integers"),
        ({"stage_filters": 8}, "stage_filters must be a tuple of positive integers; got 8"),
        ({"stage_depths": (1, 1)}, "differ in length"),
        ({"batch_norm": 1}, "batch_norm must be True or False; got 1"),
        ({"batch_norm": "off"}, "batch_norm must be True or False; got 'off'"),
        ({"shortcuts": "A"}, "unknown network option 'shortcuts'; did you mean shortcut"),
        (
            {"shortcut": "A", "stage_filters": (32, 64, 128, 256)},
            "option A cannot narrow 64 channels to 32 at conv2_block1",
        ),
    ],
)
def test_bad_arguments(arguments, sentence):
    with pytest.raises(InputError) as refusal:
        build_model("resnet18", **arguments)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_minimum_sizes():
    assert build_model("resnet18", input_shape=(32, 32, 3))(images(1, 32, 32, 3)).shape == (1, 1000)
    assert build_model("cifar_resnet20", input_shape=(4, 4, 3))(images(1, 4, 4, 3)).shape == (1, 10)
    with pytest.raises(InputError, match="at least 4x4 pixels"):
        build_model("cifar_resnet20", input_shape=(3, 4, 3))


def test_layer_names_of_keras_applications(resnet50):
    with zeros_for_weights():
        theirs = keras.applications.ResNet50(weights=None, classes=2)
    names = [layer.name for layer in resnet50.layers]
    expected = {"conv3_block1_2_bn", "conv3_block1_0_conv", "conv3_block1_add", "conv3_block1_out"}
    assert expected | {"conv1_conv", "pool1_pool", "avg_pool", "predictions"} <= set(names)
    weighted = {layer.name for layer in theirs.layers if layer.weights}
    assert weighted == {layer.name for layer in resnet50.layers if layer.weights}
    assert {layer.name for layer in theirs.layers[1:]} <= set(names)


@pytest.mark.parametrize("name", ["cifar_resnet20", "resnet18", "resnet50", "plain18"])
def test_layer_names_end_with_their_kind(name):
    kinds = {
        "conv": keras.layers.Conv2D,
        "bn": keras.layers.BatchNormalization,
        "relu": keras.layers.Activation,
        "out": keras.layers.Activation,
        "add": keras.layers.Add,
        "pad": keras.layers.ZeroPadding2D,
    }
    with zeros_for_weights():
        model = build_model(name, classes=2)
    for layer in model.layers[1:-2]:
        suffix = layer.name.rsplit("_", 1)[1]
        assert isinstance(layer, kinds.get(suffix, keras.layers.MaxPooling2D))


def test_feature_maps_of_imagenet_networks(resnet50):
    maps = feature_maps(resnet50)
    assert {name: tensor.shape[1:] for name, tensor in maps.items()} == {
        "C2": (16, 24, 256),
        "C3": (8, 12, 512),
        "C4": (4, 6, 1024),
        "C5": (2, 3, 2048),
    }
    assert maps["C3"] is resnet50.get_layer("conv3_block4_out").output


def test_feature_maps_of_cifar_networks():
    maps = feature_maps(build_model("cifar_plain20"))
    assert {name: tensor.shape[1:] for name, tensor in maps.items()} == {
        "C2": (32, 32, 16),
        "C3": (16, 16, 32),
        "C4": (8, 8, 64),
    }


def test_feature_maps_make_an_extractor():
    model = build_model("cifar_resnet20", include_top=False)
    extractor = keras.Model(model.input, feature_maps(model))
    maps = extractor(images(1, 20, 28, 3))
    assert {name: tuple(value.shape) for name, value in maps.items()} == {
        "C2": (1, 20, 28, 16),
        "C3": (1, 10, 14, 32),
        "C4": (1, 5, 7, 64),
    }


def test_feature_maps_of_another_model():
    inputs = keras.Input((8, 8, 3))
    with pytest.raises(InputError, match="no stages"):
        feature_maps(keras.Model(inputs, keras.layers.Flatten()(inputs), name="mine"))


def test_feature_maps_of_preactivation_networks():
    """The last activation of each resolution, although a stage's last block has the stride."""
    model = build_model("resnet50_v2", stage_depths=(2, 2, 2, 1), input_shape=(64, 96, 3))
    maps = feature_maps(model)
    assert {name: tensor.shape[1:] for name, tensor in maps.items()} == {
        "C2": (16, 24, 256),
        "C3": (8, 12, 512),
        "C4": (4, 6, 1024),
        "C5": (2, 3, 2048),
    }
    for values in keras.Model(model.input, maps)(images(1, 64, 96, 3)).values():
        assert values.numpy().min() == 0


STAGES = {"stage_depths": (2, 2, 2, 2), "stage_filters": (64, 72, 80, 88)}


@pytest.mark.parametrize(
    ("name", "overrides", "size"),
    [
        pytest.param("resnet18", {}, (64, 96), marks=pytest.mark.slow),
        ("resnet18", {"shortcut": "A"}, (65, 79)),
        pytest.param("resnet50", {}, (65, 79), marks=pytest.mark.slow),
        ("resnext50_32x4d", {"groups": 8, "width_per_group": 8}, (65, 79)),  # with the stride on the 3x3
        pytest.param("resnet50_v2", {}, (64, 96), marks=pytest.mark.slow),
        pytest.param("resnet50_v2", {}, (65, 79), marks=pytest.mark.slow),
        ("cifar_plain20", {"stage_filters": (8, 10, 12), "stage_depths": (2, 2, 2)}, (65, 79)),
    ],
)
def test_dilated_maps_contain_the_strided_map(name, overrides, size):
    """Every pixel of the strided map is one of the dilated map."""
    arguments = {**STAGES, **overrides, "include_top": False, "input_shape": (*size, 3)}
    strided = randomize(build_model(name, **arguments))
    batch = images(1, *size, 3)
    expected, full = strided(batch), 32 if len(arguments["stage_depths"]) == 4 else 4
    for output_stride in (full // 4, full // 2, full):
        dense = build_model(name, output_stride=output_stride, **arguments)
        dense.set_weights(strided.get_weights())
        fine, skip = dense(batch), full // output_stride
        assert fine.shape[1:3] == tuple(-(-side // output_stride) for side in size)
        assert relative_difference(fine[:, ::skip, ::skip], expected) < 1e-5


def test_dilation_of_average_pooling_is_that_of_timm():
    """It is exact at half the stride; at a quarter, timm averages pixels that are too near, as we do."""
    arguments = {**STAGES, "include_top": False, "input_shape": (64, 96, 3)}
    strided = randomize(build_model("resnet18d", **arguments))
    batch = images(1, 64, 96, 3)
    dense = build_model("resnet18d", output_stride=16, **arguments)
    dense.set_weights(strided.get_weights())
    assert relative_difference(dense(batch)[:, ::2, ::2], strided(batch)) < 1e-5
    denser = build_model("resnet18d", output_stride=8, **arguments)
    pools = [layer for layer in denser.layers if isinstance(layer, keras.layers.AveragePooling2D)]
    assert [pool.strides for pool in pools] == [(2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize("name", ["resnet18d", "resnet50_v2", "cifar_resnet20"])
@pytest.mark.parametrize("output_stride", [None, 4])
def test_feature_info(name, output_stride):
    """The strides are the ratios of the sizes."""
    stages = {} if "cifar" in name else STAGES
    model = build_model(name, input_shape=(64, 64, 3), output_stride=output_stride, **stages)
    maps = feature_info(model)
    assert list(maps) == (["C1", "C2", "C3", "C4"] if "cifar" in name else ["C1", "C2", "C3", "C4", "C5"])
    for info in maps.values():
        assert info.tensor.shape == (None, 64 // info.stride, 64 // info.stride, info.channels)
    assert next(reversed(maps.values())).stride == (output_stride or keras_resnet.MODELS[name].total_stride)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_stages_on_any_tensor(kind):
    """The last stage can be built separately, for example on regions."""
    config = ALL_SMALL[kind]
    whole = randomize(build_resnet(config, include_top=False, input_shape=(32, 40, 3)))
    images_in = keras.Input((32, 40, 3))
    shared = build_stages(build_stem(images_in, config), config, last=1)
    backbone = keras.Model(images_in, shared)
    regions = keras.Input(shared.shape[1:])
    last = keras.Model(regions, build_stages(regions, config, first=1))
    backbone.set_weights(whole.get_weights()[: len(backbone.weights)])
    last.set_weights(whole.get_weights()[len(backbone.weights) :])
    batch = images(2, 32, 40, 3)
    np.testing.assert_array_equal(last(backbone(batch)), whole(batch))


@pytest.mark.parametrize("name", ["resnet18", "resnet50_v2", "resnet18d"])
def test_features_only(name):
    arguments = {**STAGES, "input_shape": (64, 96, 3)}
    whole = randomize(build_model(name, **arguments))
    maps = keras.Model(whole.input, feature_maps(whole))(images(1, 64, 96, 3))
    every = build_model(name, features_only=True, include_top=True, **arguments)
    assert list(every.output) == ["C1", "C2", "C3", "C4", "C5"]
    assert every.output["C1"].shape == (None, 32, 48, 64)
    every.set_weights(whole.get_weights()[:-2])
    values = every(images(1, 64, 96, 3))
    for key, expected in maps.items():
        np.testing.assert_array_equal(values[key], expected)


def test_out_indices():
    arguments = {"features_only": True, "input_shape": (64, 64, 3), **STAGES}
    some = build_model("resnet18", out_indices=(3, 1), **arguments)
    assert list(some.output) == ["C4", "C2"]
    assert not any(layer.name.startswith("conv5") for layer in some.layers)
    last = build_model("resnet18", out_indices=[-1], **arguments)
    assert list(last.output) == ["C5"]
    assert list(build_model("cifar_resnet20", features_only=True).output) == ["C1", "C2", "C3", "C4"]


def test_features_of_a_weight_file_with_its_classifier(tmp_path):
    arguments = {"input_shape": (64, 64, 3), **STAGES}
    whole = randomize(build_model("resnet18", classes=5, **arguments))
    path = save_weights(whole, tmp_path / "m.weights.h5")
    features = build_model("resnet18", features_only=True, out_indices=(2,), weights=path, **arguments)
    batch = images(1, 64, 64, 3)
    expected = keras.Model(whole.input, feature_maps(whole)["C3"])(batch)
    np.testing.assert_array_equal(features(batch)["C3"], expected)


def test_freeze():
    model = randomize(build_model("resnet18", classes=4, input_shape=(64, 64, 3), **STAGES))
    assert freeze(model, "C4") is model
    names = {weight.path.split("/")[0].split("_")[0] for weight in model.trainable_weights}
    assert names == {"conv5", "predictions"}
    before = model.get_layer("conv3_block1_1_bn").get_weights()
    frozen = keras.Model(model.input, feature_maps(model)["C4"])
    batch = images(2, 64, 64, 3)
    np.testing.assert_array_equal(frozen(batch, training=True), frozen(batch, training=False))
    model(batch, training=True)
    for value, now in zip(before, model.get_layer("conv3_block1_1_bn").get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)
    freeze(model, "C1")
    assert not model.get_layer("conv1_conv").trainable
    assert model.get_layer("conv2_block1_1_conv").trainable
    assert all(layer.trainable for layer in freeze(model, None).layers)


def test_freeze_takes_the_names_of_feature_maps():
    model = build_model("cifar_resnet20")
    with pytest.raises(InputError, match="freeze takes one of C1, C2, C3, C4 or None; got 'C5'"):
        freeze(model, "C5")
    with pytest.raises(InputError, match=r"or None; got \['C1'\]"):
        freeze(model, ["C1"])
    stem = build_model("resnet18", features_only=True, out_indices=[0], input_shape=(64, 64, 3), **STAGES)
    assert freeze(stem, "C1").trainable_weights == []
    features = build_model("resnet50_v2", features_only=True, input_shape=(64, 64, 3), **STAGES)
    freeze(features, "C5")
    assert features.trainable_weights == []


def test_models_of_inner_tensors():
    model = build_resnet(small_config("bottleneck", "A"))
    outputs = [layer.output for layer in model.layers[1:]]
    values = keras.Model(model.input, outputs)(images(2, 32, 32, 3))
    for value, output in zip(values, outputs, strict=True):
        assert value.shape[1:] == output.shape[1:]


def test_convolutions_and_batch_normalization(resnet50):
    for layer in resnet50.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert not layer.use_bias
            assert layer.kernel_regularizer is None
        if isinstance(layer, keras.layers.BatchNormalization):
            assert (layer.momentum, layer.epsilon, layer.axis) == (0.9, 1e-5, -1)


def test_he_normal():
    model = build_model("resnet18", input_shape=(32, 32, 3))
    for name, fan_in in [("conv5_block2_2_conv", 9 * 512), ("conv1_conv", 49 * 3), ("predictions", 512)]:
        kernel = model.get_layer(name).kernel.numpy()
        assert kernel.std() == pytest.approx(np.sqrt(2 / fan_in), rel=0.03 if kernel.size < 1e5 else 0.005)
        assert abs(kernel.mean()) < 4 * kernel.std() / np.sqrt(kernel.size)
        # A Gaussian has 4.6 % beyond two deviations, where Keras' "he_normal" truncates it.
        assert np.mean(np.abs(kernel) > 2.3 * kernel.std()) == pytest.approx(0.0214, rel=0.15)


# Section 4.2's table, with a bias per convolution instead of batch normalization (section 3.4).
CIFAR_20_WITHOUT_BATCH_NORM = (
    (9 * 3 * 16 + 16)
    + 6 * (9 * 16 * 16 + 16)
    + (9 * 16 * 32 + 32)
    + 5 * (9 * 32 * 32 + 32)
    + (9 * 32 * 64 + 64)
    + 5 * (9 * 64 * 64 + 64)
    + (64 * 10 + 10)
)


@pytest.mark.parametrize("name", ["cifar_plain20", "cifar_resnet20"])
def test_parameters_without_batch_norm(name):
    model = build_model(name, batch_norm=False)
    assert complexity(model).parameters == model.count_params() == CIFAR_20_WITHOUT_BATCH_NORM
    assert model.non_trainable_weights == []


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_layers_without_batch_norm(kind):
    """The other layers keep their names; every convolution has a bias, initially zero."""
    normalized = build_resnet(ALL_SMALL[kind])
    bare = build_resnet(ALL_SMALL[kind].replace(batch_norm=False))
    assert not any(isinstance(layer, keras.layers.BatchNormalization) for layer in bare.layers)
    # Where a shortcut and a block meet, the lengths of the two paths decide the order.
    expected = {layer.name for layer in normalized.layers if not layer.name.endswith("_bn")}
    assert {layer.name for layer in bare.layers} == expected
    for layer in bare.layers:
        if isinstance(layer, keras.layers.Conv2D):
            assert layer.use_bias
            assert not np.any(layer.bias.numpy())
            fan_in = np.prod(layer.kernel.shape[:3])
            spread = np.sqrt(2 / fan_in) / np.sqrt(2 * np.prod(layer.kernel.shape))
            assert layer.kernel.numpy().std() == pytest.approx(np.sqrt(2 / fan_in), abs=5 * spread)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_without_batch_norm_equals_shifts_as_biases(kind):
    """Batch normalization with variance 1 and scale 1 is a bias."""
    config = ALL_SMALL[kind]
    bare = randomize(build_resnet(config.replace(batch_norm=False), classifier_activation=None))
    model = build_resnet(config, classifier_activation=None)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_variance.assign(np.full(layer.gamma.shape, 1 - layer.epsilon))
            source = layer.input._keras_history[0]
            if isinstance(source, keras.layers.Conv2D) and not source.use_bias:
                layer.beta.assign(bare.get_layer(source.name).bias)
        elif layer.weights:
            theirs = bare.get_layer(layer.name).weights
            for variable, value in zip(
                layer.weights, theirs, strict=not isinstance(layer, keras.layers.Conv2D)
            ):
                variable.assign(value)
    batch = images(2, 32, 32, 3)
    assert relative_difference(model(batch), bare(batch)) < 1e-5


def test_plain_and_residual_networks_have_equal_variables():
    def variables(name):
        keras.utils.set_random_seed(4)
        return build_model(name, batch_norm=False).weights

    for plain, residual in zip(variables("cifar_plain20"), variables("cifar_resnet20"), strict=True):
        assert plain.path == residual.path
        np.testing.assert_array_equal(plain.numpy(), residual.numpy())


def test_freeze_without_batch_norm():
    model = freeze(build_model("cifar_resnet20", batch_norm=False), "C3")
    prefixes = {weight.path.split("_")[0].split("/")[0] for weight in model.trainable_weights}
    assert prefixes == {"conv4", "predictions"}


def test_weights_with_and_without_batch_norm_are_of_different_networks(tmp_path):
    arguments = {"stage_depths": (1, 1, 1), "stage_filters": (4, 6, 8)}
    for here in (True, False):
        model = randomize(build_model("cifar_resnet20", batch_norm=here, **arguments))
        overrides = arguments if here else {**arguments, "batch_norm": False}
        spec = dataclasses.replace(ModelSpec.default("cifar_resnet20"), overrides=overrides)
        path = save_weights(model, tmp_path / "m.weights.h5", spec)
        again = build_model("cifar_resnet20", batch_norm=here, weights=path, **arguments)
        batch = images(2, 32, 32, 3)
        np.testing.assert_array_equal(again(batch), model(batch))
        with pytest.raises(InputError, match=f"batch_norm is {here} there, {not here} here"):
            build_model("cifar_resnet20", batch_norm=not here, weights=path, **arguments)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_every_trainable_variable_gets_a_gradient(kind):
    model = build_resnet(ALL_SMALL[kind], classifier_activation=None)
    batch = images(4, 32, 32, 3)
    with tf.GradientTape() as tape:
        logits = model(batch, training=True)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits([0, 1, 2, 3], logits)
    variables = [variable.value for variable in model.trainable_variables]
    for variable, gradient in zip(model.trainable_variables, tape.gradient(losses, variables), strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(gradient).all(), variable.path
        assert np.any(gradient), variable.path


def test_initial_weights_follow_the_seed():
    def weights(seed):
        keras.utils.set_random_seed(seed)
        return build_resnet(small_config()).get_weights()

    first, again, other = weights(3), weights(3), weights(4)
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])
    kernels = [weight for weight in first if weight.ndim == 4]
    same_shape = [kernel for kernel in kernels if kernel.shape == (3, 3, 8, 8)]
    assert len(same_shape) > 1
    assert not np.array_equal(same_shape[0], same_shape[1])


def strides(name, **kwargs):
    with zeros_for_weights():
        model = build_model(name, **kwargs)
    return {
        layer.name: layer.strides[0]
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.strides != (1, 1)
    }


def test_stride_positions():
    stages = (3, 4, 5)
    projections = {f"conv{stage}_block1_0_conv": 2 for stage in stages}
    first = {f"conv{stage}_block1_1_conv": 2 for stage in stages}
    second = {f"conv{stage}_block1_2_conv": 2 for stage in stages}
    one_block = {"stage_depths": (1, 1, 1, 1), "classes": 2}
    assert strides("resnet50", **one_block) == {"conv1_conv": 2, **projections, **first}
    assert strides("resnet50_v1_5", **one_block) == {"conv1_conv": 2, **projections, **second}
    assert strides("resnet18", **one_block) == {"conv1_conv": 2, **projections, **first}
    assert strides("plain18", **one_block) == {"conv1_conv": 2, **first}
    assert strides("cifar_resnet20") == {"conv3_block1_1_conv": 2, "conv4_block1_1_conv": 2}


@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_config_round_trip(shortcut):
    model = randomize(build_resnet(small_config("bottleneck", shortcut, "imagenet")))
    own_layers = {"BatchNormalization": BatchNormalization}
    again = keras.Model.from_config(model.get_config(), custom_objects=own_layers)
    again.set_weights(model.get_weights())
    batch = images(2, 32, 32, 3)
    np.testing.assert_array_equal(model(batch), again(batch))
    assert again.get_config() == model.get_config()


@pytest.fixture
def channels_first():
    before = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format(before)


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_channels_first_shapes(kind, channels_first):
    """TensorFlow's CPU kernels lack channels first; test_models_backends.py compares the values on JAX."""
    model = build_resnet(ALL_SMALL[kind])
    width = 1 if ALL_SMALL[kind].block == "basic" else 4
    shrink = 1 if ALL_SMALL[kind].stem == "cifar" else 4
    first, second = ALL_SMALL[kind].stage_filters
    assert model.input_shape == (None, 3, 32, 32)
    maps = feature_maps(model)
    assert maps["C2"].shape == (None, first * width, 32 // shrink, 32 // shrink)
    assert maps["C3"].shape == (None, second * width, 16 // shrink, 16 // shrink)
    assert model.output_shape == (None, 5)
    keras.config.set_image_data_format("channels_last")
    assert shapes(model) == shapes(build_resnet(ALL_SMALL[kind]))


def test_channels_first_arguments(channels_first):
    arguments = {"include_top": False, **TINY}
    assert build_model("resnet18", **arguments).input_shape == (None, 3, None, None)
    assert build_model("resnet18", input_shape=(1, 40, 50), **arguments).input_shape == (None, 1, 40, 50)
    with pytest.raises(InputError, match="at least"):
        build_model("resnet18", input_shape=(32, 32, 3), **arguments)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16"])
def test_outputs_are_float32_under_any_policy(policy):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(policy)
    try:
        model = build_resnet(small_config())
    finally:
        keras.config.set_dtype_policy(before)
    assert model.get_layer("conv1_conv").compute_dtype == policy.removeprefix("mixed_")
    assert model(images(1, 32, 32, 3)).dtype == tf.float32
