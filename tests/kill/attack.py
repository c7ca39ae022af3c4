"""Starts a command and sends it a signal at a planned moment."""

import contextlib
import dataclasses
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

from helpers.processes import ROOT, environment

VICTIM = str(Path(__file__).with_name("victim.py"))
_SECONDS_TO_END = 180  # longer than the minute after which the launcher kills the other workers
_SECONDS_OF_CHILDREN = 20  # after their parent process is killed


class OutOfTime(Exception):
    """The whole test has used up its time."""


@dataclasses.dataclass(frozen=True)
class Attack:
    """A signal, `delay` seconds after a process has reached `point` for the `count`-th time.

    Attributes:
        point: "train" or "evaluate", a call of the compiled steps; "write", a change to the folder's files.
        worker: index of the process whose points count.
        target: "process", the one that reached the point; "launcher"; or "group", all processes at once.
    """

    number: signal.Signals
    point: str
    count: int
    delay: float
    worker: int = 0
    target: str = "process"

    def __str__(self):
        where = f"worker {self.worker}, to the {self.target}"
        return f"{self.number.name} {1000 * self.delay:.1f} ms after {self.point} {self.count} ({where})"


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: as in `subprocess`; None if the command was killed because it did not end.
        sent: whether the signal was sent, as opposed to an end before the planned moment.
        seconds: from the signal to the end.
        orphans: whether processes that it started were still running some time after its end.
    """

    status: int | None
    output: str
    sent: bool
    seconds: float
    orphans: bool


def run(
    arguments: list[str],
    folder: Path,
    scratch: Path,
    deadline: float,
    attack: Attack | None = None,
    counts: Path | None = None,
) -> Ended:
    """Runs `VICTIM` to its end, or to the attack's; no process is left afterwards.

    Args:
        folder: changes to its files are the point "write".
        scratch: for the log and the command's temporary files.
        deadline: of the whole test, as `time.monotonic`.
        counts: file for the number of times that each point was reached.
    """
    if time.monotonic() > deadline:
        raise OutOfTime
    deadline = min(deadline, time.monotonic() + _SECONDS_TO_END)
    channel, temporary = scratch / "channel", scratch / "tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    channel.unlink(missing_ok=True)
    os.mkfifo(channel)
    plan = {"folder": f"{folder}{os.sep}", "channel": str(channel), "counts": counts and str(counts)}
    plan |= {"point": None, "count": 0, "worker": 0}
    if attack is not None:
        plan |= {"point": attack.point, "count": attack.count, "worker": attack.worker}
    with open(scratch / "log", "w+b") as log, _opened(channel) as announcements:
        process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            env=environment(PYTHONPATH=str(ROOT), TMPDIR=str(temporary), KILL_PLAN=json.dumps(plan)),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            sent = attack is not None and _send(attack, process, announcements, deadline)
            began = time.monotonic()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0, deadline - began))
            seconds = time.monotonic() - began
            orphans = process.returncode is not None and not _ends(process.pid, _SECONDS_OF_CHILDREN)
        finally:
            status = process.poll()
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _ends(process.pid, _SECONDS_OF_CHILDREN)
        log.seek(0)
        return Ended(status, log.read().decode(errors="replace"), sent, seconds, orphans)


@contextlib.contextmanager
def _opened(channel: Path):
    # Also for writing, so that a process that announces something never waits for a reader.
    handle = os.open(channel, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield handle
    finally:
        os.close(handle)


def _send(attack: Attack, process: subprocess.Popen, announcements: int, deadline: float) -> bool:
    """Waits for the moment; returns whether it came and the process was still there."""
    while not select.select([announcements], [], [], 0.05)[0]:
        if process.poll() is not None or time.monotonic() > deadline:
            return False
    reached = int(os.read(announcements, 32))
    time.sleep(attack.delay)
    if process.poll() is not None:
        return False
    try:
        if attack.target == "group":
            os.killpg(process.pid, attack.number)
        else:
            os.kill(process.pid if attack.target == "launcher" else reached, attack.number)
    except ProcessLookupError:
        return False
    return True


def _ends(group: int, seconds: float) -> bool:
    """Waits until no process of a group runs; returns whether that happened in time."""
    deadline = time.monotonic() + seconds
    while _is_running(group):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _is_running(group: int) -> bool:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # the process has ended in the meantime
            state, _, of_group = path.read_text().rpartition(")")[2].split()[:3]
            if int(of_group) == group and state not in "ZX":
                return True
    return False
