"""`python -m keras_resnet launch`: several workers on this machine, to try `--strategy=multi_worker`."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from keras_resnet import cli
from keras_resnet.errors import InputError, TryAgain, require
from keras_resnet.processes import cores

# After one worker has failed, the others have this long to stop by themselves.
_GRACE_SECONDS = 60
_POLL_SECONDS = 0.1


def main(workers: int, program: str | None, flags: Sequence[str]) -> int:
    """Runs the command `train`, or a program, in several workers; returns the exit status of `wait`."""
    require(workers >= 1, "--workers must be at least 1", workers)
    if program is not None and not Path(program).is_file():
        raise InputError(f"there is no program {program}")
    command = [sys.executable, *(["-m", "keras_resnet", "train"] if program is None else [program]), *flags]
    if not any(flag.startswith("--strategy") for flag in flags):
        command.append("--strategy=multi_worker")
    started: list[subprocess.Popen] = []
    received: list[int] = []

    def forward() -> None:
        while started and received:
            number = received.pop(0)
            for process in started:
                process.send_signal(number)

    def receive(number: int, frame: object) -> None:
        received.append(number)
        forward()

    # Before the start: a signal that ended this process now would leave the workers behind.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, receive)
    started.extend(start(command, workers))
    forward()  # what was received meanwhile
    return wait(started)


def start(command: list[str], count: int) -> list[subprocess.Popen]:
    """Starts `count` workers on free ports of 127.0.0.1; prints their output with their indices."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    threads = max(1, len(cores()) // count)
    workers = []
    for index in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(config),
            # Workers share the cores instead of each starting a thread per core.
            "TF_NUM_INTRAOP_THREADS": os.environ.get("TF_NUM_INTRAOP_THREADS", str(threads)),
            "PYTHONUNBUFFERED": "1",
        }
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        # This process waits for the thread before it exits.
        threading.Thread(target=_print_lines, args=(index, process.stdout)).start()
        workers.append(process)
    return workers


def wait(workers: list[subprocess.Popen]) -> int:
    """Waits for all workers; returns 0, or the exit status of the worker that ended the others.

    Once a worker has failed, the others have a minute to stop; then they are killed.
    """
    deadline = None
    while running := [index for index, process in enumerate(workers) if process.poll() is None]:
        if deadline is None and any(process.poll() for process in workers):
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            for index in running:
                print(f"[{index}] killed: another worker failed {_GRACE_SECONDS} s ago", flush=True)
                workers[index].kill()
        time.sleep(_POLL_SECONDS)
    # A worker that was killed by a signal has a negative status, for which shells use 128 + signal.
    statuses = {128 - p.returncode if p.returncode < 0 else p.returncode for p in workers} - {0}
    # `TryAgain` only follows from another worker's end. Of the other statuses, one below 128 counts first:
    # starting again does not help against it.
    return min(statuses - {TryAgain.status} or statuses, default=0)


def _print_lines(index: int, stream: Iterable[str]) -> None:
    for line in stream:
        print(f"[{index}] {line}", end="", flush=True)


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that no process listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [free.getsockname()[1] for free in sockets]


COMMAND = cli.Command(
    main,
    "Starts several workers on this machine, to try --strategy=multi_worker.\n\n"
    "python -m keras_resnet launch --workers=2 -- --recipe=digits --workdir=runs/two",
    (
        cli.Flag("workers", "Number of processes.", int, 2),
        cli.Flag("program", "A Python file that they run instead of the command train."),
    ),
    (cli.Flag("flags", "Flags of the program, after --.", tuple),),
)

if __name__ == "__main__":
    cli.run(COMMAND)
