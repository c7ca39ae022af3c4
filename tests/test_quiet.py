"""Standard error is hidden, and shown after an exception; no writable folder is needed."""

import os
import subprocess
import sys
import tempfile

import pytest

from keras_resnet.quiet import quiet


def test_shown_only_after_an_exception(capfd):
    with quiet():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""
    with pytest.raises(ZeroDivisionError), quiet():
        os.write(2, b"reason\n") / 0
    assert capfd.readouterr().err == "reason\n"


def test_what_is_shown_nevertheless(capfd):
    with quiet() as stderr:
        os.write(2, b"chatter\n")
        print("progress", file=stderr)
    assert capfd.readouterr().err == "progress\n"


@pytest.mark.parametrize("memory", [True, False], ids=["in memory", "nowhere"])
def test_without_a_writable_folder(memory, monkeypatch, capfd):
    def refuse(*args, **kwargs):
        raise OSError("Read-only file system")

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    if not memory:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    with quiet():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == ""


def test_without_standard_error():
    code = "from keras_resnet.quiet import quiet\nwith quiet() as stderr: print(stderr)"
    done = subprocess.run(f'{sys.executable} -c "{code}" 2>&-', shell=True, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "None\n")
