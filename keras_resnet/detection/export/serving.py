"""The detector that a SavedModel serves: its preprocessing, networks and postprocessing in one graph.

It computes what `Detector.detect` computes, with TensorFlow operations for images of any size. Each image is
processed individually, so its detections do not depend on the other images of a batch.
"""

import copy
import json
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.detection.anchors import grid_anchors_of
from keras_resnet.detection.detector import Detector, level_anchors
from keras_resnet.detection.sizes import resized_shape_of
from keras_resnet.export.graph import fold_layers
from keras_resnet.export.serving import INPUT, SIGNATURE, UINT8_SIGNATURE
from keras_resnet.export.writers.image_bytes import read_each
from keras_resnet.export.writers.saved_model import constants_or_variables, signature_function
from keras_resnet.export.writers.tensorflow_ops import Weights, compute_nodes, weight_arrays
from keras_resnet.images.decode import decode_image
from keras_resnet.images.ops import normalize
from keras_resnet.models.graph import recursion_limit

BOXES, SCORES, LABELS, COUNT, CLASSES = "boxes", "scores", "labels", "count", "classes"
DETECT_BYTES, IMAGE_BYTES = "detect_bytes", "image_bytes"


def description(detector: Detector) -> dict[str, str]:
    """Returns the metadata of an exported file: the model, and the preprocessing that it contains."""
    config = detector.config
    scale, offset = config.normalization.as_scale_and_offset()
    sizes = {name: getattr(config, name) for name in ("shorter_side", "longer_side", "size_multiple")}
    return {
        "model": detector.name,
        "classes": str(config.classes),
        "normalization": json.dumps({"inside": True, "scale": scale, "offset": offset}),
        "resizing": json.dumps({"inside": True, **sizes}),
    }


class _FoldedNetwork:
    """A part of a detector's model with folded batch normalization, called like the Keras model.

    Attributes:
        weights: the arrays of `weight_arrays`, or variables with their values.
        inputs, outputs: those of the Keras model.
    """

    def __init__(self, model: keras.Model):
        output: Any = model.output
        with recursion_limit():
            flat = {str(index): tensor for index, tensor in enumerate(keras.tree.flatten(output))}
            self._nodes, names = fold_layers(model.inputs[0], flat)
        self._names, self._structure = list(names.values()), output
        self.inputs, self.outputs = model.inputs, model.outputs
        self.weights: Weights = weight_arrays(self._nodes)

    def __call__(self, inputs: tf.Tensor, training: bool = False) -> Any:
        """Computes the outputs, in the structure of the Keras model's."""
        assert not training
        # Layers that several feature maps share are stored once.
        constants = {id(array): array for array in self.weights.values() if isinstance(array, np.ndarray)}
        constants = {key: tf.constant(array) for key, array in constants.items()}
        weights = {key: constants.get(id(value), value) for key, value in self.weights.items()}
        tensors = compute_nodes(self._nodes, inputs, weights)
        return keras.tree.pack_sequence_as(self._structure, [tensors[name] for name in self._names])


def _folded(detector: Detector, module: tf.Module) -> Detector:
    """Returns a detector whose methods compute the folded networks; `module` keeps large weights."""
    parts = {"shared": detector.shared}
    if detector.head is not None:
        parts |= {"head_features": detector.head_features, "predictor": detector.predictor}
    networks = {name: _FoldedNetwork(part) for name, part in parts.items()}
    weights: dict[tuple[str, str], Any] = {}
    for network in networks.values():
        weights |= network.weights
    kept = constants_or_variables(weights, module)
    result: Any = copy.copy(detector)
    for name, network in networks.items():
        network.weights = {key: kept[key] for key in network.weights}
        setattr(result, name, network)
    return result


def _prepare(detector: Detector, image: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """`Detector.prepare` in TensorFlow, for an image (height, width, 3) of any number type.

    Returns:
        The network's input, float32 (padded height, padded width, 3), and the sizes of the resized image
        without padding and of the original image, int32 (2,).
    """
    config = detector.config
    original = tf.shape(image)[:2]
    size = resized_shape_of(original, config.shorter_side, config.longer_side)
    padded = -(-size // config.size_multiple) * config.size_multiple
    # Resized before it is normalized, because a large photo takes four times as much memory in float32.
    resized = tf.image.resize(image, size, "bilinear", antialias=False)
    missing: Any = padded - size
    pixels = normalize(tf.cast(resized, tf.float32), config.normalization)
    return tf.pad(pixels, [[0, missing[0]], [0, missing[1]], [0, 0]]), size, original


def _anchors(detector: Detector, padded: tf.Tensor) -> list[tf.Tensor]:
    """`Detector.anchors` in TensorFlow, for images of the size `padded`, int32 (2,)."""
    config = detector.config
    result = []
    for stride, cells in zip(config.strides, level_anchors(config), strict=True):
        grid = -(-padded // stride)
        result.append(grid_anchors_of(cells, grid, padded // grid))
    return result


def signatures(detector: Detector, module: tf.Module) -> dict[str, Any]:
    """Returns the signatures of a SavedModel by name; `module` keeps their variables."""
    served, config = _folded(detector, module), detector.config
    names = tf.constant([*detector.class_names, ""])
    several = config.detections
    types = (
        tf.TensorSpec([several, 4], tf.float32),
        tf.TensorSpec([several], tf.float32),
        tf.TensorSpec([several], tf.int32),
        tf.TensorSpec([], tf.int32),
    )
    sides = tf.TensorSpec([2], tf.int32)

    @tf.function(input_signature=[tf.TensorSpec([None, None, 3], tf.float32), sides, sides], autograph=False)
    def detect_prepared(pixels, size, original):
        levels = _anchors(served, tf.shape(pixels)[:2])
        found = served.raw_detections(pixels[None], levels, size[None])
        boxes, scores, labels, valid = (each[0] for each in found)
        scale = tf.cast(original, tf.float32) / tf.cast(size, tf.float32)
        boxes *= tf.gather(scale, [1, 0, 1, 0])
        return boxes, scores, labels, tf.reduce_sum(tf.cast(valid, tf.int32))

    def answer(function, elements):
        # One image at a time: the memory does not grow with the batch.
        results = tf.map_fn(function, elements, fn_output_signature=types, parallel_iterations=1)
        boxes, scores, labels, count = results
        valid = tf.range(several) < count[:, None]
        classes = tf.gather(names, tf.where(valid, labels, config.classes))
        return {BOXES: boxes, SCORES: scores, LABELS: labels, COUNT: count, CLASSES: classes}

    def detect(images):
        return answer(lambda image: detect_prepared(*_prepare(served, image)), images)

    def detect_bytes(image_bytes):
        # As strings, images of different sizes fit in one tensor.
        def read(encoded):
            pixels, size, original = _prepare(served, decode_image(encoded, gif=False))
            return tf.io.serialize_tensor(pixels), size, original

        def detect_read(image):
            pixels, size, original = image
            pixels = tf.ensure_shape(tf.io.parse_tensor(pixels, tf.float32), [None, None, 3])
            return detect_prepared(pixels, size, original)

        return answer(detect_read, read_each(image_bytes, read))

    batch: Sequence[int | None] = (None, None, None, 3)
    return {
        SIGNATURE: signature_function(detect, tf.TensorSpec(batch, tf.float32, name=INPUT)),
        UINT8_SIGNATURE: signature_function(detect, tf.TensorSpec(batch, tf.uint8, name=INPUT)),
        DETECT_BYTES: signature_function(detect_bytes, tf.TensorSpec((None,), tf.string, name=IMAGE_BYTES)),
    }
