"""A real S3 server on this machine: moto's, behind a proxy that refuses requests or calls a function."""

import contextlib
import http.client
import http.server
import math
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from helpers.processes import wait_for

from keras_resnet.files import locked
from keras_resnet.training.launch_local import free_ports

# It requires an older python-dateutil than constraints.txt has: it has an environment of its own.
_SERVER = "moto[server]==5.2.5"


class Proxy(http.server.ThreadingHTTPServer):
    """Forwards requests.

    Attributes:
        target: port of the server.
        refuse: how many of the next writes are answered by 503.
        before: called with the path of each write, before it is forwarded.
        after: the same, after the server has done it, before it is answered. If one of them raises an
            exception, the connection is closed.
        writes: the paths of all writes that the server has done.
    """

    daemon_threads = True

    def __init__(self, target):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.target = target
        self.refuse, self.before, self.after = 0, lambda path: None, lambda path: None
        self.writes = []

    def handle_error(self, request, client_address):
        """Says nothing: a client that was killed is no error here."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def _forward(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        proxy, is_write = self.server, self.command in ("PUT", "POST")
        if is_write and proxy.refuse > 0:
            proxy.refuse -= 1
            self._answer(503, {}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if is_write:
            proxy.before(self.path)
        status, headers, content = self._ask(proxy.target, body)
        if is_write:
            proxy.writes.append(self.path)
            proxy.after(self.path)
        self._answer(status, headers, content)

    def _ask(self, port, body):
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
            connection.request(self.command, self.path, body, dict(self.headers))
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()

    def _answer(self, status, headers, content):
        self.send_response(status)
        kept = {name: value for name, value in headers.items() if name.lower() not in _OWN}
        if self.command == "HEAD":
            kept["Content-Length"] = headers.get("Content-Length", "0")
            content = b""
        else:
            kept["Content-Length"] = str(len(content))
        for name, value in kept.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _forward


_OWN = {"content-length", "connection", "date", "server", "transfer-encoding"}  # headers of one connection


def install(folder: Path) -> Path:
    """Installs the server in an environment, once; returns its Python. Other processes wait."""
    environment, done = folder / "environment", folder / "done"
    python = environment / "bin" / "python"
    with locked(folder / "lock", math.inf):
        if not done.exists():
            subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
            pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
            subprocess.run([*pip, _SERVER], check=True)
            done.touch()
    return python


@contextlib.contextmanager
def serving(python: Path):
    """Yields a `Proxy` in front of a new server, with an empty bucket named "bucket"."""
    (port,) = free_ports(1)
    command = [python, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        assert wait_for(lambda: _make_bucket(port), process)
        with Proxy(port) as proxy:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            yield proxy
            proxy.shutdown()
    finally:
        process.kill()
        process.wait()


def _make_bucket(port):
    request = urllib.request.Request(f"http://127.0.0.1:{port}/bucket", method="PUT")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status == 200
    except OSError:
        time.sleep(0.1)
        return False
