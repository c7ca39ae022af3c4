"""The heads of detectors, built from Keras tensors. Their outputs are float32 under any dtype policy."""

import math
from collections.abc import Callable, Sequence

import keras
from keras import layers

from keras_resnet.detection.config import DetectorConfig
from keras_resnet.models.blocks import he_normal
from keras_resnet.models.layers import BatchNormalization
from keras_resnet.models.resnet import build_stages

_GROUPS = 32
_PRIOR = 0.01  # probability of an object at each anchor before training (RetinaNet, section 3.3)
_Maps = Sequence[keras.KerasTensor]
_Tensors = list[keras.KerasTensor]


def rpn_head(maps: _Maps, config: DetectorConfig) -> tuple[_Tensors, _Tensors]:
    """Builds the region proposal network, whose layers all maps share (Faster R-CNN, section 3.1).

    Returns:
        Objectness logits, (batch, height, width, anchors), and box deltas, (batch, height, width,
        anchors * 4), of each map.
    """
    stem = []
    for index in range(config.rpn_convs):
        stem.append(_conv3x3(config.rpn_channels, f"rpn_conv_{index}", _normal()))
        stem.append(layers.Activation("relu", name=f"rpn_conv_{index}_relu"))
    logits = _output(layers.Conv2D, config.cell_anchors, "rpn_logits", kernel_size=1)
    deltas = _output(layers.Conv2D, 4 * config.cell_anchors, "rpn_deltas", kernel_size=1)
    features = [_chain(x, stem) for x in maps]
    return [logits(x) for x in features], [deltas(x) for x in features]


def region_features(rois: keras.KerasTensor, config: DetectorConfig) -> keras.KerasTensor:
    """Builds the layers of the box head that compute the features of regions (Fast R-CNN, section 2).

    Args:
        rois: (regions, pooled_size, pooled_size, channels).

    Returns:
        (regions, features).
    """
    return _BOX_HEADS[config.box_head](rois, config)


def predictor_layers(config: DetectorConfig) -> tuple[layers.Layer, layers.Layer]:
    """Returns the last layers of the box head, which take the features of regions, (regions, features).

    The first returns class logits, (regions, 1 + classes), the second box deltas,
    (regions, (1 + classes) * 4), class by class; the first class is the background.
    """
    outputs = config.classes + 1
    return (
        _output(layers.Dense, outputs, "roi_logits"),
        _output(layers.Dense, 4 * outputs, "roi_deltas", deviation=0.001),
    )


def retinanet_heads(maps: _Maps, config: DetectorConfig) -> tuple[_Tensors, _Tensors]:
    """Builds RetinaNet's two heads, whose layers all maps share (RetinaNet, section 4).

    Returns:
        Class logits, (batch, height, width, anchors * (1 + classes)), and box deltas, (batch, height,
        width, anchors * 4), of each map. The first class is not used.
    """
    bias = keras.initializers.Constant(-math.log((1 - _PRIOR) / _PRIOR))
    ends = {
        "classification": _output(
            layers.Conv2D,
            config.cell_anchors * (config.classes + 1),
            "classification_logits",
            kernel_size=3,
            padding="same",
            bias_initializer=bias,
        ),
        "regression": _output(
            layers.Conv2D, config.cell_anchors * 4, "regression_deltas", kernel_size=3, padding="same"
        ),
    }
    outputs = []
    for name, end in ends.items():
        stem = []
        for index in range(config.head_convs):
            prefix = f"{name}_conv_{index}"
            use_bias = not config.head_norm
            stem.append(_conv3x3(config.pyramid_channels, prefix, _normal(), use_bias=use_bias))
            if config.head_norm:
                groups = math.gcd(_GROUPS, config.pyramid_channels)
                stem.append(layers.GroupNormalization(groups, epsilon=1e-5, name=f"{prefix}_gn"))
            stem.append(layers.Activation("relu", name=f"{prefix}_relu"))
        outputs.append([end(_chain(x, stem)) for x in maps])
    logits, deltas = outputs
    return logits, deltas


def _fc_head(x, config):
    del config
    x = layers.Flatten(name="roi_flatten")(x)
    for name in ("roi_fc6", "roi_fc7"):
        x = _dense_relu(x, name)
    return x


def _conv_head(x, config):
    for index in range(config.head_convs):
        name = f"roi_conv_{index}"
        x = _conv3x3(config.pyramid_channels, name, he_normal(), use_bias=False)(x)
        x = BatchNormalization(momentum=0.9, epsilon=1e-5, name=f"{name}_bn")(x)
        x = layers.Activation("relu", name=f"{name}_relu")(x)
    return _dense_relu(layers.Flatten(name="roi_flatten")(x), "roi_fc")


def _stage_head(x, config):
    x = build_stages(x, config.network, first=len(config.network.stage_depths) - 1)
    return layers.GlobalAveragePooling2D(name="roi_pool")(x)


_BOX_HEADS: dict[str, Callable] = {"fc": _fc_head, "conv": _conv_head, "stage": _stage_head}


def _dense_relu(x, name):
    x = layers.Dense(1024, kernel_initializer=he_normal(), name=name)(x)
    return layers.Activation("relu", name=f"{name}_relu")(x)


def _conv3x3(filters, name, initializer, **options):
    return layers.Conv2D(filters, 3, padding="same", kernel_initializer=initializer, name=name, **options)


def _output(layer, outputs, name, deviation=0.01, **options):
    """A layer whose outputs are logits or deltas, in float32 because 16 bits are not precise enough."""
    return layer(outputs, kernel_initializer=_normal(deviation), dtype="float32", name=name, **options)


def _normal(deviation: float = 0.01):
    return keras.initializers.RandomNormal(stddev=deviation)


def _chain(x, steps):
    for step in steps:
        x = step(x)
    return x
