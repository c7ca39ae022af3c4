"""Run by launch_local in a test: evaluates a stand-in detector, and writes what each worker ends with.

evaluate_on_workers.py FOLDER
"""

import json
import sys
from pathlib import Path

from made_detections import StandInDetector, made_split, random_case

from keras_resnet.detection.evaluation import evaluate
from keras_resnet.training.distribution import create


def main():
    distribution = create("multi_worker")
    truth, found = random_case(images=7)
    names = ("a", "b", "c", "d")
    detector = StandInDetector(found, names)
    split = made_split(truth, names, unreadable=[3])
    evaluation = evaluate(detector, split, distribution=distribution, max_bad_images=1)
    values = {
        "seen": detector.seen,
        "figures": evaluation.coco.figures,
        "scores": [None if own is None else own.scores.tolist() for own in evaluation.detections],
        "boxes": [None if own is None else own.boxes.tolist() for own in evaluation.detections],
    }
    Path(sys.argv[1], f"worker{distribution.worker}.json").write_text(json.dumps(values))


main()
