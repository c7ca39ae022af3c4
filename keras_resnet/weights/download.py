"""Downloads weight files into a cache, verified by their digests; interrupted downloads are resumed."""

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
from typing import Any

from tqdm import tqdm

from keras_resnet.errors import InputError, one_line

MAX_BYTES = 2**31  # six times the largest published file
TRIES = 5
WAIT = 1.0  # seconds before the first retry; doubled for each further one
TIMEOUT = 30.0  # seconds without data

_CHUNK = 2**20
_TAG = 8  # hexadecimal digits, as in the names of PyTorch Hub


def fetch(url: str, digest: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """Returns the path of a cached file, downloading it if necessary.

    The digest is verified at each call. Processes that need the same file wait for the first one.

    Args:
        url: an https address.
        digest: "sha256:" or "md5:" and at least the first 8 hexadecimal digits.
        cache_dir: defaults to `cache_folder()`.

    Raises:
        InputError: the address is not https, the download fails, the digest differs, or the folder
            is not writable.
    """
    algorithm, expected = _parse_digest(digest)
    _check_address(url)
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    name = PurePosixPath(urllib.parse.urlsplit(url).path)
    tag = "" if expected[:_TAG] in name.name else f"-{expected[:_TAG]}"
    path = folder / f"{name.stem}{tag}{name.suffix}"
    try:
        # Keras itself caches files under their plain names.
        for known in (path, folder / name.name):
            if known.is_file() and _hash(known, algorithm).startswith(expected):
                return known
        with _locked(path):
            # Another process may have downloaded it in the meantime.
            if not (path.is_file() and _hash(path, algorithm).startswith(expected)):
                _download(url, algorithm, expected, path)
    except OSError as error:  # of the file system; network errors are handled in `_receive_all`
        raise InputError(
            f"cannot store {path.name} in {folder}: {_reason(error.strerror or error)}; "
            "set KERAS_HOME to a writable folder, or pass weights=PATH"
        ) from None
    return path


def cache_folder() -> Path:
    """Returns Keras' cache of weights: `models` in $KERAS_HOME, or in ~/.keras."""
    base = os.environ.get("KERAS_HOME")
    if base is None:
        home = os.path.expanduser("~")
        base = os.path.join(home if os.access(home, os.W_OK) else "/tmp", ".keras")
    return Path(base) / "models"


def _parse_digest(digest: str) -> tuple[str, str]:
    found = re.fullmatch("(sha256|md5):([0-9a-f]{8,64})", digest)
    if not found:
        raise InputError(
            f"a digest is sha256: or md5: and at least 8 lowercase hexadecimal digits; got {digest!r}"
        )
    return found[1], found[2]


def _hash(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        # MD5 is all that Keras publishes; where it is forbidden, this flag allows it.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Creates the file's folder and keeps other processes and threads from downloading the same file."""
    import fcntl  # not available on Windows, where the package should still import

    path.parent.mkdir(parents=True, exist_ok=True)
    # The system releases the lock if the process is killed, and the next one resumes the download.
    # The lock file is never deleted: otherwise two processes could lock different files of that name.
    with open(path.with_name(f".{path.name}.lock"), "ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _download(url: str, algorithm: str, expected: str, path: Path) -> None:
    """Downloads to a `.part` file, verifies it and renames it."""
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
                f"{url} is not the expected file and was removed: "
                f"its {algorithm} starts with {found[:16]}, not with {expected[:16]}"
            )
        leftover = False  # the part left by an earlier call may be damaged: retry from the start


class _Broken(Exception):
    """A failed connection; `again` says whether to retry even if the first one failed."""

    def __init__(self, reason: object, again: bool):
        super().__init__(reason)
        self.again = again


def _receive_all(url: str, part: Path, path: Path) -> None:
    """Downloads the rest of a file, retrying if the connection breaks."""
    hidden = None if sys.stderr is not None else True  # None: hidden unless in a terminal
    with tqdm(desc=path.name, unit="B", unit_scale=True, dynamic_ncols=True, disable=hidden) as progress:
        for attempt in range(TRIES):
            try:
                return _receive(url, part, progress)
            except _Broken as error:
                # If the first connection cannot be made, there is no network: do not retry.
                if attempt + 1 == TRIES or not (error.again or attempt):
                    raise InputError(
                        f"cannot fetch {url}: {_reason(error.args[0])}; "
                        f"put the file at {path} by hand, or pass weights=PATH"
                    ) from None
            time.sleep(WAIT * 2**attempt)


def _receive(url: str, part: Path, progress: tqdm) -> None:
    """Downloads the rest of a file over one connection; raises `_Broken` if the connection fails."""
    start = part.stat().st_size if part.exists() else 0
    response, offset = _open(url, start)
    with response:
        length = response.headers.get("Content-Length", "")
        end = offset + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        with open(part, "ab") as file:
            file.truncate(offset)
            progress.reset(total=end)
            progress.initial = progress.n = offset
            while True:
                if max(offset, end or 0) > MAX_BYTES:
                    part.unlink()
                    raise InputError(f"{url} is too large for a weight file: over {MAX_BYTES} bytes")
                try:
                    chunk = response.read1(
                        _CHUNK
                    )  # returns what has arrived, so that a broken connection loses nothing
                except (OSError, http.client.HTTPException) as error:
                    raise _Broken(error, again=True) from None
                if not chunk:
                    break
                file.write(chunk)
                offset += len(chunk)
                progress.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if end is not None and offset < end:
        raise _Broken(f"the connection was cut after {offset} of {end} bytes", again=True)


def _open(url: str, start: int) -> tuple[http.client.HTTPResponse, int]:
    """Requests a file from byte `start`; returns the response and the byte at which it starts."""
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
    response.close()  # not the requested range
    return _open(url, 0)


def _check_address(url: str, source: str | None = None) -> None:
    """Refuses addresses, redirected to by `source` if given, without https; the local host is allowed."""
    address = urllib.parse.urlsplit(url)
    if address.scheme == "https" or (_is_local(url) and (source is None or _is_local(source))):
        return
    redirected = f"{source} redirects to " if source else ""
    raise InputError(f"weights are fetched over https only; {redirected}{url}")


def _is_local(url: str) -> bool:
    address = urllib.parse.urlsplit(url)
    return address.scheme == "http" and address.hostname == "127.0.0.1"


class _Redirections(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """Follows a redirection if it keeps https."""
        _check_address(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _reason(error: object) -> str:
    return one_line(error) or type(error).__name__
