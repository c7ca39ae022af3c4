"""Holds back what TensorFlow and its converters write to standard error."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from typing import BinaryIO


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Captures what Python and C++ write to standard error; shows it only if the body raises."""
    saved = _duplicate()
    if saved is None:  # standard error is closed: nothing to hold back
        yield
        return
    sys.stderr.flush()
    with _buffer() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        except BaseException:
            _restore(saved)
            held.seek(0)
            sys.stderr.write(held.read().decode(errors="replace"))
            raise
        else:
            _restore(saved)


def _duplicate() -> int | None:
    try:
        return None if sys.stderr is None else os.dup(2)
    except OSError:
        return None


def _buffer() -> BinaryIO:
    if hasattr(os, "memfd_create"):  # Linux; needs no writable folder
        return open(os.memfd_create("stderr"), "w+b")
    return tempfile.TemporaryFile()


def _restore(saved: int) -> None:
    sys.stderr.flush()
    os.dup2(saved, 2)
    os.close(saved)
