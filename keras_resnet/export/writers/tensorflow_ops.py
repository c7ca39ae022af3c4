"""A folded network as TensorFlow operations."""

from collections.abc import Callable

from keras_resnet.export.graph import Network, Operation
from keras_resnet.export.serving import LOGITS, PROBABILITIES

FEATURES = "features"

# Gives the tensor that a weight of an operation is, such as ("conv1_conv", "kernel").
Weights = Callable[[str, str], "tf.Tensor"]  # noqa: F821 (TensorFlow is loaded when it is needed)


def weight_arrays(network: Network) -> dict[tuple[str, str], "np.ndarray"]:  # noqa: F821
    """The trained arrays, by operation and attribute: kernels and biases."""
    return {
        (op.name, attribute): op.attributes[attribute]
        for op in network.operations
        if op.kind in ("conv", "dense")
        for attribute in ("kernel", "bias")
    }


def compute(network: Network, images, weights: Weights, precision: str = "float32") -> dict:
    """Puts the network's operations into the current graph.

    Args:
        network: what to compute.
        images: tensor (batch, height, width, channels), raw pixels 0-255 of any dtype.
        weights: where to take kernels and biases from; those of convolutions in `precision`.
        precision: of the convolutions and what lies between them: "float32" or "bfloat16". The
            normalization, the mean and the classifier are float32.

    Returns:
        `logits`, `probabilities` and `features` (the pooled last feature map), float32 (batch, n).
    """
    import tensorflow as tf

    tensors, builder = {}, _Builder(tf, weights, tf.as_dtype(precision), network)
    for op in network.operations:
        if op.kind == "input":
            tensors[op.name] = tf.cast(images, tf.float32)
        else:
            tensors[op.name] = getattr(builder, op.kind)(op, *(tensors[name] for name in op.inputs))
    names = {LOGITS: network.outputs[LOGITS], PROBABILITIES: network.outputs[PROBABILITIES]}
    # Named, because converters and viewers show the names.
    return {
        key: tf.identity(tensors[name], key) for key, name in (names | {FEATURES: network.features}).items()
    }


class _Builder:
    """One method a kind of `Operation`."""

    def __init__(self, tf, weights, dtype, network: Network):
        self._tf, self._weights, self._dtype = tf, weights, dtype
        normalized = {name for op in network.operations if op.kind == "affine" for name in op.inputs}
        # What is added up to something that is then normalized, as in pre-activation networks.
        self._summands = {
            name
            for op in network.operations
            if op.kind == "add" and op.name in normalized
            for name in op.inputs
        }

    def affine(self, op: Operation, x):
        # In float32 whatever `x` is: a rounded scale would shift large values visibly.
        y = self._tf.cast(x, self._tf.float32) * op.scale + op.offset
        return self._tf.cast(y, x.dtype)

    def conv(self, op, x):
        tf = self._tf
        padding = [[0, 0], *map(list, op.padding), [0, 0]] if any(map(any, op.padding)) else "VALID"
        y = tf.nn.conv2d(
            tf.cast(x, self._dtype),
            self._weights(op.name, "kernel"),
            op.strides,
            padding,
            dilations=op.dilations,
            name=op.name,
        )
        return tf.nn.bias_add(y, self._weights(op.name, "bias"))

    def relu(self, op, x):
        return self._tf.nn.relu(x, name=op.name)

    def add(self, op, x, y):
        return self._tf.add(x, y, name=op.name)

    def max_pool(self, op, x):
        if op.size == (1, 1) and not any(map(any, op.padding)):
            return x[:, :: op.strides[0], :: op.strides[1], :]
        if any(map(any, op.padding)):
            x = self._tf.pad(x, [[0, 0], *map(list, op.padding), [0, 0]])
        return self._tf.nn.max_pool2d(x, op.size, op.strides, "VALID", name=op.name)

    def average_pool(self, op, x):
        padding = "SAME" if op.same else "VALID"
        return self._tf.nn.avg_pool2d(x, op.size, op.strides, padding, name=op.name)

    def pad(self, op, x):
        return self._tf.pad(x, [[0, 0], *map(list, op.padding), [0, 0]], name=op.name)

    def pad_channels(self, op, x):
        padding = [[0, 0], [0, 0], [0, 0], [op.before, op.after]]
        if op.name in self._summands:
            # Where `tf.pad` stands, TensorFlow 2.21's search for things to fuse (with oneDNN) crashes.
            zero = self._tf.zeros((), x.dtype)
            return self._tf.raw_ops.PadV2(input=x, paddings=padding, constant_values=zero, name=op.name)
        return self._tf.pad(x, padding, name=op.name)

    def mean(self, op, x):
        return self._tf.reduce_mean(self._tf.cast(x, self._tf.float32), [1, 2], name=op.name)

    def dense(self, op, x):
        y = self._tf.matmul(x, self._weights(op.name, "kernel"), name=op.name)
        return self._tf.nn.bias_add(y, self._weights(op.name, "bias"))

    def softmax(self, op, x):
        return self._tf.nn.softmax(x, name=op.name)
