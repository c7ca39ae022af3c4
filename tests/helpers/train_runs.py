"""Trains several small runs one after the other on the same workers; also run by launch_local in a test.

train_runs.py PLAN: a JSON file with "folder", where each run has a folder of its name; "stopped", a folder
for copies of these folders, or null; and "runs": by name, each with "task" ("classification" or "detection"),
"recipe", "options", "parts" (into how many a global batch is split; 0: one per replica) and "large"
(whether the dataset is too large to be kept in memory). The processes of workers other than the chief end
"linger" seconds later.
"""

import functools
import json
import shutil
import sys
import time
from pathlib import Path
from unittest import mock

from keras_resnet import classification, detection
from keras_resnet.data import sources
from keras_resnet.files import atomic_path
from keras_resnet.training import RunOptions, loop

CHECKPOINT = 2  # step of the checkpoint at which a run is stopped


def train_runs(plan, strategy):
    """Returns by name what each run ends with: the rows of results, and the last row of its history.

    The chief copies a run's folder when the first step after a checkpoint is done: what a kill would leave.
    """
    create = functools.cache(loop.create)  # a process can connect to its workers only once
    with mock.patch.object(loop, "create", create), mock.patch.object(loop, "draw_curves"):
        return {name: _train(plan, name, run, strategy) for name, run in plan["runs"].items()}


def open_task(name, values):
    """The function that trains a task, and the recipe with these values."""
    if name == "detection":
        return detection.train, detection.DetectionRecipe.from_dict(values)
    return classification.train, classification.ClassificationRecipe.from_dict(values)


def _train(plan, name, run, strategy):
    folder = Path(plan["folder"], name)
    train, recipe = open_task(run["task"], run["recipe"])
    distribution = loop.create(strategy, RunOptions.worker_timeout)
    accumulate = run["parts"] // distribution.total_replicas or 1
    options = {"checkpoint_every": CHECKPOINT, "accumulate": accumulate, **run["options"]}
    rows = []

    def observe(trainer, first, results):
        rows.extend(results.tolist())
        if plan["stopped"] and first == CHECKPOINT and distribution.is_chief:
            shutil.copytree(folder, Path(plan["stopped"], name))

    indexed_bytes = 0 if run["large"] else sources.INDEXED_BYTES
    with mock.patch.object(sources, "INDEXED_BYTES", indexed_bytes):
        last = train(recipe, folder, RunOptions(strategy=strategy, track=(), **options), observe)
    return {"rows": rows, "last": last, "is_chief": distribution.is_chief}


def main():
    plan = json.loads(Path(sys.argv[1]).read_text())
    ended = train_runs(plan, "multi_worker")
    if all(end["is_chief"] for end in ended.values()):
        with atomic_path(Path(plan["folder"], "ended.json")) as temporary:
            temporary.write_text(json.dumps(ended))
    else:
        time.sleep(plan["linger"])


if __name__ == "__main__":
    main()
