"""Fetches weight files into a folder that keeps them: whole and verified, or not at all.

A download goes on where it stopped, within a call and from one call to the next.
"""

import contextlib
import hashlib
import http.client
import os
import re
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from keras_resnet.errors import InputError

MAX_BYTES = 2**31
"""More than that is no file of weights: the largest known one has a sixth of it."""

TRIES = 5
"""How often a connection is made before a broken download is given up."""

WAIT = 1.0
"""Seconds before the second try; they double from try to try."""

TIMEOUT = 30.0
"""Seconds without a byte after which a connection counts as broken."""

_CHUNK = 2**20
_TAG = 8  # digits: as many as torch's hub puts into a name


def fetch(url: str, digest: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """The path of a file from the network, which is downloaded unless the cache has it already.

    Processes that want the same file at the same time wait for the first one. The file is verified
    at each call; one that is damaged is fetched anew.

    Args:
        url: https address.
        digest: "sha256:" or "md5:" and the first hexadecimal digits, at least 8 of them.
        cache_dir: folder of the files. Default: `cache_folder()`.

    Returns:
        A file whose digest is right. Its name is the address' with the digest's first digits.

    Raises:
        InputError: the address is no https, the file cannot be fetched or is another one than
            expected, or the folder cannot be written.
    """
    algorithm, expected = _parse_digest(digest)
    _check_address(url)
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    name = PurePosixPath(urllib.parse.urlsplit(url).path)
    tag = "" if expected[:_TAG] in name.name else f"-{expected[:_TAG]}"
    path = folder / f"{name.stem}{tag}{name.suffix}"
    try:
        # Under its plain name Keras itself may have put it here.
        for known in (path, folder / name.name):
            if known.is_file() and _hash(known, algorithm).startswith(expected):
                return known
        with _locked(path):
            # Another process may have fetched it meanwhile.
            if not (path.is_file() and _hash(path, algorithm).startswith(expected)):
                _download(url, algorithm, expected, path)
    except OSError as error:  # those of the network are turned into sentences further down
        raise InputError(
            f"cannot keep {path.name} in {folder}: {_one_line(error.strerror or error)}; "
            "set KERAS_HOME to a folder that can be written, or give weights=PATH"
        ) from None
    return path


def cache_folder() -> Path:
    """Where Keras keeps downloaded weights: `models` in $KERAS_HOME, or in ~/.keras."""
    base = os.environ.get("KERAS_HOME")
    if base is None:
        home = os.path.expanduser("~")
        base = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    return Path(base) / "models"


def _parse_digest(digest: str) -> tuple[str, str]:
    found = re.fullmatch("(sha256|md5):([0-9a-f]{8,64})", digest)
    if not found:
        raise InputError(
            f"a digest is sha256: or md5: and at least 8 lower-case hexadecimal digits; got {digest!r}"
        )
    return found[1], found[2]


def _hash(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        # Not for security, as it is said where MD5 is forbidden: it is all that Keras publishes.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Keeps other processes and threads from downloading the same file; makes its folder."""
    import fcntl  # not on Windows, where the rest of the package can be imported

    path.parent.mkdir(parents=True, exist_ok=True)
    # A lock rather than a part for each process: who comes second neither downloads again nor has
    # to begin anew where the first one was killed. The system frees it with its process. The file
    # stays: once it were deleted, one process could lock it and another its successor.
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url: str, algorithm: str, expected: str, path: Path) -> None:
    """Fetches the file beside its final name, verifies and renames it."""
    part = path.with_name(f"{path.name}.part")
    leftover = part.exists()
    while True:
        _receive_all(url, part, path)
        found = _hash(part, algorithm)
        if found.startswith(expected):
            part.replace(path)
            return
        part.unlink()
        if not leftover:
            raise InputError(
                f"{url} is not the expected file, and was removed: "
                f"its {algorithm} begins with {expected[:16]} by the table, with {found[:16]} as fetched"
            )
        leftover = False  # what an earlier call left may be what was wrong: once more from the start


class _Broken(Exception):
    """A connection that failed.

    Attributes:
        again: whether another try may help even if nothing has been received yet.
    """

    def __init__(self, reason: object, again: bool):
        super().__init__(reason)
        self.again = again


def _receive_all(url: str, part: Path, path: Path) -> None:
    """Receives the rest of a file, over several connections if they break."""
    with _Progress(path.name) as progress:
        for attempt in range(TRIES):
            try:
                return _receive(url, part, progress)
            except _Broken as error:
                # A first connection that cannot be made: there is no network. Waiting does not help.
                if attempt + 1 == TRIES or not (error.again or attempt):
                    raise InputError(
                        f"cannot fetch {url}: {_one_line(error)}; "
                        f"put the file at {path} by hand, or give weights=PATH"
                    ) from None
            time.sleep(WAIT * 2**attempt)


def _receive(url: str, part: Path, progress: "_Progress") -> None:
    """Receives the rest of a file over one connection.

    Raises:
        _Broken: the connection failed; the part has what was received.
        InputError: the file is too large, or a redirection leads away from https.
    """
    start = part.stat().st_size if part.exists() else 0
    response, offset = _open(url, start)
    with response:
        length = response.headers.get("Content-Length", "")
        end = offset + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        with open(part, "ab") as file:
            file.truncate(offset)
            while True:
                if max(offset, end or 0) > MAX_BYTES:
                    part.unlink()
                    raise InputError(f"{url} has more than {MAX_BYTES} bytes: no file of weights")
                try:
                    chunk = response.read1(_CHUNK)  # what there is: a break loses none of it
                except (OSError, http.client.HTTPException) as error:
                    raise _Broken(error, again=True) from None
                if not chunk:
                    break
                file.write(chunk)
                offset += len(chunk)
                progress.show(offset, end)
            file.flush()
            os.fsync(file.fileno())
    if end is not None and offset < end:
        raise _Broken(f"the connection was cut after {offset} of {end} bytes", again=True)


def _open(url: str, start: int) -> tuple[http.client.HTTPResponse, int]:
    """Asks for a file from byte `start` on.

    Returns:
        The answer, and where in the file it begins: earlier, if the server cannot do otherwise.
    """
    headers = {"User-Agent": "keras_resnet", **({"Range": f"bytes={start}-"} if start else {})}
    opener = urllib.request.build_opener(_Redirections)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if start and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _open(url, 0)
        again = error.code in (408, 429) or error.code >= 500
        raise _Broken(f"HTTP {error.code} {error.reason}", again) from None
    except urllib.error.URLError as error:
        raise _Broken(error.reason, again=False) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(error, again=True) from None
    if not start or response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return response, 0
    stated = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
    if stated and int(stated[1]) <= start:
        return response, int(stated[1])
    response.close()  # another part than was asked for
    return _open(url, 0)


def _check_address(url: str, source: str | None = None) -> None:
    """Refuses what could be changed on its way; this very machine needs no encryption.

    Args:
        url: the address.
        source: the one that redirected to it.
    """
    address = urllib.parse.urlsplit(url)
    if address.scheme == "https" or (_is_local(url) and (source is None or _is_local(source))):
        return
    redirected = f"{source} redirects to " if source else ""
    raise InputError(f"weights are fetched over https only; {redirected}{url}")


def _is_local(url: str) -> bool:
    address = urllib.parse.urlsplit(url)
    return address.scheme == "http" and address.hostname == "127.0.0.1"


class _Redirections(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        """Follows a redirection, unless it leads away from https."""
        _check_address(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Progress:
    """A line on standard error that says how far a download is, where a terminal shows it."""

    def __init__(self, name: str):
        self._name, self._shown = name, None
        self._stream = sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._shown is not None:
            print(file=self._stream)

    def show(self, done: int, total: int | None) -> None:
        """Overwrites the line with the bytes received so far, a few times a second."""
        now = time.monotonic()
        if self._stream is None or (done != total and self._shown and now < self._shown + 0.2):
            return
        self._shown = now
        of = f" of {total / 1e6:.1f}" if total else ""
        print(f"\r{self._name}: {done / 1e6:.1f}{of} MB", end="", file=self._stream, flush=True)


def _one_line(text: object) -> str:
    return " ".join(str(text).split()) or type(text).__name__
