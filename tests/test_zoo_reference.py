"""The forward pass against two others: plain NumPy, and keras.applications with the same weights."""

import keras
import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from zoo_networks import ALL_SMALL, images, randomize, relative_difference

from keras_resnet import build_model, build_resnet


def windows(x, size, stride, pad, fill=0.0):
    """Patches (batch, rows, columns, channels, size, size) around every `stride`-th pixel."""
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), constant_values=fill)
    return sliding_window_view(x, (size, size), axis=(1, 2))[:, ::stride, ::stride]


class NumpyNetwork:
    """The network in float64, following sections 3.3 and 3.4 and Fig. 5 of the paper."""

    def __init__(self, model, config):
        self.config = config
        self.weights = {
            layer.name: [weight.numpy().astype("float64") for weight in layer.weights]
            for layer in model.layers
        }
        self.used = set()

    def take(self, name):
        self.used.add(name)
        return self.weights[name]

    def conv_bn(self, x, name, stride):
        (kernel,) = self.take(f"{name}_conv")
        size = kernel.shape[0]
        x = np.einsum("nyxcij,ijco->nyxo", windows(x, size, stride, size // 2), kernel, optimize=True)
        gamma, beta, mean, variance = self.take(f"{name}_bn")
        return (x - mean) / np.sqrt(variance + 1e-5) * gamma + beta

    def main_path(self, x, name, stride):
        if self.config.block == "basic":
            strides = [stride, 1]
        elif self.config.bottleneck_stride == "1x1":
            strides = [stride, 1, 1]
        else:
            strides = [1, stride, 1]
        for number, step in enumerate(strides, start=1):
            x = self.conv_bn(x, f"{name}_{number}", step)
            if number < len(strides):
                x = np.maximum(x, 0)
        return x

    def shortcut(self, x, name, stride, width):
        option, changes = self.config.shortcut, stride > 1 or x.shape[-1] != width
        if option is None:
            return 0
        if option == "C" or (option == "B" and changes):
            return self.conv_bn(x, f"{name}_0", stride)
        x = x[:, ::stride, ::stride]
        zeros = np.zeros((*x.shape[:-1], width - x.shape[-1]))
        return np.concatenate([x, zeros], axis=-1)

    def __call__(self, x):
        x = x.astype("float64")
        if self.config.stem == "imagenet":
            x = np.maximum(self.conv_bn(x, "conv1", 2), 0)
            x = windows(x, 3, 2, 1, -np.inf).max((-2, -1))
        else:
            x = np.maximum(self.conv_bn(x, "conv1", 1), 0)
        for stage, depth in enumerate(self.config.stage_depths, start=2):
            for block in range(1, depth + 1):
                name, stride = f"conv{stage}_block{block}", 2 if stage > 2 and block == 1 else 1
                y = self.main_path(x, name, stride)
                x = np.maximum(y + self.shortcut(x, name, stride, y.shape[-1]), 0)
        kernel, bias = self.take("predictions")
        return x.mean((1, 2)) @ kernel + bias


@pytest.mark.parametrize("size", [(32, 32), (33, 35)], ids=["even", "odd"])
@pytest.mark.parametrize("kind", ALL_SMALL)
def test_numpy(kind, size):
    config = ALL_SMALL[kind]
    model = build_resnet(config, input_shape=(*size, 3), classifier_activation=None)
    reference = NumpyNetwork(randomize(model), config)
    batch = images(2, *size, 3)
    assert relative_difference(model(batch), reference(batch)) < 1e-5
    assert reference.used == {layer.name for layer in model.layers if layer.weights}


def test_numpy_inner_tensors_in_training():
    """In training the statistics are the batch's own, and the moving ones follow with momentum 0.9."""
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
