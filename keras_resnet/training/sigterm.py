"""SIGTERM during a run: it ends at once, or, while there are steps to save, at the next checkpoint."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

from keras_resnet.errors import CommandFailed
from keras_resnet.processes import SignalRaiser

# After the workers have connected, TensorFlow tells within about a second whether it took SIGTERM.
_WATCHED_SECONDS = 10.0
_POLL_SECONDS, _PAUSE_SECONDS = 0.2, 0.05


class Preempted(CommandFailed):
    """The run was stopped by SIGTERM; the same command resumes it."""

    status = 143  # 128 + SIGTERM, as in shells
    prefix = ""


class _Stopped(BaseException):
    """Raised by the signal handler; not an `Exception`, which libraries could take for an error of theirs."""


class Sigterm:
    """Whether SIGTERM was `received`, and whether it has `stopped` the run at once."""

    def __init__(self):
        self.received = self.stopped = False
        self._is_deferred = False
        self._raiser = SignalRaiser(_Stopped())

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within the block, SIGTERM only sets `received`."""
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False

    def install(self) -> None:
        """Makes this the handler of SIGTERM; only in the main thread.

        Must be repeated after a multi-worker strategy is created, for which TensorFlow installs its own.
        """
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handle)

    @contextlib.contextmanager
    def repeated(self, is_taken: Callable[[float], bool]) -> Iterator[None]:
        """Within the block, sends SIGTERM to this process if TensorFlow's handler has taken one before.

        Args:
            is_taken: `Distribution.took_sigterm`; waits up to a number of seconds for TensorFlow to say so.
        """
        has_ended = threading.Event()
        deadline = time.monotonic() + _WATCHED_SECONDS

        def watch() -> None:
            while not has_ended.wait(_PAUSE_SECONDS) and time.monotonic() < deadline:
                if is_taken(_POLL_SECONDS):
                    os.kill(os.getpid(), signal.SIGTERM)
                    return

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield
        finally:
            has_ended.set()
            watcher.join()  # a thread must not return from TensorFlow's C++ code while Python ends

    def end(self) -> None:
        """Must be called before the handler is removed."""
        self._raiser.end()

    def _handle(self, number: int, frame: object) -> None:
        self.received = True
        if not self._is_deferred:
            self.stopped = True
            self._raiser.throw(number)


@contextlib.contextmanager
def catch_sigterm() -> Iterator[Sigterm]:
    """Handles SIGTERM within the block; only in the main thread.

    Raises:
        Preempted: SIGTERM was received outside of `deferred`.
    """
    sigterm = Sigterm()
    before = signal.getsignal(signal.SIGTERM)
    sigterm.install()
    try:
        yield sigterm
    except BaseException:
        # Not only `_Stopped`: it becomes another error if the handler is called from TensorFlow's C++ code.
        if sigterm.stopped:
            raise Preempted("stopped by SIGTERM; the same command resumes the run") from None
        raise
    finally:
        sigterm.end()
        if threading.current_thread() is threading.main_thread():
            # None: a handler that was not installed from Python.
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
