"""Run by launch_local in a test: trains, and writes what each worker ends with.

dump_workers.py FOLDER DATA_DIR sync|plain|apart
"""

import hashlib
import json
import os
import sys

from keras_resnet.classification import get_recipe, train
from keras_resnet.training import RunOptions


def main():
    folder, data_dir, mode = sys.argv[1:4]
    index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
    seen = {"losses": []}
    trainers = []

    def observe(trainer, first, results):
        seen["losses"] += [float(row[0] / row[2]) for row in results]
        trainers.append(trainer)

    recipe = get_recipe("digits").set(
        [
            "model.stage_depths=(1,1)",
            "model.stage_filters=(4,8)",
            "image_size=16",
            "batch_size=64",
            "epochs=1",
        ]
    )
    if mode == "sync":  # a rate at which rounding does not grow
        recipe = recipe.replace(learning_rate=1e-3, warmup_epochs=0, schedule="constant")
    options = RunOptions(
        strategy="multi_worker", data_dir=data_dir, checkpoint_every=8, sync_batch_norm=mode == "sync"
    )
    run = "run" if mode != "apart" or index == 0 else "run-of-another-worker"
    last = train(recipe, f"{folder}/{run}", options, observer=observe)
    variables = trainers[-1].named_variables()
    digests = {name: hashlib.sha256(v.numpy().tobytes()).hexdigest() for name, v in variables.items()}
    with open(f"{folder}/worker{index}.json", "w") as file:
        json.dump({**seen, "digests": digests, "last": last}, file)


main()
