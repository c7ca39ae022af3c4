"""Starts several workers on this machine, to try `--strategy=multi_worker` out.

python -m keras_resnet.training.launch_local --workers=2 -- --recipe=digits --workdir=runs/two
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

# Seconds that the others get to end by themselves after one worker has failed.
_GRACE = 60


def main() -> int:
    """Runs the workers to their end; the first bad exit status among them, or 0."""
    parser = argparse.ArgumentParser(prog="python -m keras_resnet.training.launch_local", description=__doc__)
    parser.add_argument("--workers", type=int, default=2, help="processes to start (default 2)")
    parser.add_argument("--program", default="train_main.py", help="what to run (default train_main.py)")
    parser.add_argument("flags", nargs="*", help="flags of the program, after --")
    arguments = parser.parse_args()
    if arguments.workers < 1:
        parser.error(f"--workers must be at least 1; got {arguments.workers}")
    if not Path(arguments.program).is_file():
        parser.error(f"there is no {arguments.program} here; run this from the project's folder")

    command = [sys.executable, arguments.program, *arguments.flags]
    if not any(flag.startswith("--strategy") for flag in arguments.flags):
        command.append("--strategy=multi_worker")
    workers = start(command, arguments.workers)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: _pass_on(workers, number))
    return wait(workers)


def start(command: list[str], count: int) -> list[subprocess.Popen]:
    """Starts `count` workers on free ports of 127.0.0.1; their output is shown with their rank."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(count)]
    cores = max(1, (os.cpu_count() or 1) // count)
    workers = []
    for index in range(count):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": index}}
        environment = {
            **os.environ,
            "TF_CONFIG": json.dumps(config),
            # Workers share the cores instead of each starting a thread for every one.
            "TF_NUM_INTRAOP_THREADS": os.environ.get("TF_NUM_INTRAOP_THREADS", str(cores)),
            "PYTHONUNBUFFERED": "1",
        }
        worker = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        worker.shower = threading.Thread(target=_show, args=(index, worker.stdout), daemon=True)
        worker.shower.start()
        workers.append(worker)
    return workers


def wait(workers: list[subprocess.Popen]) -> int:
    """Waits for all; once one has failed the others have a minute to notice."""
    deadline = None
    while any(worker.poll() is None for worker in workers):
        if deadline is None and any(worker.poll() for worker in workers):
            deadline = time.monotonic() + _GRACE
        if deadline is not None and time.monotonic() > deadline:
            for index, worker in enumerate(workers):
                if worker.poll() is None:
                    print(f"[{index}] did not end within {_GRACE} seconds after another failed", flush=True)
                    worker.kill()
        time.sleep(0.1)
    for worker in workers:
        worker.shower.join()
    # A worker that a signal killed has a negative status, for which a shell says 128 + signal.
    statuses = [128 - w.returncode if w.returncode < 0 else w.returncode for w in workers]
    return next((status for status in statuses if status), 0)


def _pass_on(workers, number) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def _show(index: int, stream) -> None:
    for line in stream:
        print(f"[{index}] {line}", end="", flush=True)


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens at."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for free in sockets:
            free.bind(("127.0.0.1", 0))
        return [free.getsockname()[1] for free in sockets]
    finally:
        for free in sockets:
            free.close()


if __name__ == "__main__":
    sys.exit(main())
