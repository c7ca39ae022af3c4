"""Several workers on this machine against one with the same cores each, and the share of the all-reduce.

python -m benchmarks.scaling --output=scaling.json
"""

import json
import os
import sys
import tempfile
from pathlib import Path

from absl import flags

from benchmarks import harness
from keras_resnet import cli
from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config
from keras_resnet.processes import cores
from keras_resnet.training import launch_local

_MODEL = flags.DEFINE_string("model", "cifar_resnet20", "A network of the zoo.")
_WORKERS = flags.DEFINE_integer("workers", 2, "Processes that train together.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "Images per step, over all workers.")
_STEPS = flags.DEFINE_integer("steps", 30, "Steps per round.")


def _run(workers: int, share_of: int, folder: Path) -> dict[str, float]:
    """Seconds per "step", and per all-reduce alone ("reduce"), with a number of workers."""
    result = folder / "seconds.json"
    spec = {
        "model": _MODEL.value,
        "image_size": get_config(_MODEL.value).input_size,
        "batch_size": _BATCH_SIZE.value,
        "steps": _STEPS.value,
        "share_of": share_of,
        "result": str(result),
    }
    command = [sys.executable, "-m", "benchmarks.scaling_worker", json.dumps(spec)]
    status = launch_local.wait(launch_local.start(command, workers))
    if status:
        raise RuntimeError(f"{workers} workers ended with status {status}")
    seconds = json.loads(result.read_text())
    result.unlink()
    figures = f"{seconds['step']:.4f} s per step, {seconds['reduce']:.4f} s per all-reduce"
    harness.say(f"{workers} of {share_of} workers: {figures}")
    return seconds


def main() -> None:
    """Measures what the flags say."""
    get_config(_MODEL.value)
    harness.at_least_one(steps=_STEPS.value, batch_size=_BATCH_SIZE.value)
    workers, batch = _WORKERS.value, _BATCH_SIZE.value
    if workers < 2:
        raise InputError(f"--workers must be at least 2; got {workers}")
    if batch % workers:
        raise InputError(f"--batch_size={batch} is not divisible by --workers={workers}")
    rounds = harness.rounds()
    # The same for one worker as for several; the launcher keeps what it finds.
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(max(1, len(cores()) // workers))
    search = filter(None, [str(harness.ROOT), os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join(search)
    together = []
    with tempfile.TemporaryDirectory() as folder:

        def several() -> float:
            together.append(_run(workers, workers, Path(folder)))
            return batch / together[-1]["step"]

        def one() -> float:
            return workers * batch / _run(1, workers, Path(folder))["step"]

        name = f"{workers} x one worker with the same cores each ({_MODEL.value})"
        rows = harness.compare(f"workers{workers}/scaling", "images/s", several, {name: one}, rounds)
    speeds = [batch / seconds["step"] for seconds in together]
    without = [batch / (seconds["step"] - seconds["reduce"]) for seconds in together]
    name = f"the same less its all-reduce ({_MODEL.value})"
    rows.append(harness.row(f"workers{workers}/all_reduce", "images/s", speeds, without, name))
    harness.report(rows, harness.versions("keras", "tensorflow", "numpy"))
    efficiency, share = rows[0]["ratio"], 1 - rows[1]["ratio"]
    print(f"\nScaling efficiency {efficiency:.0%}; the all-reduce takes {share:.1%} of a step.")


if __name__ == "__main__":
    cli.run(main)
