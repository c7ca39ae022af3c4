"""The table of published detector weights, and the names of their classes.

URLs, digests and average precisions are those of torchvision 0.29.2
(`torchvision/models/detection/faster_rcnn.py` and `retinanet.py`).
"""

import dataclasses
import functools
from pathlib import Path

from keras_resnet.detection.config import get_detector_config
from keras_resnet.errors import InputError, unknown_name

_METRICS_SOURCE = "torchvision 0.29.2, torchvision/models/detection"


@dataclasses.dataclass(frozen=True)
class PretrainedDetector:
    """One set of published weights of a detector, for COCO's classes.

    Attributes:
        name: unique among the weights of a detector.
        model: a name of `list_detectors()`.
        digest: "sha256:" and the first hexadecimal digits, as many as are published.
        box_ap: COCO's mean average precision, IoU .50:.05:.95, on val2017, in percent.
        metrics_source: where the average precision is published.
        license: SPDX identifier of the weights' license.
        epsilon: of the backbone's batch normalization with which the weights were trained and evaluated.
    """

    name: str
    model: str
    url: str
    digest: str
    box_ap: float
    metrics_source: str
    license: str
    epsilon: float


def _torchvision(model: str, file: str, box_ap: float, epsilon: float) -> PretrainedDetector:
    url = f"https://download.pytorch.org/models/{file}.pth"
    digest = "sha256:" + file.rsplit("-", 1)[1]  # file names in PyTorch Hub end with it
    return PretrainedDetector("coco", model, url, digest, box_ap, _METRICS_SOURCE, "BSD-3-Clause", epsilon)


DETECTORS: tuple[PretrainedDetector, ...] = (
    _torchvision("faster_rcnn_resnet50_v1_5_fpn", "fasterrcnn_resnet50_fpn_coco-258fb6c6", 37.0, 0.0),
    _torchvision("faster_rcnn_resnet50_v1_5_fpn_v2", "fasterrcnn_resnet50_fpn_v2_coco-dd69338a", 46.7, 1e-5),
    _torchvision("retinanet_resnet50_v1_5_fpn", "retinanet_resnet50_fpn_coco-eeacb38b", 36.4, 0.0),
    _torchvision("retinanet_resnet50_v1_5_fpn_v2", "retinanet_resnet50_fpn_v2_coco-5905b1c5", 41.5, 1e-5),
)


def list_detector_weights(detector: str | None = None) -> list[str]:
    """Lists the names of the published weights of a detector.

    Without `detector`, returns the full names for all detectors, such as "retinanet_resnet50_v1_5_fpn/coco".
    """
    if detector is None:
        return [f"{entry.model}/{entry.name}" for entry in DETECTORS]
    return [entry.name for entry in detector_entries(detector)]


def detector_entries(detector: str) -> list[PretrainedDetector]:
    """Returns the published weights of a detector; raises `InputError` for an unknown detector."""
    get_detector_config(detector)
    return [entry for entry in DETECTORS if entry.model == detector]


def get_detector_entry(name: str, detector: str) -> PretrainedDetector:
    """Returns the published weights `name`, a name of `list_detector_weights(detector)` or a full name.

    Raises:
        InputError: there are no such weights; the message names those that exist.
    """
    entries = detector_entries(detector)
    for entry in entries:
        if name in (entry.name, f"{entry.model}/{entry.name}"):
            return entry
    if not entries:
        published = ", ".join(entry.model for entry in DETECTORS)
        raise InputError(
            f"{detector} has no weights {name!r}: none are published for it; pass the path of a file, or "
            f"backbone_weights for its backbone alone (published detectors: {published})"
        )
    if name in list_detector_weights():
        raise InputError(
            f"weights {name!r} are for another detector than {detector}, which has {entries[0].name!r}"
        )
    raise unknown_name(f"weights of {detector}", name, [entry.name for entry in entries])


@functools.cache
def coco_class_names() -> tuple[str, ...]:
    """Returns the class names of COCO's category ids 1 to 90, as in torchvision; "N/A" for unused ids."""
    text = Path(__file__).with_name("coco_labels.tsv").read_text(encoding="utf-8")
    return tuple(line.split("\t")[1] for line in text.splitlines()[1:])  # without 0, the background
