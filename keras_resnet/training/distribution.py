"""Wraps `tf.distribute`: the devices and workers that train together."""

import atexit
import contextlib
import functools
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from keras_resnet.data.examples import Shard
from keras_resnet.errors import InputError, require, unknown_name
from keras_resnet.training import cluster
from keras_resnet.training.options import RunOptions

_STRATEGIES = ("auto", "one_device", "mirrored", "multi_worker")
_SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
_LONGEST_TIMEOUT = 1e9  # seconds
_CHUNK = 2**24  # bytes in one collective operation
_SECONDS_TO_END = 30  # for which the chief's process waits for those of the other workers


class Distribution:
    """The few operations of a `tf.distribute` strategy that training uses.

    Attributes:
        replicas: number of replicas (devices) of this worker.
        total_replicas: number of replicas of all workers.
        workers: number of processes that train together.
        worker: index of this process among them.
        is_chief: whether this process writes the files and reports progress.
    """

    def __init__(self, strategy: Any, addresses: Sequence[str] = ("localhost:0",), worker: int = 0):
        self._strategy = strategy
        self._addresses = addresses
        self.workers, self.worker = len(addresses), worker
        self.is_chief = worker == 0
        self.total_replicas = strategy.num_replicas_in_sync
        self.replicas = self.total_replicas // self.workers

    @property
    def devices(self) -> tuple[str, ...]:
        """TensorFlow's names of this worker's devices."""
        return tuple(self._strategy.extended.worker_devices)

    def shard(self, global_batch: int) -> Shard:
        """This worker's part of every global batch."""
        return Shard(global_batch, self.workers, self.worker, self.replicas)

    def scope(self):
        """The context in which variables are created."""
        return self._strategy.scope()

    def iterate(self, dataset: tf.data.Dataset) -> Any:
        """An iterator for `next` in a `tf.function`; the dataset yields the replicas' batches in turn."""
        return iter(self.distribute(dataset))

    def distribute(self, dataset: tf.data.Dataset) -> Any:
        """A dataset that can be iterated over several times; see `iterate`."""
        return self._strategy.distribute_datasets_from_function(lambda context: dataset)

    def run(self, function: Callable, args: tuple):
        """Runs `function` on every replica, in graph code; the results are per replica."""
        return self._strategy.run(function, args=args)

    def from_chief(self, data: bytes) -> bytes:
        """Returns the chief's `data` on every worker; returns only when all workers have called it."""
        if self.workers == 1:
            return data
        size = int.from_bytes(self._chunk_from_chief(len(data).to_bytes(8, "little"), 8), "little")
        parts = [(start, min(_CHUNK, size - start)) for start in range(0, size, _CHUNK)]
        return b"".join(self._chunk_from_chief(data[start : start + part], part) for start, part in parts)

    def _chunk_from_chief(self, data: bytes, size: int) -> bytes:
        # One number per byte, in the type of the gradients: the sum of a small integer and zeros is exact.
        values = np.zeros(size, "float32")
        if self.is_chief:
            values[:] = np.frombuffer(data, "uint8")
        return self._sum_of_chief(tf.constant(values)).numpy().astype("uint8").tobytes()

    @tf.function
    def _sum_of_chief(self, values: tf.Tensor) -> tf.Tensor:
        def on_replica(values):
            context = tf.distribute.get_replica_context()
            is_first = tf.equal(context.replica_id_in_sync_group, 0)  # the first replica is the chief's
            part = tf.where(is_first, values, tf.zeros_like(values))
            return context.all_reduce(tf.distribute.ReduceOp.SUM, part)

        return self.local(self.run(on_replica, (values,)))

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Concatenates arrays (n, ...) of all workers, in their order, on every worker; n may differ."""
        if self.workers == 1:
            return rows

        def on_replica(rows):
            context = tf.distribute.get_replica_context()
            is_first = context.replica_id_in_sync_group % self.replicas == 0
            return context.all_gather(rows[: tf.where(is_first, tf.shape(rows)[0], 0)], axis=0)

        @tf.function(input_signature=[tf.TensorSpec((None, *rows.shape[1:]), tf.as_dtype(rows.dtype))])
        def gather(rows):
            return self.local(self.run(on_replica, (rows,)))

        return gather(tf.constant(rows)).numpy()

    def end_last(self) -> None:
        """After a successful run: the chief's process ends after those of the other workers.

        They send heartbeats to it, and TensorFlow logs an abort in those that outlive it by some seconds.
        """
        others = [address for i, address in enumerate(self._addresses) if i != self.worker]
        if self.is_chief and others:
            atexit.unregister(cluster.wait_until_closed)  # of an earlier run of this process
            atexit.register(cluster.wait_until_closed, others, _SECONDS_TO_END)

    @contextlib.contextmanager
    def name_lost_workers(self, when: Callable[[], str] = lambda: "") -> Iterator[None]:
        """Turns TensorFlow's error about lost workers into a `LostWorker` that names them.

        `when` returns what the message says about the time, such as " at step 3".
        """
        try:
            yield
        except tf.errors.OpError as error:
            lost = self.lost_workers(error)
            if not lost:
                raise
            raise cluster.LostWorker(f"lost {' and '.join(lost)}{when()}; start all workers again") from error

    def lost_workers(self, error: Exception) -> list[str]:
        """Returns the other workers that caused an error, such as "worker 1 at node2:5000".

        These are the workers whose ports are closed. If no port is closed (a worker hangs or was restarted),
        they are the workers that the error message names.
        """
        others = {i: address for i, address in enumerate(self._addresses) if i != self.worker}
        closed = [i for i, address in others.items() if not cluster.is_open(address)]
        named = {int(task) for task in re.findall(r"/task:(\d+)", str(error))}
        return [f"worker {i} at {others[i]}" for i in closed or sorted(named & set(others))]

    def local(self, value: Any) -> Any:
        """Returns the first replica's copy of a result that is equal on all replicas."""
        return self._strategy.experimental_local_results(value)[0]


def create(name: str, timeout: float = RunOptions.worker_timeout) -> Distribution:
    """Creates the strategy `name`; "multi_worker" must be created before TensorFlow runs any operation.

    Args:
        name: "one_device", "mirrored", "multi_worker" or "auto": several workers if `TF_CONFIG` or SLURM
            describes them, else all GPUs of this machine, else its only device.
        timeout: seconds to wait for other workers.

    Raises:
        InputError: the name is unknown, or the description of the cluster is wrong.
        LostWorker: another worker did not connect in time.
    """
    if name not in _STRATEGIES:
        raise unknown_name("strategy", name, _STRATEGIES)
    require(0 < timeout <= _LONGEST_TIMEOUT, "worker_timeout must be positive, at most 1e9 seconds", timeout)
    gpus = tf.config.list_physical_devices("GPU")
    if name == "auto" and (os.environ.get("TF_CONFIG") or _slurm_tasks() > 1):
        name = "multi_worker"
    elif name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "one_device":
        return Distribution(tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0"))
    if name == "mirrored":
        return _mirrored("GPU" if gpus else "CPU")
    return _multi_worker(timeout)


def is_chief(name: str) -> bool:
    """Whether this process is the only or the first worker of the strategy `name` that `create` has made."""
    config = os.environ.get("TF_CONFIG")
    return name in ("one_device", "mirrored") or not config or cluster.read_tf_config(config)[1] == 0


@functools.cache  # two mirrored strategies in one process would mix up their collectives
def _mirrored(kind: str) -> Distribution:
    devices = [device.name for device in tf.config.list_logical_devices(kind)]
    return Distribution(tf.distribute.MirroredStrategy(devices))


def _multi_worker(timeout: float) -> Distribution:
    if not os.environ.get("TF_CONFIG") and _SLURM_TASKS in os.environ:
        os.environ["TF_CONFIG"] = _tf_config_of_slurm()
    if not os.environ.get("TF_CONFIG"):
        raise InputError("strategy multi_worker needs TF_CONFIG, or a job step that SLURM started")
    addresses, index = cluster.read_tf_config(os.environ["TF_CONFIG"])
    cluster.check_addresses(addresses)
    cluster.rendezvous(addresses, index, timeout)
    # TensorFlow waits for all workers here, and holds Python's lock: a lost one cannot be named.
    lost = f"error: TensorFlow has not connected the {len(addresses)} workers within {timeout:g} seconds"
    options = tf.distribute.experimental.CommunicationOptions(implementation=_implementation(addresses))
    with cluster.exit_after(timeout, f"{lost}; start all workers again"):
        strategy = tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)
    return Distribution(strategy, addresses, index)


def _implementation(addresses: Sequence[str]) -> tf.distribute.experimental.CommunicationImplementation:
    """NCCL between GPUs: by itself TensorFlow takes its own ring, through the memory of the hosts.

    NCCL refuses two workers on one GPU, as those of one machine are unless each is given its own GPUs. All
    workers must choose the same.
    """
    kinds = tf.distribute.experimental.CommunicationImplementation
    hosts = {address.rpartition(":")[0] for address in addresses}
    shared = len(hosts) < len(addresses) and "CUDA_VISIBLE_DEVICES" not in os.environ
    return kinds.NCCL if tf.config.list_physical_devices("GPU") and not shared else kinds.AUTO


def _slurm_tasks() -> int:
    """The number of tasks of SLURM's job step; 1 without SLURM."""
    text = os.environ.get(_SLURM_TASKS, "1")
    if not re.fullmatch("[0-9]{1,9}", text):
        raise InputError(f"{_SLURM_TASKS} is {text!r}, not a number")
    return int(text)


def _tf_config_of_slurm() -> str:
    try:
        # One device per task, so that no GPU driver is queried: SLURM decides which GPUs a task sees.
        resolver = tf.distribute.cluster_resolver.SlurmClusterResolver(
            gpus_per_node=_slurm_tasks(), gpus_per_task=1, auto_set_gpu=False
        )
        workers = list(resolver.cluster_spec().as_dict()["worker"])
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"SLURM's environment does not describe a cluster: {error}") from None
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": "worker", "index": resolver.task_id}})
