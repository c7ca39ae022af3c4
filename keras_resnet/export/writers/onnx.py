"""The serving model as an ONNX file."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import keras
import numpy as np

from keras_resnet import __version__
from keras_resnet.errors import InputError, unknown_name
from keras_resnet.export.calibration import calibration_batches
from keras_resnet.export.graph import Network, fold
from keras_resnet.export.writers.onnx_ops import write_graph
from keras_resnet.export.writers.onnx_quantization import quantize
from keras_resnet.files import replacing, starts_with

PRODUCER = "keras_resnet"
OPSET = 17
OLDEST_OPSET = 13  # the first whose quantization knows channels, and whose softmax has one axis
NEWEST_OPSET = 23  # tested; ONNX Runtime lags behind the newest
PRECISIONS = ("float32", "float16", "int8")
LAYOUTS = ("nhwc", "nchw")
IO_DTYPES = ("float32", "uint8")


def to_onnx(
    model: keras.Model,
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
    *,
    precision: str = "float32",
    opset: int = OPSET,
    layout: str = "nhwc",
    dynamic_size: bool = False,
    io_dtype: str = "float32",
    calibration: Iterable[np.ndarray] | None = None,
) -> Path:
    """Writes an ONNX file that has passed the full check of `onnx.checker`.

    Args:
        model: of `serving_model`.
        path: the file; an ONNX file of this exporter there is replaced.
        metadata: strings for the file's `metadata_props`, such as `{"labels": '["cat", "dog"]'}`.
        precision: "float32"; "float16" for weights and convolutions in half precision; "int8" for
            8-bit weights and activations. In each of them the normalization, the mean over the last
            feature map and the softmax are float32.
        opset: version of the operator set, 13 to 23.
        layout: of the input: "nhwc" (batch, height, width, channels), or "nchw" (batch, channels,
            height, width), which needs no transposition in the graph.
        dynamic_size: whether height and width are dynamic axes, too.
        io_dtype: of the input: "float32" or "uint8".
        calibration: for "int8" only: float32 batches (n, height, width, channels) of raw pixels 0-255,
            from which the ranges of the activations are measured; 32 images or more.

    Returns:
        The path. Input `images`, raw pixels 0-255; outputs `logits` and `probabilities`, float32
        (batch, classes). The dynamic axes are named "batch", "height" and "width".

    Raises:
        InputError: something else lies at `path`, or it cannot be written; an unknown precision,
            layout, dtype or opset; a network that cannot have it; too few calibration images.
    """
    import onnx

    _check_names(precision, layout, io_dtype)
    check_opset(opset, min(NEWEST_OPSET, onnx.defs.onnx_opset_version()))
    network = fold(model)
    if dynamic_size:
        _check_any_size(network)
    if precision == "int8":
        batches = calibration_batches(calibration, network.input_shape)

    properties = {"license": "Apache-2.0", **(metadata or {})}
    with replacing(path, starts_with(PRODUCER.encode())) as temporary:
        inner = "float16" if precision == "float16" else "float32"
        proto = write_graph(network, opset, layout, io_dtype, inner, dynamic_size)
        if precision == "int8":
            folder = temporary.with_name(f"{temporary.name}.quantization")
            folder.mkdir()
            proto = quantize(proto, network, batches, layout, io_dtype, folder)
        _write(onnx, proto, properties, temporary)
        del proto  # the checker reads the file: one copy of the weights at a time
        onnx.checker.check_model(str(temporary), full_check=True)
    return Path(path)


def _check_names(precision: str, layout: str, io_dtype: str) -> None:
    for kind, name, known in (
        ("precision", precision, PRECISIONS),
        ("layout", layout, LAYOUTS),
        ("io_dtype", io_dtype, IO_DTYPES),
    ):
        if name not in known:
            raise unknown_name(kind, name, known)


def check_opset(opset: int, newest: int = NEWEST_OPSET) -> None:
    """Raises `InputError` for an opset that `to_onnx` does not write."""
    if opset not in range(OLDEST_OPSET, newest + 1):
        raise InputError(f"ONNX files are written with opset {OLDEST_OPSET} to {newest}; got {opset}")


def _check_any_size(network: Network) -> None:
    for op in network.operations:
        if op.kind == "affine":
            shape = np.broadcast_shapes(op.scale.shape, op.offset.shape)
            if any(size > 1 for size in shape[:-1]):
                raise InputError(
                    f"dynamic_size needs a normalization per channel; layer {op.name!r} has one per pixel, "
                    f"of shape {shape}"
                )


def _write(onnx, proto, properties: Mapping[str, str], path: Path) -> None:
    proto.producer_name = PRODUCER
    proto.producer_version = __version__
    onnx.helper.set_model_props(proto, properties)
    path.write_bytes(proto.SerializeToString())
