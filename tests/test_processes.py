import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_resnet.processes import Worker, WorkerError, cores, exit_on_sigterm, memory_limit

ENVIRONMENT = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), str(Path(__file__).parent)])}
ECHO = "helpers.echo_worker"


def start(spec, **options):
    return Worker(ECHO, spec, environment=ENVIRONMENT, **options)


def test_calls_return_results_or_errors():
    with start({"size": 3}) as worker:
        assert worker.ready == {"spec": {"size": 3}}
        assert worker.call("double", number=21) == 42
        with pytest.raises(WorkerError) as caught:
            worker.call("double", number={})
        assert caught.value.reason.startswith("failed with TypeError: unsupported operand")
        assert "Traceback" in caught.value.log
        assert "a library prints this" in caught.value.log
        assert worker.call("double", number=[1]) == [1, 1]  # it still runs
        with pytest.raises(WorkerError, match=f"^{ECHO} ended with status 7"):
            worker.call("end", status=7)
        with pytest.raises(WorkerError, match="ended with status 7"):
            worker.call("double", number=1)


def test_a_worker_that_does_not_start():
    with pytest.raises(WorkerError, match="failed with ValueError: no such file\n"):
        start({"fail": "no such file\nsecond line"})
    with pytest.raises(WorkerError, match=r"no_such_worker ended with status 1\n.*No module named"):
        Worker("helpers.no_such_worker", {}, environment=ENVIRONMENT)


def test_a_killed_worker():
    with start({}) as worker:
        worker.process.kill()
        with pytest.raises(WorkerError, match="ended by SIGKILL, probably out of memory"):
            worker.call("double", number=1)


def test_a_worker_with_a_log_stops_when_it_is_closed(tmp_path):
    log = tmp_path / "log.txt"
    worker = start({"folder": str(tmp_path)}, log=log)
    while "started" not in log.read_text():
        time.sleep(0.01)
    assert worker.poll() is None
    worker.close(wait=True)
    assert worker.poll() == -signal.SIGTERM
    assert log.read_text().endswith("started\n")


def test_the_module_needs_no_other_package():
    path = Path(__file__).parents[1] / "keras_resnet" / "processes.py"
    program = f"import runpy, sys; runpy.run_path({str(path)!r}); print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False\n", "")


# Files below the root: the control group of a process, and what it and its parents allow.
GROUPS = {
    "none": ({}, 64, None),
    "version 2": (
        {
            "proc/self/cgroup": "0::/jobs/one\n",
            "sys/fs/cgroup/jobs/one/cpu.max": "max 100000\n",
            "sys/fs/cgroup/jobs/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/jobs/one/memory.max": "4096\n",
            "sys/fs/cgroup/jobs/memory.max": "max\n",
        },
        2,
        4096,
    ),
    "version 1 in a container": (
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/host/name\n4:memory:/host/name\n3:devices:/x\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "300000\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "8192\n",
        },
        3,
        8192,
    ),
    "version 1 without limits": (
        {
            "proc/self/cgroup": "5:cpu:/\n4:memory:/\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
        },
        64,
        None,
    ),
    "less than a core": (
        {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"},
        1,
        None,
    ),
}


@pytest.mark.parametrize("name", GROUPS)
def test_cores_and_memory_are_those_of_the_control_group(name, tmp_path, monkeypatch):
    files, count, memory = GROUPS[name]
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    assert cores(tmp_path) == list(range(count))
    assert memory_limit(tmp_path) == memory


def test_sigterm_ends_a_program_after_its_cleaning():
    cleaned = []

    def program():
        with exit_on_sigterm():
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(10)
            finally:
                os.kill(os.getpid(), signal.SIGTERM)  # a second one does not interrupt
                cleaned.append(True)

    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        with pytest.raises(SystemExit) as end:
            program()
        assert (end.value.code, cleaned) == (143, [True])
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
        received = []
        signal.signal(signal.SIGTERM, lambda *arguments: received.append(True))
        with exit_on_sigterm():  # the program's own handler stays
            os.kill(os.getpid(), signal.SIGTERM)
        assert received == [True]
    finally:
        signal.signal(signal.SIGTERM, before)
