"""Files are written atomically, locks exclude other processes, and errors of the system become one line."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest import mock

import pytest

from keras_resnet import InputError, files
from keras_resnet.errors import TryAgain
from keras_resnet.files import atomic_path, locked, os_errors_as_input_errors, replacing
from keras_resnet.run_folder import RunFolder


@pytest.fixture
def calls(monkeypatch):
    """Records which paths are synced and renamed, in order."""
    made, fsync, replace = [], os.fsync, os.replace

    def record_fsync(descriptor):
        made.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}").split("/")[-1].split(".tmp-")[0]))
        return fsync(descriptor)

    def record_replace(source, target):
        made.append(("rename", os.path.basename(target)))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "replace", record_replace)
    return made


def test_a_file_is_synced_before_it_is_renamed_and_its_folder_after(calls, tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert calls == [("sync", ".a"), ("rename", "a"), ("sync", tmp_path.name)]
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_all_files_of_a_folder_are_synced_before_it_is_renamed(calls, tmp_path):
    with replacing(tmp_path / "model", lambda path: True) as temporary:
        (temporary / "variables").mkdir(parents=True)
        (temporary / "variables" / "data").write_text("x")
    assert sorted(calls[:3]) == [("sync", "data"), ("sync", "model"), ("sync", "variables")]
    assert calls[3:] == [("rename", "model"), ("sync", tmp_path.name)]


def test_a_file_system_that_cannot_sync_folders_or_lock(tmp_path, monkeypatch):
    def refuse(descriptor):
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(22, "Invalid argument")

    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "fsync", refuse)
    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    (tmp_path / ".a.tmp-01234567").touch()  # cannot be known to be nobody's
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.tmp-01234567", "a"]


def test_a_file_that_appears_while_another_is_written_stays(tmp_path):
    path = tmp_path / "model.onnx"

    def write():
        with replacing(path, files.starts_with(b"ours")) as temporary:
            temporary.write_bytes(b"ours")
            path.write_bytes(b"theirs")

    with pytest.raises(InputError, match=r"another program has written .*model\.onnx in the meantime"):
        write()
    assert path.read_bytes() == b"theirs"
    assert os.listdir(tmp_path) == ["model.onnx"]


KILLED = """
import sys, time
from keras_resnet.files import atomic_path, replacing
with atomic_path(sys.argv[1] + "/a", suffix=".png") as a, replacing(sys.argv[1] + "/b", bool) as b:
    a.write_text("half")
    b.mkdir()
    print("ready", flush=True)
    time.sleep(100)
"""


def test_leftovers_of_killed_writers_are_removed_and_those_of_living_ones_are_not(tmp_path):
    (tmp_path / ".a.swapfile").touch()  # of another program
    names = {".a.swapfile", "c"}
    with subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE) as writer:
        try:
            assert writer.stdout.readline() == b"ready\n"
            with atomic_path(tmp_path / "c") as temporary:
                temporary.write_text("new")
            living = {path.name for path in tmp_path.iterdir()}
            assert len(living - names) == 2
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait()
    assert {path.name for path in tmp_path.iterdir()} == living
    with atomic_path(tmp_path / "c") as temporary:
        temporary.write_text("newer")
    assert {path.name for path in tmp_path.iterdir()} == names


def test_a_temporary_file_that_is_removed_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    flock, removed = fcntl.flock, []

    def remove_first(descriptor, operation):
        if not removed:
            removed.append(os.readlink(f"/proc/self/fd/{descriptor}"))
            os.unlink(removed[0])
        flock(descriptor, operation)

    monkeypatch.setattr(files.fcntl, "flock", remove_first)
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_temporary_files_without_a_folder_for_them(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", "elsewhere")
    monkeypatch.setattr(tempfile, "tempdir", None)
    with files.temporary_files_in(tmp_path):
        assert (os.environ["TMPDIR"], os.listdir(tmp_path)) == ("elsewhere", [])
    monkeypatch.setattr(tempfile, "gettempdir", mock.Mock(side_effect=FileNotFoundError))
    with files.temporary_files_in(tmp_path / "run"):
        assert os.environ["TMPDIR"] == os.environ["MPLCONFIGDIR"]
        assert os.path.dirname(os.environ["TMPDIR"]) == os.fspath(tmp_path / "run")
        assert os.path.isdir(os.environ["TMPDIR"])
    assert (os.environ["TMPDIR"], os.listdir(tmp_path / "run")) == ("elsewhere", [])


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


@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "https://example.org/run"])
def test_urls_are_no_folders(url, tmp_path, monkeypatch):
    """Also after `Path`, which removes a slash."""
    monkeypatch.chdir(tmp_path)
    for path in (url, Path(url)):
        for use in (
            RunFolder,
            lambda path: files.write_text(path, "text"),
            lambda path: files.atomic_path(path).__enter__(),
            lambda path: files.hidden_folder(path).__enter__(),
        ):
            with pytest.raises(InputError, match="is a URL; give a local path"):
                use(path)
    assert not list(tmp_path.iterdir())
    assert files.local_path("C:/runs") == Path("C:/runs")
