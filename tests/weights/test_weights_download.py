"""Downloads: verification, resumption, retries, redirections, locking and error messages."""

import contextlib
import errno
import hashlib
import http.server
import io
import os
import re
import socket
import subprocess
import sys
import threading
from pathlib import Path

import keras
import pytest

from keras_resnet import InputError
from keras_resnet.weights import download
from keras_resnet.weights.download import cache_folder, fetch

CONTENT = bytes(range(256)) * 400  # 100 KB
SHA = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
ROOT = Path(__file__).parents[2]


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `server.content` according to the server's settings, and records the requests."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        server, self.close_connection = self.server, True
        with server.counting:
            server.asked.append((self.path, self.headers.get("Range")))
            cut = server.cuts.pop(0) if server.cuts else None
        if cut == "drop":  # before any response
            return
        if isinstance(cut, int) and cut >= 400:
            return self.send_error(cut)
        if self.path in server.redirects:
            self.send_response(302)
            self.send_header("Location", server.redirects[self.path])
            return self.end_headers()
        content, start = server.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and server.ranges:
            start = int(asked[1])
            if start >= len(content):
                return self.send_error(416)
            if server.ranges == "shifted":
                start += 1
            elif server.ranges == "widened":
                start -= 1
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        if server.lengths == "chunked":
            self.send_header("Transfer-Encoding", "chunked")
        elif server.lengths == "absurd":
            self.send_header("Content-Length", "9" * 5000)
        elif server.lengths:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        size = len(body)
        if cut is not None:
            body = body[:200]
        if server.lengths == "chunked":
            body = b"%x\r\n%s" % (size, body) + (b"" if cut else b"\r\n0\r\n\r\n")
        if server.slow is not None:
            server.slow.wait(10)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(download, "WAIT", 0.0)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.content, server.ranges, server.lengths, server.slow = CONTENT, True, True, None
    server.asked, server.cuts, server.redirects = [], [], {}
    server.counting = threading.Lock()
    server.address = f"http://127.0.0.1:{server.server_port}"
    server.url = f"{server.address}/models/net.pth"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def name_of(digest):
    return f"net-{digest.split(':')[1][:8]}.pth"


def refusal(*arguments):
    """Returns the one-line error message of a download."""
    with pytest.raises(InputError) as error:
        fetch(*arguments)
    assert "\n" not in str(error.value)
    return str(error.value)


def leave_part(cache, content):
    cache.mkdir()
    part = cache / f"{name_of(SHA)}.part"
    part.write_bytes(content)
    return part


def visible(cache):
    """Returns the names of the files in the cache, without the locks."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


@pytest.mark.parametrize(
    "digest", [SHA, SHA[:15], "md5:" + hashlib.md5(CONTENT).hexdigest()], ids=["whole", "prefix", "md5"]
)
@pytest.mark.parametrize("lengths", [True, False, "chunked"])
def test_download_into_a_new_folder(server, cache, digest, lengths):
    server.lengths = lengths
    path = fetch(server.url, digest, cache)
    assert path == cache / name_of(digest)
    assert path.read_bytes() == CONTENT
    assert visible(cache) == [path.name]
    assert server.asked == [("/models/net.pth", None)]


def test_a_name_with_the_digest_is_kept(server, cache):
    name = f"net-{SHA[7:15]}.pth"
    assert fetch(f"{server.address}/{name}", SHA, cache) == cache / name


def test_equal_names_of_two_publishers(server, cache):
    first = fetch(server.url, SHA, cache)
    server.content = b"another network"
    second = fetch(server.url, "sha256:" + hashlib.sha256(server.content).hexdigest(), cache)
    assert first != second
    assert (first.read_bytes(), second.read_bytes()) == (CONTENT, b"another network")


def test_a_cached_file_is_not_downloaded_again(server, cache):
    path = fetch(server.url, SHA, cache)
    assert fetch(server.url, SHA, cache) == path
    assert len(server.asked) == 1


def test_a_file_cached_by_keras_is_used(server, cache):
    cache.mkdir()
    (cache / "net.pth").write_bytes(CONTENT)
    assert fetch(server.url, SHA, cache) == cache / "net.pth"
    assert server.asked == []


def test_another_file_of_the_same_name_is_not_touched(server, cache):
    cache.mkdir()
    (cache / "net.pth").write_bytes(b"mine")
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert (cache / "net.pth").read_bytes() == b"mine"


def test_a_damaged_cached_file_is_downloaded_again(server, cache):
    path = fetch(server.url, SHA, cache)
    path.write_bytes(CONTENT[:-1])
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert len(server.asked) == 2


@pytest.mark.parametrize("lengths", [True, False, "chunked"])
def test_a_broken_download_is_resumed(server, cache, lengths):
    """Without a content length only the digest shows that a download is incomplete."""
    server.cuts, server.lengths = [200, 200], lengths
    if not lengths:
        assert "is not the expected file" in refusal(server.url, SHA, cache)
        server.cuts = []
        server.asked.clear()
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    ranges = [asked for _, asked in server.asked]
    assert ranges == ([None, "bytes=200-", "bytes=400-"] if lengths else [None])


def test_a_server_without_ranges(server, cache):
    server.cuts, server.ranges = [200], False
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [None, "bytes=200-"]


@pytest.mark.parametrize(("ranges", "requests"), [("widened", 2), ("shifted", 3)])
def test_a_server_that_sends_another_range(server, cache, ranges, requests):
    server.cuts, server.ranges = [200], ranges
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert len(server.asked) == requests


def test_a_partial_download_of_an_earlier_call_is_resumed(server, cache):
    part = leave_part(cache, CONTENT[:5000])
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert server.asked == [("/models/net.pth", "bytes=5000-")]
    assert not part.exists()


@pytest.mark.parametrize("content", [CONTENT, CONTENT + b"more"], ids=["whole", "too long"])
def test_a_partial_download_that_is_too_long_is_restarted(server, cache, content):
    leave_part(cache, content)
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == [f"bytes={len(content)}-", None]


def test_a_damaged_partial_download_is_restarted(server, cache):
    leave_part(cache, b"x" * 5000)
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert [asked for _, asked in server.asked] == ["bytes=5000-", None]


def test_a_file_with_a_wrong_digest_is_removed(server, cache):
    server.content = b"an error page"
    found = hashlib.sha256(server.content).hexdigest()
    assert refusal(server.url, SHA, cache) == (
        f"{server.url} is not the expected file and was removed: its sha256 starts with "
        f"{found[:16]}, not with {SHA[7:23]}"
    )
    assert visible(cache) == []
    assert len(server.asked) == 1


def test_a_partial_download_is_kept_after_the_last_retry(server, cache):
    server.cuts = [200] * 99
    told = refusal(server.url, SHA, cache)
    assert told == (
        f"cannot fetch {server.url}: the connection was cut after {200 * download.TRIES} of {len(CONTENT)} "
        f"bytes; put the file at {cache / name_of(SHA)} by hand, or pass weights=PATH"
    )
    assert len(server.asked) == download.TRIES
    assert (cache / f"{name_of(SHA)}.part").read_bytes() == CONTENT[: 200 * download.TRIES]


@pytest.mark.parametrize("code", [403, 404, 410])
def test_a_missing_file_is_requested_once(server, cache, code):
    server.cuts = [code]
    told = refusal(server.url, SHA, cache)
    assert told.startswith(f"cannot fetch {server.url}: HTTP {code} ")
    assert told.endswith(f"; put the file at {cache / name_of(SHA)} by hand, or pass weights=PATH")
    assert len(server.asked) == 1


@pytest.mark.parametrize("cut", [500, 503, 429, "drop"])
def test_temporary_errors_are_retried(server, cache, cut):
    server.cuts = [cut, cut]
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert len(server.asked) == 3


def test_no_retry_without_a_network(cache, monkeypatch):
    def no_sleep(_):
        raise AssertionError("waited")

    monkeypatch.setattr(download.time, "sleep", no_sleep)
    with socket.socket() as closed:  # bound, but not listening
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/net.pth"
        told = refusal(url, SHA, cache)
    assert told.startswith(
        f"cannot fetch {url}: [Errno {errno.ECONNREFUSED}] Connection refused; put the file"
    )


def test_timeout(cache, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", 0.05)
    monkeypatch.setattr(download, "TRIES", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/net.pth"
        assert refusal(url, SHA, cache).startswith(f"cannot fetch {url}: timed out; put the file")


@pytest.mark.parametrize("lengths", [True, False, "absurd"])
def test_too_large_downloads_are_stopped(server, cache, monkeypatch, lengths):
    monkeypatch.setattr(download, "MAX_BYTES", 50_000)
    server.lengths = lengths
    assert refusal(server.url, SHA, cache) == f"{server.url} is too large for a weight file: over 50000 bytes"
    assert visible(cache) == []


def test_a_redirection_keeps_the_range(server, cache):
    server.redirects["/models/net.pth"] = f"{server.address}/moved"
    leave_part(cache, CONTENT[:5000])
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT
    assert server.asked == [("/models/net.pth", "bytes=5000-"), ("/moved", "bytes=5000-")]


@pytest.mark.parametrize("target", ["http://example.org/net.pth", "ftp://127.0.0.1/net.pth"])
def test_a_redirection_away_from_https_is_refused(server, cache, target):
    server.redirects["/models/net.pth"] = target
    assert refusal(server.url, SHA, cache) == (
        f"weights are fetched over https only; {server.url} redirects to {target}"
    )


@pytest.mark.parametrize(
    "url",
    ["http://example.org/a.pth", "file:///etc/passwd", "ftp://127.0.0.1/a", "a.pth", "http://localhost/a"],
)
def test_addresses_without_https_are_refused(cache, url):
    assert refusal(url, SHA, cache) == f"weights are fetched over https only; {url}"
    assert not cache.exists()


def test_https_may_not_be_redirected_to_the_local_host():
    with pytest.raises(InputError, match=r"https://example\.org/a redirects to http:"):
        download._check_address("http://127.0.0.1/a", "https://example.org/a")


@pytest.mark.parametrize(
    "digest", ["", "sha256:", "sha256:0123456", "sha1:01234567", "sha256:ABCDEF01", "0" * 64]
)
def test_invalid_digests_are_refused(server, cache, digest):
    assert refusal(server.url, digest, cache).endswith(f"hexadecimal digits; got {digest!r}")
    assert server.asked == []


def test_a_cache_that_is_not_a_folder(server, cache):
    cache.write_bytes(b"")
    assert refusal(server.url, SHA, cache) == (
        f"cannot store {name_of(SHA)} in {cache}: File exists; "
        "set KERAS_HOME to a writable folder, or pass weights=PATH"
    )


@pytest.mark.parametrize("error", [errno.EROFS, errno.ENOSPC])
def test_a_full_or_read_only_disk(server, cache, monkeypatch, error):
    """Simulated, because file permissions do not apply to the superuser."""

    def refuse(path):
        raise OSError(error, os.strerror(error), str(path))

    monkeypatch.setattr(download, "open_to_append", refuse)
    assert f" in {cache}: {os.strerror(error)}; set KERAS_HOME" in refusal(server.url, SHA, cache)
    assert len(server.asked) == 1  # a retry would not help


def test_a_cached_file_in_a_read_only_folder(server, cache, monkeypatch):
    path = fetch(server.url, SHA, cache)

    def refuse(*_):
        raise AssertionError("locked")

    monkeypatch.setattr(download, "locked", refuse)
    assert fetch(server.url, SHA, cache) == path


def test_a_link_in_the_place_of_a_partial_download_is_not_followed(server, cache, tmp_path):
    precious = tmp_path / "precious"
    precious.write_bytes(b"keys")
    cache.mkdir()
    (cache / f"{name_of(SHA)}.part").symlink_to(precious)
    assert f"cannot store {name_of(SHA)} in {cache}: {os.strerror(errno.ELOOP)}" in refusal(
        server.url, SHA, cache
    )
    assert precious.read_bytes() == b"keys"


@pytest.mark.parametrize("mine", [True, False])
def test_a_shared_cache_of_another_user_is_refused(server, monkeypatch, tmp_path, mine):
    """In /tmp another user could have made it, with links to any place, and could change it at any time."""
    shared = tmp_path / ".keras" / "models"
    shared.mkdir(parents=True)
    monkeypatch.setattr(download, "_SHARED_CACHE", shared)
    monkeypatch.delenv("KERAS_HOME", raising=False)
    monkeypatch.setattr(os, "access", lambda *_: False)
    for folder in (shared, shared.parent):
        os.chown(folder, 12345, -1)
        monkeypatch.setattr(os, "getuid", lambda: 12345 if mine else 54321)
    if mine:
        assert fetch(server.url, SHA) == shared / name_of(SHA)
    else:
        assert refusal(server.url, SHA).startswith(f"{shared.parent} belongs to another user; set KERAS_HOME")
        assert server.asked == []


def test_the_total_time_is_limited(server, cache, monkeypatch):
    monkeypatch.setattr(download, "MAX_SECONDS", -1.0)
    assert "took over" in refusal(server.url, SHA, cache)


def test_a_file_system_without_locks(server, cache, monkeypatch):
    def unsupported(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", unsupported)
    assert fetch(server.url, SHA, cache).read_bytes() == CONTENT


def test_threads_download_a_file_once(server, cache):
    server.slow = threading.Event()
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(fetch(server.url, SHA, cache).read_bytes()))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    server.slow.set()
    for thread in threads:
        thread.join()
    assert results == [CONTENT] * 4
    assert len(server.asked) == 1


def test_processes_download_a_file_once(server, cache):
    server.slow = threading.Event()
    script = (
        "import sys, keras_resnet.weights.download as download;"
        "print('ready', flush=True); print(download.fetch(*sys.argv[1:]).stat().st_size)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", script, server.url, SHA, str(cache)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for _ in range(2)
    ]
    for process in processes:
        assert process.stdout.readline() == "ready\n"
    server.slow.set()
    assert [process.communicate()[0] for process in processes] == [f"{len(CONTENT)}\n"] * 2
    assert len(server.asked) == 1
    assert visible(cache) == [name_of(SHA)]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_terminal_shows_progress(server, cache, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    path = fetch(server.url, SHA, cache)
    shown = sys.stderr.getvalue()
    assert f"\r{path.name}: 100%|" in shown
    assert shown.endswith("B/s]\n")


def test_without_a_terminal_nothing_is_written(server, cache, capfd):
    fetch(server.url, SHA, cache)
    assert capfd.readouterr() == ("", "")


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / "models"
    monkeypatch.delenv("KERAS_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".keras" / "models"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert cache_folder() == Path("/tmp/.keras/models")


def test_the_cache_is_that_of_keras():
    home = keras.src.backend.config.keras_home()
    assert cache_folder() == Path(home) / "models"


def test_default_folder(server, monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert fetch(server.url, SHA) == tmp_path / "models" / name_of(SHA)
