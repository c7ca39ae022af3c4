"""Real processes: training as a person starts it, from the checkout's folder."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.zoo_networks import TINY

ROOT = Path(__file__).parents[2]
TINY_ASSIGNMENTS = [
    *(f"model.{name}={value}" for name, value in TINY.items()),
    "image_size=16",
    "train_split='train[:640]'",
    "batch_size=32",
]
TINY_FLAGS = [f"--set={assignment}" for assignment in TINY_ASSIGNMENTS]


def environment(**changes):
    kept = {key: value for key, value in os.environ.items() if key != "TF_CONFIG"}
    return {**kept, "TF_CPP_MIN_LOG_LEVEL": "3", **changes}


def train_command(workdir, data_dir, *flags, recipe=TINY_FLAGS):
    return ["train_main.py", f"--workdir={workdir}", f"--data_dir={data_dir}", *recipe, *flags]


def launch_command(workers, workdir, data_dir, *flags, recipe=TINY_FLAGS):
    program, *rest = train_command(workdir, data_dir, *flags, recipe=recipe)
    launcher = ["-m", "keras_resnet.training.launch_local", f"--workers={workers}", f"--program={program}"]
    return [*launcher, "--", *rest]


def start(arguments, **changes):
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(**changes),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(process, timeout=300):
    output, errors = process.communicate(timeout=timeout)
    return process.returncode, output + errors


def run(arguments, **changes):
    return finish(start(arguments, **changes))


def newest_step(workdir):
    """The step of the newest checkpoint, 0 without one."""
    names = [path.name for path in Path(workdir, "checkpoints").glob("step-*.h5")]
    return max((int(name[5:14]) for name in names), default=0)


def wait_for(condition, process=None, timeout=180):
    """True once the condition holds, False if the process ended first."""
    deadline = time.monotonic() + timeout
    while not condition():
        if process is not None and process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)
    return True


def kill_group(process):
    """SIGKILL to the process and all that it started."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def children(process):
    """The processes that a process started, oldest first."""
    path = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return sorted(int(pid) for pid in path.read_text().split())
