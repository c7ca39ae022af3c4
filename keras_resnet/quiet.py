"""Hides what TensorFlow and its converters write to standard error."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Captures what Python and C++ write to standard error; writes it there only if the body raises."""
    stderr = sys.stderr
    try:
        saved = os.dup(2) if stderr else None
    except OSError:
        saved = None
    if stderr is None or saved is None:  # standard error is closed
        yield
        return
    stderr.flush()
    with _buffer() as captured:
        os.dup2(captured.fileno(), 2)
        try:
            try:
                yield
            finally:
                stderr.flush()
                os.dup2(saved, 2)
                os.close(saved)
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
