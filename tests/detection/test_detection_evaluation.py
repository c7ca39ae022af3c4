"""Every image once, on any number of devices and workers, and the report."""

import csv
import hashlib
import json
import threading

import numpy as np
import pytest
import tensorflow as tf
from helpers import processes
from helpers.made_detections import NOTHING, StandInDetector, detected, made_split, objects, random_case

from keras_resnet.detection.detections import Detections
from keras_resnet.detection.evaluation import evaluate
from keras_resnet.detection.metrics import coco_statistics
from keras_resnet.detection.report import content, table, write_report
from keras_resnet.errors import InputError

NAMES = ("a", "b", "c", "d")


@pytest.fixture(scope="module")
def evaluation(one_device):
    """Of twelve images, of which the fifth cannot be decoded; no object of class e."""
    truth, found = random_case()
    split = made_split(truth, (*NAMES, "e"), image_ids=range(100, 112), unreadable=[4])
    detector = StandInDetector(found, (*NAMES, "e"))
    result = evaluate(detector, split, distribution=one_device, batch_size=3, max_bad_images=1)
    assert sorted(detector.seen) == [0, 1, 2, 3, *range(5, 12)]
    return result


def test_every_image_is_detected_once_and_keeps_its_place(evaluation):
    truth, found = random_case()
    assert evaluation.images == 11
    assert evaluation.detections[4] is None
    for index in {*range(12)} - {4}:
        np.testing.assert_array_equal(evaluation.detections[index].boxes, found[index].boxes)
    found[4] = None
    expected = coco_statistics(made_split(truth, (*NAMES, "e")), found)
    assert evaluation.coco.figures == expected.figures
    assert evaluation.bad_images == (("104", "test", "image4.jpg: not an image"),)


def test_too_many_images_that_cannot_be_decoded(one_device):
    truth, found = random_case(images=3)
    split = made_split(truth, NAMES, unreadable=[1])
    with pytest.raises(InputError, match=r"1 images cannot be used, 0 are allowed.*image1.jpg"):
        evaluate(StandInDetector(found, NAMES), split, distribution=one_device)
    split = made_split(truth, NAMES, unreadable=[0, 1, 2])
    with pytest.raises(InputError, match="3 of the 3 images of 'test' cannot be decoded"):
        evaluate(StandInDetector(found, NAMES), split, distribution=one_device, max_bad_images=9)


class OnTwoDevices(StandInDetector):
    """Has a variable on each device, and waits until both devices work."""

    def __init__(self, answers, distribution):
        super().__init__(answers, NAMES)
        with distribution.scope():
            self.variable = tf.Variable(2.0)
        self.barrier, self.devices = threading.Barrier(2, timeout=60), []
        self.double = tf.function(lambda x: x * self.variable)

    def detect(self, images):
        self.barrier.wait()
        doubled = self.double(tf.constant(float(images[0][0, 0, 0])))
        self.devices.append(doubled.device)
        assert doubled.numpy() == 2.0 * images[0][0, 0, 0]
        return super().detect(images)


def test_two_devices_share_the_images(one_device, two_devices, early_progress, capsys):
    truth, found = random_case(images=6)
    split, detector = made_split(truth, NAMES), OnTwoDevices(found, two_devices)
    both = evaluate(detector, split, distribution=two_devices)
    assert sorted(detector.seen) == list(range(6))
    assert len(set(detector.devices)) == 2
    alone = evaluate(StandInDetector(found, NAMES), split, distribution=one_device)
    assert both.coco.figures == alone.coco.figures
    assert capsys.readouterr().err.count("evaluating: 1 of 6 images, ") == 2
    assert (both.replicas, alone.replicas) == (2, 1)


def test_classes_are_matched_by_name(one_device):
    split = made_split([objects((0, 0, 9, 9), (20, 0, 60, 40), labels=[0, 1])], ("dog", "cat"))
    found = detected((0.9, 20, 0, 60, 40), (0.8, 5, 5, 9, 9), (0.7, 0, 0, 9, 9), label=[0, 1, 2])
    result = evaluate(StandInDetector([found], ("cat", "bird", "dog")), split, distribution=one_device)
    assert result.detections[0].labels.tolist() == [1, 0]
    assert result.coco.figures["AP"] == pytest.approx(1)
    with pytest.raises(InputError, match="stand_in does not know the class 'dog' of 'test'"):
        evaluate(StandInDetector([found], ("cat", "bird")), split, distribution=one_device)


def test_boxes_that_are_not_numbers_are_an_error(one_device):
    found = Detections(np.array([[0, 0, np.nan, 9]]), np.array([0.5]), np.array([0]))
    with pytest.raises(InputError, match="stand_in gives boxes or scores that are not numbers"):
        evaluate(StandInDetector([found]), made_split([objects()]), distribution=one_device)


def test_labels_that_are_no_classes_are_an_error(one_device):
    found = Detections(np.array([[0, 0, 5, 9]]), np.array([0.5]), np.array([1]))
    with pytest.raises(InputError, match="stand_in returns labels outside of 0 to 0"):
        evaluate(StandInDetector([found]), made_split([objects()]), distribution=one_device)


def test_the_report(evaluation, tmp_path):
    weights = tmp_path / "w.weights.h5"
    weights.write_bytes(b"weights")
    write_report(evaluation, tmp_path / "report", "COMMAND", "made", [str(weights)])
    found = json.loads((tmp_path / "report" / "evaluation.json").read_text())
    assert found == content(evaluation, "COMMAND", "made", [str(weights)])
    assert (found["dataset"], found["split"], found["images"]) == ("made", "test", 11)
    assert found["sha256"] == hashlib.sha256(b"weights").hexdigest()
    assert found["coco"]["AP"] == evaluation.coco.figures["AP"]
    assert found["voc"]["VOC area"] == pytest.approx(np.nanmean(evaluation.voc["area"]))
    assert found["skipped"] == []
    assert found["bad_images"] == [{"image": "104", "reason": "image4.jpg: not an image"}]
    counted = [own for own in evaluation.detections if own is not None]
    assert found["detections"] == sum(map(len, counted)) == sum(row["detections"] for row in found["classes"])
    absent = found["classes"][4]
    assert (absent["name"], absent["objects"], absent["AP"], absent["VOC area"]) == ("e", 0, None, None)
    with open(tmp_path / "report" / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == [*NAMES, "e"]
    assert float(rows[0]["AP50"]) == evaluation.coco.per_class[0]["AP50"]
    assert rows[4]["AP"] == ""
    png = (tmp_path / "report" / "precision_recall.png").read_bytes()
    assert png.startswith(b"\x89PNG")
    write_report(evaluation, tmp_path / "report", "COMMAND", "made", [str(weights)])
    assert (tmp_path / "report" / "precision_recall.png").read_bytes() == png
    line = next(line for line in table(evaluation).splitlines() if line.startswith("| AP50 "))
    assert f"{100 * evaluation.coco.figures['AP50']:.1f}" in line


def test_the_report_of_nothing(one_device, tmp_path):
    names = tuple(f"class ${number}" for number in range(30))
    result = evaluate(
        StandInDetector([NOTHING], names), made_split([objects()], names), distribution=one_device
    )
    write_report(result, tmp_path, "COMMAND", "made", ["published"])
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert set(found["coco"].values()) == {None}
    assert found["sha256"] is None


@pytest.mark.slow
def test_two_workers_share_the_images(tmp_path):
    program = processes.ROOT / "tests" / "helpers" / "evaluate_on_workers.py"
    launcher = ["-m", "keras_resnet.training.launch_local", "--workers=2", f"--program={program}"]
    status, output = processes.run([*launcher, "--", str(tmp_path)], PYTHONPATH=str(processes.ROOT))
    assert status == 0, output
    workers = [json.loads((tmp_path / f"worker{index}.json").read_text()) for index in (0, 1)]
    assert [sorted(worker.pop("seen")) for worker in workers] == [[0, 2, 4, 6], [1, 5]]
    assert workers[0] == workers[1]
    truth, found = random_case(images=7)
    found[3] = None
    assert workers[0]["figures"] == coco_statistics(made_split(truth, NAMES), found).figures
    assert workers[0]["boxes"] == [None if own is None else own.boxes.tolist() for own in found]
