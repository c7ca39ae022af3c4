"""What the measured processes share; needs only the standard library, as a Python with PyTorch may have."""

import math
import time
from collections.abc import Callable
from typing import Any

from keras_resnet.processes import resident_memory, serve

RATE, MOMENTUM, WEIGHT_DECAY = 0.01, 0.9, 1e-4

TakeSteps = Callable[[int], float | None]
"""Takes a number of steps and waits for the last one; returns its loss, if there is one."""


def serve_steps(
    prepare: Callable[[dict[str, Any]], tuple[dict[str, Any], TakeSteps]],
    peak: Callable[[], float] | None = None,
) -> None:
    """Serves `measure`, from a number of steps to images/s, and `peak_memory`, MiB.

    `prepare` takes the specification, which has `batch_size` and `warm_up`, and returns the values of
    `Worker.ready` and the function that takes the steps; added are "first_step", the seconds of the first
    one, and "base_memory", MiB before `prepare`: what a process takes that has only imported its framework.
    `peak` returns the memory; default: that of the process.
    """
    peak = peak or peak_memory

    def prepare_measures(spec: dict[str, Any]):
        base = peak()
        ready, take_steps = prepare(spec)
        first_step = seconds_of(lambda: take_steps(1))
        measure = speed_of(take_steps, spec["batch_size"])
        measure(spec["warm_up"])
        ready = {**ready, "first_step": first_step, "base_memory": base}
        return ready, {"measure": measure, "peak_memory": peak}

    serve(prepare_measures)


def speed_of(take_steps: TakeSteps, batch_size: float) -> Callable[[int], float]:
    """Returns a function from a number of steps to images/s."""

    def measure(steps: int) -> float:
        begun = time.perf_counter()
        loss = take_steps(steps)
        seconds = time.perf_counter() - begun
        if loss is not None and not math.isfinite(loss):
            raise FloatingPointError("the loss or the gradient is not finite")
        return steps * batch_size / seconds

    return measure


def seconds_of(function: Callable[[], object]) -> float:
    """Calls a function and returns how long that took, in seconds."""
    begun = time.perf_counter()
    function()
    return time.perf_counter() - begun


def random_batch(batch_size: int, image_size: int, classes: int, seed: int = 0):
    """Images like normalized ones, float32 (batch, height, width, 3), and labels, int32 (batch,)."""
    import numpy as np

    random = np.random.default_rng(seed)
    images = random.standard_normal((batch_size, image_size, image_size, 3), dtype="float32")
    return images, random.integers(0, classes, batch_size, dtype="int32")


def peak_memory() -> float:
    """The most memory that this process ever held, MiB."""
    return resident_memory(peak=True) / 2**20
