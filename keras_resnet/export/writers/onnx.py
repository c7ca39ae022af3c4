"""Writes ONNX files."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import keras
import numpy as np

from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import (
    NEWEST_CONVERTED_OPSET,
    NEWEST_OPSET,
    OLDEST_OPSET,
    OPSET,
    Options,
    check_calibration,
    check_choice,
    check_opset,
    precisions,
)
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.export.graph import Affine, Flatten, Graph, fold
from keras_resnet.export.writers.onnx_conversion import convert
from keras_resnet.export.writers.onnx_ops import write_graph
from keras_resnet.export.writers.onnx_quantization import quantize
from keras_resnet.files import replacing
from keras_resnet.version import __version__

if TYPE_CHECKING:
    import onnx

_PRODUCER = "keras_resnet"


def to_onnx(
    model: keras.Model | Graph,
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
    """Writes an ONNX file and checks it with `onnx.checker`.

    Input `images`, raw pixels 0-255; outputs `logits` and `probabilities`, float32 (batch, classes). The
    dynamic axes are named "batch", "height" and "width".

    Args:
        model: made by `serving_model`, or folded by `graph.fold`.
        path: the file; an ONNX file that this exporter wrote there is replaced.
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

    A network with layers that the exporter has no operators for is converted by tf2onnx: in float32, for
    images of its own size, with opset 13 to 18.

    Raises:
        InputError: another file exists at `path`, or it cannot be written; an unknown precision, layout,
            dtype or opset; a network that does not support it; too few calibration images.
    """
    import onnx

    check_choice("precision", precision, precisions("onnx"))
    options = Options(io_dtype=io_dtype, opset=opset, layout=layout, dynamic_size=dynamic_size)
    check_opset(opset, min(NEWEST_OPSET, onnx.defs.onnx_opset_version()))
    graph = fold(model)
    if graph.keras_layers:
        _check_convertible(graph, precision, options)
    if dynamic_size:
        _check_any_size(graph)
    batches = check_calibration(calibration, graph.input_shape) if precision == "int8" else None
    with replacing(path, FILE_FORMATS["onnx"].is_ours) as temporary:
        if graph.keras_layers:
            proto = convert(graph, options)
        else:
            proto = write_graph(graph, options, "float32" if batches else precision)
        if batches:
            folder = temporary.with_name(f"{temporary.name}.quantization")
            folder.mkdir()
            proto = quantize(proto, graph, batches, options, folder)
        write_onnx_file(proto, temporary, metadata or {})
    return Path(path)


def write_onnx_file(proto: "onnx.ModelProto", path: Path, metadata: Mapping[str, str]) -> None:
    """Writes a model with metadata, as a file of ours, and checks it; the model is emptied."""
    import onnx

    proto.producer_name, proto.producer_version = _PRODUCER, __version__
    onnx.helper.set_model_props(proto, {"license": "Apache-2.0", **metadata})
    path.write_bytes(proto.SerializeToString())
    proto.Clear()  # the checker reads the file: one copy of the weights at a time
    onnx.checker.check_model(str(path), full_check=True)


def _check_convertible(graph: Graph, precision: str, options: Options) -> None:
    layers = f"a network with layers that the exporter does not fold ({', '.join(graph.keras_layers)})"
    if precision != "float32":
        raise InputError(f"the ONNX file of {layers} exists in float32 only, not in {precision}")
    if options.dynamic_size:
        raise InputError(f"dynamic_size does not support {layers}")
    if options.opset > NEWEST_CONVERTED_OPSET:
        newest = NEWEST_CONVERTED_OPSET
        raise InputError(f"the ONNX file of {layers} is written with opset {OLDEST_OPSET} to {newest}")


def _check_any_size(graph: Graph) -> None:
    for node in graph.nodes:
        if isinstance(node, Flatten) or getattr(node, "fixed_size", False):
            raise InputError(f"dynamic_size needs layers for any size; {node.name!r} fits one size only")
        shape = np.broadcast_shapes(node.scale.shape, node.offset.shape) if isinstance(node, Affine) else ()
        if any(size > 1 for size in shape[:-1]):
            raise InputError(
                f"dynamic_size needs a normalization per channel; layer {node.name!r} has one per pixel, "
                f"of shape {shape}"
            )
