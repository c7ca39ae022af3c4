"""Quantizes an ONNX model to 8 bits with ONNX Runtime's static quantizer."""

import contextlib
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from keras_resnet.export.artifacts import Options
from keras_resnet.export.graph import Affine, Graph, Input, Max, Mean, Sigmoid, Softmax
from keras_resnet.export.serving import INPUT
from keras_resnet.progress import ProgressBar
from keras_resnet.quiet import quiet

if TYPE_CHECKING:
    import onnx

_BATCH_SIZE = 8  # for calibration; bounds the memory for activations


def quantize(
    proto: "onnx.ModelProto", graph: Graph, batches: list[np.ndarray], options: Options, folder: Path
) -> "onnx.ModelProto":
    """Quantizes weights and activations, with QuantizeLinear and DequantizeLinear in the graph.

    Args:
        proto: the float32 model; it is emptied, so that its weights are not in memory twice.
        graph: the graph that `proto` was written from.
        batches: the calibration images, see `check_calibration`.
        options: that `proto` was written with.
        folder: for temporary files; the caller removes it.

    Returns:
        The quantized model, without metadata.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    # The normalization, the mean and the probabilities stay float32: they cost nothing.
    stay = Input | Affine | Mean | Max | Softmax | Sigmoid
    names = [node.name for node in graph.nodes if not isinstance(node, stay)]
    kinds = sorted({node.op_type for node in proto.graph.node if node.name in names})
    source, target = folder / "float32.onnx", folder / "int8.onnx"
    # Marks ONNX Runtime's preprocessing as done: it would fold what is folded already.
    onnx.helper.set_model_props(proto, {"onnx.quant.pre_process": "onnxruntime.quant"})
    source.write_bytes(proto.SerializeToString())
    name, ir_version = proto.graph.name, proto.ir_version
    proto.Clear()
    count = sum(-(-len(batch) // _BATCH_SIZE) for batch in batches)
    with quiet() as stderr, _contained(folder):
        progress = ProgressBar(count, "batches", "int8 calibration", stream=stderr)
        reader = _Reader(progress.track(_feeds(batches, options)))
        quantize_static(
            source,
            target,
            reader,  # pyright: ignore[reportArgumentType] (it has `get_next`)
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=kinds,
            nodes_to_quantize=names,
            per_channel=True,
            # 8-bit products of two neighbors overflow the 16 bits in which x86 without VNNI adds
            # them up; weights of 7 bits do not.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm"]},
        )
    quantized = onnx.load(target)
    # The quantizer leaves traces: shapes of tensors, its name, newer versions than needed.
    for field in ("value_info", "doc_string"):
        quantized.graph.ClearField(field)
    for field in ("metadata_props", "opset_import", "doc_string"):
        quantized.ClearField(field)
    quantized.opset_import.append(onnx.helper.make_opsetid("", options.opset))
    quantized.ir_version, quantized.graph.name = ir_version, name
    return quantized


class _Reader:
    """Feeds the calibration images to ONNX Runtime."""

    def __init__(self, feeds: Iterator[dict[str, np.ndarray]]):
        self._feeds = feeds

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _feeds(batches: list[np.ndarray], options: Options) -> Iterator[dict[str, np.ndarray]]:
    for batch in batches:
        for begin in range(0, len(batch), _BATCH_SIZE):
            images = batch[begin : begin + _BATCH_SIZE]
            if options.layout == "nchw":
                images = images.transpose(0, 3, 1, 2)
            if options.io_dtype == "uint8":
                images = np.rint(images).clip(0, 255)
            yield {INPUT: np.ascontiguousarray(images, options.io_dtype)}


@contextlib.contextmanager
def _contained(folder: Path) -> Iterator[None]:
    """Puts the quantizer's temporary files into `folder`; keeps its `logging.info` from adding a handler."""
    before, tempfile.tempdir = tempfile.tempdir, str(folder)
    handler = logging.NullHandler()
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        tempfile.tempdir = before
