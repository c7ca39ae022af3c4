"""One of several workers that train together: times the step, and the all-reduce alone."""

import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import tensorflow as tf

from benchmarks.own_step import OwnStep
from keras_resnet.processes import cores, read_spec

_WARM_UP = 3


def _use_own_cores(worker: int, count: int) -> None:
    """Binds this process to the cores of one worker of `count`."""
    share = max(1, len(cores()) // count)
    own = cores()[worker * share : (worker + 1) * share]
    if own and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own)


def _all_reduce(own: OwnStep) -> Callable[[int], None]:
    """A function that sums a vector as long as a step's over all workers, a number of times."""
    # A step sends gradients and moving statistics, and four sums.
    vector = tf.ones([sum(math.prod(variable.shape) for variable in own.model.variables) + 4])

    def sum_up(vector):
        # The all-reduce needs a tensor that a replica's device made.
        vector = tf.identity(vector)
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, vector)

    @tf.function
    def reduce(vector):
        return own.distribution.local(own.distribution.run(sum_up, (vector,)))

    def repeat(times: int) -> None:
        for _ in range(times):
            reduce(vector)[0].numpy()

    return repeat


def main() -> None:
    """Measures what the specification says; the chief writes the seconds to its `result`."""
    spec = read_spec()
    # Before TensorFlow counts the cores and starts its threads.
    _use_own_cores(json.loads(os.environ["TF_CONFIG"])["task"]["index"], spec["share_of"])
    own = OwnStep(spec, "multi_worker")
    seconds = {}
    for name, repeat in {"step": own.take_steps, "reduce": _all_reduce(own)}.items():
        repeat(_WARM_UP)
        begun = time.perf_counter()
        repeat(spec["steps"])
        seconds[name] = (time.perf_counter() - begun) / spec["steps"]
    if own.distribution.is_chief:
        Path(spec["result"]).write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
