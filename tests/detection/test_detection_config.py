"""The table of detectors, and `Detections`."""

import json
import subprocess
import sys

import numpy as np
import pytest

from keras_resnet.detection.config import get_detector_config, list_detectors
from keras_resnet.detection.detections import Detections
from keras_resnet.errors import InputError
from keras_resnet.models.config import MODELS, get_config


def test_every_network_of_the_zoo_has_a_c4_detector():
    names = list_detectors()
    assert len(names) == len(set(names)) == len(MODELS) + 4
    assert {name: get_detector_config(name).style for name in names}["faster_rcnn_resnet101_c4"] == "c4"


def test_the_papers_constants():
    """Those of py-faster-rcnn: anchors of 128, 256 and 512 pixels at stride 16, and 300 proposals."""
    config = get_detector_config("faster_rcnn_resnet50_c4")
    assert config.anchor_sizes == ((128, 256, 512),)
    assert config.strides == config.roi_strides == (16,)
    assert (config.proposal_candidates, config.proposals, config.proposal_side) == (6000, 300, 16)
    assert (config.shorter_side, config.longer_side, config.pooled_size) == (600, 1000, 14)
    assert (config.proposal_nms, config.box_nms, config.rpn_channels) == (0.7, 0.3, 512)
    cifar = get_detector_config("faster_rcnn_cifar_resnet20_c4")
    assert (cifar.strides, cifar.anchor_sizes) == ((2,), ((16, 32, 64),))


def test_torchvisions_constants():
    config = get_detector_config("faster_rcnn_resnet50_v1_5_fpn")
    assert (config.strides, config.roi_strides) == ((4, 8, 16, 32, 64), (4, 8, 16, 32))
    assert config.cell_anchors == 3
    retinanet = get_detector_config("retinanet_resnet50_v1_5_fpn")
    assert retinanet.strides == (8, 16, 32, 64, 128)
    # Listed in torchvision's `_default_anchorgen`, computed there as int(x * 2 ** (1 / 3)).
    assert retinanet.anchor_sizes[0] == (32, 40, 50)
    assert retinanet.anchor_sizes[4] == (512, 645, 812)
    assert retinanet.cell_anchors == 9


def test_a_c4_detector_of_another_network_has_its_constants():
    network = get_config("resnet18", stage_depths=(1, 1, 1), stage_filters=(8, 8, 8))
    assert get_detector_config("faster_rcnn_resnet18_c4", network=network).strides == (8,)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("faster_rcnn_resnet50_c5", {}, "did you mean faster_rcnn_resnet50_c4"),
        ("faster_rcnn_resnet50_c4", {"clases": 3}, "did you mean classes"),
        ("faster_rcnn_resnet50_c4", {"classes": 0}, "classes must be an integer from 1"),
        ("faster_rcnn_resnet50_c4", {"classes": True}, "classes must be an integer from 1"),
        ("faster_rcnn_resnet50_c4", {"box_nms": 1.5}, "box_nms must be a number from 0 to 1"),
        ("faster_rcnn_resnet50_c4", {"anchor_sizes": ((32,), (64,))}, "anchor_sizes must be 1 tuples"),
        (
            "faster_rcnn_resnet50_c4",
            {"anchor_sizes": ((0, 1),)},
            "a tuple of positive numbers for each level",
        ),
        ("faster_rcnn_resnet50_c4", {"anchor_sizes": 16}, "a tuple of positive numbers for each level"),
        ("faster_rcnn_resnet50_c4", {"anchor_ratios": ()}, "anchor_ratios must be positive numbers"),
        ("faster_rcnn_resnet50_c4", {"anchor_ratios": ("a",)}, "anchor_ratios must be positive numbers"),
        ("faster_rcnn_resnet50_c4", {"box_weights": (0, 0, 0, 0)}, "box_weights must be positive numbers"),
        ("faster_rcnn_resnet50_c4", {"box_weights": (1.0,)}, "box_weights must be four numbers"),
        (
            "faster_rcnn_resnet50_c4",
            {"proposal_side": float("nan")},
            "proposal_side must be a number of pixels",
        ),
        ("faster_rcnn_resnet50_c4", {"network": "resnet18"}, "network must be a ResNetConfig"),
        ("faster_rcnn_resnet50_v1_5_fpn", {"network": "resnet18"}, "network must be a ResNetConfig"),
        ("faster_rcnn_resnet50_c4", {"normalization": None}, "normalization has one mean"),
        ("faster_rcnn_resnet50_c4", {"size_multiple": 20}, "must be a multiple of 32"),
        ("faster_rcnn_resnet50_v1_5_fpn", {"pyramid_stages": 5}, "pyramid_stages must be from 2 to 4"),
        ("faster_rcnn_resnet50_v1_5_fpn", {"style": "ssd"}, "style must be one of"),
        ("faster_rcnn_resnet50_v1_5_fpn", {"network": MODELS["resnet50_v2"]}, "no pre-activation"),
    ],
)
def test_invalid_configs(name, options, message):
    with pytest.raises(InputError, match=message):
        get_detector_config(name, **options)


def test_the_table_needs_no_keras():
    script = (
        "import json, sys; from keras_resnet.detection.config import list_detectors; list_detectors();"
        "print(json.dumps([name in sys.modules for name in ('keras', 'tensorflow')]))"
    )
    done = subprocess.run([sys.executable, "-c", script], text=True, capture_output=True, check=True)
    assert json.loads(done.stdout) == [False, False]


def test_detections():
    found = Detections(np.zeros((3, 4)), np.array([0.9, 0.5, 0.5]), np.array([1, 0, 2]))
    assert (found.boxes.dtype, found.scores.dtype, found.labels.dtype) == ("float32", "float32", "int32")
    assert (len(found), len(found.above(0.5)), len(found.above(0.9))) == (3, 1, 0)
    assert found.above(0.9).boxes.shape == (0, 4)


@pytest.mark.parametrize(
    ("boxes", "scores", "labels"),
    [
        (np.zeros((2, 4)), [0.5], [1]),
        (np.zeros((0, 4)), [0.5], [1]),
        (np.zeros((1, 4)), [[0.5]], [1]),
        (np.zeros((2, 4)), [0.4, 0.5], [1, 1]),
    ],
)
def test_invalid_detections(boxes, scores, labels):
    with pytest.raises(InputError):
        Detections(boxes, scores, labels)
