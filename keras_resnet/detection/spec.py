"""`DetectorSpec`, the description of a detector in its weight file."""

import dataclasses
import json
import math
from typing import Any

from keras_resnet.detection.config import DetectorConfig, get_detector_config
from keras_resnet.errors import InputError, one_line
from keras_resnet.images.preprocessing import Normalization
from keras_resnet.models.config import ResNetConfig
from keras_resnet.weights.conversion import MAX_ELEMENTS
from keras_resnet.weights.spec import check_architecture, main_weights

# Fields that may differ between a weight file and the detector that loads it.
_TUNABLE = {
    *("shorter_side", "longer_side", "size_multiple", "frozen_batch_norm"),
    *("proposal_candidates", "proposals", "proposal_nms", "proposal_side"),
    *("score_threshold", "level_candidates", "box_side", "box_nms", "detections"),
    *("anchors_inside", "rpn_positive_overlap", "rpn_negative_overlap", "rpn_samples"),
    *("rpn_positive_fraction", "training_candidates", "training_proposals", "roi_positive_overlap"),
    *("roi_samples", "roi_positive_fraction", "rpn_beta", "roi_beta"),
}
_NESTED = {"network": ResNetConfig, "normalization": Normalization}
# The largest sides, in pixels or cells, and numbers of candidates that a file can request.
_LIMITS = {
    **dict.fromkeys(("shorter_side", "longer_side", "size_multiple"), 2**13),
    **dict.fromkeys(("proposal_candidates", "proposals", "level_candidates", "detections"), 2**16),
    **dict.fromkeys(("training_candidates", "training_proposals", "rpn_samples", "roi_samples"), 2**16),
    "pooled_size": 2**7,
}


@dataclasses.dataclass(frozen=True)
class DetectorSpec:
    """The name, the config and the class names of a detector.

    Attributes:
        name: a name of `list_detectors()`.
        class_names: in the order of the detections' labels, without background.

    Raises:
        InputError: the number of names is not the number of classes.
    """

    name: str
    config: DetectorConfig
    class_names: tuple[str, ...]

    def __post_init__(self):
        if len(self.class_names) != self.config.classes:
            raise InputError(f"{len(self.class_names)} class names for {self.config.classes} classes")

    def to_json(self) -> str:
        """Serializes to one line of JSON with sorted keys."""
        default, network = get_detector_config(self.name), self.config.network
        given = {"network"} if network != default.network else set()
        if default.style == "c4":  # where the network decides other fields
            default = get_detector_config(self.name, network=network)
        defaults, fields = dataclasses.asdict(default), dataclasses.asdict(self.config)
        given |= {field for field, value in fields.items() if value != defaults[field]}
        overrides = {field: fields[field] for field in given}
        description = {"detector": self.name, "overrides": overrides, "class_names": self.class_names}
        return json.dumps(description, sort_keys=True)

    @classmethod
    def from_json(cls, text: str, file_size: float = math.inf) -> "DetectorSpec":
        """Parses the output of `to_json`; raises `InputError` for anything else.

        Also raises it for a detector whose weights would take more than `file_size` bytes.
        """
        try:
            fields = json.loads(text)
            overrides = {field: _parse(field, value) for field, value in fields["overrides"].items()}
            config = get_detector_config(fields["detector"], **overrides)
            _check_proportions(config, file_size)
            return cls(fields["detector"], config, tuple(map(str, fields["class_names"])))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise InputError(f"the description in the weight file is invalid: {one_line(error)}") from None

    def check_loadable(
        self, source: object, detector: str, config: DetectorConfig, transfer: bool = False
    ) -> None:
        """Raises `InputError` if weights of this detector do not fit the detector `detector` with `config`.

        Args:
            source: the weight file, for the message.
            transfer: allows another number of classes.
        """
        check_architecture(source, self.name, self.config.network, config.network)
        ignored = {"network", *_TUNABLE, *(("classes",) if transfer else ())}
        for field in dataclasses.fields(DetectorConfig):
            theirs, ours = getattr(self.config, field.name), getattr(config, field.name)
            if field.name not in ignored and theirs != ours:
                raise InputError(
                    f"{source} holds weights of {self.name}, another detector than {detector}: "
                    f"{field.name} is {one_line(theirs)} there, {one_line(ours)} here"
                )


def _parse(field: str, value: Any) -> Any:
    if field in _NESTED:
        return _NESTED[field](**value)
    return _as_tuple(value)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


def _check_proportions(config: DetectorConfig, file_size: float) -> None:
    """Limits the memory and the time that the description in a file can request."""
    for field, limit in _LIMITS.items():
        if getattr(config, field) > limit:
            raise ValueError(f"{field} is unreasonably large")
    # A weight takes at least 2 bytes in a file; the HDF5 groups of a layer take more than 1,000 bytes.
    layers = config.network.weighted_layers
    if config.style == "retinanet":
        layers += 2 * config.head_convs
    else:
        layers += config.rpn_convs + (config.head_convs if config.box_head == "conv" else 0)
    needed = 2 * (main_weights(config.network, 0) + _head_weights(config)) + 1000 * layers
    if needed > min(file_size, 2 * MAX_ELEMENTS):
        raise ValueError("the detector is unreasonably large for the file")


def _head_weights(config: DetectorConfig) -> int:
    """Returns the number of weights in the kernels of all layers after the backbone."""
    width, outputs = config.pyramid_channels, config.classes + 1
    square, anchors = 9 * width * width, config.cell_anchors
    if config.style == "retinanet":
        return square * (config.pyramid_stages + 2 * config.head_convs) + 9 * width * anchors * (outputs + 4)
    own, inputs = config.rpn_channels, width
    if config.style == "c4":
        inputs = config.network.stage_filters[-2] * config.network.expansion
    total = own * (9 * inputs + 9 * own * (config.rpn_convs - 1) + 5 * anchors)
    vectors = 2 if config.global_context else 1
    if config.box_head == "stage":
        features = config.network.stage_filters[-1] * config.network.expansion
        return total + 5 * outputs * vectors * features
    if config.box_head == "conv":
        total += square * config.head_convs
    inputs = width * config.pooled_size**2
    return total + square * config.pyramid_stages + 1024 * (inputs + 5 * outputs * vectors)
