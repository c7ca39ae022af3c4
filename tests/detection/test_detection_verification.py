"""The rules by which exported detectors are compared, on made-up detections of made-up files."""

import contextlib

import numpy as np
import pytest
from helpers.made_detections import StandInDetector, detected, made_split, objects

from keras_resnet.detection.detections import Detections
from keras_resnet.detection.export import verification
from keras_resnet.detection.export.comparison import read_detections
from keras_resnet.detection.export.report import (
    NOTHING_FOUND,
    DetectorArtifactReport,
    DetectorExportReport,
    comparison_table,
)
from keras_resnet.detection.export.verification import verify
from keras_resnet.errors import InputError
from keras_resnet.export.runtimes import Artifact

SIDES = [3.0 + 0.1 * index for index in range(10)]
FOUND = [detected((0.9, 1, 1, 1 + side, 1 + side)) for side in SIDES]
SPLIT = made_split([objects((1, 1, 1 + side, 1 + side)) for side in SIDES])
ROWS = 4


def outputs(found):
    """The outputs of a file for one image."""
    boxes, scores = np.zeros((1, ROWS, 4), "float32"), np.zeros((1, ROWS), "float32")
    labels = np.zeros((1, ROWS), "int32")
    count = len(found)
    boxes[0, :count], scores[0, :count], labels[0, :count] = found.boxes, found.scores, found.labels
    return {"boxes": boxes, "scores": scores, "labels": labels, "count": np.array([count], "int32")}


@pytest.fixture
def verified(monkeypatch):
    """Verifies a file that finds the given detections."""

    def run(found, precision="float32", detector=None, images=SPLIT):
        @contextlib.contextmanager
        def open_artifact(format, path):
            size = (1, None, None, 3)
            yield Artifact(
                {"images": ("float32", size)}, {}, lambda image: outputs(found[int(image.flat[0])]), "1"
            )

        monkeypatch.setattr(verification, "open_artifact", open_artifact)
        return verify(StandInDetector(detector or FOUND), "tflite", "any", images, precision)

    return run


def without(count):
    """The detections, but nothing in the first `count` images."""
    return [detected()] * count + FOUND[count:]


@pytest.mark.parametrize("precision", ["float16", "int8"])
def test_lower_precision_is_compared_by_its_mean_average_precision(verified, precision):
    shifted = [Detections(found.boxes + 0.01, found.scores - 0.1, found.labels) for found in FOUND]
    close = verified(shifted, precision)
    assert close.equal
    assert close.expected_ap == pytest.approx(1)
    different = verified(without(1), precision)
    assert not different.equal
    assert "its mean average precision is 0.9" in different.problems[0]


def test_in_float32_scores_and_numbers_decide(verified):
    assert verified(FOUND).equal
    lower = [Detections(found.boxes, found.scores - 2e-4, found.labels) for found in FOUND]
    assert verified(lower).problems == ("a score differs by 2.0e-04",)
    problems = " ".join(verified(without(1)).problems)
    assert "finds 0 objects in image 0, not 1" in problems


@pytest.mark.parametrize("different", [1, 2, 3])
def test_rounding_may_change_one_image_in_a_hundred(verified, different):
    boxes = [objects((1, 1, 4, 4))] * 200
    own = [detected((0.9, 1, 1, 4, 4))] * 200
    found = [detected((0.89, 1, 1, 4, 4.05))] * different + own[different:]
    result = verified(found, detector=own, images=made_split(boxes))
    assert result.equal == (different <= 2)
    assert result.rounded == (different if different <= 2 else 0)
    assert (result.score_difference == 0) == (different <= 2)


def test_a_detector_that_finds_nothing_proves_nothing_in_lower_precision(verified):
    nothing = [detected()] * len(FOUND)
    assert verified(nothing, detector=nothing).equal  # in float32, the same detections
    found = verified(nothing, "int8", nothing)
    assert found.problems == ("the detector's mean average precision, 0.0000, is too low to compare with",)


@pytest.mark.parametrize("found", [FOUND, [detected()] * len(FOUND)], ids=["something", "nothing"])
def test_a_report_says_that_nothing_was_found(found, verified):
    file = DetectorArtifactReport("float32", verified(found, detector=found), 1, "digest")
    report = DetectorExportReport(
        model="any",
        class_names=("a",),
        images=len(FOUND),
        images_from="made images",
        ap=None,
        parameters=1,
        image_size=None,
        files={"tflite": "model.tflite"},
        formats={"tflite": file},
    )
    assert report.equal
    assert (NOTHING_FOUND in comparison_table(report)) == (found is not FOUND)


def test_crowd_regions_alone_are_no_objects(verified):
    crowd = made_split([objects((1, 1, 5, 5), crowd=True)] * len(FOUND))
    with pytest.raises(InputError, match="int8 files are compared by their mean average precision"):
        verified(FOUND, "int8", images=crowd)
    assert verified(FOUND, images=crowd).ap is None


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("scores", [[0.5, 0.9, 0, 0]], "scores is not in descending order"),
        ("scores", [[0.9, 0.5, 0.1, 0]], "rows after count are not 0"),
        ("labels", [[0, 0, 0, 3]], "rows after count are not 0"),
        ("count", [5], "count is"),
        ("scores", [[np.nan, 0.5, 0, 0]], "not numbers"),
    ],
)
def test_outputs_that_break_the_description(name, value, message):
    valid = outputs(detected((0.9, 1, 1, 3, 3), (0.9, 1, 1, 4, 4)))
    assert len(read_detections(valid, 1)[0]) == 2
    valid[name] = np.array(value, valid[name].dtype)
    with pytest.raises(InputError, match=message):
        read_detections(valid, 1)
