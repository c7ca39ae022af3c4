"""The workers of a cluster: who they are, and waiting until all are there. Plain sockets."""

import json
import os
import socket
import time

from keras_resnet.errors import InputError

# Seconds between two attempts to reach a worker, and for one attempt.
_PAUSE, _PATIENCE = 0.2, 2.0


def read_tf_config(text: str) -> tuple[list[str], int]:
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


def check_addresses(addresses: list[str]) -> None:
    """Raises `InputError` for an address that is not host:port, or does not resolve."""
    for address in addresses:
        host, _, port = address.rpartition(":")
        if not host or not port.isdigit():
            raise InputError(f"worker address {address!r} is not host:port")
        try:
            socket.getaddrinfo(host, int(port))
        except OSError as error:
            raise InputError(f"worker address {address!r} does not resolve ({error})") from None


def is_open(address: str) -> bool:
    """Whether somebody listens at host:port."""
    try:
        _connect(address).close()
    except OSError:
        return False
    return True


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=_PATIENCE)


def rendezvous(addresses: list[str], index: int, timeout: float) -> None:
    """Returns once every worker has reached every other one.

    TensorFlow itself would wait for a missing worker without a word. Each worker listens at its own
    port and calls at all others'; it leaves when it has been everywhere and all have been here.

    Args:
        addresses: host:port of each worker.
        index: this worker's.
        timeout: seconds to wait.

    Raises:
        InputError: this worker's port is taken, or some did not come; it names them.
    """
    others = set(range(len(addresses))) - {index}
    not_reached, not_seen = set(others), set(others)
    port = int(addresses[index].rpartition(":")[2])
    try:
        server = socket.create_server(("", port), backlog=len(addresses))
    except OSError as error:
        raise InputError(f"cannot listen at {addresses[index]}: {os.strerror(error.errno)}") from None
    deadline = time.monotonic() + timeout
    with server:
        server.settimeout(_PAUSE)
        while not_reached or not_seen:
            if time.monotonic() > deadline:
                missing = sorted(not_reached or not_seen)
                names = ", ".join(f"worker {i} at {addresses[i]}" for i in missing)
                raise InputError(f"{names} did not come within {timeout:g} seconds")
            for other in sorted(not_reached):
                try:
                    with _connect(addresses[other]) as call:
                        call.sendall(b"%d\n" % index)
                    not_reached.discard(other)
                except OSError:
                    pass
            try:
                caller, _ = server.accept()
                with caller:
                    caller.settimeout(_PATIENCE)
                    said = caller.recv(16)
                if said.strip().isdigit():  # a probe of the machine's says something else, or nothing
                    not_seen.discard(int(said))
            except OSError:
                pass
