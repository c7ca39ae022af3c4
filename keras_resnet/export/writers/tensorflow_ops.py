"""Computes a folded network with TensorFlow operations."""

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from keras_resnet.export.graph import (
    Add,
    Affine,
    AveragePool,
    Conv,
    Dense,
    Graph,
    Input,
    MaxPool,
    Mean,
    Node,
    Pad,
    PadChannels,
    Relu,
    Softmax,
)
from keras_resnet.export.serving import LOGITS, PROBABILITIES

if TYPE_CHECKING:
    import tensorflow as tf

FEATURES = "features"

# Gives the tensor of a node's weight, such as ("conv1_conv", "kernel").
Weights = Callable[[str, str], "tf.Tensor"]


def weight_arrays(graph: Graph) -> dict[tuple[str, str], np.ndarray]:
    """Returns the trained arrays, kernels and biases, by node and attribute."""
    return {
        (node.name, attribute): getattr(node, attribute)
        for node in graph.nodes
        if isinstance(node, Dense)
        for attribute in ("kernel", "bias")
    }


def compute(graph: Graph, images: Any, weights: Weights, precision: str = "float32") -> dict:
    """Computes a folded network with TensorFlow's operations.

    Args:
        graph: what to compute.
        images: tensor (batch, height, width, channels), raw pixels 0-255 of any dtype.
        weights: gives the kernels and biases; those of convolutions in `precision`.
        precision: of the convolutions and what lies between them: "float32" or "bfloat16". The
            normalization, the mean and the classifier are float32.

    Returns:
        `logits`, `probabilities` and `features` (the pooled last feature map), float32 (batch, n).
    """
    import tensorflow as tf

    tensors, builder = {}, _Builder(tf, weights, tf.as_dtype(precision), graph)
    for node in graph.nodes:
        inputs = [images] if isinstance(node, Input) else [tensors[name] for name in node.inputs]
        tensors[node.name] = builder.compute(node, *inputs)
    names = {LOGITS: graph.outputs[LOGITS], PROBABILITIES: graph.outputs[PROBABILITIES]}
    # Named, because converters and viewers show the names.
    return {
        key: tf.identity(tensors[name], key) for key, name in (names | {FEATURES: graph.features}).items()
    }


class _Builder:
    """Computes each type of `Node`."""

    def __init__(self, tf, weights, dtype, graph: Graph):
        self._tf, self._weights, self._dtype = tf, weights, dtype
        normalized = {name for node in graph.nodes if isinstance(node, Affine) for name in node.inputs}
        # The terms of sums that are then normalized, as in pre-activation networks.
        self._summands = {
            name
            for node in graph.nodes
            if isinstance(node, Add) and node.name in normalized
            for name in node.inputs
        }

    @functools.singledispatchmethod
    def compute(self, node: Node, *tensors):
        """Computes a node from its inputs."""
        raise TypeError(f"{node!r} has no TensorFlow operation")

    @compute.register
    def _(self, node: Input, images):
        return self._tf.cast(images, self._tf.float32)

    @compute.register
    def _(self, node: Affine, x):
        # In float32 whatever `x` is: a rounded scale would shift large values visibly.
        y = self._tf.cast(x, self._tf.float32) * node.scale + node.offset
        return self._tf.cast(y, x.dtype)

    @compute.register
    def _(self, node: Conv, x):
        tf = self._tf
        padding = [[0, 0], *map(list, node.padding), [0, 0]] if any(map(any, node.padding)) else "VALID"
        y = tf.nn.conv2d(
            tf.cast(x, self._dtype),
            self._weights(node.name, "kernel"),
            node.strides,
            padding,
            dilations=node.dilations,
            name=node.name,
        )
        return tf.nn.bias_add(y, self._weights(node.name, "bias"))

    @compute.register
    def _(self, node: Relu, x):
        return self._tf.nn.relu(x, name=node.name)

    @compute.register
    def _(self, node: Add, x, y):
        return self._tf.add(x, y, name=node.name)

    @compute.register
    def _(self, node: MaxPool, x):
        if node.size == (1, 1) and not any(map(any, node.padding)):
            return x[:, :: node.strides[0], :: node.strides[1], :]
        if any(map(any, node.padding)):
            x = self._tf.pad(x, [[0, 0], *map(list, node.padding), [0, 0]])
        return self._tf.nn.max_pool2d(x, node.size, node.strides, "VALID", name=node.name)

    @compute.register
    def _(self, node: AveragePool, x):
        padding = "SAME" if node.same else "VALID"
        return self._tf.nn.avg_pool2d(x, node.size, node.strides, padding, name=node.name)

    @compute.register
    def _(self, node: Pad, x):
        return self._tf.pad(x, [[0, 0], *map(list, node.padding), [0, 0]], name=node.name)

    @compute.register
    def _(self, node: PadChannels, x):
        padding = [[0, 0], [0, 0], [0, 0], [node.before, node.after]]
        if node.name in self._summands:
            # Where `tf.pad` stands, TensorFlow 2.21's search for things to fuse (with oneDNN) crashes.
            zero = self._tf.zeros((), x.dtype)
            return self._tf.raw_ops.PadV2(input=x, paddings=padding, constant_values=zero, name=node.name)
        return self._tf.pad(x, padding, name=node.name)

    @compute.register
    def _(self, node: Mean, x):
        return self._tf.reduce_mean(self._tf.cast(x, self._tf.float32), [1, 2], name=node.name)

    @compute.register
    def _(self, node: Dense, x):
        y = self._tf.matmul(x, self._weights(node.name, "kernel"), name=node.name)
        return self._tf.nn.bias_add(y, self._weights(node.name, "bias"))

    @compute.register
    def _(self, node: Softmax, x):
        return self._tf.nn.softmax(x, name=node.name)
