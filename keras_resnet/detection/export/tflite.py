"""Exports a two-stage detector to one TFLite file that takes raw pixels and returns detections.

The file computes what `Detector.detect` computes for images of one size, with built-in operators only.

The networks and what lies between them are converted separately and joined. In lower precision, only the
networks without their last layers are quantized: boxes, logits and scores are computed in float32.
"""

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.detection.detector import Detector
from keras_resnet.detection.export.serving import BOXES, COUNT, LABELS, SCORES
from keras_resnet.detection.export.tflite_ops import gather_roi_align, non_max_suppression
from keras_resnet.detection.proposals import decode_regions, propose, select_detections
from keras_resnet.detection.sizes import (
    check_image,
    normalize_then_resize,
    padded_shape,
    rescale_boxes,
    resized_shape,
)
from keras_resnet.errors import InputError, require
from keras_resnet.export.artifacts import IO_DTYPES, LEAST_CALIBRATION_IMAGES, check_choice
from keras_resnet.export.formats import FILE_FORMATS
from keras_resnet.export.graph import Input, Node, fold_layers
from keras_resnet.export.serving import INPUT
from keras_resnet.export.writers.tensorflow_ops import Weights, compute_nodes
from keras_resnet.export.writers.tflite_conversion import Compute, convert
from keras_resnet.export.writers.tflite_merging import MergedModel
from keras_resnet.export.writers.tflite_metadata import (
    OutputMetadata,
    check_labels,
    read_model,
    write_with_metadata,
)
from keras_resnet.files import replacing
from keras_resnet.models.graph import recursion_limit

PRECISIONS = ("float32", "float16", "int8")
_CHUNK = 2**24  # elements of the pooled features per chunk of regions: 64 MiB
_DESCRIPTIONS = {
    BOXES: OutputMetadata("Boxes, by descending score; those after the first `count` are 0.", "boxes"),
    SCORES: OutputMetadata("Scores of the boxes.", limits=(1.0, 0.0)),
    LABELS: OutputMetadata("Classes of the boxes, as indices.", labels="values"),
    COUNT: OutputMetadata("Number of detected objects."),
}
_Tensors = dict[str, Any]


def detector_to_tflite(
    detector: Detector,
    path: str | Path,
    *,
    image_size: tuple[int, int],
    precision: str = "float32",
    io_dtype: str = "float32",
    calibration: Iterable[np.ndarray] | None = None,
    license: str = "Apache-2.0",
) -> Path:
    """Writes a TFLite file that needs built-in operators only, so the plain interpreter runs it.

    The input of its signature `serving_default` is `images`, (1, height, width, 3), RGB, raw pixels 0-255.
    The outputs are sorted by descending score: `boxes`, float32 (1, detections, 4), x1, y1, x2, y2 in pixels
    of the input image; `scores`, float32 (1, detections); `labels`, int32 (1, detections), indices into the
    class names, which the file's metadata has; and `count`, int32 (1,), the number of valid detections. The
    remaining rows are 0.

    Args:
        path: the file to write; a TFLite file there is replaced.
        image_size: height and width of the images that the file takes, pixels.
        precision: "float32"; "float16", weights in float16; "int8", weights and activations in int8, by
            calibration. The last layers, which compute logits and box deltas, stay in float32.
        io_dtype: dtype of the images, "float32" or "uint8".
        calibration: for "int8": at least 32 images, uint8 (height, width, 3), RGB, like those that the
            detector will see. Images of another size are resized to `image_size`.
        license: SPDX identifier of the weights' license, for the metadata.

    Raises:
        InputError: another file exists at `path`, or it cannot be written; an argument is invalid; a class
            name has a line break; or the detector is a RetinaNet.
    """
    if detector.head is None:
        raise InputError(f"only two-stage detectors can be exported to TFLite; {detector.name} has one stage")
    check_choice("precision", precision, PRECISIONS)
    check_choice("io_dtype", io_dtype, IO_DTYPES)
    valid = len(image_size) == 2 and all(isinstance(side, int) and side > 0 for side in image_size)
    require(valid, "image_size must be a height and a width in pixels", image_size)
    classes = len(detector.class_names)
    check_labels(detector.class_names, classes)
    images = _calibration_images(calibration, image_size) if precision == "int8" else None
    with replacing(path, FILE_FORMATS["tflite"].is_ours) as temporary:
        writer = _Writer(detector, image_size, precision, images, temporary.with_name("parts"))
        try:
            model = writer.write(io_dtype)
        except tf.errors.OpError as error:  # how TensorFlow reports a full disk
            raise InputError(f"cannot write {path}: {error.message}") from error
        metadata = {"model": detector.name, "classes": str(classes), "license": license}
        task = f"Detects objects of {classes} classes"
        write_with_metadata(model, temporary, metadata, detector.class_names, _DESCRIPTIONS, task)
    return Path(path)


class _Network:
    """A folded network, divided into its last layers and those before.

    Attributes:
        layers: the nodes before the last layers.
        last_layers: the last layers.
    """

    def __init__(self, images: Any, tensors: Mapping[str, Any], last: Collection[str] = ()):
        """Folds the layers from `images` to `tensors`; those named in `last` are outputs of last layers."""
        with recursion_limit():
            nodes, self._outputs = fold_layers(images, tensors)
        ends = {self._outputs[name] for name in last}
        self.layers = [node for node in nodes if node.name not in ends]
        self.last_layers = [node for node in nodes if node.name in ends]

    def compute(self, weights: Weights, x: Any, names: Mapping[str, str] | None = None) -> _Tensors:
        """Computes the layers before the last ones.

        Args:
            names: maps each name in the result to an output; the output of a last layer stands for its input.
                None for all outputs.
        """
        tensors = compute_nodes(self.layers, x, weights)
        inputs = {node.name: node.inputs[0] for node in self.last_layers}
        names = names or {name: name for name in self._outputs}
        nodes = {name: self._outputs[output] for name, output in names.items()}
        return {name: tf.identity(tensors[inputs.get(node, node)]) for name, node in nodes.items()}

    def compute_last(self, weights: Weights, output: str, x: Any) -> Any:
        """Computes the output of a last layer from its input."""
        (layer,) = (node for node in self.last_layers if node.name == self._outputs[output])
        given = Input(layer.inputs[0], (), tuple(x.shape[1:]))
        return compute_nodes([given, layer], x, weights)[layer.name]


class _Writer:
    """Writes the TFLite model of one detector.

    Its parts are the preprocessing, the shared layers, the selection of proposals, RoIAlign and the box head
    for each chunk of proposals, and the selection of detections.
    """

    def __init__(
        self,
        detector: Detector,
        image_size: tuple[int, int],
        precision: str,
        images: list[np.ndarray] | None,
        folder: Path,
    ):
        config, shared = detector.config, detector.shared
        self._detector, self._config, self._image_size = detector, config, image_size
        self._precision, self._images, self._folder = precision, images, folder
        self._merged, self._parts = MergedModel(), {}
        self._size = resized_shape(*image_size, config.shorter_side, config.longer_side)
        self._padded = padded_shape(*self._size, config.size_multiple)
        self._sizes = tf.constant([self._size])
        output: Any = shared.output
        self._levels = range(len(output["logits"]))
        self._maps = [f"maps_{level}" for level in range(len(output["maps"]))]
        tensors = {
            f"{field}_{level}": tensor for field in output for level, tensor in enumerate(output[field])
        }
        self._shared = _Network(shared.inputs[0], tensors, tensors.keys() - set(self._maps))
        head, predictor = detector.head_features, detector.predictor
        self._head = _Network(head.inputs[0], {"features": head.outputs[0]})
        tensors = {"logits": predictor.outputs[0], "deltas": predictor.outputs[1]}
        self._predictor = _Network(predictor.inputs[0], tensors)
        # With global context, the last region is the whole image.
        self._regions = config.proposals + config.global_context
        elements = self._regions * config.pooled_size**2 * output["maps"][0].shape[-1]
        self._chunks = range(-(-elements // _CHUNK))
        self._chunk = -(-self._regions // len(self._chunks))

    def write(self, io_dtype: str) -> Any:
        """Returns the `ModelT` of TFLite's schema."""
        image = tf.TensorSpec((1, *self._image_size, 3), tf.as_dtype(io_dtype), name=INPUT)
        tensors = self._merged.append(
            read_model(convert(self._prepare, [image], (), self._folder / "prepare"))
        )
        layers, pixels = self._shared.layers, {"pixels": tensors["pixels"]}
        tensors |= self._add("shared", self._compute_shared, pixels, layers, self._sample_pixels)
        features = {name: tensors[name] for name in (f"features_{level}" for level in self._levels)}
        tensors |= self._add("propose", self._propose, features, self._shared.last_layers)
        selected = {"valid": tensors["valid"]}
        for chunk in self._chunks:
            regions = {"regions": tensors[f"regions_{chunk}"]}
            pooled = self._add("pool", self._pool, regions | {name: tensors[name] for name in self._maps})
            samples = self._sample_pooled, len(self._chunks)
            found = self._add("head", self._compute_head, pooled, self._head.layers, *samples)
            selected |= {f"regions_{chunk}": regions["regions"], f"features_{chunk}": found["features"]}
        return self._merged.finish(self._add("select", self._select, selected, self._predictor.layers))

    def _add(
        self,
        name: str,
        compute: Compute,
        given: Mapping[str, int],
        layers: Iterable[Node] = (),
        samples: Callable[[], Iterator[list[np.ndarray]]] | None = None,
        samples_per_image: int = 1,
    ) -> dict[str, int]:
        """Appends a part, which is converted when it is first needed; returns its outputs.

        Args:
            given: its inputs.
            layers: the nodes whose weights it uses.
            samples: returns samples of its input, if it is a network; only networks are quantized.
            samples_per_image: number of samples per calibration image.
        """
        if name not in self._parts:
            content = convert(
                compute,
                [self._merged.spec(key, index) for key, index in given.items()],
                layers,
                self._folder / name,
                precision=self._precision if samples else "float32",
                samples=samples if self._precision == "int8" else None,
                sample_count=len(self._images or ()) * samples_per_image,
            )
            self._parts[name] = read_model(content)
        return self._merged.append(self._parts[name], given)

    def _prepare(self, weights: Weights, inputs: _Tensors) -> _Tensors:
        return {"pixels": self._prepared(inputs[INPUT][0])}

    def _prepared(self, image: Any) -> Any:
        return normalize_then_resize(image, self._config.normalization, self._size, self._padded)[None]

    def _compute_shared(self, weights: Weights, inputs: _Tensors) -> _Tensors:
        names = {name: name for name in self._maps}
        names |= {f"features_{level}": f"logits_{level}" for level in self._levels}
        return self._shared.compute(weights, inputs["pixels"], names)

    def _propose(self, weights: Weights, inputs: _Tensors) -> _Tensors:
        logits, deltas = (
            [
                self._shared.compute_last(weights, f"{field}_{level}", inputs[f"features_{level}"])
                for level in self._levels
            ]
            for field in ("logits", "deltas")
        )
        found = propose(
            logits, deltas, self._tensor_anchors(), self._sizes, self._config, non_max_suppression
        )
        regions = self._divided(self._detector.with_context(found.boxes, self._sizes))
        return {"valid": found.valid[0], **{f"regions_{chunk}": regions[chunk][0] for chunk in self._chunks}}

    def _tensor_anchors(self) -> list[tf.Tensor]:
        return [tf.constant(each) for each in self._detector.anchors(*self._padded)]

    def _divided(self, boxes: Any) -> list[Any]:
        """Divides boxes, (1, n, 4), into chunks of the same size; the last is padded with zeros."""
        missing = len(self._chunks) * self._chunk - self._regions
        return tf.split(tf.pad(boxes, [[0, 0], [0, missing], [0, 0]]), len(self._chunks), axis=1)

    def _pool(self, weights: Weights, inputs: _Tensors) -> _Tensors:
        maps, config = [inputs[name] for name in self._maps], self._config
        return {"rois": gather_roi_align(maps, inputs["regions"], config.pooled_size, config.roi_strides)}

    def _compute_head(self, weights: Weights, inputs: _Tensors) -> _Tensors:
        return self._head.compute(weights, inputs["rois"])

    def _select(self, weights: Weights, inputs: _Tensors) -> _Tensors:
        config, count = self._config, self._config.proposals
        features, regions = (
            tf.concat([inputs[f"{name}_{chunk}"] for chunk in self._chunks], 0)
            for name in ("features", "regions")
        )
        if config.global_context:
            context = tf.repeat(features[count : count + 1], count, axis=0)
            features = tf.concat([features[:count], context], -1)
        results = self._predictor.compute(weights, features[:count])
        logits, deltas = (results[name][None] for name in ("logits", "deltas"))
        predictions = decode_regions(logits, deltas, regions[None, :count], config)
        # The probabilities of a region sum to 1, so only so many are above the threshold.
        above = min(int(1 / max(config.score_threshold, 1e-9)), config.classes)
        suppress = functools.partial(non_max_suppression, most=above * config.proposals)
        valid = inputs["valid"][None]
        found = select_detections(predictions, valid, self._sizes, config, suppress=suppress)
        boxes: Any = rescale_boxes(found.boxes, self._size, self._image_size)  # pyright: ignore[reportArgumentType] (takes tensors, too)
        number = tf.reduce_sum(tf.cast(found.valid, tf.int32), 1)
        return {BOXES: boxes, SCORES: found.scores, LABELS: found.labels, COUNT: number}

    def _sample_pixels(self) -> Iterator[list[np.ndarray]]:
        for image in self._images or ():
            yield [self._prepared(image).numpy()]

    def _sample_pooled(self) -> Iterator[list[np.ndarray]]:
        detector: Any = self._detector  # its methods take arrays, too
        anchors = self._tensor_anchors()

        @tf.function(input_signature=[tf.TensorSpec((1, *self._padded, 3))])
        def pool(pixels):
            outputs = detector.features(pixels)
            boxes = detector.propose(outputs, anchors, self._sizes).boxes
            regions = self._divided(detector.with_context(boxes, self._sizes))
            return [detector.pool(outputs, chunk) for chunk in regions]

        for (pixels,) in self._sample_pixels():
            yield from ([pooled.numpy()] for pooled in pool(tf.constant(pixels)))


def _calibration_images(images: Iterable[np.ndarray] | None, size: tuple[int, int]) -> list[np.ndarray]:
    """Returns the images, uint8, resized to `size`."""
    resized = []
    for image in () if images is None else images:
        check_image(image)
        if image.shape[:2] != size:
            image = np.rint(tf.image.resize(image, size, antialias=True).numpy()).astype("uint8")
        resized.append(image)
    if len(resized) < LEAST_CALIBRATION_IMAGES:
        found = f"int8 needs at least {LEAST_CALIBRATION_IMAGES} calibration images; got {len(resized)}"
        raise InputError(found)
    return resized
