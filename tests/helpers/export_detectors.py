"""Tiny detectors for the export tests, with scores that differ, and images for them."""

import math

import keras
import numpy as np

from keras_resnet.detection.data.sources import open_detection_dataset
from keras_resnet.detection.detector import build_detector
from keras_resnet.models.config import get_config

CIFAR = get_config("cifar_resnet20", stage_depths=(1, 1, 1), stage_filters=(8, 8, 8))
IMAGENET = get_config("resnet18", stage_depths=(1, 1, 1, 1), stage_filters=(8, 8, 8, 8))
SMALL = {"shorter_side": 64, "longer_side": 96, "proposals": 20, "proposal_candidates": 50, "detections": 12}
PYRAMID = {**SMALL, "network": IMAGENET, "pyramid_channels": 8, "rpn_channels": 8}
C4, FPN, V2, RETINANET, RETINANET_V2 = (
    "faster_rcnn_cifar_resnet20_c4",
    "faster_rcnn_resnet50_v1_5_fpn",
    "faster_rcnn_resnet50_v1_5_fpn_v2",
    "retinanet_resnet50_v1_5_fpn",
    "retinanet_resnet50_v1_5_fpn_v2",
)
_OPTIONS = {
    C4: {**SMALL, "network": CIFAR},
    FPN: PYRAMID,
    V2: {**PYRAMID, "head_convs": 2},
    RETINANET: {**PYRAMID, "level_candidates": 50, "head_convs": 2},
    RETINANET_V2: {**PYRAMID, "level_candidates": 50, "head_convs": 2},
}


def build(name, classes=("cat", "dog", "owl"), **options):
    """A detector with scores that differ, and statistics of batch normalization other than 0 and 1."""
    keras.utils.set_random_seed(0)
    detector = build_detector(name, classes=classes, **{**_OPTIONS[name], **options})
    random = np.random.default_rng(0)
    for layer in detector.model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.moving_mean.assign(random.normal(0, 0.1, layer.moving_mean.shape))
            layer.moving_variance.assign(random.uniform(0.5, 1.5, layer.moving_variance.shape))
        elif layer.name.endswith(("_logits", "_deltas")):
            # Not larger, because among saturated scores rounding decides which box suppresses the others.
            inputs = math.prod(layer.kernel.shape[:-1])
            deviation = 1.5 / math.sqrt(inputs) if layer.name.endswith("_logits") else 0.05
            layer.kernel.assign(random.normal(0, deviation, layer.kernel.shape))
            layer.bias.assign(np.zeros(layer.bias.shape))  # RetinaNet's begins with a low probability
    return detector


def scenes(count=3):
    """Scenes of 128 x 128 pixels."""
    split = open_detection_dataset("scenes/digits").split("test[:8]")
    return [split.read_image(index) for index in range(count)]
