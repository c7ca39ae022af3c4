"""Exports a detector to one ONNX file that takes raw pixels and returns detections.

The file computes what `Detector.detect` computes: it normalizes, resizes and pads the images, runs the
network, and selects detections, all with standard ONNX operators. Boxes are (x1, y1, x2, y2); feature maps
are (batch, channels, height, width).
"""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.detection.boxes import LARGEST_LOG_SCALE
from keras_resnet.detection.detector import Detector, level_anchors
from keras_resnet.detection.export.serving import BOXES, COUNT, LABELS, SCORES
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import NEWEST_OPSET, OPSET, Options
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.export.graph import Input, Node, fold_layers
from keras_resnet.export.serving import BATCH, INPUT
from keras_resnet.export.writers.onnx import write_onnx_file
from keras_resnet.export.writers.onnx_ops import OnnxWriter
from keras_resnet.files import replacing
from keras_resnet.models.graph import recursion_limit

OLDEST_OPSET = 16  # the first whose RoiAlign has a mode without a shift by half a cell
_DETECTIONS = "detections"  # name of the outputs' second axis
OUTPUTS = {
    BOXES: ("float32", (BATCH, _DETECTIONS, 4)),
    SCORES: ("float32", (BATCH, _DETECTIONS)),
    LABELS: ("int32", (BATCH, _DETECTIONS)),
    COUNT: ("int32", (BATCH,)),
}
_INVALID = -1.0  # score of boxes that are not selected; valid scores are probabilities
_LOWEST = -0.5


def detector_to_onnx(
    detector: Detector,
    path: str | Path,
    *,
    opset: int = OPSET,
    io_dtype: str = "float32",
    license: str = "Apache-2.0",
) -> Path:
    """Writes an ONNX file and checks it with `onnx.checker`.

    The input is `images`, (batch, height, width, 3), RGB, raw pixels 0-255, of any batch size and image size.
    The outputs are sorted by descending score: `boxes`, float32 (batch, detections, 4), x1, y1, x2, y2 in
    pixels of the input images; `scores`, float32 (batch, detections); `labels`, int32 (batch, detections),
    indices into the class names, which are stored as the metadata entry "labels"; and `count`, int32
    (batch,), the number of valid detections of each image. The remaining rows are 0.

    Args:
        path: the file to write; an existing file is replaced if this package exported it.
        opset: version of the operator set, 16 to 23.
        license: SPDX identifier of the weights' license, for the metadata.
        io_dtype: dtype of the images, "float32" or "uint8".

    Raises:
        InputError: `path` is a file that this package did not export or cannot be written, or the dtype or
            the opset is not supported.
    """
    import onnx

    check_opset(opset, onnx.defs.onnx_opset_version())
    options = Options(io_dtype=io_dtype, opset=opset)
    labels = json.dumps(detector.class_names, ensure_ascii=False)
    with replacing(path, FILE_FORMATS["onnx"].is_ours) as temporary:
        proto = _Detection(onnx, detector, options).write()
        write_onnx_file(proto, temporary, {"license": license, "labels": labels, "layout": "nhwc"})
    return Path(path)


def check_opset(opset: int, newest: int = NEWEST_OPSET) -> None:
    """Raises `InputError` if detectors cannot be exported with this opset, or `newest` is older."""
    newest = min(NEWEST_OPSET, newest)
    if opset not in range(OLDEST_OPSET, newest + 1):
        raise InputError(f"detectors are exported with opset {OLDEST_OPSET} to {newest}; got {opset}")


class _Operators:
    """Adds ONNX operators to the graph: `ops("Add", "a", 1.0)` returns the name of the result.

    Numbers and lists become constants: floats are float32, integers int64.
    """

    def __init__(self, writer: OnnxWriter, opset: int):
        self._writer, self._opset, self._numbers = writer, opset, itertools.count()

    def __call__(self, kind: str, *inputs: Any, output: str | None = None, **attributes: Any) -> str:
        return self.several(kind, *inputs, outputs=[output or self._name(kind)], **attributes)[0]

    def several(self, kind: str, *inputs: Any, outputs: list[str] | int, **attributes: Any) -> list[str]:
        """Adds an operator with several outputs; `outputs` are their names or their number."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        if isinstance(outputs, int):
            outputs = [self._name(kind) for _ in range(outputs)]
        self._writer.operator(kind, self._name(kind), names, outputs, **attributes)
        return outputs

    def constant(self, value: Any, dtype: str | None = None) -> str:
        array = np.asarray(value)
        if dtype is None:
            dtype = "int64" if array.dtype.kind in "iu" else "float32"
        return self._writer.constant(self._name("constant"), array.astype(dtype))

    def cast(self, x: str, dtype: str) -> str:
        return self("Cast", x, to=self._writer.type_of(dtype))

    def shape(self, x: str, first: int, last: int) -> str:
        """The sizes of the axes from `first` to before `last`, int64 (last - first,)."""
        return self("Slice", self("Shape", x), [first], [last])

    def slice_last(self, x: str, first: int, last: int) -> str:
        return self("Slice", x, [first], [last], [-1])

    def reduce(self, kind: str, x: str, axes: list[int], keepdims: int = 0) -> str:
        if self._opset >= 18 or kind == "ReduceSum":
            return self(kind, x, axes, keepdims=keepdims)
        return self(kind, x, axes=axes, keepdims=keepdims)

    def least(self, *values: Any) -> str:
        return self("Min", *values)

    def batch_gather(self, x: str, places: str) -> str:
        """The elements of `x`, (batch, n, ...), at the indices `places`, (batch, k): (batch, k, ...)."""
        return self("GatherND", x, self("Unsqueeze", places, [-1]), batch_dims=1)

    def _name(self, kind: str) -> str:
        return f"detection/{kind}_{next(self._numbers)}"


class _Detection:
    """Writes the ONNX model of one detector."""

    def __init__(self, onnx, detector: Detector, options: Options):
        self._detector, self._config, self._options = detector, detector.config, options
        self._writer = OnnxWriter(onnx, options)
        self._ops = _Operators(self._writer, options.opset)

    def write(self):
        """Returns the ONNX model, without metadata."""
        ops, writer = self._ops, self._writer
        writer.model.graph.name = self._detector.name
        writer.model.graph.input.append(
            writer.value_info(INPUT, self._options.io_dtype, (BATCH, "height", "width", 3))
        )
        pixels, original, size, padded = self._preprocess()
        limits = ops.cast(ops("Gather", size, [1, 0, 1, 0]), "float32")
        shared: Any = self._detector.shared
        with recursion_limit():
            outputs = self._network(shared.inputs[0], shared.output, pixels)
        if self._detector.head is None:
            boxes, scores, labels = self._of_anchors(outputs, padded)
        else:
            proposals, valid = self._propose(outputs, padded, limits)
            logits, deltas = self._regions(outputs["maps"], proposals, limits)
            boxes, scores, labels = self._of_regions(logits, deltas, proposals, valid)
        self._select(boxes, scores, labels, limits, original)
        for name, (dtype, shape) in OUTPUTS.items():
            writer.model.graph.output.append(writer.value_info(name, dtype, shape))
        return writer.model

    def _preprocess(self) -> tuple[str, str, str, str]:
        """Returns the network's input, and the original, resized and padded sizes, each int64 (2,)."""
        ops, config = self._ops, self._config
        images = ops("Transpose", INPUT, perm=[0, 3, 1, 2])
        scale, offset = (np.reshape(each, (3, 1, 1)) for each in config.normalization.as_scale_and_offset())
        pixels = ops("Add", ops("Mul", ops.cast(images, "float32"), scale), offset)
        original = ops.shape(images, 2, 4)
        size = ops("Max", self._resized_size(original), [1])
        target = ops("Concat", ops.shape(images, 0, 2), size, axis=0)
        resized = ops(
            *("Resize", pixels, "", "", target), mode="linear", coordinate_transformation_mode="half_pixel"
        )
        multiple = [config.size_multiple]
        padded = ops("Mul", ops("Div", ops("Add", size, [config.size_multiple - 1]), multiple), multiple)
        pads = ops("Concat", [0] * 6, ops("Sub", padded, size), axis=0)
        return ops("Pad", resized, pads), original, size, padded

    def _resized_size(self, original: str) -> str:
        """`sizes.resized_shape`, of int64 (2,).

        Runtimes may compute float64 in float32, as OpenVINO does. So the size is computed from integers, and
        float64 only decides where its product is rounded to less than a whole number.
        """
        ops, config = self._ops, self._config
        shorter, longer = (ops.reduce(kind, original, [0], 1) for kind in ("ReduceMin", "ReduceMax"))
        limits = [config.shorter_side], [config.longer_side]
        fits = ops("LessOrEqual", ops("Mul", longer, limits[0]), ops("Mul", shorter, limits[1]))
        limit, side = ops("Where", fits, *limits), ops("Where", fits, shorter, longer)
        size = ops("Div", ops("Mul", original, limit), side)
        factor = ops("Div", ops.cast(limit, "float64"), ops.cast(side, "float64"))
        product = ops("Mul", ops.cast(original, "float64"), factor)
        missing = ops("Sub", ops.cast(size, "float64"), product)
        least, most = (ops.constant([value], "float64") for value in (0.0, 1e-9))
        rounded = ops("And", ops("Greater", missing, least), ops("Less", missing, most))
        return ops("Sub", size, ops.cast(rounded, "int64"))

    def _network(self, images: Any, tensors: Any, given: str) -> Any:
        """Writes the layers from an input to `tensors`; returns the tensors' names in the same structure."""
        import keras

        flat = {str(index): tensor for index, tensor in enumerate(keras.tree.flatten(tensors))}
        nodes: tuple[Node, ...]
        nodes, outputs = fold_layers(images, flat)
        for node in nodes:
            if isinstance(node, Input):
                self._writer.feed(node.name, given)
            else:
                self._writer.write(node)
        names = [self._writer.tensors[node].name for node in outputs.values()]
        return keras.tree.pack_sequence_as(tensors, names)

    def _anchors(self, grid: str, padded: str, cells: np.ndarray) -> str:
        """The anchors of a level whose feature map has the height and width `grid`, int64 (2,)."""
        ops = self._ops
        strides = ops("Div", padded, grid)
        sides = ops("Concat", grid, [1, 1], axis=0)
        places = []
        for axis, shape in enumerate(([-1, 1, 1, 1], [1, -1, 1, 1])):
            count = ops("Gather", grid, np.int64(axis))
            cells_along = ops(
                "Mul", ops("Range", np.int64(0), count, np.int64(1)), ops("Gather", strides, [axis])
            )
            along = ops("Reshape", ops.cast(cells_along, "float32"), shape)
            places.append(ops("Expand", along, sides))
        y, x = places
        return ops("Reshape", ops("Add", ops("Concat", x, y, x, y, axis=-1), cells), [-1, 4])

    def _candidates(self, outputs: Any, padded: str, most: int):
        """Yields each level's boxes with the highest scores, (batch, k, 4), and their logits, (batch, k)."""
        ops = self._ops
        levels = zip(outputs["logits"], outputs["deltas"], level_anchors(self._config), strict=True)
        for logits, deltas, cells in levels:
            grid = ops.shape(logits, 2, 4)
            scores = ops("Reshape", ops("Transpose", logits, perm=[0, 2, 3, 1]), [0, -1])
            values, best = self._top(scores, most)
            yield self._decode_at(best, deltas, self._anchors(grid, padded, cells)), values

    def _top(self, scores: str, most: int) -> list[str]:
        """The largest of `scores`, (batch, n), and their indices."""
        count = self._ops.least(self._ops.shape(scores, 1, 2), [most])
        return self._ops.several("TopK", scores, count, outputs=2)

    def _decode_at(self, places: str, deltas: str, anchors: str) -> str:
        """A level's boxes, (batch, n, 4), decoded at the anchors with the indices `places`, (batch, n)."""
        ops = self._ops
        deltas = ops("Reshape", ops("Transpose", deltas, perm=[0, 2, 3, 1]), [0, -1, 4])
        return self._decode(ops.batch_gather(deltas, places), ops("Gather", anchors, places))

    def _propose(self, outputs: Any, padded: str, limits: str) -> tuple[str, str]:
        """Returns proposals, (batch, n, 4), and which of them are valid, (batch, n)."""
        ops, config = self._ops, self._config
        boxes, scores, levels = [], [], []
        candidates = self._candidates(outputs, padded, config.proposal_candidates)
        for level, (box, score) in enumerate(candidates):
            boxes.append(box)
            scores.append(score)
            levels.append(ops("Expand", float(level), ops("Shape", score)))
        boxes, scores, levels = (ops("Concat", *each, axis=1) for each in (boxes, scores, levels))
        boxes, scores = self._without_small(boxes, ops("Sigmoid", scores), limits, config.proposal_side)
        _, best, valid = self._suppress(boxes, scores, levels, config.proposal_nms, config.proposals, _LOWEST)
        kept = ops("Unsqueeze", valid, [-1])
        return ops("Where", kept, ops.batch_gather(boxes, best), 0.0), valid

    def _of_anchors(self, outputs: Any, padded: str) -> tuple[str, str, str]:
        """Decodes RetinaNet's outputs: boxes, (batch, n, 4), scores and labels, (batch, n)."""
        ops, classes = self._ops, self._config.classes
        boxes, scores, labels = [], [], []
        levels = zip(outputs["logits"], outputs["deltas"], level_anchors(self._config), strict=True)
        for logits, deltas, cells in levels:
            grid = ops.shape(logits, 2, 4)
            own = ops("Reshape", ops("Transpose", logits, perm=[0, 2, 3, 1]), [0, -1, classes + 1])
            own = ops("Sigmoid", ops("Reshape", ops.slice_last(own, 1, classes + 1), [0, -1]))
            values, best = self._top(own, self._config.level_candidates)
            place = ops("Div", best, [classes])
            boxes.append(self._decode_at(place, deltas, self._anchors(grid, padded, cells)))
            scores.append(values)
            labels.append(ops.cast(ops("Mod", best, [classes]), "float32"))
        boxes, scores, labels = (ops("Concat", *each, axis=1) for each in (boxes, scores, labels))
        return boxes, scores, labels

    def _pool(self, maps: Sequence[str], proposals: str) -> str:
        """Pools the features of the proposals with RoIAlign: (batch * n, channels, side, side)."""
        ops, strides = self._ops, self._config.roi_strides
        regions = ops("Reshape", proposals, [-1, 4])
        batch, count = (ops("Gather", ops("Shape", proposals), np.int64(axis)) for axis in range(2))
        images = ops("Unsqueeze", ops("Range", np.int64(0), batch, np.int64(1)), [1])
        images = ops("Expand", images, ops("Concat", [1], ops("Unsqueeze", count, [0]), axis=0))
        images = ops("Reshape", images, [-1])
        if len(strides) == 1:
            return self._roi_align(maps[0], regions, images, strides[0])
        sides = ops("Max", ops("Sub", ops.slice_last(regions, 2, 4), ops.slice_last(regions, 0, 2)), 0.0)
        area = ops.reduce("ReduceProd", sides, [-1])
        logarithm = ops("Div", ops("Log", ops("Div", ops("Sqrt", area), 224.0)), math.log(2.0))
        level = ops("Floor", ops("Add", ops("Add", logarithm, 4.0), 1e-6))
        finest = round(math.log2(strides[0]))
        level = ops("Clip", level, float(finest), float(finest + len(strides) - 1))
        parts, places = [], []
        for index, stride in enumerate(strides):
            own = ops("Reshape", ops("NonZero", ops("Equal", level, float(finest + index))), [-1])
            chosen = ops("Gather", regions, own), ops("Gather", images, own)
            parts.append(self._roi_align(maps[index], *chosen, stride))
            places.append(own)
        place = ops("Concat", *places, axis=0)
        total = ops("Shape", place)
        order = ops("Range", np.int64(0), ops("Squeeze", total, [0]), np.int64(1))
        inverse = ops("ScatterND", order, ops("Unsqueeze", place, [1]), order)
        return ops("Gather", ops("Concat", *parts, axis=0), inverse)

    def _roi_align(self, features: str, regions: str, images: str, stride: int) -> str:
        side = self._config.pooled_size
        return self._ops(
            *("RoiAlign", features, regions, images),
            coordinate_transformation_mode="output_half_pixel",
            output_height=side,
            output_width=side,
            sampling_ratio=2,
            spatial_scale=1 / stride,
        )

    def _regions(self, maps: Sequence[str], proposals: str, limits: str) -> tuple[str, str]:
        """Writes the box head; returns class logits, (batch * n, 1 + classes), and box deltas."""
        ops, detector = self._ops, self._detector
        head: Any = detector.head
        with recursion_limit():
            if not self._config.global_context:
                return self._network(head.inputs[0], head.outputs, self._pool(maps, proposals))
            batch = ops.shape(proposals, 0, 1)
            whole = ops("Concat", [0.0, 0.0], ops("Slice", limits, [0], [2]), axis=0)
            whole = ops("Expand", whole, ops("Concat", batch, [1, 4], axis=0))
            pooled = self._pool(maps, ops("Concat", proposals, whole, axis=1))
            layers = detector.head_features
            features = self._network(layers.inputs[0], layers.outputs[0], pooled)
            width = layers.outputs[0].shape[-1]
            features = ops("Reshape", features, ops("Concat", batch, [-1, width], axis=0))
            own, context = ops("Slice", features, [0], [-1], [1]), ops("Slice", features, [-1], [2**31], [1])
            joined = ops("Concat", own, ops("Expand", context, ops("Shape", own)), axis=-1)
            flat = ops("Reshape", joined, [-1, 2 * width])
            return self._network(detector.predictor.inputs[0], detector.predictor.outputs, flat)

    def _of_regions(self, logits: str, deltas: str, proposals: str, valid: str) -> tuple[str, str, str]:
        """Decodes regions: boxes, (batch, n * classes, 4), scores and labels, (batch, n * classes)."""
        ops, config = self._ops, self._config
        classes = config.classes
        rows = ops("Shape", proposals)
        batch_and_count = ops("Slice", rows, [0], [2])
        scores = ops.slice_last(ops("Softmax", logits, axis=-1), 1, classes + 1)
        scores = ops("Reshape", scores, ops("Concat", batch_and_count, [classes], axis=0))
        scores = ops("Where", ops("Unsqueeze", valid, [-1]), scores, _INVALID)
        deltas = ops("Reshape", deltas, ops("Concat", batch_and_count, [classes + 1, 4], axis=0))
        deltas = ops("Slice", deltas, [1], [classes + 1], [2])
        boxes = self._decode(deltas, ops("Unsqueeze", proposals, [2]), config.box_weights)
        labels = ops("Expand", np.arange(classes, dtype="float32"), ops("Shape", scores))
        scores, labels = (ops("Reshape", each, [0, -1]) for each in (scores, labels))
        return ops("Reshape", boxes, [0, -1, 4]), scores, labels

    def _select(self, boxes: str, scores: str, labels: str, limits: str, original: str) -> None:
        """Selects detections and writes them to the model's outputs."""
        ops, config = self._ops, self._config
        boxes, scores = self._without_small(boxes, scores, limits, config.box_side)
        values, best, valid = self._suppress(
            boxes, scores, labels, config.box_nms, config.detections, config.score_threshold
        )
        scale = ops("Div", ops.cast(ops("Gather", original, [1, 0, 1, 0]), "float32"), limits)
        boxes = ops("Mul", ops.batch_gather(boxes, best), scale)
        ops("Where", ops("Unsqueeze", valid, [-1]), boxes, 0.0, output=BOXES)
        ops("Where", valid, values, 0.0, output=SCORES)
        labels = ops("Where", valid, ops("GatherElements", labels, best, axis=1), 0.0)
        integer = self._writer.type_of("int32")
        ops("Cast", labels, output=LABELS, to=integer)
        found = ops("ReduceSum", ops.cast(valid, "int64"), [1], keepdims=0)
        ops("Cast", found, output=COUNT, to=integer)

    def _decode(self, deltas: str, anchors: str, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> str:
        """`boxes.decode` in ONNX operators."""
        ops = self._ops
        deltas = ops("Div", deltas, np.asarray(weights))
        corner, end = (ops.slice_last(anchors, first, first + 2) for first in (0, 2))
        sides = ops("Sub", end, corner)
        center = ops("Add", corner, ops("Mul", sides, 0.5))
        center = ops("Add", ops("Mul", ops.slice_last(deltas, 0, 2), sides), center)
        grown = ops("Exp", ops.least(ops.slice_last(deltas, 2, 4), LARGEST_LOG_SCALE))
        half = ops("Mul", ops("Mul", grown, sides), 0.5)
        return ops("Concat", ops("Sub", center, half), ops("Add", center, half), axis=-1)

    def _without_small(self, boxes: str, scores: str, limits: str, side: float) -> tuple[str, str]:
        """Clips boxes to the images, and makes the scores of boxes with a side below `side` invalid."""
        ops = self._ops
        boxes = ops.least(ops("Max", boxes, 0.0), limits)
        sides = ops("Sub", ops.slice_last(boxes, 2, 4), ops.slice_last(boxes, 0, 2))
        large = ops("GreaterOrEqual", ops.reduce("ReduceMin", sides, [-1]), float(side))
        return boxes, ops("Where", large, scores, _INVALID)

    def _suppress(
        self, boxes: str, scores: str, groups: str, iou: float, count: int, threshold: float
    ) -> tuple[str, str, str]:
        """`non_max_suppression` in ONNX operators: scores, indices and validity, all (batch, k)."""
        ops = self._ops
        known = ops("Where", ops("Unsqueeze", ops("Greater", scores, threshold), [-1]), boxes, 0.0)
        extent = ops("Sub", *(ops.reduce(kind, known, [1, 2]) for kind in ("ReduceMax", "ReduceMin")))
        offsets = ops("Mul", groups, ops("Unsqueeze", ops("Add", extent, 1.0), [1]))
        moved = ops("Add", boxes, ops("Unsqueeze", offsets, [-1]))
        selected = ops(
            *("NonMaxSuppression", moved, ops("Unsqueeze", scores, [1]), [count], [iou], [threshold])
        )
        places = ops("Gather", selected, [0, 2], axis=1)
        ones = ops("Expand", 1.0, ops.shape(places, 0, 1))
        zeros = ops("Sub", scores, scores)
        chosen = ops("Greater", ops("ScatterND", zeros, places, ones), 0.0)
        kept = ops("Where", chosen, scores, _INVALID)
        values, best = ops.several("TopK", kept, ops.least(ops.shape(scores, 1, 2), [count]), outputs=2)
        return values, best, ops("Greater", values, threshold)
