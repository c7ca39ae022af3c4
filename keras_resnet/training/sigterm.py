"""SIGTERM during a run: it ends at once, or, while there are steps to save, at the next checkpoint."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from keras_resnet.errors import CommandFailed


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

    def _handle(self, *signal_and_frame: object) -> None:
        self.received = True
        if not self._is_deferred:
            self.stopped = True
            raise _Stopped


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
        if threading.current_thread() is threading.main_thread():
            # None: a handler that was not installed from Python.
            signal.signal(signal.SIGTERM, before or signal.SIG_DFL)
