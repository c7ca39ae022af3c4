"""Contenders as processes of their own, of which only the one that is asked works.

A worker keeps its framework, its threads and its memory to itself. It answers requests, one line of JSON
each, from standard input. This module needs only the standard library, so that a peer's Python needs
nothing but the peer.
"""

import json
import os
import re
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path


class Worker:
    """A contender's process, seen from the benchmark; also a context manager that ends it.

    Attributes:
        ready: what the worker said about itself when it was ready.
    """

    def __init__(self, module: str, spec: Mapping, *, python: str = sys.executable):
        """Starts `python -m module SPEC` and waits until it is ready.

        Args:
            module: one that calls `serve`.
            spec: what to measure, as JSON values.
            python: the interpreter.

        Raises:
            RuntimeError: the worker failed; standard error then shows all that it said.
        """
        self._name = module
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
        self._process = subprocess.Popen(
            [python, "-m", module, json.dumps(spec)],
            cwd=Path(__file__).resolve().parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
        )
        try:
            self.ready = self._receive()
        except BaseException:
            self.close()
            raise

    def measure(self, **request) -> dict:
        """Lets the worker work on one request, and returns its answer."""
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its status says more
        return self._receive()

    def close(self) -> None:
        """Ends the worker."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()
        self._said.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def _receive(self) -> dict:
        line = self._process.stdout.readline()
        if not line:
            status = self._process.wait()
            self._said.seek(0)
            sys.stderr.write(self._said.read().decode(errors="replace"))
            why = " (killed, as for want of memory)" if status == -9 else ""
            raise RuntimeError(f"{self._name} ended with status {status}{why}")
        return json.loads(line)


class Channel:
    """The worker's end; to be made before a framework can print anything."""

    def __init__(self):
        self._out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        # What libraries print must not be taken for an answer.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        self.spec = json.loads(sys.argv[1])

    def serve(self, measures: Mapping[str, Callable[[int], float]], **ready) -> None:
        """Says that all is ready, then measures whatever is asked for until there is nobody to ask.

        Args:
            measures: by name, functions from a number of steps to images/s.
            **ready: what to say about oneself.
        """
        self._send(ready)
        for request in self._requests():
            speed = measures[request.get("measure", "step")](request["steps"])
            self._send({"images_per_second": speed, "peak_memory_mib": peak_memory_mib()})

    def _send(self, message: Mapping) -> None:
        self._out.write(json.dumps(message) + "\n")
        self._out.flush()

    def _requests(self) -> Iterator[dict]:
        for line in sys.stdin:
            yield json.loads(line)


def peak_memory_mib() -> float:
    """The most memory that this process ever held, MiB."""
    try:
        # getrusage counts what the parent held before it started this program.
        status = Path("/proc/self/status").read_text()
        return int(re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)[1]) / 1024
    except (OSError, TypeError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
