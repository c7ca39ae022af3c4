"""Converts a network with layers of Keras' own code to an ONNX model, by tf2onnx."""

from typing import TYPE_CHECKING, Any

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from keras_resnet.errors import InputError, one_line
from keras_resnet.export.artifacts import Options
from keras_resnet.export.graph import Graph
from keras_resnet.export.serving import BATCH, INPUT, OUTPUTS
from keras_resnet.export.writers.tensorflow_ops import compute, weight_arrays
from keras_resnet.models.graph import recursion_limit
from keras_resnet.quiet import quiet

if TYPE_CHECKING:
    import onnx


def convert(graph: Graph, options: Options) -> "onnx.ModelProto":
    """Converts what TensorFlow computes for a network to an ONNX model in float32, without metadata.

    Args:
        graph: the folded network.
        options: its `opset`, `layout` and `io_dtype` are used.

    Raises:
        InputError: tf2onnx does not know an operator, or fails.
    """
    import onnx

    height, width, channels = graph.input_shape
    shape = (height, width, channels) if options.layout == "nhwc" else (channels, height, width)
    spec = tf.TensorSpec((None, *shape), options.io_dtype, name=INPUT)
    weights = weight_arrays(graph.nodes)

    @tf.function(input_signature=[spec], autograph=False)
    def serve(images):
        if options.layout == "nchw":
            images = tf.transpose(images, [0, 2, 3, 1])
        results = compute(graph, images, weights)
        return [results[name] for name in OUTPUTS]

    # tf2onnx would make inputs of the tensors that Keras' layers keep as attributes.
    frozen = convert_variables_to_constants_v2(serve.get_concrete_function(), lower_control_flow=False)

    @tf.function(input_signature=[spec], autograph=False)
    def serve_frozen(images):
        return dict(zip(OUTPUTS, tf.nest.flatten(frozen(images)), strict=True))

    with quiet(), recursion_limit():
        import tf2onnx

        try:
            proto, _ = tf2onnx.convert.from_function(
                serve_frozen,
                input_signature=[spec],
                opset=options.opset,
                custom_op_handlers={"Erfc": (_convert_erfc, [])},
            )
        except (ValueError, RuntimeError, TypeError, NotImplementedError, AssertionError) as error:
            raise InputError(f"tf2onnx cannot convert {graph.name!r}: {one_line(error)}") from error
    # It leaves what it does not know as it was in TensorFlow.
    kinds = {(node.op_type, node.domain) for node in proto.graph.node}
    unknown = sorted(kind for kind, domain in kinds if domain or not onnx.defs.has(kind))
    if unknown:
        raise InputError(f"the network needs operators that ONNX lacks: {', '.join(unknown)}")
    proto.graph.name = graph.name
    proto.graph.ClearField("doc_string")
    # tf2onnx names every axis of unknown size by a number of its own.
    for tensor in (*proto.graph.input, *proto.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_param = BATCH
    return proto


def _convert_erfc(graph: Any, node: Any, name: str, arguments: list) -> None:
    """Replaces the complementary error function, of the exact GELU, by 1 - erf(x): ONNX lacks it."""
    node.type = "Erf"
    output = node.output[0]
    one = graph.make_const(f"{name}/one", np.ones((), "float32")).output[0]
    graph.insert_new_node_on_output("Sub", output, name=f"{name}/complement", inputs=[one, output])
