"""`python -m experiments.step_cost`: the time and memory of a network's training step, as a line of JSON."""

import json
from typing import Any

from absl import flags

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
    """Takes a few steps on random images in a process of their own.

    Args:
        model: name of a network.
        batch_size: images per step.
        remat: whether activations are recomputed for the gradient instead of kept.
        image_size: height and width, pixels.
        steps: number of steps, at least 2; the first is timed separately.
        jit: whether XLA compiles the step.

    Returns:
        `model`, `batch_size`, `image_size`, `remat` and `jit`; `build_seconds`, to build the network and the
        optimizer's variables; `first_step_seconds`, with tracing; `step_seconds`, the median of the other
        steps; `peak_bytes`, of a GPU's memory if there is one, else of the process' resident memory, with
        `base_bytes` of it before the network was built; `losses`, one per step.

    Raises:
        InputError: an argument is wrong, or the process failed.
    """
    least = {"batch_size": 1, "steps": 2, "image_size": get_config(model).total_stride}
    given = {"batch_size": batch_size, "steps": steps, "image_size": image_size}
    for name, value in given.items():
        if value < least[name]:
            raise InputError(f"{name} must be at least {least[name]}; got {value}")
    arguments = {
        "model": model,
        "batch_size": batch_size,
        "image_size": image_size,
        "remat": remat,
        "jit": jit,
    }
    try:
        with Worker("experiments.step_worker", {**arguments, "steps": steps}) as worker:
            return {**arguments, **worker.ready}
    except WorkerError as error:
        raise InputError(
            f"the steps of {model}: the process {error.reason}; try a smaller batch_size"
        ) from None


def _define_flags() -> None:
    flags.DEFINE_string("model", "cifar_resnet20", "A network of `python -m keras_resnet`.")
    flags.DEFINE_integer("batch_size", 128, "Images per step.")
    flags.DEFINE_integer("image_size", 32, "Height and width of the images, pixels.")
    flags.DEFINE_integer("steps", 2, "Number of steps; the first is timed separately.")
    flags.DEFINE_bool("remat", False, "Recompute activations for the gradient, to save memory.")
    flags.DEFINE_bool("jit", False, "Compile the step with XLA.")


def _main() -> None:
    names = ("model", "batch_size", "remat", "image_size", "steps", "jit")
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    print(json.dumps(measure(**given)))


if __name__ == "__main__":
    _define_flags()
    cli.run(_main)
