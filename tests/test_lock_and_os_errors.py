"""The lock of a folder, and what a command says about an error of the system."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from keras_resnet import InputError
from keras_resnet.errors import TryAgain
from keras_resnet.files import locked, os_errors_as_input_errors


def test_a_lock_excludes_until_it_is_released(tmp_path):
    path = tmp_path / "run" / "lock"
    with (
        locked(path),
        pytest.raises(InputError, match=f"another process is using {path.parent}; wait"),
        locked(path),
    ):
        pytest.fail("two have the lock")
    with locked(path):
        pass


def test_a_lock_is_waited_for(tmp_path):
    has_lock, order = threading.Event(), []

    def hold():
        with locked(tmp_path / "lock"):
            has_lock.set()
            threading.Event().wait(0.3)
            order.append("released")

    holder = threading.Thread(target=hold)
    holder.start()
    has_lock.wait()
    with locked(tmp_path / "lock", 60):
        order.append("locked")
    holder.join()
    assert order == ["released", "locked"]


def test_the_lock_of_a_killed_process_is_released(tmp_path):
    script = (
        "import sys; from keras_resnet.files import locked\n"
        "with locked(sys.argv[1]): print('locked', flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "lock")]
    root = Path(__file__).parents[1]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    with pytest.raises(InputError), locked(tmp_path / "lock"):
        pytest.fail("two have the lock")
    process.kill()
    process.communicate()
    with locked(tmp_path / "lock"):
        pass


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    with locked(tmp_path / "lock"), locked(tmp_path / "lock"):
        assert (tmp_path / "lock").exists()


@pytest.mark.parametrize(
    ("number", "file", "message"),
    [
        (errno.ENOSPC, None, "cannot write runs/a: No space left on device"),
        (errno.EACCES, "runs/a/checkpoints/.step.h5.x", "cannot write runs/a: Permission denied"),
        (errno.EACCES, "runs/.a.x/a", "cannot write runs/a: Permission denied"),
        (errno.ENOTDIR, "runs", "cannot write runs/a: Not a directory"),
        (errno.ENOENT, "runs/ab/cat/1.png", "cannot use runs/ab/cat/1.png: No such file or directory"),
        (errno.EACCES, "/photos/cat/1.png", "cannot use /photos/cat/1.png: Permission denied"),
    ],
)
def test_what_cannot_be_written_or_used(number, file, message):
    with pytest.raises(InputError) as caught, os_errors_as_input_errors("runs/a"):
        raise OSError(number, os.strerror(number), file)
    assert (str(caught.value), caught.value.status) == (message, 2)


@pytest.mark.parametrize("file", [None, "/photos/cat/1.png"])
def test_an_error_that_may_pass_is_not_invalid_input(file):
    with pytest.raises(TryAgain) as caught, os_errors_as_input_errors("runs/a"):
        raise OSError(errno.EIO, "Input/output error", file)
    assert str(caught.value) == f"{file or 'runs/a'}: Input/output error; the same command may succeed later"
    assert caught.value.status == 138
