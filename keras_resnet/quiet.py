"""Hides what TensorFlow and its converters write to standard error."""

import contextlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO, TextIO


@contextlib.contextmanager
def quiet() -> Iterator[TextIO | None]:
    """Captures what Python and C++ write to standard error; writes it there only if the body raises.

    Yields standard error itself, for what is to be shown nevertheless; None if it is closed.
    """
    stderr = sys.stderr
    try:
        saved = os.dup(2) if stderr else None
    except OSError:
        saved = None
    if stderr is None or saved is None:  # standard error is closed
        yield None
        return
    stderr.flush()
    # Without a buffer: what cannot be written, because the terminal is closed, must not be tried again.
    with (
        _buffer() as captured,
        open(saved, "wb", buffering=0) as unbuffered,
        io.TextIOWrapper(unbuffered, errors="backslashreplace", write_through=True) as shown,
    ):
        os.dup2(captured.fileno(), 2)
        try:
            try:
                yield shown
            finally:
                stderr.flush()
                os.dup2(saved, 2)
        except BaseException:
            captured.seek(0)
            stderr.write(captured.read().decode(errors="replace"))
            raise


def _buffer() -> BinaryIO:
    with contextlib.suppress(OSError):
        if hasattr(os, "memfd_create"):  # Linux; needs no writable folder
            return open(os.memfd_create("stderr"), "w+b")
        return tempfile.TemporaryFile()
    return open(os.devnull, "w+b")
