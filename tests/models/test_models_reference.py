"""The forward pass compared with plain NumPy, and with keras.applications with the same weights."""

import keras
import numpy as np
import pytest
from helpers.zoo_networks import ALL_SMALL, EVERY_KIND, images, randomize, relative_difference
from numpy.lib.stride_tricks import sliding_window_view

from keras_resnet import build_model, build_resnet


def windows(x, size, stride, pad, fill=0.0):
    """Patches (batch, rows, columns, channels, size, size) around every `stride`-th pixel."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    return sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


class NumpyNetwork:
    """The network in float64, following sections 3.3 and 3.4 and Fig. 5 of the paper.

    Its heirs follow "Aggregated Residual Transformations" (groups), "Bag of Tricks" (the deep stem, option
    D) and "Identity Mappings in Deep Residual Networks" with keras.applications' strides and biases.
    """

    def __init__(self, model, config):
        self.config = config
        self.preactivated = config.block == "preactivation"
        self.weights = {
            layer.name: [weight.numpy().astype("float64") for weight in layer.weights]
            for layer in model.layers
        }
        self.used = set()

    def take(self, name):
        self.used.add(name)
        return self.weights[name]

    def conv(self, x, name, stride):
        kernel, *bias = self.take(f"{name}_conv")
        size, inputs = kernel.shape[0], kernel.shape[2]
        groups = x.shape[-1] // inputs
        parts = zip(np.split(x, groups, -1), np.split(kernel, groups, -1), strict=True)
        y = [
            np.einsum("nyxcij,ijco->nyxo", windows(part, size, stride, size // 2), one, optimize=True)
            for part, one in parts
        ]
        return np.concatenate(y, -1) + (bias[0] if bias else 0)

    def bn(self, x, name):
        gamma, beta, mean, variance = self.take(f"{name}_bn")
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def conv_bn(self, x, name, stride):
        return self.bn(self.conv(x, name, stride), name)

    def main_path(self, x, name, stride):
        if self.config.block == "basic":
            strides = [stride, 1]
        elif self.config.bottleneck_stride == "1x1":
            strides = [stride, 1, 1]
        else:
            strides = [1, stride, 1]
        for number, step in enumerate(strides, start=1):
            if number == len(strides):
                last = self.conv if self.preactivated else self.conv_bn
                return last(x, f"{name}_{number}", step)
            x = np.maximum(self.conv_bn(x, f"{name}_{number}", step), 0)

    def shortcut(self, x, active, name, stride, width):
        option, widens = self.config.shortcut, x.shape[-1] != width
        if option is None:
            return 0
        if self.preactivated and (option == "C" or (option == "B" and widens)):
            return self.conv(active, f"{name}_0", stride)
        if option == "D" and (stride > 1 or widens):
            return self.conv_bn(mean_of_two_by_two(x) if stride > 1 else x, f"{name}_0", 1)
        if option == "C" or (option == "B" and (stride > 1 or widens) and not self.preactivated):
            return self.conv_bn(x, f"{name}_0", stride)
        x = x[:, ::stride, ::stride]
        zeros = np.zeros((*x.shape[:-1], width - x.shape[-1]))
        return np.concatenate([x, zeros], axis=-1)

    def stem(self, x):
        def last(x, name, stride):
            return self.conv(x, name, stride) if self.preactivated else relu(self.conv_bn(x, name, stride))

        if self.config.stem == "cifar":
            return last(x, "conv1", 1)
        if self.config.stem == "deep":
            x = relu(self.conv_bn(x, "conv1_1", 2))
            x = last(relu(self.conv_bn(x, "conv1_2", 1)), "conv1_3", 1)
        else:
            x = last(x, "conv1", 2)
        # keras.applications pads with zeros, which matters without a ReLU before.
        return windows(x, 3, 2, 1, 0 if self.preactivated else -np.inf).max((-2, -1))

    def block(self, x, name, stride):
        active = relu(self.bn(x, f"{name}_preact")) if self.preactivated else x
        y = self.main_path(active, name, stride)
        total = y + self.shortcut(x, active, name, stride, y.shape[-1])
        return total if self.preactivated else relu(total)

    def __call__(self, x):
        x = self.stem(x.astype("float64"))
        depths = self.config.stage_depths
        for stage, depth in enumerate(depths, start=2):
            for block in range(1, depth + 1):
                strides = stage > 2 and block == 1
                if self.preactivated:
                    strides = stage <= len(depths) and block == depth
                x = self.block(x, f"conv{stage}_block{block}", 2 if strides else 1)
        if self.preactivated:
            x = relu(self.bn(x, "post"))
        kernel, bias = self.take("predictions")
        return x.mean((1, 2)) @ kernel + bias


def relu(x):
    return np.maximum(x, 0)


def mean_of_two_by_two(x):
    """At an odd edge only the pixels that exist are averaged."""
    x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), constant_values=np.nan)
    patches = sliding_window_view(x, (2, 2), axis=(1, 2))[:, ::2, ::2]
    return np.nanmean(patches, (-2, -1))


@pytest.mark.parametrize("size", [(32, 32), (33, 35)], ids=["even", "odd"])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_numpy(kind, size):
    config = ALL_SMALL[kind]
    model = build_resnet(config, input_shape=(*size, 3), classifier_activation=None)
    reference = NumpyNetwork(randomize(model), config)
    batch = images(2, *size, 3)
    assert relative_difference(model(batch), reference(batch)) < 1e-5
    assert reference.used == {layer.name for layer in model.layers if layer.weights}


def test_numpy_inner_tensors_in_training():
    """Batch statistics are used, and the moving statistics are updated with momentum 0.9."""
    model = randomize(build_resnet(ALL_SMALL["basic 1x1 A cifar"], input_shape=(9, 9, 3)))
    bn = model.get_layer("conv1_bn")
    inner = keras.Model(model.input, [model.get_layer("conv1_conv").output, bn.output])
    gamma, beta, mean, variance = bn.get_weights()
    x, y = (value.numpy().astype("float64") for value in inner(images(3, 9, 9, 3), training=True))
    expected = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5) * gamma + beta
    assert relative_difference(y, expected) < 1e-5
    assert relative_difference(bn.moving_mean, 0.9 * mean + 0.1 * x.mean((0, 1, 2))) < 1e-5
    assert relative_difference(bn.moving_variance, 0.9 * variance + 0.1 * x.var((0, 1, 2))) < 1e-5


def copy_from_keras_applications(theirs, ours):
    """Folds their convolution biases and their epsilon of 1.001e-5 into our batch normalization."""
    for layer in ours.layers:
        if isinstance(layer, keras.layers.Conv2D):
            layer.set_weights(theirs.get_layer(layer.name).get_weights()[:1])
        elif isinstance(layer, keras.layers.BatchNormalization):
            gamma, beta, mean, variance = theirs.get_layer(layer.name).get_weights()
            bias = theirs.get_layer(layer.name.replace("_bn", "_conv")).bias.numpy()
            layer.set_weights([gamma, beta, mean - bias, variance + 1e-8])
        elif layer.weights:
            layer.set_weights(theirs.get_layer(layer.name).get_weights())


def test_keras_applications():
    arguments = {"classes": 10, "input_shape": (75, 96, 3), "classifier_activation": None}
    theirs = randomize(keras.applications.ResNet50(weights=None, **arguments))
    ours = build_model("resnet50", **arguments)
    copy_from_keras_applications(theirs, ours)
    batch = images(2, 75, 96, 3)
    expected = theirs(batch)
    assert relative_difference(ours(batch), expected) < 1e-4
    modern = build_model("resnet50_v1_5", **arguments)
    modern.set_weights(ours.get_weights())
    assert relative_difference(modern(batch), expected) > 1e-2
