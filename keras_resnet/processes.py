"""Runs Python modules in other processes and talks to them in JSON lines; needs only the standard library.

The parent process starts `python -m MODULE` with a specification and calls the functions that it serves:

    with Worker("keras_resnet.export.isolated", {"open": opener, "path": "model.onnx"}) as worker:
        print(worker.ready)
        worker.call("time", shape=[1, 224, 224, 3])

The module ends in

    if __name__ == "__main__":
        serve(prepare)  # prepare(spec) -> (values for worker.ready, {name: function})

A module that runs once and serves no functions reads its specification with `read_spec` and is started
with `Worker(..., log=PATH)`; see `Worker.poll` and `stop_with_parent`.
"""

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

Prepare = Callable[[dict[str, Any]], tuple[Mapping[str, Any], Mapping[str, Callable[..., Any]]]]

_REPEAT_SECONDS = 1.0
_ROOT = Path(__file__).resolve().parents[1]  # the folder of the packages


class WorkerError(RuntimeError):
    """A worker failed: `reason` is one line about it, and `log` the worker's standard error."""

    def __init__(self, name: str, reason: str, log: str = ""):
        super().__init__("\n".join(filter(None, [f"{name} {reason}", log.strip()])))
        self.reason, self.log = reason, log


class Worker:
    """A module running in another Python process; a context manager that ends the process.

    Args:
        module: name of a module that calls `serve` or `read_spec`.
        spec: JSON values for the module.
        environment: variables that are added to this process' environment.
        log: file to which standard output and error are appended. With a log, the module serves no
            functions, and the worker does not wait until it is ready.
        **options: further arguments of `subprocess.Popen`.

    Attributes:
        ready: the JSON values that `prepare` returned.

    Raises:
        WorkerError: the worker failed before it was ready.
    """

    def __init__(
        self,
        module: str,
        spec: Mapping[str, Any],
        *,
        python: str | os.PathLike = sys.executable,
        environment: Mapping[str, str] | None = None,
        log: str | os.PathLike | None = None,
        **options: Any,
    ):
        self.name = module
        search = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        self._log = tempfile.TemporaryFile() if log is None else open(log, "ab")  # noqa: SIM115
        self.process = subprocess.Popen(
            # -P: a module in the current folder must not replace one of a library.
            [str(python), "-P", "-m", module, json.dumps(dict(spec))],
            env={**os.environ, "PYTHONPATH": search, **(environment or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE if log is None else self._log,
            stderr=self._log,
            text=True,
            **options,
        )
        self.ready: dict[str, Any] = {}
        if log is None:
            try:
                self.ready = self._receive()
            except BaseException:
                self.close()
                raise

    def call(self, function: str, **arguments: Any) -> Any:
        """Returns the result of a function that the worker serves; raises `WorkerError` if it fails."""
        with contextlib.suppress(BrokenPipeError):  # `_receive` raises `WorkerError`
            print(json.dumps([function, arguments]), file=self.process.stdin, flush=True)
        return self._receive()

    def poll(self) -> int | None:
        """Returns the process' exit status; None while it runs."""
        return self.process.poll()

    def close(self, wait: bool = False) -> None:
        """Kills the process; with `wait`, which is for modules that call `stop_with_parent`, lets it end."""
        if not wait and self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(BrokenPipeError):
            self.process.communicate()
        self._log.close()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _receive(self) -> Any:
        line = self.process.stdout.readline() if self.process.stdout else ""
        if line:
            answer = json.loads(line)
            if "error" not in answer:
                return answer["result"]
            raise WorkerError(self.name, answer["error"], self._read_log())
        status = self.process.wait()
        reason = f"ended with status {status}"
        if status < 0:
            memory = ", probably out of memory" if -status == signal.SIGKILL else ""
            reason = f"ended by {signal.Signals(-status).name}{memory}"
        raise WorkerError(self.name, reason, self._read_log())

    def _read_log(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace")


def serve(prepare: Prepare) -> None:
    """Answers the calls of the parent process until it closes the connection.

    What libraries print to standard output goes to standard error.

    Args:
        prepare: takes the specification; returns JSON values for `Worker.ready`, and functions by name
            with JSON values as arguments and results. It should import large libraries itself.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    sys.stdout = sys.stderr  # which is not buffered, so that a log is complete when an error is reported

    def answer(**values: Any) -> None:
        print(json.dumps(values), file=answers, flush=True)

    try:
        ready, functions = prepare(read_spec())
    except Exception as error:
        answer(error=_one_line(error))
        sys.exit(1)
    answer(result=ready)
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer(result=functions[name](**arguments))
        except Exception as error:
            answer(error=_one_line(error))


def _one_line(error: Exception) -> str:
    traceback.print_exception(error)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ": ".join([f"failed with {type(error).__name__}", *lines[:1]])


def read_spec() -> dict[str, Any]:
    """Returns the specification that the parent process passed to this one."""
    return json.loads(sys.argv[1])


class SignalRaiser:
    """Raises an exception in the main thread, for a signal handler.

    The exception is raised again after a second if it was dropped: Python drops exceptions within callbacks,
    and libraries have callbacks for every garbage collection. While the exception is being handled, as in a
    `finally`, another signal changes nothing.
    """

    def __init__(self, error: BaseException):
        self._error = error
        self._repetition: threading.Timer | None = None

    def throw(self, number: int) -> None:
        """Raises the exception; called by the handler of the signal `number`."""
        handled = sys.exc_info()[1]
        while handled is not None:
            if handled is self._error:
                return
            handled = handled.__context__
        self._repetition = threading.Timer(_REPEAT_SECONDS, os.kill, (os.getpid(), number))
        self._repetition.daemon = True
        self._repetition.start()
        raise self._error

    def end(self) -> None:
        """Must be called before the handler is removed: the exception is not raised again."""
        if self._repetition is not None:
            self._repetition.cancel()
            self._repetition.join()


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """Turns SIGTERM into `SystemExit(143)`, so that the body removes its temporary files.

    Changes nothing outside the main thread, or if the program handles the signal itself.
    """
    handled = signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    if handled or threading.current_thread() is not threading.main_thread():
        yield
        return

    status = None
    exit_raiser = SignalRaiser(SystemExit(128 + signal.SIGTERM))

    def stop(number: int, frame: object) -> None:
        nonlocal status
        status = 128 + number
        exit_raiser.throw(number)

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except Exception:
        # What `SystemExit` becomes if the handler is called from C++ code, such as TensorFlow's.
        if status is not None:
            sys.exit(status)
        raise
    finally:
        exit_raiser.end()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def stop_with_parent() -> None:
    """Sends SIGTERM to this process when the parent process ends or closes the connection."""

    def wait() -> None:
        with contextlib.suppress(OSError):
            sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


def cores(root: str | os.PathLike = "/") -> list[int]:
    """Returns the numbers of the CPU cores that this process may use: no more of them than its CPU quota.

    A quota of 1.5 cores counts as two. `/proc` and `/sys` are read in `root`.
    """
    if hasattr(os, "sched_getaffinity"):
        own = sorted(os.sched_getaffinity(0))
    else:
        own = list(range(os.cpu_count() or 1))
    quotas = (
        *_limits(root, "cpu", "cpu.max"),
        *_limits(root, "cpu", "cpu.cfs_quota_us", "cpu.cfs_period_us"),
    )
    return own[: min((max(1, -(-quota // period)) for quota, period in quotas), default=len(own))]


def memory_limit(root: str | os.PathLike = "/") -> int | None:
    """Returns the bytes of memory that the control group of this process may use; None without a limit."""
    limits = (*_limits(root, "memory", "memory.max"), *_limits(root, "memory", "memory.limit_in_bytes"))
    # Version 1 has a number close to 2^63 for no limit.
    return min((limit for (limit,) in limits if limit < 2**60), default=None)


def _limits(root: str | os.PathLike, controller: str, *names: str) -> Iterator[list[int]]:
    """Yields the numbers in files of this process' control group and its parents, where they are limits."""
    for folder in _control_groups(root, controller):
        with contextlib.suppress(OSError, ValueError):  # "max" is not a number
            numbers = [int(word) for name in names for word in (folder / name).read_text().split()]
            if numbers[0] > 0:
                yield numbers


def _control_groups(root: str | os.PathLike, controller: str) -> Iterator[Path]:
    """Yields the folders of a control group (version 1 or 2) and its parents, which need not exist."""
    mount = Path(root, "sys/fs/cgroup")
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if not controllers or controller in controllers.split(","):
            top = mount / controller if controllers else mount
            # In a container the host's name of the group may not exist; the topmost folder is its own then.
            folder = top / group.lstrip("/")
            yield from (folder, *folder.parents[: len(folder.parts) - len(top.parts)])


def resident_memory(peak: bool = False) -> int:
    """Returns the bytes of memory that this process uses, or the most it has used."""
    field = "VmHWM:" if peak else "VmRSS:"
    try:
        with open("/proc/self/status") as status:
            return 1024 * int(next(line for line in status if line.startswith(field)).split()[1])
    except (OSError, StopIteration):
        # Only without /proc, because it includes what the parent process used before it started this one.
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
