"""Files are written atomically: synced, renamed, and nothing is left of writers that were killed."""

import fcntl
import os
import signal
import subprocess
import sys
import tempfile
from unittest import mock

import pytest

from keras_resnet import files
from keras_resnet.files import atomic_path, replacing


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
