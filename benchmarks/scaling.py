"""Several workers on this machine against one with the same cores each, and the share of the all-reduce.

python -m benchmarks.scaling --output=scaling.json
python -m benchmarks.scaling --predict=1024  # measures nothing; see docs/scaling.md
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import harness, scaling_prediction
from keras_resnet import cli
from keras_resnet.errors import InputError, require
from keras_resnet.models.config import get_config
from keras_resnet.processes import cores
from keras_resnet.training import launch_local

_FLAGS = (
    cli.Flag("model", "A network of the zoo.", default="cifar_resnet20"),
    cli.Flag("workers", "Processes that train together.", int, 2),
    cli.Flag("batch_size", "Images per step, over all workers.", int, 128),
    cli.Flag("steps", "Steps per round.", int, 30),
    *scaling_prediction.FLAGS,
)


def _run(workers: int, spec: dict[str, Any]) -> dict[str, float]:
    """Seconds per "step", and per all-reduce alone ("reduce"), with a number of workers."""
    command = [sys.executable, "-m", "benchmarks.keras_worker", json.dumps(spec)]
    status = launch_local.wait(launch_local.start(command, workers))
    if status:
        raise RuntimeError(f"{workers} workers ended with status {status}")
    seconds = json.loads(Path(spec["result"]).read_text())
    Path(spec["result"]).unlink()
    figures = f"{seconds['step']:.4f} s per step, {seconds['reduce']:.4f} s per all-reduce"
    harness.say(f"{workers} of {spec['share_of']} workers: {figures}")
    return seconds


def main(
    run: harness.Benchmark,
    model: str,
    workers: int,
    batch_size: int,
    steps: int,
    predict: int | None,
    gpu_result: str | None,
    measured: list[str] | None,
    **inputs: Any,
) -> None:
    """Measures workers here, or predicts how many GPUs scale."""
    if predict is None:
        _measure(run, model, workers, batch_size, steps)
    else:
        given = scaling_prediction.Inputs(**inputs)
        scaling_prediction.main(run, predict, gpu_result, measured, given)


def _measure(run: harness.Benchmark, model: str, workers: int, batch_size: int, steps: int) -> None:
    """Compares the workers with one, and their steps with the same steps without the all-reduce."""
    size = get_config(model).input_size
    require(workers >= 2, "--workers must be at least 2", workers)
    if batch_size % workers:
        raise InputError(f"--batch_size={batch_size} is not divisible by --workers={workers}")
    # The same for one worker as for several; the launcher keeps what it finds.
    os.environ["TF_NUM_INTRAOP_THREADS"] = str(max(1, len(cores()) // workers))
    search = filter(None, [str(harness.ROOT), os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join(search)
    spec = {"model": model, "image_size": size, "batch_size": batch_size, "steps": steps, "share_of": workers}
    together = []
    with tempfile.TemporaryDirectory() as folder:
        spec["result"] = str(Path(folder, "seconds.json"))

        def several() -> float:
            together.append(_run(workers, spec))
            return batch_size / together[-1]["step"]

        def one() -> float:
            return workers * batch_size / _run(1, spec)["step"]

        name = f"{workers} x one worker with the same cores each ({model})"
        run.compare(f"workers{workers}/scaling", "images/s", {"ours": several, name: one})
    speeds = [batch_size / seconds["step"] for seconds in together]
    without = [batch_size / (seconds["step"] - seconds["reduce"]) for seconds in together]
    name = f"the same less its all-reduce ({model})"
    run.add(f"workers{workers}/all_reduce", "images/s", speeds, without, name)
    run.report("keras", "tensorflow", "numpy")
    efficiency, share = run.rows[0]["ratio"], 1 - run.rows[1]["ratio"]
    print(f"\nScaling efficiency {efficiency:.0%}; the all-reduce takes {share:.1%} of a step.")


if __name__ == "__main__":
    harness.run(main, flags=_FLAGS)
