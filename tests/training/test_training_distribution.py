import copy
import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import tensorflow as tf

from keras_resnet import InputError
from keras_resnet.training import LostWorker, checkpoints, cluster, distribution, launch_local

TWO = ["127.0.0.1:1234", "127.0.0.1:1235"]


def config(workers=TWO, index=0, **other):
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": index}, **other})


def test_reads_tf_config():
    assert cluster.read_tf_config(config(index=1)) == (TWO, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{not json", "TF_CONFIG is not JSON"),
        ("[]", "names no workers"),
        ("{}", "names no workers"),
        (config(workers=[]), "names no workers"),
        (config(workers="127.0.0.1:1234"), "names no workers"),
        (config(workers=TWO, task=None), "has no task"),
        (config(task={"type": "worker"}), "has no task"),
        (config(task={"type": "chief", "index": 0}), "has no task"),
        (config(cluster={"worker": TWO, "ps": TWO}), "only 'worker'"),
        (config(index=2), "task index 2 is not among its 2 workers"),
        (config(index="first"), "task index 'first'"),
        (config(cluster=None), "names no workers"),
        (config(cluster=[TWO]), "names no workers"),
        (config(workers=["127.0.0.1"]), "'127.0.0.1' is not host:port"),
        (config(workers=["127.0.0.1:99999"]), "is not host:port, with a port from 1 to 65535"),
        (config(workers=["127.0.0.1:²"]), "is not host:port"),
        (config(workers=["::1:5000"]), "is not host:port"),
    ],
)
def test_a_broken_tf_config_is_one_line(monkeypatch, text, message):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(InputError) as caught:
        distribution.create("multi_worker")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_multi_worker_without_a_cluster(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(InputError, match="needs TF_CONFIG"):
        distribution.create("multi_worker")


ON_ONE_MACHINE, ON_TWO = ["127.0.0.1:1", "127.0.0.1:2"], ["node1:1", "node2:1"]


@pytest.mark.parametrize(
    ("gpus", "addresses", "own_gpus", "expected"),
    [
        (0, ON_TWO, None, "AUTO"),
        (8, ON_TWO, None, "NCCL"),
        (1, ON_ONE_MACHINE, None, "AUTO"),  # both would use the same GPU
        (1, ON_ONE_MACHINE, "1", "NCCL"),
    ],
)
def test_workers_with_gpus_communicate_by_nccl(monkeypatch, gpus, addresses, own_gpus, expected):
    monkeypatch.setenv("TF_CONFIG", config(addresses))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if own_gpus is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", own_gpus)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [kind] * gpus)
    for name in ("check_addresses", "rendezvous"):
        monkeypatch.setattr(cluster, name, lambda *arguments: None)
    asked = []

    def create(communication_options):
        asked.append(communication_options.implementation.value)
        raise InputError("far enough")

    monkeypatch.setattr(tf.distribute, "MultiWorkerMirroredStrategy", create)
    with pytest.raises(InputError, match="far enough"):
        distribution.create("multi_worker")
    assert asked == [expected]


def test_slurm_describes_the_cluster(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "")  # and back to what it was: the resolver's answer goes there
    environment = {
        "SLURM_PROCID": "1",
        "SLURM_STEP_NODELIST": "node[7-8]",
        "SLURM_STEP_NUM_TASKS": "3",
        "SLURM_STEP_TASKS_PER_NODE": "2,1",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(cluster, "check_addresses", lambda addresses: None)
    asked = []

    def rendezvous(*arguments):
        asked.append(arguments)
        raise InputError("far enough")

    monkeypatch.setattr(cluster, "rendezvous", rendezvous)
    with pytest.raises(InputError, match="far enough"):
        distribution.create("auto", timeout=7)
    assert asked == [(["node7:8888", "node7:8889", "node8:8888"], 1, 7)]


def test_slurm_that_describes_nothing(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    for tasks, message in (
        ("3", "SLURM's environment does not describe a cluster"),
        ("2(x1)", r"SLURM_STEP_NUM_TASKS is '2\(x1\)', not a number"),
    ):
        monkeypatch.setenv("SLURM_STEP_NUM_TASKS", tasks)
        with pytest.raises(InputError, match=message):
            distribution.create("auto")


@pytest.mark.parametrize("timeout", [0, -1, float("nan"), float("inf")])
def test_timeouts_that_nothing_can_wait_for(timeout):
    with pytest.raises(InputError, match="worker_timeout must be positive"):
        distribution.create("one_device", timeout)


@pytest.mark.parametrize("holds_lock", [False, True])
def test_a_block_that_takes_too_long_ends_the_process_with_a_line(holds_lock):
    """Also while C code holds Python's lock, as TensorFlow does while it connects the workers."""
    program = f"""
import ctypes, time
from keras_resnet.training import cluster
with cluster.exit_after(0.1, "error: too early"):
    pass
time.sleep(0.2)
with cluster.exit_after(0.1, "error: 100% of the workers"):
    ctypes.{"PyDLL" if holds_lock else "CDLL"}(None).sleep(60)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (138, "")
    assert done.stderr.endswith("error: 100% of the workers\n")
    assert "too early" not in done.stderr


def test_unknown_strategy():
    with pytest.raises(InputError, match="unknown strategy 'miror'; did you mean mirrored"):
        distribution.create("miror")


def test_auto_is_one_device_here(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    assert distribution.create("auto").total_replicas == 1


def test_auto_takes_the_cluster_that_is_described(monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(InputError, match="TF_CONFIG is not JSON"):
        distribution.create("auto")


def free_addresses(count, host="127.0.0.1"):
    return [f"{host}:{port}" for port in launch_local.free_ports(count)]


def has_ipv6():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


@pytest.mark.parametrize("host", ["127.0.0.1", *(["[::1]"] if has_ipv6() else [])])
def test_rendezvous_waits_for_the_last(host):
    addresses = free_addresses(3, host)
    begun = time.monotonic()
    arrived = []

    def come(index):
        time.sleep(0.5 * index)
        cluster.rendezvous(addresses, index, timeout=20)
        arrived.append(time.monotonic() - begun)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(come, range(3)))
    assert len(arrived) == 3
    assert min(arrived) >= 1.0


def test_rendezvous_names_the_missing_worker():
    addresses = free_addresses(3)
    with ThreadPoolExecutor(2) as pool:
        calls = [pool.submit(cluster.rendezvous, addresses, index, 2) for index in (0, 2)]
    for call in calls:
        with pytest.raises(LostWorker, match=f"^worker 1 at {addresses[1]} did not connect within 2 seconds"):
            call.result()


def test_rendezvous_does_not_count_the_previous_process_of_a_worker():
    addresses = free_addresses(2)
    port = int(addresses[0].rpartition(":")[2])
    with ThreadPoolExecutor(2) as pool:
        with socket.create_server(("", port)) as previous:
            early = pool.submit(cluster.rendezvous, addresses, 1, 20)
            previous.accept()[0].close()
        late = pool.submit(cluster.rendezvous, addresses, 0, 5)
        assert (late.result(), early.result()) == (None, None)


def test_a_name_that_resolves_late_or_never(monkeypatch):
    (address,) = free_addresses(1)
    failures = [socket.gaierror(-2, "unknown"), UnicodeError("part too long")]

    def getaddrinfo(host, *arguments):
        if host == "never":
            raise socket.gaierror(-2, "unknown")
        if failures:
            raise failures.pop()
        return ["found"]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    cluster.rendezvous([address], 0, timeout=20)
    assert not failures
    with pytest.raises(
        LostWorker, match=r"^worker 1 at never:1 did not resolve within 0.3 seconds"
    ) as caught:
        cluster.rendezvous([address, "never:1"], 0, 0.3)
    assert caught.value.status == 138


def test_rendezvous_with_a_taken_port():
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match="cannot listen at"):
            cluster.rendezvous([address, "127.0.0.1:1"], 0, 1)


def test_lost_workers_are_named_by_closed_port_or_by_the_error():
    class Strategy:
        num_replicas_in_sync = 3

    made = distribution.Distribution(Strategy(), ["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"], worker=0)
    assert made.lost_workers(ValueError("?")) == ["worker 1 at 127.0.0.1:2", "worker 2 at 127.0.0.1:3"]

    with (
        pytest.raises(
            LostWorker, match=r"^lost worker 1 at .* and worker 2 at .* at step 7; start all"
        ) as caught,
        made.name_lost_workers(lambda: " at step 7"),
    ):
        raise tf.errors.UnavailableError(None, None, "connection reset")
    assert caught.value.status == 138
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        addresses = ["127.0.0.1:1", *(f"127.0.0.1:{open.getsockname()[1]}" for open in (one, two))]
        made = distribution.Distribution(Strategy(), addresses, worker=0)
        hangs = ValueError("/job:worker/replica:0/task:2 does not answer /job:worker/replica:0/task:0")
        assert made.lost_workers(hangs) == [f"worker 2 at {addresses[2]}"]


def test_waiting_for_the_end_of_other_workers():
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
        addresses = [f"127.0.0.1:{server.getsockname()[1]}" for server in (one, two)]
        begun = time.monotonic()
        cluster.wait_until_closed(addresses, 0.5)
        assert time.monotonic() - begun >= 0.5
        one.close()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(cluster.wait_until_closed, addresses, 60)
            time.sleep(0.3)
            assert not waiting.done()
            two.close()
            waiting.result(timeout=10)


def test_every_worker_gets_what_the_chief_sends(monkeypatch):
    """Two replicas of one process stand for two workers; only the first replica's value may count."""
    monkeypatch.setattr(distribution, "_CHUNK", 100)
    chief = copy.copy(distribution.create("mirrored"))
    chief.workers = 2
    arrays = {"weights/a": np.arange(7, dtype="float32") / 3, "good_steps": np.array(3, "int32")}
    sent = checkpoints.Checkpoint(5, arrays, {"history": [{"loss": 0.1}], "none": None})
    received = checkpoints.from_bytes(chief.from_chief(checkpoints.to_bytes(sent)))
    assert (received.step, received.numbers) == (5, sent.numbers)
    assert {name: (a.dtype, a.shape, a.tobytes()) for name, a in received.arrays.items()} == {
        name: (a.dtype, a.shape, a.tobytes()) for name, a in arrays.items()
    }
    assert chief.from_chief(bytes(range(256))) == bytes(range(256))
    assert checkpoints.from_bytes(chief.from_chief(checkpoints.to_bytes(None))) is None
    other = copy.copy(chief)
    other.is_chief = False
    assert other.from_chief(b"not the chief's") == b""


def test_the_launcher_ends_with_the_status_that_decides():
    """Not with the 138 of those who lost that worker; 2 first, which starting again does not cure."""
    for decisive, *others in ((2, 0, 138), (2, 143, 138), (143, 138), (137, 138), (138, 0), (0, 0)):
        workers = [subprocess.Popen(["sh", "-c", f"exit {status}"]) for status in (*others, decisive)]
        assert launch_local.wait(workers) == decisive


def test_alone_no_worker_is_lost():
    assert distribution.create("one_device").lost_workers(ValueError("/task:0 failed")) == []
