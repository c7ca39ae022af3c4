"""Runs in a real S3 server on this machine, which are killed, resumed, and lose their server."""

import os
import re
import signal

import pytest
from helpers.processes import (
    finish,
    launch_command,
    run,
    start,
    train_command,
    wait_for,
)

from keras_resnet import object_storage
from keras_resnet.errors import InputError, TryAgain
from keras_resnet.object_storage import mirrored

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("several_processes")]

URL = "s3://bucket/runs/one"
FLAGS = ["--epochs=2", "--checkpoint_every=5", "--keep=2"]  # of 40 steps


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def local(tmp_path_factory, data_dir):
    """The same run in a local folder, uninterrupted."""
    folder = tmp_path_factory.mktemp("local") / "run"
    status, output = run(train_command(folder, data_dir, *FLAGS))
    assert status == 0, output
    return folder


def steps(store):
    """The steps of the checkpoints in the store."""
    found = (re.fullmatch(r"checkpoints/step-(\d+)\.h5", name) for name in store.names())
    return [int(each[1]) for each in found if each]


def assert_same_result(store, folder):
    assert store.read("model.weights.h5") == (folder / "model.weights.h5").read_bytes()
    assert steps(store) == [35, 40]
    rows = [store.read("history.csv").decode(), (folder / "history.csv").read_text()]
    without_speeds = [[line.rpartition(",")[0] for line in text.splitlines()] for text in rows]
    assert without_speeds[0] == without_speeds[1]


def send_at(step, process, number):
    """What a `Proxy` calls: sends a signal to the process and its children when a checkpoint is written."""

    def send(path):
        if f"step-{step:09d}.h5" in path:
            os.killpg(process.pid, number)
            if number == signal.SIGKILL:
                raise ConnectionAbortedError  # nothing is forwarded, or answered

    return send


def test_killed_runs_end_with_the_same_bytes_and_are_evaluated_and_exported(
    proxy, s3_store, local, data_dir, tmp_path
):
    command = train_command(URL, data_dir, *FLAGS)
    variables = {"TMPDIR": str(tmp_path)}
    for when, step, number, left in (
        ("before", 15, signal.SIGKILL, [5, 10]),
        ("after", 25, signal.SIGKILL, [15, 20, 25]),
        ("after", 30, signal.SIGTERM, [30, 31]),
    ):
        process = start(command, **variables)
        setattr(proxy, when, send_at(step, process, number))
        status, output = finish(process)
        assert status == (143 if number == signal.SIGTERM else -number), output
        proxy.before = proxy.after = lambda path: None
        assert steps(s3_store) == left
    assert "resuming after step 25 of 40" in output
    status, output = run(command, **variables)
    assert status == 0, output
    assert_same_result(s3_store, local)

    flags = [f"--workdir={URL}", f"--data_dir={data_dir}"]
    status, output = run(["-m", "keras_resnet", "evaluate", *flags], **variables)
    assert (status, f"see {URL}/evaluation/digits-single_crop" in output) == (0, True), output
    for _ in range(2):  # a SavedModel gets the next number
        status, output = run(["-m", "keras_resnet", "export", *flags, "--formats=saved_model"], **variables)
        assert status == 0, output
    numbers = {name.split("/")[2] for name in s3_store.names() if name.startswith("export/saved_model/")}
    assert numbers == {"1", "2"}
    assert [path for path in tmp_path.iterdir() if "keras_resnet" in path.name] == []


def test_two_workers_are_killed_and_resumed(proxy, s3_store, data_dir, tmp_path):
    whole = tmp_path / "whole"
    status, output = run(launch_command(2, whole, data_dir, *FLAGS))
    assert status == 0, output
    command = launch_command(2, URL, data_dir, *FLAGS)
    process = start(command)
    proxy.after = send_at(15, process, signal.SIGKILL)
    status, output = finish(process)
    assert status == -signal.SIGKILL, output
    proxy.after = lambda path: None
    status, output = run(command)
    assert status == 0, output
    assert "resuming after step 15 of 40" in output
    assert_same_result(s3_store, whole)
    assert not any("worker1" in path for path in proxy.writes)


def test_failing_writes_are_repeated_and_a_server_that_is_lost_is_one_line(proxy, s3_store, local, data_dir):
    def fail(path):
        if "step-000000010.h5" in path:
            proxy.refuse = 3
        if "step-000000020.h5" in path:
            proxy.refuse = 10**9

    proxy.after = fail
    command = train_command(URL, data_dir, *FLAGS)
    status, output = run(command)
    assert status == 138, output
    lines = [line for line in output.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, output
    assert re.fullmatch(rf"error: {URL}: .* 503 .*; the same command may succeed later", lines[0])
    assert "Traceback" not in output
    assert steps(s3_store)[-1] == 20
    proxy.refuse, proxy.after = 0, lambda path: None
    status, output = run(command)
    assert status == 0, output
    assert_same_result(s3_store, local)


def test_the_process_that_was_started_last_continues(proxy, s3_store, local, data_dir):
    command = train_command(URL, data_dir, *FLAGS)
    first = start(command)
    proxy.after = send_at(5, first, signal.SIGSTOP)  # a machine that does not answer
    assert wait_for(lambda: 5 in steps(s3_store), first), finish(first)
    lock = s3_store.read("lock")
    second = start(command)
    assert wait_for(lambda: s3_store.read("lock") != lock, second), finish(second)
    first.send_signal(signal.SIGCONT)
    status, output = finish(first)
    assert status == 2, output
    assert f"error: another process has taken over {URL} (process {second.pid} on " in output
    status, output = finish(second)
    assert status == 0, output
    assert_same_result(s3_store, local)


def test_large_files_are_written_in_parts(proxy, s3_store, monkeypatch):
    content = os.urandom(12_000_000)
    with mirrored(URL, ()) as mirror:
        mirror.folder.mkdir()
        (mirror.folder / "model").write_bytes(content)
    assert sum("partNumber=" in path for path in proxy.writes) >= 3
    monkeypatch.setattr(object_storage, "_RANGE", 5_000_000)
    with mirrored(URL, ()) as mirror:
        assert (mirror.folder / "model").read_bytes() == content


def test_a_bucket_that_does_not_exist_and_a_server_that_is_not_there(proxy, monkeypatch):
    with pytest.raises(InputError, match=r"^cannot use s3://other/run: .*NoSuchBucket"):
        mirrored("s3://other/run", ()).__enter__()
    monkeypatch.setattr(object_storage, "_RETRIES", {"max_retries": 1})
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(TryAgain, match=f"^{URL}: .*; the same command may succeed later$"):
        mirrored(URL, ()).__enter__()
