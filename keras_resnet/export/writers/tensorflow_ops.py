"""Computes a folded network with TensorFlow operations."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.export import graph as nodes
from keras_resnet.export.graph import NO_PADDING, Graph, Node

FEATURES = "features"

# Arrays or variables by node and attribute, such as ("conv1_conv", "kernel").
Weights = Mapping[tuple[str, str], Any]


def weight_arrays(network: Iterable[Node], precision: str = "float32") -> dict[tuple[str, str], np.ndarray]:
    """Returns the kernels and biases by node and attribute; those of convolutions in `precision`.

    In float32, nodes that share a layer share its arrays.
    """
    return {
        (node.name, attribute): getattr(node, attribute).astype(
            precision if isinstance(node, nodes.Conv) else "float32", copy=False
        )
        for node in network
        if isinstance(node, nodes.Dense)
        for attribute in ("kernel", "bias")
    }


def keras_variables(network: Iterable[Node]) -> list[Any]:
    """Returns the TensorFlow variables of the layers that Keras' own code computes."""
    layers = {id(node.call.layer): node.call.layer for node in network if isinstance(node, nodes.KerasLayer)}
    return [variable.value for layer in layers.values() for variable in getattr(layer, "variables", ())]


def compute(graph: Graph, images: Any, weights: Weights, precision: str = "float32") -> dict:
    """Computes a folded network with TensorFlow's operations.

    Args:
        graph: what to compute.
        images: tensor (batch, height, width, channels), raw pixels 0-255 of any dtype.
        weights: `weight_arrays` of the same precision, or variables with their values.
        precision: of the convolutions and what lies between them: "float32" or "bfloat16". The
            normalization, the mean, the dense layers and what Keras' own code computes are float32.

    Returns:
        `logits`, `probabilities` and `features` (what the last dense layer takes), float32 (batch, n).
    """
    tensors = compute_nodes(graph.nodes, images, weights, precision)
    # Named, because converters and viewers show the names.
    outputs = graph.outputs | {FEATURES: graph.features}
    return {key: tf.identity(tf.cast(tensors[name], tf.float32), key) for key, name in outputs.items()}


def compute_nodes(
    network: Sequence[Node], images: Any, weights: Weights, precision: str = "float32"
) -> dict[str, Any]:
    """Computes the nodes of a network, each after its inputs; returns their tensors by node.

    See `compute` for the arguments.
    """
    tensors: dict[str, Any] = {}
    normalized = {name for node in network if isinstance(node, nodes.Affine) for name in node.inputs}
    # The terms of sums that are then normalized, as in pre-activation networks.
    summands = {
        name
        for node in network
        if isinstance(node, nodes.Add) and node.name in normalized
        for name in node.inputs
    }
    for node in network:
        inputs = [tensors[name] for name in node.inputs] or [images]
        tensors[node.name] = _compute_node(node, inputs, weights, precision, node.name in summands)
    return tensors


def _compute_node(node: Node, inputs: list, weights: Weights, precision: str, is_summand: bool):
    name, x = node.name, inputs[0]
    match node:
        case nodes.Input():
            return tf.cast(x, tf.float32)
        case nodes.Affine():
            # In float32 whatever `x` is: a rounded scale would shift large values visibly.
            return tf.cast(tf.cast(x, tf.float32) * node.scale + node.offset, x.dtype)
        case nodes.GroupNorm():
            return _normalize_groups(node, tf.cast(x, tf.float32))
        case nodes.Conv():
            convolve = _convolve_depthwise if node.is_depthwise else _convolve
            return convolve(node, tf.cast(x, precision), weights[name, "kernel"], weights[name, "bias"])
        case nodes.Dense():
            product = tf.matmul(tf.cast(x, tf.float32), weights[name, "kernel"], name=name)
            return tf.nn.bias_add(product, weights[name, "bias"])
        case nodes.Relu():
            return _relu(x, node.limit, name)
        case nodes.Softmax():
            return tf.nn.softmax(tf.cast(x, tf.float32), name=name)
        case nodes.Sigmoid():
            return tf.sigmoid(tf.cast(x, tf.float32), name=name)
        case nodes.Add():
            return tf.add(*_of_one_type(inputs), name=name)
        case nodes.Concat():
            return tf.concat(_of_one_type(inputs), -1, name=name)
        case nodes.Mean():
            return tf.reduce_mean(tf.cast(x, tf.float32), [1, 2], name=name)
        case nodes.Max():
            return tf.reduce_max(x, [1, 2], name=name)
        case nodes.MaxPool():
            if node.padding != NO_PADDING:
                x = tf.pad(x, [(0, 0), *node.padding, (0, 0)])
            elif node.size == (1, 1):
                return x[:, :: node.strides[0], :: node.strides[1], :]
            return tf.nn.max_pool2d(x, node.size, node.strides, "VALID", name=name)
        case nodes.AveragePool():
            padding = "SAME" if node.same else "VALID"
            return tf.nn.avg_pool2d(x, node.size, node.strides, padding, name=name)
        case nodes.Flatten():
            return tf.reshape(x, [tf.shape(x)[0], math.prod(x.shape[1:])], name=name)
        case nodes.Upsample():
            return tf.image.resize(x, tf.shape(x)[1:3] * node.size, "nearest", name=name)
        case nodes.Pad():
            padding = [(0, 0), *node.padding, node.channels]
            if not is_summand:
                return tf.pad(x, padding, name=name)
            # Where `tf.pad` stands, TensorFlow 2.21's search for things to fuse (with oneDNN) crashes.
            zero = tf.zeros((), x.dtype)
            return tf.raw_ops.PadV2(input=x, paddings=padding, constant_values=zero, name=name)
        case nodes.KerasLayer():
            values = [tf.cast(value, tf.float32) if value.dtype.is_floating else value for value in inputs]
            return node.call.repeat(values)[node.output]
    raise TypeError(f"{node!r} has no TensorFlow operation")


def _convolve(node: nodes.Conv, x: Any, kernel: Any, bias: Any) -> Any:
    sides = [[0, 0], *map(list, node.padding), [0, 0]]
    padding: Any = "VALID" if node.padding == NO_PADDING else sides
    y = tf.nn.conv2d(x, kernel, node.strides, padding, dilations=node.dilations, name=node.name)
    if node.groups > 1:
        # Without oneDNN (on CPUs before AVX-512 VNNI) fusing a grouped one with `bias_add` fails.
        return y + bias
    return tf.nn.bias_add(y, bias)


def _convolve_depthwise(node: nodes.Conv, x: Any, kernel: Any, bias: Any) -> Any:
    spans = [(n - 1) * rate for n, rate in zip(node.kernel.shape[:2], node.dilations, strict=True)]
    padding = "VALID"
    if node.strides == (1, 1) and node.padding == tuple((span // 2, span - span // 2) for span in spans):
        padding = "SAME"
    elif node.padding != NO_PADDING:
        x = tf.pad(x, [(0, 0), *node.padding, (0, 0)])
    kernel = tf.reshape(kernel, (*node.kernel.shape[:2], node.groups, -1))
    strides = (1, *node.strides, 1)
    y = tf.nn.depthwise_conv2d(x, kernel, strides, padding, dilations=node.dilations, name=node.name)
    return tf.nn.bias_add(y, bias)


def _normalize_groups(node: nodes.GroupNorm, x: Any) -> Any:
    shape, channels = tf.shape(x), node.scale.size
    groups = tf.reshape(x, tf.concat([shape[:-1], [node.groups, channels // node.groups]], 0))
    mean, variance = tf.nn.moments(groups, [1, 2, 4], keepdims=True)
    normalized = tf.reshape((groups - mean) * tf.math.rsqrt(variance + node.epsilon), shape)
    return tf.ensure_shape(normalized, x.shape) * node.scale + node.offset


def _relu(x: Any, limit: float | None, name: str) -> Any:
    if limit is None:
        return tf.nn.relu(x, name=name)
    if limit == 6:
        return tf.nn.relu6(x, name=name)
    return tf.minimum(tf.nn.relu(x), tf.cast(limit, x.dtype), name=name)


def _of_one_type(tensors: list) -> list:
    """Casts tensors of several types to float32."""
    return tensors if len({x.dtype for x in tensors}) == 1 else [tf.cast(x, tf.float32) for x in tensors]
