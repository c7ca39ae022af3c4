"""Trains one run in a separate process; stops with a checkpoint when the parent process ends."""

import math
import sys

from keras_resnet import classification, detection
from keras_resnet.files import locked, write_text
from keras_resnet.processes import read_spec, stop_with_parent
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import Preempted, RunOptions, TrainingFailed


def main() -> int:
    """Trains what the specification says; returns the exit status."""
    spec = read_spec()
    stop_with_parent()
    folder = RunFolder(spec["folder"])
    # Waits for the worker of a killed command, which may still be saving its checkpoint here.
    with locked(folder.lock, math.inf):
        pass
    if spec["after"] and not RunFolder(folder.path.parent / spec["after"]).weights.exists():
        write_text(folder.path / "failure.txt", f"{spec['after']}, whose weights it starts from, diverged\n")
        return 0
    try:
        options = RunOptions(**spec["options"])
        if spec["task"] == "detection":
            detection.train(detection.DetectionRecipe.from_dict(spec["recipe"]), folder.path, options)
        else:
            recipe = classification.ClassificationRecipe.from_dict(spec["recipe"])
            classification.train(recipe, folder.path, options)
    except TrainingFailed as failure:
        write_text(folder.path / "failure.txt", f"{failure}\n")
    except Preempted as stop:
        print(stop)
        return 143
    return 0


if __name__ == "__main__":
    sys.exit(main())
