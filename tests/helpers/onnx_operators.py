"""Single ONNX operators, computed by ONNX Runtime: the reference for operations of detection."""

import onnx
import onnxruntime


def run_operator(kind, inputs, output_type, **attributes):
    """The output of the operator `kind` of opset 16.

    Args:
        inputs: arrays by name, in the operator's order.
        output_type: a type of `onnx.TensorProto`.
        **attributes: the operator's.
    """
    helper = onnx.helper
    node = helper.make_node(kind, list(inputs), ["output"], **attributes)
    types = {name: helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in inputs.items()}
    graph = helper.make_graph(
        [node],
        kind,
        [helper.make_tensor_value_info(name, types[name], array.shape) for name, array in inputs.items()],
        [helper.make_tensor_value_info("output", output_type, None)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, inputs)[0]
