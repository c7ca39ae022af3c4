"""Downloads weight files into a cache, verified by their digests; interrupted downloads are resumed."""

import contextlib
import hashlib
import http.client
import math
import os
import re
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from keras_resnet.errors import InputError, one_line
from keras_resnet.files import locked, open_to_append

MAX_BYTES = 2**31  # six times the largest published file
TRIES = 5
WAIT = 1.0  # seconds before the first retry; doubled for each further one
TIMEOUT = 30.0  # seconds without data
MAX_SECONDS = 7200.0  # of one download, with its retries

_SHARED_CACHE = Path("/tmp/.keras/models")  # where the home cannot be written; as in Keras


def fetch(url: str, digest: str, cache_dir: str | os.PathLike | None = None) -> Path:
    """Returns the path of a cached file, downloading it if necessary; its digest is verified at each call.

    `digest` is "sha256:" or "md5:" and at least the first 8 hexadecimal digits. Processes that need the same
    file wait for the first one. Raises `InputError` if the address is not https, the download fails, the
    digest differs, or the folder is not writable.
    """
    parsed = re.fullmatch("(sha256|md5):([0-9a-f]{8,64})", digest)
    if not parsed:
        raise InputError(
            f"a digest is sha256: or md5: and at least 8 lowercase hexadecimal digits; got {digest!r}"
        )
    algorithm, expected = parsed.groups()
    _check_address(url)
    folder = cache_folder() if cache_dir is None else Path(cache_dir)
    if folder == _SHARED_CACHE:
        _check_owner(folder)
    name = PurePosixPath(urllib.parse.urlsplit(url).path)
    tag = expected[:8]  # as in the names of PyTorch Hub
    path = folder / (name.name if tag in name.name else f"{name.stem}-{tag}{name.suffix}")
    try:
        # Keras itself caches files under their plain names.
        for known in (path, folder / name.name):
            if known.is_file() and _hash(known, algorithm).startswith(expected):
                return known
        with locked(path.with_name(f".{path.name}.lock"), math.inf):
            # Another process may have downloaded it in the meantime.
            if not (path.is_file() and _hash(path, algorithm).startswith(expected)):
                _download(url, algorithm, expected, path)
    except OSError as error:  # of the file system; network errors are handled in `_receive_all`
        raise InputError(
            f"cannot store {path.name} in {folder}: {one_line(error.strerror or repr(error))}; "
            "set KERAS_HOME to a writable folder, or pass weights=PATH"
        ) from None
    return path


def cache_folder() -> Path:
    """Returns Keras' cache of weights: `models` in $KERAS_HOME, or in ~/.keras."""
    base = os.environ.get("KERAS_HOME")
    if base is None:
        home = os.path.expanduser("~")
        if not os.access(home, os.W_OK):
            return _SHARED_CACHE
        base = os.path.join(home, ".keras")
    return Path(base) / "models"


def _check_owner(folder: Path) -> None:
    """Refuses a cache that another user has prepared in the temporary folder."""
    for each in (folder.parent, folder):
        with contextlib.suppress(FileNotFoundError):
            status = each.lstat()
            if not stat.S_ISDIR(status.st_mode) or status.st_uid not in (0, os.getuid()):
                raise InputError(f"{each} belongs to another user; set KERAS_HOME, or pass weights=PATH")


def _hash(path: Path, algorithm: str) -> str:
    with open(path, "rb") as file:
        # MD5 is all that Keras publishes; where it is forbidden, this flag allows it.
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _download(url: str, algorithm: str, expected: str, path: Path) -> None:
    """Downloads to a `.part` file, verifies it and renames it."""
    part = path.with_name(f"{path.name}.part")
    is_leftover = part.exists()
    _receive_all(url, part, path)
    found = _hash(part, algorithm)
    if found.startswith(expected):
        part.replace(path)
        return
    part.unlink()
    if is_leftover:  # the part of an earlier call may be damaged: retry from the start
        return _download(url, algorithm, expected, path)
    raise InputError(
        f"{url} is not the expected file and was removed: "
        f"its {algorithm} starts with {found[:16]}, not with {expected[:16]}"
    )


class _Broken(Exception):
    """A failed connection: the reason, and whether to retry even if it was the first one."""


def _receive_all(url: str, part: Path, path: Path) -> None:
    """Downloads the rest of a file, retrying if the connection breaks."""
    deadline = time.monotonic() + MAX_SECONDS
    hidden = None if sys.stderr is not None else True  # None: hidden unless in a terminal
    with tqdm(desc=path.name, unit="B", unit_scale=True, dynamic_ncols=True, disable=hidden) as progress:
        for attempt in range(TRIES):
            try:
                return _receive(url, part, progress, deadline)
            except _Broken as error:
                reason, again = error.args
                # If the first connection cannot be made, there is no network: do not retry.
                if attempt + 1 == TRIES or not (again or attempt):
                    raise InputError(
                        f"cannot fetch {url}: {one_line(reason) or type(reason).__name__}; "
                        f"put the file at {path} by hand, or pass weights=PATH"
                    ) from None
            time.sleep(WAIT * 2**attempt)


def _receive(url: str, part: Path, progress: tqdm, deadline: float) -> None:
    """Downloads the rest of a file over one connection; raises `_Broken` if the connection fails."""
    start = part.stat().st_size if part.exists() else 0
    response, offset = _open(url, start)
    with response:
        length = response.headers.get("Content-Length", "")
        end = offset + int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        with open_to_append(part) as file:
            file.truncate(offset)
            progress.reset(total=end)
            progress.initial = progress.n = offset
            while True:
                if max(offset, end or 0) > MAX_BYTES:
                    part.unlink()
                    raise InputError(f"{url} is too large for a weight file: over {MAX_BYTES} bytes")
                if time.monotonic() > deadline:
                    raise InputError(
                        f"{url} took over {MAX_SECONDS:.0f} seconds; the next call resumes the download, "
                        f"or put the file in {part.parent} by hand"
                    )
                try:
                    # Returns what has arrived, so that a broken connection loses nothing.
                    chunk = response.read1(2**20)
                except (OSError, http.client.HTTPException) as error:
                    raise _Broken(error, True) from None
                if not chunk:
                    break
                file.write(chunk)
                offset += len(chunk)
                progress.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if end is not None and offset < end:
        raise _Broken(f"the connection was cut after {offset} of {end} bytes", True)


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
        raise _Broken(error.reason, False) from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(error, True) from None
    if not start or response.status != http.HTTPStatus.PARTIAL_CONTENT:
        return response, 0
    stated = re.match(r"bytes ([0-9]{1,18})-", response.headers.get("Content-Range", ""))
    if stated and int(stated[1]) <= start:
        return response, int(stated[1])
    response.close()  # not the requested range
    return _open(url, 0)


def _check_address(url: str, source: str | None = None) -> None:
    """Refuses addresses, redirected to by `source` if given, without https; the local host is allowed."""
    addresses = [urllib.parse.urlsplit(address) for address in (url, source or url)]
    are_local = all((it.scheme, it.hostname) == ("http", "127.0.0.1") for it in addresses)
    if addresses[0].scheme != "https" and not are_local:
        redirected = f"{source} redirects to " if source else ""
        raise InputError(f"weights are fetched over https only; {redirected}{url}")


class _Redirections(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req, fp, code, msg, headers, newurl):
        _check_address(newurl, req.full_url)
        return super().redirect_request(req, fp, code, msg, headers, newurl)
