"""Parameters, multiply-adds and layers of every network, against the paper and torchvision."""

import json
import re
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from helpers.zoo_networks import zeros_for_weights

from keras_resnet import MODELS, InputError, build_model, complexity, list_models
from keras_resnet.weights import load_weights, save_weights

GOLDEN = Path(__file__).parent / "golden"
PARAMETERS = json.loads((GOLDEN / "parameters.json").read_text())["parameters"]
MULTIPLY_ADDS = json.loads((GOLDEN / "multiply_adds.json").read_text())
# The others differ from these in their number of blocks alone.
FAST = [name for name in PARAMETERS if MODELS[name].weighted_layers <= 56 and name[-2:] not in ("32", "44")]
OPTIONS = [
    pytest.param(name, option, marks=[] if name in FAST else [pytest.mark.slow])
    for name, counts in PARAMETERS.items()
    for option in counts
    if name != "cifar_resnet1202"
]


def build_zeros(name, **kwargs):
    with zeros_for_weights():
        return build_model(name, **kwargs)


def test_every_network_has_golden_numbers():
    assert list(PARAMETERS) == list_models()


@pytest.mark.parametrize(("name", "option"), OPTIONS)
def test_counts(name, option):
    model = build_zeros(name, shortcut=None if option == "plain" else option)
    cost = complexity(model)
    assert cost.parameters == PARAMETERS[name][option]
    assert cost.parameters == sum(np.prod(weight.shape) for weight in model.trainable_weights)
    in_name = int(re.search(r"(?:resnet|resnext|plain)(\d+)", name)[1])
    deep_stem = 2 if name.endswith("d") and option == "D" else 0
    assert cost.weighted_layers == MODELS[name].weighted_layers == in_name + deep_stem
    if name in MULTIPLY_ADDS["paper"] and option != "C":
        assert cost.multiply_adds == pytest.approx(MULTIPLY_ADDS["paper"][name], rel=0.03)
    if name in MULTIPLY_ADDS["torchvision"] and option == "B":
        assert cost.multiply_adds == pytest.approx(MULTIPLY_ADDS["torchvision"][name], abs=0.0005e9)


def test_plain_equals_option_a():
    assert complexity(build_zeros("plain18")) == complexity(build_zeros("resnet18", shortcut="A"))
    assert complexity(build_model("cifar_plain20")) == complexity(build_model("cifar_resnet20"))


def test_default_options():
    for name, option in [("resnet18", "B"), ("resnet34", "B"), ("cifar_resnet20", "A")]:
        assert complexity(build_zeros(name)).parameters == PARAMETERS[name][option]


# Section 4.2: six 3x3 convolutions on each of 32x32, 16x16 and 8x8, after one on RGB.
CIFAR_20 = (
    32 * 32 * 9 * (3 * 16 + 6 * 16 * 16)
    + 16 * 16 * 9 * (16 * 32 + 5 * 32 * 32)
    + 8 * 8 * 9 * (32 * 64 + 5 * 64 * 64)
    + 64 * 10
)


def resnet50_by_hand(stride_on_1x1):
    """Table 1's column "50-layer" by feature map size."""
    total = 112 * 112 * 49 * 3 * 64 + 2048 * 1000
    channels = 64
    for size, width, depth in [(56, 64, 3), (28, 128, 4), (14, 256, 6), (7, 512, 3)]:
        for index in range(depth):
            strided = index == 0 and size < 56
            first_size = 2 * size if strided and not stride_on_1x1 else size
            total += first_size**2 * channels * width + size**2 * (9 * width * width + 4 * width * width)
            if index == 0:
                total += size**2 * channels * 4 * width
            channels = 4 * width
    return total


def test_multiply_adds_by_hand():
    assert complexity(build_model("cifar_resnet20")).multiply_adds == CIFAR_20
    assert complexity(build_zeros("resnet50")).multiply_adds == resnet50_by_hand(True)
    assert complexity(build_zeros("resnet50_v1_5")).multiply_adds == resnet50_by_hand(False)


def test_activations_by_hand():
    by_hand = 32 * 32 * 16 * 7 + 16 * 16 * 32 * 6 + 8 * 8 * 64 * 6
    assert complexity(build_model("cifar_resnet20")).activations == by_hand


def test_dynamic_size():
    dynamic = build_model("cifar_resnet20", input_shape=(None, None, 3))
    with pytest.raises(InputError, match="input_shape"):
        complexity(dynamic)
    fixed = complexity(build_model("cifar_resnet20"))
    assert complexity(dynamic, (32, 32, 3)) == fixed
    larger = complexity(dynamic, (64, 64, 3))
    assert larger.parameters == fixed.parameters
    assert larger.multiply_adds - 640 == 4 * (fixed.multiply_adds - 640)


def test_input_shape_overrides_the_models_own():
    assert (
        complexity(build_model("cifar_resnet20", input_shape=(64, 64, 3)), (32, 32, 3)).multiply_adds
        == CIFAR_20
    )


def test_a_shared_layer_counts_at_each_call():
    images, layer = keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 1, use_bias=False)
    model = keras.Model(images, [layer(images), layer(keras.layers.MaxPooling2D(2)(images))])
    cost = complexity(model)
    assert (cost.parameters, cost.weighted_layers) == (12, 1)
    assert (cost.multiply_adds, cost.activations) == ((64 + 16) * 12, (64 + 16) * 4)
    assert complexity(model, (16, 16, 3)).multiply_adds == 4 * (64 + 16) * 12


def test_two_inputs_are_refused():
    inputs = [keras.Input((8, 8, 3)), keras.Input((4,))]
    with pytest.raises(InputError, match="has 2 inputs; for a detector, use its `complexity`"):
        complexity(keras.Model(inputs, inputs))


def test_complexity_does_not_change_the_model():
    model = build_model("cifar_resnet20", input_shape=(None, None, 3))
    before = model.get_weights()
    complexity(model, (32, 32, 3))
    assert model.input_shape == (None, None, None, 3)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


@pytest.mark.slow
def test_1202_layers_under_the_default_recursion_limit(tmp_path):
    limit = sys.getrecursionlimit()
    assert limit <= 1000
    model = build_model("cifar_resnet1202")
    assert sys.getrecursionlimit() == limit
    cost = complexity(model)
    assert cost.parameters == PARAMETERS["cifar_resnet1202"]["A"]
    assert cost.weighted_layers == 1202
    path = save_weights(model, tmp_path / "m.weights.h5")
    weights = model.get_weights()
    model.set_weights([np.zeros_like(weight) for weight in weights])
    load_weights(model, path)
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))
    larger = complexity(model, (64, 64, 3))
    assert larger.multiply_adds - 640 == 4 * (cost.multiply_adds - 640)
    assert sys.getrecursionlimit() == limit
