"""The workers of a cluster: their addresses, and a barrier until all are connected."""

import contextlib
import json
import os
import socket
import time

from keras_resnet.errors import InputError

_RETRY_SECONDS = 0.2
_CONNECT_SECONDS = 2.0


def read_tf_config(text: str) -> tuple[list[str], int]:
    """Returns the workers' addresses and this worker's index; `InputError` if TF_CONFIG is not usable."""
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
    """Whether a process listens at host:port."""
    with contextlib.suppress(OSError), _connect(address):
        return True
    return False


def _connect(address: str) -> socket.socket:
    host, _, port = address.rpartition(":")
    return socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS)


def rendezvous(addresses: list[str], index: int, timeout: float) -> None:
    """Returns once worker `index` has connected to every other worker, and every other worker to it.

    TensorFlow itself would wait for a missing worker without a message. `InputError` if the worker's port
    is taken, or after `timeout` seconds; the message names the missing workers.
    """
    others = set(range(len(addresses))) - {index}
    not_reached, not_seen = set(others), set(others)
    port = int(addresses[index].rpartition(":")[2])
    try:
        server = socket.create_server(("", port), backlog=len(addresses))
    except OSError as error:
        raise InputError(f"cannot listen at {addresses[index]}: {os.strerror(error.errno or 0)}") from None
    deadline = time.monotonic() + timeout
    with server:
        server.settimeout(_RETRY_SECONDS)
        while not_reached or not_seen:
            if time.monotonic() > deadline:
                missing = sorted(not_reached or not_seen)
                names = ", ".join(f"worker {i} at {addresses[i]}" for i in missing)
                raise InputError(f"{names} did not connect within {timeout:g} seconds")
            not_reached -= {other for other in sorted(not_reached) if _announce(addresses[other], index)}
            not_seen.discard(_accept(server))


def _announce(address: str, index: int) -> bool:
    """Sends this worker's index to another worker; returns whether it was reached."""
    with contextlib.suppress(OSError), _connect(address) as connection:
        connection.sendall(b"%d\n" % index)
        return True
    return False


def _accept(server: socket.socket) -> int | None:
    """Returns the index of the next worker that connects; None if none does before the socket's timeout."""
    try:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(_CONNECT_SECONDS)
            text = connection.recv(16).strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # a port scan sends something else, or nothing
