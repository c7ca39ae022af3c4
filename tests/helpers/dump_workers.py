"""Run by launch_local in a test: trains, and writes what each worker ends with.

dump_workers.py PLAN, a JSON file with "folder", "task" ("classification" or "detection"), "recipe" and
"options".
"""

import hashlib
import json
import os
import sys
from pathlib import Path

from communication import sent_bytes, totals  # files beside this program
from train_runs import open_task

from keras_resnet.training import RunOptions


def main():
    plan = json.loads(Path(sys.argv[1]).read_text())
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    rows, trainers = [], []

    def observe(trainer, first, results):
        rows.extend(results.tolist())
        trainers.append(trainer)

    train, recipe = open_task(plan["task"], plan["recipe"])
    options = RunOptions(strategy="multi_worker", **plan["options"])
    with sent_bytes() as sent:
        last = train(recipe, Path(plan["folder"], "run"), options, observe)
    variables = trainers[-1].named_variables()
    digests = {name: hashlib.sha256(v.numpy().tobytes()).hexdigest() for name, v in variables.items()}
    values = {"rows": rows, "digests": digests, "last": last, "sent": totals(sent)}
    Path(plan["folder"], f"worker{index}.json").write_text(json.dumps(values))


main()
