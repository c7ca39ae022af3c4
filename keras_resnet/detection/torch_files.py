"""Loads weight files of torchvision's detectors (.safetensors, .pth, .pt), with old or new tensor names."""

import re
from collections.abc import Collection, Iterator
from pathlib import Path

import keras
import numpy as np

from keras_resnet.detection.config import DetectorConfig
from keras_resnet.errors import InputError
from keras_resnet.weights.conversion import (
    BN_ATTRIBUTES,
    HEAD,
    Source,
    Table,
    Tensors,
    Variable,
    assign_variables,
    check_tensors,
    drop_step_counters,
)
from keras_resnet.weights.torch_files import torch_names

EPSILON = 1e-5
"""The epsilon of PyTorch's batch normalization."""

LOAD_CLASSIFIER = "pass it to build_detector as backbone_weights, or load it with build_model"

_KERNEL, _DENSE = (2, 3, 1, 0), (1, 0)  # transpositions of OIHW and of (outputs, inputs)
_BN_NAMES = ("weight", "bias", "running_mean", "running_var")

_KINDS = {
    ("fpn", False): "a Faster R-CNN with a feature pyramid, such as faster_rcnn_resnet50_v1_5_fpn",
    ("fpn", True): "a Faster R-CNN with a normalized pyramid, such as faster_rcnn_resnet50_v1_5_fpn_v2",
    ("c4", False): "a Faster R-CNN without a feature pyramid, such as faster_rcnn_resnet50_v1_5_c4",
    ("retinanet", False): "a RetinaNet, such as retinanet_resnet50_v1_5_fpn",
    ("retinanet", True): "a RetinaNet with normalized heads, such as retinanet_resnet50_v1_5_fpn_v2",
}

# Patterns of torchvision's tensor names before version 0.13, and the names since.
_OLD_NAMES = (
    (r"(backbone\.fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)", lambda m: f"{m[1]}.0.{m[2]}"),
    (r"(rpn\.head\.conv)\.(weight|bias)", lambda m: f"{m[1]}.0.0.{m[2]}"),
    (
        r"(head\.(?:classification|regression)_head\.conv)\.([0246])\.(weight|bias)",
        lambda m: f"{m[1]}.{int(m[2]) // 2}.0.{m[3]}",
    ),
)


def torch_detector_names(config: DetectorConfig) -> Table:
    """Maps a detector's variables to the tensors of a torchvision state dict with new names.

    torchvision publishes no C4 detector. The names are those of a `FasterRCNN` whose `backbone.body` has the
    stages up to `layer3`, and whose `roi_heads.box_head` has `layer4`.

    Raises:
        InputError: torchvision does not have the backbone.
    """
    return {**_backbone(config), **dict(_pyramid(config)), **dict(_heads(config))}


def _backbone(config: DetectorConfig) -> Table:
    table, last = {}, f"layer{len(config.network.stage_depths)}"
    for (layer, attribute), source in torch_names(config.network).items():
        if layer != HEAD:
            in_head = config.box_head == "stage" and source.names[0].startswith(f"{last}.")
            prefix = "roi_heads.box_head" if in_head else "backbone.body"
            table[layer, attribute] = source._replace(names=(f"{prefix}.{source.names[0]}",))
    return table


def _pyramid(config: DetectorConfig) -> Iterator[tuple[Variable, Source]]:
    if config.style == "c4":
        return
    for kind in ("inner", "layer"):
        for level in range(config.pyramid_stages):
            layer, name = f"fpn_{kind}_{level}", f"backbone.fpn.{kind}_blocks.{level}"
            yield from _conv(layer, f"{name}.0", bias=not config.pyramid_norm)
            if config.pyramid_norm:
                yield from _norm(f"{layer}_bn", f"{name}.1", _BN_NAMES)
    if config.extra_levels != "pool":
        for level in ("p6", "p7"):
            yield from _conv(f"fpn_{level}", f"backbone.fpn.extra_blocks.{level}")


def _heads(config: DetectorConfig) -> Iterator[tuple[Variable, Source]]:
    if config.style == "retinanet":
        ends = {"classification": ("logits", "cls_logits"), "regression": ("deltas", "bbox_reg")}
        for head, (ours, theirs) in ends.items():
            for index in range(config.head_convs):
                layer, name = f"{head}_conv_{index}", f"head.{head}_head.conv.{index}"
                yield from _conv(layer, f"{name}.0", bias=not config.head_norm)
                if config.head_norm:
                    yield from _norm(f"{layer}_gn", f"{name}.1", _BN_NAMES[:2])
            yield from _conv(f"{head}_{ours}", f"head.{head}_head.{theirs}")
        return
    for index in range(config.rpn_convs):
        yield from _conv(f"rpn_conv_{index}", f"rpn.head.conv.{index}.0")
    yield from _conv("rpn_logits", "rpn.head.cls_logits")
    yield from _conv("rpn_deltas", "rpn.head.bbox_pred")
    pooled = (config.pyramid_channels, config.pooled_size, config.pooled_size)
    if config.box_head == "fc":
        yield from _dense("roi_fc6", "roi_heads.box_head.fc6", pooled)
        yield from _dense("roi_fc7", "roi_heads.box_head.fc7")
    elif config.box_head == "conv":
        for index in range(config.head_convs):
            yield from _conv(f"roi_conv_{index}", f"roi_heads.box_head.{index}.0", bias=False)
            yield from _norm(f"roi_conv_{index}_bn", f"roi_heads.box_head.{index}.1", _BN_NAMES)
        yield from _dense("roi_fc", f"roi_heads.box_head.{config.head_convs + 1}", pooled)
    yield from _dense("roi_logits", "roi_heads.box_predictor.cls_score")
    yield from _dense("roi_deltas", "roi_heads.box_predictor.bbox_pred")


def _conv(layer: str, name: str, bias: bool = True) -> Iterator[tuple[Variable, Source]]:
    yield (layer, "kernel"), Source((f"{name}.weight",), _KERNEL)
    if bias:
        yield (layer, "bias"), Source((f"{name}.bias",))


def _norm(layer: str, name: str, theirs: tuple[str, ...]) -> Iterator[tuple[Variable, Source]]:
    for attribute, their in zip(BN_ATTRIBUTES, theirs, strict=False):
        yield (layer, attribute), Source((f"{name}.{their}",))


def _dense(
    layer: str, name: str, flattened: tuple[int, int, int] | None = None
) -> Iterator[tuple[Variable, Source]]:
    yield (layer, "kernel"), Source((f"{name}.weight",), _DENSE, flattened=flattened)
    yield (layer, "bias"), Source((f"{name}.bias",))


def with_new_names(tensors: Tensors, path: Path) -> Tensors:
    """Returns the tensors with torchvision's names since version 0.13."""
    renamed = {_new_name(name): tensor for name, tensor in tensors.items()}
    if len(renamed) < len(tensors):
        raise InputError(f"{path} has tensors twice, under torchvision's old and new names")
    return renamed


def _new_name(name: str) -> str:
    for pattern, replacement in _OLD_NAMES:
        name = re.sub(rf"^{pattern}$", replacement, name)
    return name


def check_kind(tensors: Tensors, config: DetectorConfig, path: Path, detector: str) -> None:
    """Raises `InputError` unless a state dict with new names is that of a detector of the config's style."""
    if any(name.startswith(("roi_heads.mask_", "roi_heads.keypoint_")) for name in tensors):
        raise InputError(f"{path} holds a detector with masks or keypoints; {detector} has boxes only")
    kind = _kind(tensors)
    if kind is None and {"conv1.weight", "fc.weight"} & tensors.keys():
        raise InputError(f"{path} holds a classifier, not a detector; {LOAD_CLASSIFIER}")
    if kind is None:
        raise InputError(f"{path} does not hold a detector of torchvision, as {detector} needs")
    has_norm = config.head_norm if config.style == "retinanet" else config.pyramid_norm
    if kind != (config.style, has_norm):
        raise InputError(f"{path} holds {_KINDS[kind]}, another detector than {detector}")


def _kind(tensors: Tensors) -> tuple[str, bool] | None:
    """Returns the style, and whether the heads or the pyramid are normalized; None for no detector."""
    if any(name.startswith("head.classification_head.") for name in tensors):
        return "retinanet", "head.classification_head.conv.0.1.weight" in tensors
    if not any(name.startswith("roi_heads.") for name in tensors):
        return None
    if any(name.startswith("backbone.fpn.") for name in tensors):
        return "fpn", "backbone.fpn.inner_blocks.0.1.weight" in tensors
    return "c4", False


def count_classes(tensors: Tensors) -> int | None:
    """Returns a state dict's number of classes, without the background; None if it is not known."""
    logits = tensors.get("roi_heads.box_predictor.cls_score.bias")
    anchors = 1
    if logits is None:
        logits = tensors.get("head.classification_head.cls_logits.bias")
        deltas = tensors.get("head.regression_head.bbox_reg.bias")
        anchors = 0 if deltas is None else deltas.size // 4
    if logits is None or not anchors:
        return None
    outputs, rest = divmod(logits.size, anchors)
    return outputs - 1 if outputs > 1 and not rest else None


def assign_torch_tensors(
    model: keras.Model,
    config: DetectorConfig,
    tensors: Tensors,
    path: Path,
    *,
    epsilon: float,
    kept: Collection[str] = (),
) -> None:
    """Assigns the tensors of a state dict with new names to the model's variables, and removes them from it.

    Args:
        epsilon: the epsilon with which the backbone was trained, if its batch normalization is frozen.
        kept: names of layers that keep their weights; their tensors in the state dict are ignored.

    Raises:
        InputError: tensors and variables do not match one to one; the message lists which ones, and the model
            is unchanged.
    """
    is_frozen = not any(name.endswith(".num_batches_tracked") for name in tensors)
    drop_step_counters(tensors)
    table = torch_detector_names(config)
    for key in [key for key in table if key[0] in kept]:
        tensors.pop(table.pop(key).names[0], None)
    layers = [layer for layer in model.layers if layer.name not in kept]
    variables = {(layer.name, v.name): v for layer in layers for v in layer.weights}
    classes, hint = count_classes(tensors), ""
    if classes not in (None, config.classes):
        hint = f" (the file has {classes} classes, the detector {config.classes})"
    check_tensors(variables, table, tensors, f"{path} does not fit {model.name}", hint)
    if is_frozen and epsilon != EPSILON:
        _fold_epsilon(layers, table, tensors, epsilon)
    assign_variables(variables, table, tensors)


def _fold_epsilon(layers: list[keras.layers.Layer], table: Table, tensors: Tensors, epsilon: float) -> None:
    """Scales gammas so that layers with another epsilon compute the same outputs from the same statistics."""
    for layer in layers:
        if isinstance(layer, keras.layers.BatchNormalization) and layer.epsilon != epsilon:
            (gamma,), (variance,) = (table[layer.name, n].names for n in ("gamma", "moving_variance"))
            variances = tensors[variance].astype("float64")
            # A variance of 0 has no finite equivalent gamma; where gamma is 0, it needs none.
            ratio = (variances + layer.epsilon) / np.maximum(variances + epsilon, np.finfo("float64").tiny)
            scaled = tensors[gamma].astype("float64") * np.sqrt(ratio)
            tensors[gamma] = np.where(variances + epsilon > 0, scaled, tensors[gamma]).astype("float32")
