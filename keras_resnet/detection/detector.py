"""`Detector`: the model of a detector, its preprocessing and its postprocessing."""

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from keras_resnet.detection import boxes as box_ops
from keras_resnet.detection.anchors import cell_anchors, grid_anchors, grid_strides, paper_cell_anchors
from keras_resnet.detection.config import DetectorConfig, get_detector_config
from keras_resnet.detection.detections import Detections
from keras_resnet.detection.heads import predictor_layers, region_features, retinanet_heads, rpn_head
from keras_resnet.detection.proposals import (
    Proposals,
    RawDetections,
    detections_of_anchors,
    detections_of_regions,
    propose,
)
from keras_resnet.detection.pyramid import feature_pyramid
from keras_resnet.detection.roi_align import multilevel_roi_align, roi_align
from keras_resnet.detection.sizes import (
    check_image,
    normalize_then_resize,
    padded_shape,
    rescale_boxes,
    resized_shape,
)
from keras_resnet.detection.weight_files import (
    DetectorWeights,
    load_detector_weights,
    open_detector_weights,
    read_detector_spec,
    save_detector_weights,
)
from keras_resnet.errors import InputError, require
from keras_resnet.images.ops import static_shape
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.models.complexity import Complexity, complexity
from keras_resnet.models.features import feature_maps_upto
from keras_resnet.models.features import freeze as freeze_layers
from keras_resnet.models.graph import recursion_limit
from keras_resnet.models.resnet import build_stages, build_stem
from keras_resnet.weights.weight_file import Weights, open_weights

_CHUNK = 2**26  # elements of RoIAlign's samples per chunk of regions: 256 MiB


@dataclasses.dataclass(frozen=True)
class Outputs:
    """The outputs of a detector's shared layers.

    Attributes:
        maps: the feature maps from which RoIAlign pools, from the finest on; empty in RetinaNet.
        logits: float32 (batch, height, width, anchors * k) of each level; k is 1, or 1 + classes in
            RetinaNet.
        deltas: float32 (batch, height, width, anchors * 4) of each level.
    """

    maps: list[Any]
    logits: list[Any]
    deltas: list[Any]


class Detector:
    """A detector with its weights, built by `build_detector`.

    Attributes:
        name: a name of `list_detectors()`.
        class_names: in the order of the detections' labels.
        model: the functional model with all weights. Its inputs are `images`, (batch, height, width, 3),
            normalized, and, except in RetinaNet, `rois`, (regions, side, side, channels), the features that
            RoIAlign has pooled. With global context, a third input is `context`, (regions, features), the
            features of the whole image for each region. The backbone's layers have the zoo's names.
        shared: the part of `model` from `images` to the fields of `Outputs`.
        head: the part of `model` after RoIAlign, from `rois` and `context` to class logits and box deltas;
            None in RetinaNet.
        head_features: the part of `head` from `rois` to the features of the regions, (regions, features).
        predictor: the part of `head` from the features of the regions, to which those of the whole image are
            concatenated with global context, to class logits and box deltas.
    """

    def __init__(self, name: str, config: DetectorConfig, class_names: Sequence[str]):
        if keras.config.image_data_format() != "channels_last":
            raise InputError("detectors need Keras' image data format 'channels_last'")
        self.name, self.config, self.class_names = name, config, tuple(class_names)
        with recursion_limit():
            images, symbolic = _shared(config)
            results = [*symbolic.maps, *symbolic.logits, *symbolic.deltas]
            inputs = [images]
            self.head: keras.Model | None = None
            self.head_features: Any = None
            self.predictor: Any = None
            if config.style != "retinanet":
                self.head, self.head_features, self.predictor = _box_head(symbolic.maps[0].shape[-1], config)
                inputs += self.head.inputs
                results += self.head.outputs
            self.shared = keras.Model(images, vars(symbolic), name="shared")
            self.model = keras.Model(inputs, results, name=name)
        signature = [
            tf.TensorSpec([None, None, None, 3]),
            [tf.TensorSpec([None, 4]) for _ in config.strides],
            tf.TensorSpec([None, 2], tf.int32),
        ]
        self._detect = tf.function(self.checked_detections, input_signature=signature)

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        """Detects objects in images of any sizes.

        Each image is processed individually, so its detections do not depend on the other images.

        Args:
            images: uint8 (height, width, 3), RGB.

        Raises:
            InputError: an image has another dtype or shape, or the network's outputs are not finite.
        """
        check_images(images)
        return [self._detect_in(image) for image in images]

    def save_weights(self, path: str | os.PathLike) -> Path:
        """Saves the weights with a description of the detector; see `save_detector_weights`."""
        return save_detector_weights(self, path)

    def load_weights(self, weights: str | os.PathLike | DetectorWeights, *, transfer: bool = False) -> None:
        """Loads weights of the whole detector; see `load_detector_weights`."""
        load_detector_weights(self, weights, transfer=transfer)

    def complexity(self, height: int, width: int) -> Complexity:
        """Counts the cost of detection in an image of this size in pixels, which is resized and padded first.

        The box head is counted for the config's number of proposals. RoIAlign and non-maximum suppression
        are not counted.
        """
        require(min(height, width) > 0, "the sides of an image must be positive", (height, width))
        size = resized_shape(height, width, self.config.shorter_side, self.config.longer_side)
        padded = padded_shape(size[0], size[1], self.config.size_multiple)
        cost = complexity(self.shared, (*padded, 3))
        if self.head is None:
            return cost
        regions = self.config.proposals
        parts = (
            (complexity(self.head_features), regions + self.config.global_context),
            (complexity(self.predictor), regions),
        )
        for part, count in parts:
            cost = Complexity(
                cost.parameters + part.parameters,
                cost.multiply_adds + count * part.multiply_adds,
                cost.activations + count * part.activations,
                cost.weighted_layers + part.weighted_layers,
            )
        return cost

    def prepare(
        self, image: np.ndarray, shorter_side: int | None = None
    ) -> tuple[tf.Tensor, tuple[int, int]]:
        """Preprocesses an image, uint8 (height, width, 3): normalizes, resizes and pads it.

        Args:
            shorter_side: of the resized image, pixels; None for that of the config. The limit of the longer
                side is changed by the same factor.

        Returns:
            The network's input, float32 (padded height, padded width, 3), and the height and width of the
            resized image without padding.
        """
        height, width = image.shape[:2]
        shorter, longer = self.config.shorter_side, self.config.longer_side
        if shorter_side is not None:
            shorter, longer = shorter_side, longer * shorter_side / shorter
        size = resized_shape(height, width, shorter, longer)
        padded = padded_shape(size[0], size[1], self.config.size_multiple)
        return normalize_then_resize(image, self.config.normalization, size, padded), size

    def anchors(self, height: int, width: int) -> list[np.ndarray]:
        """Returns each level's anchors for padded images of this size: float32 (cells * k, 4), pixels."""
        return _anchors(self.config, height, width)

    def features(self, images: tf.Tensor, training: bool = False) -> Outputs:
        """Computes the shared layers on normalized, padded images, (batch, height, width, 3)."""
        return Outputs(**self.shared(images, training=training))

    def propose(self, outputs: Outputs, anchors: Sequence[tf.Tensor], sizes: tf.Tensor) -> Proposals:
        """Selects the proposals of two-stage detectors; see `proposals.propose`."""
        return propose(outputs.logits, outputs.deltas, anchors, sizes, self.config)

    def pool(self, outputs: Outputs, boxes: tf.Tensor) -> tf.Tensor:
        """Pools the features of boxes, (batch, n, 4), with RoIAlign: (batch * n, side, side, channels)."""
        side, strides = self.config.pooled_size, self.config.roi_strides
        if len(strides) == 1:
            pooled = roi_align(outputs.maps[0], boxes, side, strides[0])
        else:
            finest = round(math.log2(strides[0]))
            pooled = multilevel_roi_align(outputs.maps, boxes, side, strides, finest)
        return tf.reshape(pooled, [-1, *pooled.shape[2:]])

    def regions(
        self, outputs: Outputs, boxes: tf.Tensor, sizes: tf.Tensor, training: bool = False
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes the box head for boxes, (batch, n, 4).

        Args:
            sizes: int32 (batch, 2), heights and widths of the images without padding.

        Returns:
            Class logits, (batch, n, 1 + classes), and box deltas, (batch, n, (1 + classes) * 4).
        """
        # The number of images, which bounds the memory, may be unknown for the boxes alone.
        boxes = tf.ensure_shape(boxes, [static_shape(outputs.maps[0])[0], None, None])
        boxes = self.with_context(boxes, sizes)
        features = self.region_features([functools.partial(self.pool, outputs)], boxes, training)
        return self.predict(features, training)

    def with_context(self, boxes: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
        """Adds the boxes of the whole images after `boxes`, (batch, n, 4), if there is global context."""
        if not self.config.global_context:
            return boxes
        return tf.concat([boxes, box_ops.whole_images(sizes)[:, None]], 1)

    def region_features(
        self, pools: Sequence[Callable[[tf.Tensor], tf.Tensor]], boxes: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        """Computes the features of boxes, (batch, n, 4), the elementwise maximum over `pools`.

        In inference mode, the boxes are processed in chunks, which bounds the memory. If the number of images
        is unknown when the graph is traced, the bound is that of one image, times the number of images.

        Args:
            pools: functions from boxes, (batch, k, 4), to their pooled features, like `pool`.

        Returns:
            (batch, n, features).
        """
        count, channels = static_shape(boxes)[1], self.head_features.inputs[0].shape[-1]
        images = static_shape(boxes)[0] or 1
        most = max(_CHUNK // ((2 * self.config.pooled_size) ** 2 * channels * images), 1)
        parts = 1 if training else max(-(-count // most), 1)
        size, features = -(-count // parts), self.head_features.outputs[0].shape[-1]

        def compute(part):
            found = [self.head_features(pool(part), training=training) for pool in pools]
            return tf.reshape(functools.reduce(tf.maximum, found), [tf.shape(part)[0], size, features])

        if count == 0:  # oneDNN's convolutions of no images have outputs of wrong shapes
            return tf.zeros([tf.shape(boxes)[0], 0, features], self.head_features.outputs[0].dtype)
        if parts == 1:
            return compute(boxes)
        padded = tf.pad(boxes, [[0, 0], [0, parts * size - count], [0, 0]])
        stacked = tf.stack(tf.split(padded, parts, axis=1))
        signature = tf.TensorSpec([None, size, features], self.head_features.outputs[0].dtype)
        results = tf.map_fn(compute, stacked, fn_output_signature=signature, parallel_iterations=1)
        return tf.concat(tf.unstack(results, parts), 1)[:, :count]

    def predict(self, features: tf.Tensor, training: bool = False) -> tuple[tf.Tensor, tf.Tensor]:
        """Computes class logits and box deltas from the features of the boxes of `with_context`."""
        if self.config.global_context:
            context = tf.repeat(features[:, -1:], static_shape(features)[1] - 1, axis=1)
            features = tf.concat([features[:, :-1], context], -1)
        batch, count = tf.shape(features)[0], static_shape(features)[1]
        results = self.predictor(tf.reshape(features, [-1, features.shape[-1]]), training=training)
        logits, deltas = (tf.reshape(each, [batch, count, each.shape[-1]]) for each in results)
        return logits, deltas

    def raw_detections(
        self, images: tf.Tensor, anchors: Sequence[tf.Tensor], sizes: tf.Tensor
    ) -> RawDetections:
        """Detects objects in normalized, padded images; boxes are in pixels of the padded images.

        Args:
            images: float32 (batch, height, width, 3).
            anchors: the result of `anchors(height, width)`.
            sizes: int32 (batch, 2), height and width without padding.
        """
        return self.checked_detections(images, anchors, sizes)[0]

    def checked_detections(
        self, images: tf.Tensor, anchors: Sequence[tf.Tensor], sizes: tf.Tensor
    ) -> tuple[RawDetections, tf.Tensor]:
        """`raw_detections`, and whether the network's outputs for each image are finite, bool (batch,).

        If they are not finite, nothing is detected.
        """
        outputs = self.features(images)
        finite = are_finite([*outputs.logits, *outputs.deltas])
        if self.head is None:
            found = detections_of_anchors(outputs.logits, outputs.deltas, anchors, sizes, self.config)
            return found, finite
        proposals = self.propose(outputs, anchors, sizes)
        logits, deltas = self.regions(outputs, proposals.boxes, sizes)
        found = detections_of_regions(logits, deltas, proposals, sizes, self.config)
        return found, finite & are_finite([logits, deltas])

    def _detect_in(self, image: np.ndarray) -> Detections:
        pixels, size = self.prepare(image)
        anchors = self.anchors(*static_shape(pixels)[:2])
        results: Any = self._detect(pixels[None], anchors, tf.constant([size]))
        found, finite = results
        check_finite(self.name, finite)
        boxes, scores, labels, valid = (each[0].numpy() for each in found)
        boxes = rescale_boxes(boxes[valid], size, image.shape[:2])
        return Detections(boxes, scores[valid], labels[valid])


def build_detector(
    name: str,
    *,
    classes: int | Sequence[str] | None = None,
    weights: str | os.PathLike | None = None,
    backbone_weights: Weights | None = None,
    freeze: str | None = "C2",
    **overrides: Any,
) -> Detector:
    """Builds a detector.

    Args:
        name: a name of `list_detectors()`.
        classes: the number of classes or their names, without the background (torchvision's `num_classes`
            minus 1). Default: the classes of the weights, otherwise those of the config. A number equal to
            that of the weights keeps their class names. If the number of classes differs from that of the
            weights, or the names from those in a file of this package, the last layers are initialized
            randomly, and all other layers get the weights.
        weights: weights of the whole detector: a name of `list_detector_weights(name)` or the path of a file.
        backbone_weights: weights of a classifier, like `weights` of `build_model`; the classifier's last
            layer is not used. The detector uses the normalization of these weights; a mean image is averaged
            to one mean per channel.
        freeze: with weights of either kind, the layers up to this feature map, "C1", "C2", ..., are not
            trained; None trains all layers. Without weights, no layers are frozen.
        overrides: fields of `DetectorConfig`.

    Raises:
        InputError: an argument is invalid, or the weights do not fit the detector.
    """
    if weights is not None and backbone_weights is not None:
        raise InputError("pass weights, which are those of the whole detector, or backbone_weights, not both")
    if weights is not None:
        return _build_with_weights(name, weights, classes, freeze, overrides)
    config = get_detector_config(name, **overrides)
    class_names = _class_names(classes, config)
    config = config.replace(classes=len(class_names))
    if backbone_weights is None:
        detector = Detector(name, config, class_names)
        feature_maps_upto(detector.model, freeze)  # raises `InputError` for an unknown one
        return detector
    with open_weights(backbone_weights, config.network) as file:
        if "normalization" not in overrides and file.preprocessing is not None:
            config = config.replace(normalization=_per_channel(file.preprocessing.normalization))
        detector = Detector(name, config, class_names)
        file.load(detector.model, transfer=True)
    freeze_detector(detector, freeze)
    return detector


def load_detector(path: str | os.PathLike) -> Detector:
    """Builds the detector that is saved in a file of `Detector.save_weights`, with its weights.

    Raises:
        InputError: the file is damaged, or does not describe a detector.
    """
    spec = read_detector_spec(path)
    if spec is None:
        raise InputError(f"{path} does not name its detector; pass the path to build_detector as weights")
    return build_detector(spec.name, weights=Path(path), freeze=None)


def _build_with_weights(
    name: str,
    weights: str | os.PathLike,
    classes: int | Sequence[str] | None,
    freeze: str | None,
    overrides: dict[str, Any],
) -> Detector:
    file = open_detector_weights(weights, name)
    if file.described is None:
        config = get_detector_config(name, **overrides)
    elif file.described.name == name:
        config = file.described.config.replace(**overrides)
    else:
        raise InputError(f"{weights} holds weights of {file.described.name}, not of {name}")
    class_names = file.class_names
    is_count = isinstance(classes, int) and class_names is not None and classes == len(class_names)
    if class_names is None or not (classes is None or is_count):
        class_names = _class_names(file.count_classes() if classes is None else classes, config)
    detector = Detector(name, config.replace(classes=len(class_names)), class_names)
    detector.load_weights(file, transfer=classes is not None)
    freeze_detector(detector, freeze)
    return detector


def level_anchors(config: DetectorConfig) -> list[np.ndarray]:
    """Returns the anchors of one cell of each level: float32 (anchors, 4), pixels."""
    if config.anchor_rule == "torchvision":
        return [cell_anchors(sizes, config.anchor_ratios) for sizes in config.anchor_sizes]
    levels = zip(config.strides, config.anchor_sizes, strict=True)
    return [
        paper_cell_anchors(stride, [size / stride for size in sizes], config.anchor_ratios)
        for stride, sizes in levels
    ]


@functools.lru_cache(maxsize=64)
def _anchors(config: DetectorConfig, height: int, width: int) -> list[np.ndarray]:
    result = []
    for stride, cells in zip(config.strides, level_anchors(config), strict=True):
        grid = -(-height // stride), -(-width // stride)
        result.append(grid_anchors(cells, grid, grid_strides((height, width), grid)))
    return result


def are_finite(tensors: Sequence[tf.Tensor]) -> tf.Tensor:
    """Whether all elements of tensors (batch, ...) are finite, bool (batch,)."""
    found = [tf.reduce_all(tf.math.is_finite(each), tf.range(1, tf.rank(each))) for each in tensors]
    return tf.reduce_all(tf.stack(found), 0)


def check_finite(name: str, finite: tf.Tensor) -> None:
    """Raises `InputError` unless the outputs of the detector `name` are finite; see `are_finite`."""
    if not tf.reduce_all(finite):
        raise InputError(
            f"the outputs of {name} are not finite numbers: its weights are damaged, or its training has"
            " diverged"
        )


def _shared(config: DetectorConfig) -> tuple[Any, Outputs]:
    """Builds the layers before RoIAlign, or all layers of RetinaNet; returns the input and the outputs."""
    images: Any = keras.Input((None, None, 3), name="images")
    x, maps = build_stem(images, config.network), []
    for stage in range(len(config.network.stage_depths) - (config.style == "c4")):
        x = build_stages(x, config.network, stage, stage + 1)
        maps.append(x)
    if config.style == "c4":
        return images, Outputs(maps[-1:], *rpn_head(maps[-1:], config))
    levels = feature_pyramid(maps[-config.pyramid_stages :], config)
    if config.style == "retinanet":
        return images, Outputs([], *retinanet_heads(levels, config))
    return images, Outputs(levels[: config.pyramid_stages], *rpn_head(levels, config))


def check_images(images: Sequence[np.ndarray]) -> None:
    """Raises `InputError` unless `images` is a list of nonempty uint8 arrays (height, width, 3)."""
    if isinstance(images, np.ndarray) and images.ndim == 3:
        raise InputError("detect takes a list of images; got one image")
    for image in images:
        check_image(image)


def _box_head(channels: int, config: DetectorConfig) -> tuple[keras.Model, keras.Model, keras.Model]:
    """Builds the layers after RoIAlign; returns `head`, `head_features` and `predictor` of `Detector`."""
    rois: Any = keras.Input((config.pooled_size, config.pooled_size, channels), name="rois")
    features: Any = region_features(rois, config)
    inputs, joined = [rois], features
    if config.global_context:
        context: Any = keras.Input(features.shape[1:], name="context")
        joined = keras.layers.Concatenate(name="roi_context")([features, context])
        inputs.append(context)
    last = predictor_layers(config)
    head = keras.Model(
        inputs if config.global_context else rois, [layer(joined) for layer in last], name="roi_head"
    )
    given: Any = keras.Input(joined.shape[1:], name="features")
    predictor = keras.Model(given, [layer(given) for layer in last], name="roi_predictor")
    return head, keras.Model(rois, features, name="roi_features"), predictor


def _class_names(classes: int | Sequence[str] | None, config: DetectorConfig) -> tuple[str, ...]:
    if classes is None:
        classes = config.classes
    if isinstance(classes, int) and not isinstance(classes, bool):
        require(classes > 0, "classes must be a positive integer, or names", classes)
        return tuple(map(str, range(classes)))
    names = tuple(classes) if isinstance(classes, Sequence) and not isinstance(classes, str) else ()
    valid = bool(names) and all(isinstance(name, str) and name for name in names)
    require(valid, "classes must be a positive integer, or names", classes)
    require(len(set(names)) == len(names), "the names of classes must be different", classes)
    return names


def _per_channel(normalization: Normalization) -> Normalization:
    """Returns a mean and a standard deviation per channel; statistics per pixel are averaged."""
    mean, std = (np.asarray(values, "float64") for values in (normalization.mean, normalization.std))
    mean, std = (values.reshape(-1, values.shape[-1]).mean(0) for values in (mean, std))
    return Normalization(mean.tolist(), std.tolist()).for_channels(3)


def freeze_detector(detector: Detector, upto: str | None) -> None:
    """Freezes layers up to a feature map and, with `frozen_batch_norm`, the backbone's batch normalization.

    Args:
        upto: "C1", "C2", ...; None freezes no layers.
    """
    freeze_layers(detector.model, upto)
    if detector.config.frozen_batch_norm:
        for layer in detector.model.layers:
            if isinstance(layer, keras.layers.BatchNormalization) and layer.name.startswith(("conv", "post")):
                layer.trainable = False
