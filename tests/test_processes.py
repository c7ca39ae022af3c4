import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from keras_resnet.processes import Worker, WorkerError

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
