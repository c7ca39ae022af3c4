"""The machine: which devices and workers train together. All that is TensorFlow's about it."""

import functools
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from keras_resnet.errors import InputError, unknown_name

STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
# Seconds that a worker waits for the others to appear.
WORKER_TIMEOUT = 300


class Distribution:
    """A `tf.distribute` strategy seen through the few things that training asks of it.

    Attributes:
        replicas: devices of this worker that train.
        workers: processes that train together.
        worker: this process' index among them.
    """

    def __init__(self, strategy, addresses: Sequence[str] = ("localhost:0",), worker: int = 0):
        self._strategy = strategy
        self._addresses = addresses
        self.workers = len(addresses)
        self.worker = worker
        self.replicas = strategy.num_replicas_in_sync // self.workers

    @property
    def total_replicas(self) -> int:
        """Replicas of all workers."""
        return self.workers * self.replicas

    @property
    def is_chief(self) -> bool:
        """Whether this process writes files and talks to the person."""
        return self.worker == 0

    def scope(self):
        """The context in which variables are made."""
        return self._strategy.scope()

    def iterate(self, dataset) -> Iterator:
        """An iterator for `next` inside a `tf.function`.

        Args:
            dataset: yields the batches of this worker's replicas in turn.
        """
        return iter(self._strategy.distribute_datasets_from_function(lambda context: dataset))

    def run(self, function: Callable, args: tuple):
        """Runs `function` on every replica, in graph code; its results are per replica."""
        return self._strategy.run(function, args=args)

    def lost_workers(self, error: Exception) -> list[str]:
        """The other workers that an error of TensorFlow's is about, with their addresses.

        Those whose port is closed; if all are open (a worker that hangs, or was started anew), those
        that the error's text names.
        """
        others = {i: address for i, address in enumerate(self._addresses) if i != self.worker}
        closed = [i for i, address in others.items() if not _is_open(address)]
        named = {int(task) for task in re.findall(r"/task:(\d+)", str(error))}
        return [f"worker {i} at {others[i]}" for i in closed or sorted(named & set(others))]

    def local(self, value):
        """This worker's first replica's copy of a result that is equal on all."""
        return self._strategy.experimental_local_results(value)[0]


def create(name: str, timeout: float = WORKER_TIMEOUT) -> Distribution:
    """The strategy `name`; "multi_worker" must come before TensorFlow runs any operation.

    Args:
        name: one of `STRATEGIES`. "auto": several workers where `TF_CONFIG` or SLURM names them,
            else all GPUs of this machine, else the one device there is.
        timeout: seconds to wait for other workers.

    Raises:
        InputError: an unknown name, or a cluster that is described wrongly.
    """
    import tensorflow as tf

    if name not in STRATEGIES:
        raise unknown_name("strategy", name, STRATEGIES)
    gpus = tf.config.list_physical_devices("GPU")
    if name == "auto" and _cluster_is_described():
        name = "multi_worker"
    elif name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "one_device":
        return Distribution(tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0"))
    if name == "mirrored":
        return _mirrored("GPU" if gpus else "CPU")
    return _multi_worker(timeout)


@functools.cache  # two mirrored strategies in one process would mix up their collectives
def _mirrored(kind: str) -> Distribution:
    import tensorflow as tf

    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    return Distribution(tf.distribute.MirroredStrategy(devices))


def _cluster_is_described() -> bool:
    return bool(os.environ.get("TF_CONFIG")) or int(os.environ.get("SLURM_NTASKS", "1")) > 1


def _multi_worker(timeout: float) -> Distribution:
    import tensorflow as tf

    if os.environ.get("TF_CONFIG"):
        addresses, index = _read_tf_config(os.environ["TF_CONFIG"])
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    elif "SLURM_NTASKS" in os.environ:
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver()
        try:
            addresses = list(resolver.cluster_spec().as_dict()["worker"])
            index = resolver.task_id
        except (KeyError, ValueError, RuntimeError) as error:
            raise InputError(f"SLURM's environment does not describe a cluster: {error}") from None
    else:
        raise InputError("strategy multi_worker needs TF_CONFIG, or a job step that SLURM started")
    _check_addresses(addresses)

    watch = _Watch(addresses, index, timeout)
    strategy = tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)
    watch.stop()
    return Distribution(strategy, addresses, index)


def _read_tf_config(text: str) -> tuple[list[str], int]:
    """The workers' addresses and this process' index.

    Raises:
        InputError: it is not what `tf.distribute` can use; says what is missing.
    """
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"TF_CONFIG is not JSON ({error})") from None
    workers = config.get("cluster", {}).get("worker") if isinstance(config, dict) else None
    if not isinstance(workers, list) or not workers or not all(isinstance(w, str) for w in workers):
        raise InputError(
            'TF_CONFIG names no workers; it needs {"cluster": {"worker": ["host:port", ...]}, ...}'
        )
    if set(config["cluster"]) != {"worker"}:
        raise InputError("TF_CONFIG must have only 'worker' in its cluster: the first worker is the chief")
    task = config.get("task")
    if not isinstance(task, dict) or task.get("type") != "worker" or "index" not in task:
        raise InputError('TF_CONFIG has no task; it needs {..., "task": {"type": "worker", "index": 0}}')
    try:
        index = int(task["index"])
    except (TypeError, ValueError):
        index = -1
    if not 0 <= index < len(workers):
        raise InputError(f"TF_CONFIG's task index {task['index']!r} is not among its {len(workers)} workers")
    return workers, index


def _check_addresses(addresses: list[str]) -> None:
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise InputError(f"worker address {address!r} is not host:port")
        try:
            socket.getaddrinfo(host, int(port))
        except OSError as error:
            raise InputError(f"worker address {address!r} does not resolve ({error})") from None


def _is_open(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=1).close()
    except OSError:
        return False
    return True


class _Watch:
    """Ends the process if a worker never comes: TensorFlow itself would wait without a word."""

    def __init__(self, addresses: list[str], index: int, timeout: float):
        self._missing = {i: address for i, address in enumerate(addresses) if i != index}
        self._deadline = time.monotonic() + timeout
        self._timeout = timeout
        self._done = threading.Event()
        threading.Thread(target=self._loop, daemon=True).start()

    def stop(self) -> None:
        self._done.set()

    def _loop(self) -> None:
        while not self._done.wait(0.5):
            for index, address in list(self._missing.items()):
                if _is_open(address):
                    del self._missing[index]
            if time.monotonic() > self._deadline:
                names = ", ".join(f"worker {i} at {address}" for i, address in sorted(self._missing.items()))
                lost = f"{names} did not come" if names else "the workers did not agree to start"
                print(f"error: {lost} within {self._timeout:g} seconds", file=sys.stderr, flush=True)
                os._exit(2)
