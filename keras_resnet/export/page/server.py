"""Serves the page, ONNX Runtime Web and exported networks on 127.0.0.1."""

import contextlib
import errno
import http.server
import io
import json
import os
import re
import shutil
import urllib.parse
from collections.abc import Mapping
from http import HTTPStatus
from pathlib import Path

from keras_resnet.errors import InputError, require
from keras_resnet.export.page.catalog import describe, find_networks
from keras_resnet.export.page.runtime import runtime_files

_HOST = "127.0.0.1"

_STATIC = Path(__file__).with_name("static")
_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".onnx": "application/octet-stream",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wasm": "application/wasm",
}
_HEADERS = {
    "Cache-Control": "no-cache",
    # The browser refuses any request of the page to another address.
    "Content-Security-Policy": "default-src 'self'; script-src 'self' 'wasm-unsafe-eval'",
    # Isolated pages have a finer clock.
    "Cross-Origin-Embedder-Policy": "require-corp",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
# Other names are refused, so that no other site can reach the server by a name that leads to 127.0.0.1.
_OWN_NAMES = re.compile(r"(127\.0\.0\.1|localhost)(:[0-9]+)?")


def serve(folder: str, port: int, runtime: str | None) -> None:
    """Serves the exports in a folder until Ctrl-C; see `find_networks` and `runtime_files` for the errors."""
    require(0 <= port <= 65535, "--port must be 0 to 65535", port)
    networks = find_networks(folder)
    entries, paths = describe(networks)
    paths |= {f"runtime/{name}": path for name, path in runtime_files(runtime).items()}
    with PageServer(port, paths, {"networks.json": json.dumps(entries).encode()}) as server:
        count = f"{len(networks)} network{'s' if len(networks) > 1 else ''}"
        with contextlib.suppress(KeyboardInterrupt):
            print(f"serving {count} of {folder} at {server.url} until Ctrl-C", flush=True)
            server.serve_forever()


class PageServer(http.server.ThreadingHTTPServer):
    """A server of a fixed set of URLs: the page's own files, and the given ones.

    Args:
        port: 0 chooses a free one.
        paths: files by URL, without the slash at the beginning.
        contents: bytes by URL.

    Raises:
        InputError: the port cannot be used.
    """

    def __init__(self, port: int, paths: Mapping[str, Path], contents: Mapping[str, bytes]):
        own = {path.name: path for path in _STATIC.iterdir()}
        # Some browsers ask for the icon under this name, too.
        own |= {"": own["index.html"], "favicon.ico": own["icon.svg"]}
        self.resources: dict[str, Path | bytes] = {**own, **paths, **contents}
        try:
            super().__init__((_HOST, port), _Handler)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise InputError(f"port {port} is in use; choose another with --port, 0 for any") from None
            raise InputError(f"cannot listen on port {port}: {error.strerror or error}") from None

    @property
    def url(self) -> str:
        """The address of the page."""
        return f"http://{_HOST}:{self.server_port}/"


class _Handler(http.server.BaseHTTPRequestHandler):
    server_version = "keras_resnet"
    server: PageServer

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def log_message(self, format: str, *args: object) -> None:
        """Prints nothing."""

    def _answer(self, with_body: bool) -> None:
        with contextlib.suppress(ConnectionError), contextlib.ExitStack() as stack:  # the browser may leave
            if not _OWN_NAMES.fullmatch(self.headers.get("Host", "")):
                self.send_error(HTTPStatus.MISDIRECTED_REQUEST)
                return
            name = urllib.parse.unquote(self.path.partition("?")[0]).removeprefix("/")
            try:
                resource = self.server.resources[name]
                if isinstance(resource, Path):
                    name = resource.name
                    file = stack.enter_context(resource.open("rb"))
                else:
                    file = io.BytesIO(resource)
            except (KeyError, OSError):
                self.send_error(HTTPStatus.NOT_FOUND)
                return
            self._start(name, file.seek(0, os.SEEK_END))
            if with_body:
                file.seek(0)
                shutil.copyfileobj(file, self.wfile)

    def _start(self, name: str, size: int) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", _TYPES[Path(name).suffix])
        self.send_header("Content-Length", str(size))
        for header, value in _HEADERS.items():
            self.send_header(header, value)
        self.end_headers()
