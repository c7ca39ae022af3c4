"""The detectors as one table, with the hyperparameters of torchvision's detectors and of the paper's."""

import dataclasses
import math
from typing import Any, Literal, get_args

from keras_resnet.errors import InputError, require, unknown_name
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.models.config import MODELS, ResNetConfig

Style = Literal["c4", "fpn", "retinanet"]
AnchorRule = Literal["torchvision", "paper"]
ExtraLevels = Literal["pool", "P5", "C5"]

_PATTERN = "faster_rcnn_{}_c4"
_RATIOS = (0.5, 1.0, 2.0)


@dataclasses.dataclass(frozen=True)
class DetectorConfig:
    """The configuration of a detector: architecture, preprocessing, postprocessing and training targets.

    The defaults are those of torchvision's Faster R-CNN with a feature pyramid. Sizes of anchors, proposals
    and boxes are in pixels of the resized image.

    Attributes:
        network: the backbone.
        style: "c4": all stages but the last are shared, and the last stage is the box head (the paper,
            appendix A). "fpn": Faster R-CNN with a feature pyramid. "retinanet": the one-stage detector.
        classes: number of classes, without the background. The classification layers have one more output:
            the first is the background, which RetinaNet does not use.
        normalization: of the pixels, before the image is resized.
        shorter_side: of the resized image, pixels, unless the longer side would exceed `longer_side`.
        longer_side: the largest longer side of the resized image, pixels.
        size_multiple: images are padded with zeros to multiples of this at the right and at the bottom.
        anchor_sizes: for each level, the square roots of the anchors' areas, pixels.
        anchor_ratios: aspect ratios, height / width.
        anchor_rule: "torchvision": `cell_anchors`; "paper": `paper_cell_anchors`.
        pyramid_channels: channels of each level of the feature pyramid.
        pyramid_stages: number of stages, counted from the last, whose feature maps the pyramid uses.
        pyramid_norm: whether the pyramid's convolutions have batch normalization instead of biases.
        extra_levels: additional coarser levels. "pool": P6, subsampled from P5; "P5" or "C5": P6 and P7,
            convolutions with stride 2, the first of which takes P5 or the last stage's output.
        rpn_convs: number of 3x3 convolutions of the region proposal network.
        rpn_channels: channels of these convolutions.
        proposal_candidates: number of proposals per level, those with the highest scores, before non-maximum
            suppression.
        proposals: number of proposals per image after non-maximum suppression.
        proposal_nms: IoU threshold of this non-maximum suppression.
        proposal_side: smallest side of a proposal, pixels.
        pooled_size: height and width of RoIAlign's output, cells.
        box_head: "fc": two fully connected layers; "conv": `head_convs` convolutions with batch normalization
            and one fully connected layer; "stage": the last stage of the network and average pooling.
        global_context: whether the features of the whole image, pooled and computed as those of a region, are
            concatenated to the features of each region before the box head's last layers (the paper,
            appendix B).
        box_weights: factors of the encoded boxes of the box head, as in `boxes.encode`.
        head_convs: number of convolutions of each of RetinaNet's two heads, or of the box head "conv".
        head_norm: whether RetinaNet's heads have group normalization.
        score_threshold: only detections with higher scores are returned.
        level_candidates: RetinaNet's number of pairs of box and class per level, those with the highest
            scores, before non-maximum suppression.
        box_side: smallest side of a detection, pixels.
        box_nms: IoU threshold of the non-maximum suppression of detections, class by class.
        detections: maximum number of detections per image.
        frozen_batch_norm: whether batch normalization of a pretrained backbone stays in inference mode in
            training.
        anchors_inside: whether anchors that cross the image's border are ignored in training.
        rpn_positive_overlap: anchors are positive if their IoU with an object is at least this, or if no
            other anchor has a higher IoU with the object.
        rpn_negative_overlap: anchors are negative if their IoU with each object is below this; anchors
            between the two thresholds are ignored.
        rpn_samples: number of anchors per image that are sampled for the losses of the region proposal
            network.
        rpn_positive_fraction: maximum fraction of positives among them.
        training_candidates: `proposal_candidates` in training.
        training_proposals: `proposals` in training.
        roi_positive_overlap: regions are positive if their IoU with an object is at least this, otherwise
            background.
        roi_samples: number of regions per image that are sampled for the losses of the box head.
        roi_positive_fraction: maximum fraction of positives among them.
        rpn_beta: the smooth L1 loss of the region proposal network's boxes is linear for errors from this
            value on.
        roi_beta: the same for the box head.

    Raises:
        InputError: a value is not valid.
    """

    network: ResNetConfig
    style: Style = "fpn"
    classes: int = 90
    normalization: Normalization = dataclasses.field(default_factory=Normalization.imagenet)
    shorter_side: int = 800
    longer_side: int = 1333
    size_multiple: int = 32
    anchor_sizes: tuple[tuple[float, ...], ...] = ((32,), (64,), (128,), (256,), (512,))
    anchor_ratios: tuple[float, ...] = _RATIOS
    anchor_rule: AnchorRule = "torchvision"
    pyramid_channels: int = 256
    pyramid_stages: int = 4
    pyramid_norm: bool = False
    extra_levels: ExtraLevels = "pool"
    rpn_convs: int = 1
    rpn_channels: int = 256
    proposal_candidates: int = 1000
    proposals: int = 1000
    proposal_nms: float = 0.7
    proposal_side: float = 1e-3
    pooled_size: int = 7
    box_head: Literal["fc", "conv", "stage"] = "fc"
    global_context: bool = False
    box_weights: tuple[float, float, float, float] = (10.0, 10.0, 5.0, 5.0)
    head_convs: int = 4
    head_norm: bool = False
    score_threshold: float = 0.05
    level_candidates: int = 1000
    box_side: float = 1e-2
    box_nms: float = 0.5
    detections: int = 100
    frozen_batch_norm: bool = True
    anchors_inside: bool = False
    rpn_positive_overlap: float = 0.7
    rpn_negative_overlap: float = 0.3
    rpn_samples: int = 256
    rpn_positive_fraction: float = 0.5
    training_candidates: int = 2000
    training_proposals: int = 2000
    roi_positive_overlap: float = 0.5
    roi_samples: int = 512
    roi_positive_fraction: float = 0.25
    rpn_beta: float = 1 / 9
    roi_beta: float = 1 / 9

    def __post_init__(self):
        for field, choices in _CHOICES.items():
            value = getattr(self, field)
            require(value in choices, f"{field} must be one of {', '.join(map(repr, choices))}", value)
        for field in _COUNTS:
            value = getattr(self, field)
            valid = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _LARGEST
            require(valid, f"{field} must be an integer from 1 to {_LARGEST}", value)
        for field in _SHARES:
            value = getattr(self, field)
            valid = isinstance(value, int | float) and 0 <= value <= 1
            require(valid, f"{field} must be a number from 0 to 1", value)
        context = self.global_context
        require(isinstance(context, bool), "global_context must be True or False", context)
        if context and self.style == "retinanet":
            raise InputError("global_context needs a two-stage detector; RetinaNet has one stage")
        for field in ("proposal_side", "box_side"):
            value = getattr(self, field)
            valid = isinstance(value, int | float) and 0 <= value < math.inf
            require(valid, f"{field} must be a number of pixels", value)
        for field in ("anchor_ratios", "box_weights"):
            value = getattr(self, field)
            require(_are_positive(value), f"{field} must be positive numbers", value)
            object.__setattr__(self, field, tuple(value))
        require(len(self.box_weights) == 4, "box_weights must be four numbers", self.box_weights)
        _check_network(self.network)
        if not isinstance(self.normalization, Normalization) or self.normalization.shape != (3,):
            raise InputError("a detector's normalization has one mean and one standard deviation per channel")
        order = self.rpn_negative_overlap, self.rpn_positive_overlap
        require(order[0] <= order[1], "rpn_negative_overlap must not be above rpn_positive_overlap", order)
        betas = self.rpn_beta, self.roi_beta
        require(_are_positive(betas), "rpn_beta and roi_beta must be positive numbers", betas)
        sizes = self.anchor_sizes
        valid = isinstance(sizes, tuple | list) and all(map(_are_positive, sizes))
        require(valid, "anchor_sizes must be a tuple of positive numbers for each level", sizes)
        object.__setattr__(self, "anchor_sizes", tuple(map(tuple, sizes)))
        self._check_levels()

    def _check_levels(self):
        stages = len(self.network.stage_depths)
        if self.style == "c4":
            require(stages > 1, "a C4 detector needs a network of at least two stages", stages)
        elif self.network.block == "preactivation":
            raise InputError("a feature pyramid needs stages that begin with their stride: no pre-activation")
        else:
            in_range = 1 < self.pyramid_stages <= stages
            require(in_range, f"pyramid_stages must be from 2 to {stages}", self.pyramid_stages)
        sizes, levels = self.anchor_sizes, len(self.strides)
        valid = len(sizes) == levels and len({len(level) for level in sizes}) == 1
        require(valid, f"anchor_sizes must be {levels} tuples of the same length", sizes)
        multiple, coarsest = self.size_multiple, self.stage_strides[-1]
        require(multiple % coarsest == 0, f"size_multiple must be a multiple of {coarsest}", multiple)

    @property
    def stage_strides(self) -> tuple[int, ...]:
        """The stride of each stage's output: pixels per cell."""
        network = self.network
        # A stage begins with its stride; in a pre-activation network, it ends with that of the next stage.
        later = network.block == "preactivation"
        last = len(network.stage_depths) - 1
        return tuple(network.stem_stride * 2 ** min(stage + later, last) for stage in range(last + 1))

    @property
    def roi_strides(self) -> tuple[int, ...]:
        """The stride of each feature map from which RoIAlign pools: pixels per cell."""
        if self.style == "c4":
            return self.stage_strides[-2:-1]
        return self.stage_strides[-self.pyramid_stages :]

    @property
    def strides(self) -> tuple[int, ...]:
        """The stride of each feature map that has anchors, from the finest level on: pixels per cell."""
        strides = self.roi_strides
        if self.style == "c4":
            return strides
        extra = (2,) if self.extra_levels == "pool" else (2, 4)
        return (*strides, *(strides[-1] * factor for factor in extra))

    @property
    def cell_anchors(self) -> int:
        """The number of anchors per cell."""
        return len(self.anchor_ratios) * len(self.anchor_sizes[0])

    @property
    def in_training(self) -> "DetectorConfig":
        """The same config with the number of proposals of training."""
        return self.replace(proposal_candidates=self.training_candidates, proposals=self.training_proposals)

    def replace(self, **overrides: Any) -> "DetectorConfig":
        """Returns a copy with other fields; raises `InputError` for a field that does not exist."""
        for name in overrides:
            if name not in self.__dataclass_fields__:
                raise unknown_name("detector option", name, self.__dataclass_fields__)
        return dataclasses.replace(self, **overrides)


_CHOICES = {
    "style": get_args(Style),
    "anchor_rule": get_args(AnchorRule),
    "extra_levels": get_args(ExtraLevels),
    "box_head": ("fc", "conv", "stage"),
}
_LARGEST = 2**20
_COUNTS = (
    *(
        "classes",
        "shorter_side",
        "longer_side",
        "size_multiple",
        "pyramid_channels",
        "rpn_convs",
        "rpn_channels",
    ),
    *("proposal_candidates", "proposals", "pooled_size", "head_convs", "level_candidates", "detections"),
    *("rpn_samples", "training_candidates", "training_proposals", "roi_samples"),
)
_SHARES = (
    *("proposal_nms", "box_nms", "score_threshold", "rpn_positive_overlap", "rpn_negative_overlap"),
    *("rpn_positive_fraction", "roi_positive_overlap", "roi_positive_fraction"),
)


def _are_positive(values: Any) -> bool:
    """Whether `values` is a nonempty tuple or list of positive finite numbers."""
    return (
        isinstance(values, tuple | list)
        and len(values) > 0
        and all(isinstance(value, int | float) and 0 < value < math.inf for value in values)
    )


def _check_network(network: Any) -> None:
    valid = isinstance(network, ResNetConfig)
    require(valid, "network must be a ResNetConfig, such as get_config('resnet50')", network)


def _retinanet(**options: Any) -> DetectorConfig:
    # Three sizes per octave, truncated to integers as in torchvision.
    sizes = tuple(tuple(int(2 ** (5 + level + third / 3)) for third in range(3)) for level in range(5))
    defaults = {"pyramid_stages": 3, "anchor_sizes": sizes, "box_side": 0.0, "detections": 300}
    return DetectorConfig(MODELS["resnet50_v1_5"], "retinanet", **defaults, **options)


_PYRAMID_DETECTORS = {
    "faster_rcnn_resnet50_v1_5_fpn": DetectorConfig(MODELS["resnet50_v1_5"]),
    "faster_rcnn_resnet50_v1_5_fpn_v2": DetectorConfig(
        MODELS["resnet50_v1_5"], pyramid_norm=True, rpn_convs=2, box_head="conv", frozen_batch_norm=False
    ),
    "retinanet_resnet50_v1_5_fpn": _retinanet(extra_levels="P5"),
    "retinanet_resnet50_v1_5_fpn_v2": _retinanet(extra_levels="C5", head_norm=True, frozen_batch_norm=False),
}


def _c4(network: ResNetConfig) -> DetectorConfig:
    """The paper's detector (appendix A), with the hyperparameters of py-faster-rcnn.

    Anchor sizes are 8, 16 and 32 times the stride of the shared feature map: 128, 256 and 512 pixels for
    ImageNet's networks.
    """
    _check_network(network)
    is_cifar = network.stem == "cifar"
    stride = network.stem_stride * 2 ** (len(network.stage_depths) - 2)
    # The last stage has stride 2, except in pre-activation networks, where the previous stage has it.
    pooled = 7 if network.block == "preactivation" else 14
    channels = network.stage_filters[-2] * network.expansion
    return DetectorConfig(
        network,
        "c4",
        classes=20,
        shorter_side=128 if is_cifar else 600,
        longer_side=213 if is_cifar else 1000,
        anchor_sizes=((8 * stride, 16 * stride, 32 * stride),),
        # The paper's rule rounds the sides of a cell, which is too coarse for small strides.
        anchor_rule="torchvision" if is_cifar else "paper",
        rpn_channels=min(512, max(128, channels)),
        proposal_candidates=6000,
        proposals=300,
        proposal_side=stride,
        pooled_size=pooled,
        box_head="stage",
        box_side=0.0,
        box_nms=0.3,
        anchors_inside=True,
        training_candidates=12000,
        roi_samples=128,
        roi_beta=1.0,
    )


def list_detectors() -> list[str]:
    """Returns the names of all detectors."""
    return [*_PYRAMID_DETECTORS, *(_PATTERN.format(network) for network in MODELS)]


def get_detector_config(name: str, **overrides: Any) -> DetectorConfig:
    """Returns the config of a detector; `overrides` are fields of `DetectorConfig`.

    For a C4 detector with another `network`, the values that depend on the network are derived from it.

    Raises:
        InputError: the name or a field does not exist, or a value is invalid.
    """
    if name in _PYRAMID_DETECTORS:
        return _PYRAMID_DETECTORS[name].replace(**overrides)
    if name not in list_detectors():
        raise unknown_name("detector", name, list_detectors())
    prefix, suffix = _PATTERN.split("{}")
    network = MODELS[name.removeprefix(prefix).removesuffix(suffix)]
    return _c4(overrides.pop("network", network)).replace(**overrides)
