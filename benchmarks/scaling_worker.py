"""One of several workers that train together: times the step, and the all-reduce alone."""

import json
import os
import sys
import time
from pathlib import Path

import numpy as np

from keras_resnet import processes

_WARM_UP = 3


def _take_own_cores(worker: int, count: int) -> None:
    """Leaves this process only its share of the cores: the share of one worker of `count`."""
    cores = processes.cores()
    share = max(1, len(cores) // count)
    mine = cores[worker * share : (worker + 1) * share]
    if mine and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, mine)


def main() -> None:
    """Works off the spec, a line of JSON; the chief writes the times to the spec's file."""
    spec = json.loads(sys.argv[1])
    _take_own_cores(json.loads(os.environ["TF_CONFIG"])["task"]["index"], spec["share_of"])

    import keras
    import tensorflow as tf

    from keras_resnet import build_model
    from keras_resnet.classification import ClassificationRecipe, ClassificationTask
    from keras_resnet.models.config import get_config
    from keras_resnet.training.distribution import create
    from keras_resnet.training.step import Trainer

    distribution = create("multi_worker")
    keras.utils.set_random_seed(0)
    config = get_config(spec["model"])
    size = config.input_size
    with distribution.scope():
        model = build_model(spec["model"], classifier_activation=None)
    recipe = ClassificationRecipe(spec["model"], "synthetic", image_size=size, batch_size=spec["batch_size"])
    trainer = Trainer(model, ClassificationTask(recipe), distribution, seed=0)

    mine = spec["batch_size"] // distribution.total_replicas
    random = np.random.default_rng(distribution.worker)
    batch = {
        "images": random.standard_normal((mine, size, size, 3), dtype="float32"),
        "labels": random.integers(0, config.classes, mine, dtype="int32"),
        "weights": np.ones(mine, "float32"),
    }
    iterator = distribution.iterate(tf.data.Dataset.from_tensors(batch).repeat())
    rates, go_on = tf.constant([0.01]), tf.constant(0.0)

    def train(steps: int) -> float:
        begun = time.perf_counter()
        for step in range(steps):
            results = trainer.train(iterator, rates, tf.constant(step), go_on)
        results.numpy()
        return (time.perf_counter() - begun) / steps

    # What a step sends: gradients and moving statistics (and four sums).
    vector = tf.ones([sum(int(np.prod(variable.shape)) for variable in model.variables) + 4])

    def sum_up(vector):
        # An identity, because the all-reduce asks for a tensor that a replica's device made.
        vector = tf.identity(vector)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, vector)

    @tf.function
    def reduce(vector):
        return distribution.local(distribution.run(sum_up, (vector,)))

    def reduce_alone(times: int) -> float:
        begun = time.perf_counter()
        for _ in range(times):
            reduce(vector)[0].numpy()
        return (time.perf_counter() - begun) / times

    train(_WARM_UP)
    reduce_alone(_WARM_UP)
    seconds = {"step": train(spec["steps"]), "reduce": reduce_alone(spec["steps"])}
    if distribution.is_chief:
        Path(spec["result"]).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
