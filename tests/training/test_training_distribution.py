import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from keras_resnet import InputError
from keras_resnet.training import cluster, distribution, launch_local

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
        (config(workers=["nowhere.invalid:1234"]), "does not resolve"),
        (config(workers=["127.0.0.1"]), "'127.0.0.1' is not host:port"),
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
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "3")
    with pytest.raises(InputError, match="SLURM's environment does not describe a cluster"):
        distribution.create("auto")


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


def free_addresses(count):
    return [f"127.0.0.1:{port}" for port in launch_local.free_ports(count)]


def test_rendezvous_waits_for_the_last():
    addresses = free_addresses(3)
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
        with pytest.raises(InputError, match=f"^worker 1 at {addresses[1]} did not connect within 2 seconds"):
            call.result()


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


def test_alone_no_worker_is_lost():
    assert distribution.create("one_device").lost_workers(ValueError("/task:0 failed")) == []
