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


def compute(graph: Graph, images: Any, weights: Weights, precision: str = "float32") -> dict:
    """Computes a folded network with TensorFlow's operations.

    Args:
        graph: what to compute.
        images: tensor (batch, height, width, channels), raw pixels 0-255 of any dtype.
        weights: `weight_arrays` of the same precision, or variables with their values.
        precision: of the convolutions and what lies between them: "float32" or "bfloat16". The
            normalization, the mean and the classifier are float32.

    Returns:
        `logits`, `probabilities` and `features` (the pooled last feature map), float32 (batch, n).
    """
    tensors = compute_nodes(graph.nodes, images, weights, precision)
    # Named, because converters and viewers show the names.
    outputs = graph.outputs | {FEATURES: graph.features}
    return {key: tf.identity(tensors[name], key) for key, name in outputs.items()}


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
        case nodes.Conv():
            sides = [[0, 0], *map(list, node.padding), [0, 0]]
            padding: Any = "VALID" if node.padding == NO_PADDING else sides
            x, kernel = tf.cast(x, precision), weights[name, "kernel"]
            y = tf.nn.conv2d(x, kernel, node.strides, padding, dilations=node.dilations, name=name)
            if kernel.shape[2] != x.shape[-1]:
                # Without oneDNN (on CPUs before AVX-512 VNNI) fusing a grouped one with `bias_add` fails.
                return y + weights[name, "bias"]
            return tf.nn.bias_add(y, weights[name, "bias"])
        case nodes.Dense():
            return tf.nn.bias_add(tf.matmul(x, weights[name, "kernel"], name=name), weights[name, "bias"])
        case nodes.Relu():
            return tf.nn.relu(x, name=name)
        case nodes.Softmax():
            return tf.nn.softmax(x, name=name)
        case nodes.Add():
            return tf.add(*inputs, name=name)
        case nodes.Mean():
            return tf.reduce_mean(tf.cast(x, tf.float32), [1, 2], name=name)
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
    raise TypeError(f"{node!r} has no TensorFlow operation")
