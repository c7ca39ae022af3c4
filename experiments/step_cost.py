"""`python -m experiments.step_cost`: the time and memory of a network's training step, as a line of JSON."""

import json
from typing import Any

from keras_resnet import cli
from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker, WorkerError


def measure(
    model: str,
    batch_size: int,
    remat: bool = False,
    *,
    image_size: int = 32,
    steps: int = 2,
    jit: bool = False,
) -> dict[str, Any]:
    """Measures a few training steps on random images in a separate process.

    Args:
        remat: whether activations are recomputed for the gradient instead of stored.
        image_size: height and width, pixels.
        steps: number of steps, at least 2; the first is timed separately.
        jit: whether XLA compiles the step.

    Returns:
        `model`, `batch_size`, `image_size`, `remat` and `jit`; `build_seconds`, to build the network and the
        optimizer's variables; `first_step_seconds`, with tracing; `step_seconds`, the median of the other
        steps; `peak_bytes`, of a GPU's memory if there is one, else of the process' resident memory;
        `base_bytes`, the part of it before the network was built; `losses`, one per step.

    Raises:
        InputError: an argument is wrong, or the process failed.
    """
    costs = {"model": model, "batch_size": batch_size, "image_size": image_size, "remat": remat, "jit": jit}
    spec: dict[str, Any] = {**costs, "steps": steps}
    for name, least in {"batch_size": 1, "steps": 2, "image_size": get_config(model).total_stride}.items():
        if spec[name] < least:
            raise InputError(f"{name} must be at least {least}; got {spec[name]}")
    try:
        with Worker("experiments.step_worker", spec) as worker:
            return {**costs, **worker.ready}
    except WorkerError as error:
        raise InputError(
            f"the steps of {model}: the process {error.reason}; try a smaller batch_size"
        ) from None


def _print_costs(**flags: Any) -> None:
    print(json.dumps(measure(**flags)))


COMMAND = cli.Command(
    _print_costs,
    "Measures the time and memory of a network's training step and prints them as a line of JSON.",
    (
        cli.Flag("model", "A network of `python -m keras_resnet`.", default="cifar_resnet20"),
        cli.Flag("batch_size", "Images per step.", int, 128),
        cli.Flag("image_size", "Height and width of the images, pixels.", int, 32),
        cli.Flag("steps", "Number of steps; the first is timed separately.", int, 2),
        cli.Flag("remat", "Recompute activations for the gradient, to save memory.", bool, False),
        cli.Flag("jit", "Compile the step with XLA.", bool, False),
    ),
)

if __name__ == "__main__":
    cli.run(COMMAND)
