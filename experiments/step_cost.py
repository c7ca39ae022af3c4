"""`python -m experiments.step_cost`: what a training step of a network takes, in time and memory.

It prints one line of JSON.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

# Before TensorFlow is loaded: its start-up notes would bury ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from absl import flags

from keras_resnet import InputError, cli
from keras_resnet.models.config import get_config

_RATE = 0.01  # small enough that no network of the zoo diverges within a few steps


def measure(
    model: str,
    batch_size: int,
    remat: bool = False,
    *,
    image_size: int = 32,
    steps: int = 2,
    jit: bool = False,
) -> dict:
    """Takes a few steps on random images in a process of their own.

    Args:
        model: a network of the zoo.
        batch_size: images a step.
        remat: whether activations are computed again for the gradient instead of kept.
        image_size: height and width, pixels.
        steps: at least 2; the first is timed apart.
        jit: whether XLA compiles the step.

    Returns:
        `model`, `batch_size`, `image_size`, `remat` and `jit`; `build_seconds`, until the optimizer's
        variables are there; `first_step_seconds`, tracing included; `step_seconds`, the median of the
        others; `peak_bytes`, a GPU's memory if there is one, else what was resident at most, which
        `base_bytes` of it were before the network was built; `losses`, a mean for each step.

    Raises:
        InputError: an argument is wrong, or the process did not get to its end.
    """
    command = [sys.executable, "-m", "experiments.step_cost"]
    command += [f"--model={model}", f"--batch_size={batch_size}", f"--image_size={image_size}"]
    command += [f"--steps={steps}", f"--remat={remat}", f"--jit={jit}"]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise InputError(f"the steps of {model} ended by {name}; a smaller batch_size takes less memory")
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise InputError(f"the steps of {model} failed: {lines[-1].removeprefix('error: ')}")
    return json.loads(done.stdout.splitlines()[-1])


def _define_flags() -> None:
    flags.DEFINE_string("model", "cifar_resnet20", "A network of `python -m keras_resnet`.")
    flags.DEFINE_integer("batch_size", 128, "Images a step.")
    flags.DEFINE_integer("image_size", 32, "Height and width of the images, pixels.")
    flags.DEFINE_integer("steps", 2, "Steps; the first is timed apart.")
    flags.DEFINE_bool("remat", False, "Compute activations twice instead of keeping them.")
    flags.DEFINE_bool("jit", False, "Compile the step with XLA.")


def _main() -> int:
    options = flags.FLAGS
    least = {"batch_size": 1, "steps": 2, "image_size": get_config(options.model).total_stride}
    for name, value in least.items():
        if options[name].value < value:
            raise InputError(f"{name} must be at least {value}; got {options[name].value}")
    names = ("model", "batch_size", "image_size", "remat", "jit")
    arguments = {name: options[name].value for name in names}
    print(json.dumps({**arguments, **_take_steps(**arguments, steps=options.steps)}))
    return 0


def _take_steps(model: str, batch_size: int, image_size: int, remat: bool, jit: bool, steps: int) -> dict:
    import keras
    import tensorflow as tf

    from keras_resnet.models.resnet import build_model
    from keras_resnet.training.distribution import create
    from keras_resnet.training.recipe import Recipe
    from keras_resnet.training.step import METRICS, Trainer

    distribution = create("one_device")
    keras.utils.set_random_seed(0)
    tf.zeros(()).numpy()  # what TensorFlow takes for itself is no part of the network's
    base = _resident("VmRSS")

    begun = time.perf_counter()
    shape = (image_size, image_size, 3)
    with distribution.scope():
        network = build_model(model, input_shape=shape, classifier_activation=None)
    recipe = Recipe(model=model, dataset="random", image_size=image_size, batch_size=batch_size)
    trainer = Trainer(network, recipe, distribution, seed=0, jit=jit, remat=remat)
    built = time.perf_counter() - begun

    classes = network.output.shape[-1]
    batch = {
        "images": tf.random.normal((batch_size, *shape), seed=1),
        "labels": tf.random.uniform((batch_size,), 0, classes, tf.int32, seed=2),
        "weights": tf.ones((batch_size,)),
    }
    # Other images would not change what a step takes.
    iterator = distribution.iterate(tf.data.Dataset.from_tensors(batch).repeat())
    seconds, losses = [], []
    for step in range(steps):
        begun = time.perf_counter()
        row = trainer.train(iterator, tf.constant([_RATE]), tf.constant(step), tf.constant(0.0)).numpy()[0]
        seconds.append(time.perf_counter() - begun)
        result = dict(zip(METRICS, row.tolist(), strict=True))
        losses.append(result["loss_sum"] / result["count"])

    gpu = bool(tf.config.list_physical_devices("GPU"))
    return {
        "build_seconds": built,
        "first_step_seconds": seconds[0],
        "step_seconds": statistics.median(seconds[1:]),
        "peak_bytes": tf.config.experimental.get_memory_info("GPU:0")["peak"] if gpu else _resident("VmHWM"),
        "base_bytes": 0 if gpu else base,
        "losses": losses,
    }


def _resident(field: str) -> int:
    """Bytes of this process in memory: "VmRSS" now, "VmHWM" at most.

    `getrusage` would not do: its maximum is at least what the process had that started this one.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise InputError(f"/proc/self/status says nothing of {field}")


if __name__ == "__main__":
    _define_flags()
    cli.run(_main)
