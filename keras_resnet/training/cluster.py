"""The workers of a cluster: their addresses, and a barrier until all are connected."""

import contextlib
import ctypes
import json
import os
import re
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from keras_resnet.errors import InputError, TryAgain

_RETRY_SECONDS = 0.2
_CONNECT_SECONDS = 2.0
_ADDRESS = re.compile(r"(?:\[(?P<ipv6>[^\[\]]+)\]|(?P<host>[^\[\]:]+)):(?P<port>[0-9]{1,5})")


class LostWorker(TryAgain):
    """Another worker did not connect, or does not answer any more."""


class _Event(ctypes.Structure):
    """`struct sigevent` of Linux' C library: what a timer does when it expires."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("function", ctypes.c_void_p),
        ("unused", ctypes.c_char * 40),
    )


@contextlib.contextmanager
def exit_after(seconds: float, message: str) -> Iterator[None]:
    """Ends this process with a line and the status of `LostWorker` if the body takes longer; on Linux only.

    It also works while C code holds Python's lock, which a thread of Python would wait for, and in the first
    process of a container, which a signal would not end.
    """
    if sys.platform != "linux":
        yield
        return
    library = ctypes.CDLL(None)
    # The C library's timer calls a function in a thread of its own, with one argument.
    line = ctypes.create_string_buffer(message.replace("%", "%%").encode())
    print_line = library.warnx, ctypes.addressof(line)
    timers = [
        _start_timer(library, seconds, *print_line),
        _start_timer(library, seconds + 0.5, library._exit, LostWorker.status),
    ]
    try:
        yield
    finally:
        for timer in timers:
            library.timer_delete(timer)


def _start_timer(library: ctypes.CDLL, seconds: float, function: Any, argument: int) -> ctypes.c_void_p:
    event = _Event(value=argument, notify=2, function=ctypes.cast(function, ctypes.c_void_p))  # SIGEV_THREAD
    timer = ctypes.c_void_p()
    whole, part = divmod(seconds, 1)
    times = (ctypes.c_long * 4)(0, 0, int(whole), max(1, int(1e9 * part)))  # the interval, and the first time
    if library.timer_create(time.CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)):
        raise OSError("the C library cannot create a timer")
    library.timer_settime(timer, 0, times, None)
    return timer


def read_tf_config(text: str) -> tuple[list[str], int]:
    """Returns the workers' addresses and this worker's index; `InputError` if TF_CONFIG is not usable."""
    try:
        config = json.loads(text)
    except ValueError as error:
        raise InputError(f"TF_CONFIG is not JSON ({error})") from None
    cluster = config.get("cluster") if isinstance(config, dict) else None
    workers = cluster.get("worker") if isinstance(cluster, dict) else None
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
    """Raises `InputError` for an address that is not host:port, or [IPv6]:port."""
    for address in addresses:
        _host_and_port(address)


def _host_and_port(address: str) -> tuple[str, int]:
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 2**16:
        raise InputError(f"worker address {address!r} is not host:port, with a port from 1 to 65535")
    return match["ipv6"] or match["host"], int(match["port"])


def is_open(address: str) -> bool:
    """Whether a process listens at host:port."""
    with contextlib.suppress(OSError), _connect(address):
        return True
    return False


def wait_until_closed(addresses: Sequence[str], timeout: float) -> None:
    """Returns once no process listens at any of the addresses, or after `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while any(map(is_open, addresses)) and time.monotonic() < deadline:
        time.sleep(_RETRY_SECONDS)


def _connect(address: str) -> socket.socket:
    return socket.create_connection(_host_and_port(address), timeout=_CONNECT_SECONDS)


def rendezvous(addresses: list[str], index: int, timeout: float) -> None:
    """Returns once worker `index` and every other worker have connected to each other, and know it.

    TensorFlow itself would wait for a missing worker without a message. A name server may not know a worker
    before it runs, so a name that does not resolve is a worker that is missing.

    Raises:
        InputError: the worker's port is taken.
        LostWorker: workers are missing after `timeout` seconds; the message names them.
    """
    others = set(range(len(addresses))) - {index}
    # A port that answers may be that of a worker's previous process, which will end. So a worker counts when
    # it has been heard, was told so, and has confirmed that it heard this one.
    unresolved, unheard, untold, unconfirmed = {index, *others}, {*others}, {*others}, {*others}
    deadline = time.monotonic() + timeout
    with _listen(addresses[index], len(addresses)) as server:
        server.settimeout(_RETRY_SECONDS)
        while missing := sorted(unresolved or unheard | untold | unconfirmed):
            if time.monotonic() > deadline:
                names = ", ".join(f"worker {i} at {addresses[i]}" for i in missing)
                verb = "resolve" if unresolved else "connect"
                raise LostWorker(f"{names} did not {verb} within {timeout:g} seconds")
            unresolved -= {i for i in unresolved if _resolves(addresses[i])}
            for other in sorted((untold | unconfirmed) - unresolved):
                is_heard = other not in unheard
                if _announce(addresses[other], index, is_heard) and is_heard:
                    untold.discard(other)
            for _ in addresses:
                other, confirms = _accept(server)
                if other is None:
                    break
                unheard.discard(other)
                if confirms:
                    unconfirmed.discard(other)


def _listen(address: str, backlog: int) -> socket.socket:
    """A server at the port of an address, for IPv6 as well where the system has it."""
    everywhere = ("", _host_and_port(address)[1])
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be disabled in a container
            return socket.create_server(
                everywhere, family=socket.AF_INET6, backlog=backlog, dualstack_ipv6=True
            )
    try:
        return socket.create_server(everywhere, backlog=backlog)
    except OSError as error:
        raise InputError(f"cannot listen at {address}: {os.strerror(error.errno or 0)}") from None


def _resolves(address: str) -> bool:
    # UnicodeError: a part of the name is empty or too long.
    with contextlib.suppress(OSError, UnicodeError):
        return bool(socket.getaddrinfo(*_host_and_port(address)))
    return False


def _announce(address: str, index: int, is_heard: bool) -> bool:
    """Tells another worker this one's index and whether it has been heard; returns if it was reached."""
    with contextlib.suppress(OSError), _connect(address) as connection:
        connection.sendall(b"%d %d\n" % (index, is_heard))
        return True
    return False


def _accept(server: socket.socket) -> tuple[int | None, bool]:
    """The next worker's index and whether it has heard this one; None if none connects in time."""
    try:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(_CONNECT_SECONDS)
            words = connection.recv(32).split()
    except OSError:
        return None, False
    if len(words) != 2 or not all(word.isdigit() for word in words):  # a port scan
        return None, False
    return int(words[0]), words[1] == b"1"
