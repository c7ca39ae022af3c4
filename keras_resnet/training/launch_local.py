"""Starts several workers on this machine, to try out `--strategy=multi_worker`.

python -m keras_resnet.training.launch_local --workers=2 -- --recipe=digits --workdir=runs/two
"""

import dataclasses
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
from keras_resnet.errors import InputError, require
from keras_resnet.processes import cores

# After one worker has failed, the others get this long to stop by themselves.
_GRACE_SECONDS = 60
_POLL_SECONDS = 0.1


@dataclasses.dataclass(frozen=True)
class Worker:
    """A worker's process, and the thread that prints its output."""

    process: subprocess.Popen
    printer: threading.Thread


def main(workers: int, program: str, flags: Sequence[str]) -> int:
    """Runs the workers to their end.

    Args:
        workers: how many.
        program: the Python file to run.
        flags: its arguments.

    Returns:
        The first exit status that is not 0, or 0.
    """
    require(workers >= 1, "--workers must be at least 1", workers)
    if not Path(program).is_file():
        raise InputError(f"there is no {program} here; run this from the project's folder")
    command = [sys.executable, program, *flags]
    if not any(flag.startswith("--strategy") for flag in flags):
        command.append("--strategy=multi_worker")
    started = start(command, workers)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: _pass_on(started, number))
    return wait(started)


def start(command: list[str], count: int) -> list[Worker]:
    """Starts `count` workers on free ports of 127.0.0.1; prints their output with their rank."""
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
        printer = threading.Thread(target=_print_lines, args=(index, process.stdout), daemon=True)
        printer.start()
        workers.append(Worker(process, printer))
    return workers


def wait(workers: list[Worker]) -> int:
    """Waits for all workers; once one has failed, the others have a minute to notice."""
    processes = [worker.process for worker in workers]
    deadline = None
    while any(process.poll() is None for process in processes):
        if deadline is None and any(process.poll() for process in processes):
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            _kill(processes)
        time.sleep(_POLL_SECONDS)
    for worker in workers:
        worker.printer.join()
    # A worker that a signal killed has a negative status, for which a shell says 128 + signal.
    statuses = [128 - p.returncode if p.returncode < 0 else p.returncode for p in processes]
    return next((status for status in statuses if status), 0)


def _kill(processes: list[subprocess.Popen]) -> None:
    for index, process in enumerate(processes):
        if process.poll() is None:
            print(f"[{index}] did not end within {_GRACE_SECONDS} seconds after another failed", flush=True)
            process.kill()


def _pass_on(workers: list[Worker], number: int) -> None:
    for worker in workers:
        if worker.process.poll() is None:
            worker.process.send_signal(number)


def _print_lines(index: int, stream: Iterable[str]) -> None:
    for line in stream:
        print(f"[{index}] {line}", end="", flush=True)


def free_ports(count: int) -> list[int]:
    """Returns ports of 127.0.0.1 that no process listens at."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
    finally:
        for free in sockets:
            free.close()


COMMAND = cli.Command(
    main,
    "Starts several workers on this machine, to try --strategy=multi_worker.\n\n"
    "python -m keras_resnet launch --workers=2 -- --recipe=digits --workdir=runs/two",
    (
        cli.Flag("workers", "Number of processes.", int, 2),
        cli.Flag("program", "The program that they run.", default="train_main.py"),
    ),
    (cli.Flag("flags", "Flags of the program, after --.", tuple),),
)

if __name__ == "__main__":
    cli.run(COMMAND)
