"""Run folders in object storage: a local copy, the mirror, whose finished files are uploaded.

A store such as S3 has no folders, locks, renaming or appending. It has objects, each of which is replaced as
a whole by one write: readers see the old or the new content, never a part. So everything is written to a
local folder first, with all guarantees of a disk (temporary names, `fsync`, reading back), and then copied:

- At the start, the files that the command needs are downloaded. Nothing else is read later.
- After each checkpoint, each epoch and the result, `Mirror.upload` writes each file that has changed with one
  write, in the order in which they were written locally, and only then deletes what was deleted locally. So
  the store goes through the same states as a local folder; a kill between two writes leaves one of them.
- Hidden files, such as temporary ones, stay local. The local folder is removed at the end; one that a killed
  process has left is removed by the next process on that machine.

Only one process may write to a run's folder. A store has no locks, and a process that is killed could not
release one. So the process that was started last owns the folder: `Mirror.take_over` writes its name to the
object "lock", and every upload first checks that this name is still there. An older process that is still
running thus ends at its next upload. Between its check and the end of that upload it can still write, but
only files of the same run; and the newer process does not start if anything has changed since its download.

Requests that fail are repeated for up to two minutes. Credentials and the address of the server come from the
environment variables that the stores' own tools use (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`,
`GOOGLE_APPLICATION_CREDENTIALS`, ...), or from the cloud's machine.
"""

import contextlib
import datetime
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from keras_resnet.errors import CommandFailed, InputError, TryAgain, one_line
from keras_resnet.files import hidden_folder

_SCHEMES = ("s3", "gs")
# `Path` removes one of the slashes.
_URL = re.compile(rf"({'|'.join(_SCHEMES)}):/")
_LOCK = "lock"
# Of a request that is wrong or not allowed; a timeout (408) and too many requests (429) may pass.
_REFUSED = re.compile(r"status code: 4(?!08|29)\d\d\b")
_RANGE = 2**26  # bytes of one request, which must end within the timeout
_RETRIES: Any = {
    "max_retries": 10,
    "retry_timeout": datetime.timedelta(minutes=2),
    "backoff": {
        "init_backoff": datetime.timedelta(seconds=0.5),
        "max_backoff": datetime.timedelta(seconds=20),
        "base": 2,
    },
}
_CLIENT: Any = {
    "connect_timeout": datetime.timedelta(seconds=10),
    "timeout": datetime.timedelta(minutes=2),
    "allow_http": True,  # if the server's address is given so
}


def is_stored(path: str | os.PathLike) -> bool:
    """Whether a path is the URL of a folder in object storage: s3://... or gs://..."""
    return _URL.match(os.fspath(path)) is not None


@contextlib.contextmanager
def mirrored(url: str | os.PathLike, subfolders: Collection[str]) -> Iterator["Mirror"]:
    """Downloads a folder of a store; uploads what has changed at the end.

    Also after an error of the user's or a signal, but not if the store or another worker has failed. The
    messages of errors name the URL instead of the local folder.

    Args:
        subfolders: names of the folders to download, in addition to the files that are in none.

    Raises:
        InputError: the URL is not valid, the package for stores is not installed, or access is denied.
        TryAgain: the store does not answer.
    """
    url, name = _checked(os.fspath(url))
    store = _open_store(url)
    with hidden_folder(Path(tempfile.gettempdir(), "keras_resnet")) as hidden:
        mirror = Mirror(url, store, hidden / name)
        try:
            mirror.download(subfolders)
            yield mirror
            mirror.upload()
        except CommandFailed as error:
            if not isinstance(error, TryAgain):
                with contextlib.suppress(CommandFailed):
                    mirror.upload()
            error.args = tuple(mirror.shown(str(argument)) for argument in error.args)
            raise


class Mirror:
    """A folder of a store and its local copy.

    Attributes:
        url: of the folder in the store.
        folder: the local copy; it exists if the folder in the store does.
    """

    def __init__(self, url: str, store: Any, folder: Path):
        self.url, self.folder, self._store = url, folder, store
        self._tags: dict[str, str | None] = {}  # of all objects, at the download
        self._equal: dict[str, tuple[int, int, int]] = {}  # the states of the local files that the store has
        self._owner: bytes | None = None

    def shown(self, text: str) -> str:
        """Replaces the local folder in a message by the URL."""
        return text.replace(str(self.folder), self.url)

    def download(self, subfolders: Collection[str]) -> None:
        """Copies the files that are in no folder or in one of `subfolders`, once."""
        with self._errors():
            sizes = self._list()
            for name, size in sizes.items():
                top, slash, _ = name.partition("/")
                if not slash or top in subfolders:
                    self._read(name, size)
        self._equal = self._states()

    def take_over(self) -> None:
        """Makes this process the owner of the folder.

        Raises:
            TryAgain: another process has changed the folder since the download.
        """
        before = self._tags
        with self._errors():
            self._list()
            if self._tags != before:
                raise TryAgain(f"another process is writing to {self.url}; start again when it has ended")
            since = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            about = {"host": socket.gethostname(), "process": os.getpid(), "since": since}
            owner = json.dumps({**about, "key": secrets.token_hex(8)}).encode()
            _obstore().put(self._store, _LOCK, owner)
        self._owner = owner

    def upload(self) -> None:
        """Writes each changed file, then deletes what was deleted.

        Raises:
            InputError: another process has taken the folder over, or access is denied.
            TryAgain: the store does not answer.
        """
        states = self._states()
        changed = [name for name, state in states.items() if self._equal.get(name) != state]
        deleted = self._equal.keys() - states.keys()
        if not changed and not deleted:
            return
        with self._errors():
            self._check_owner()
            for name in sorted(changed, key=lambda name: states[name]):
                self._write(name)
                self._equal[name] = states[name]
            for name in sorted(deleted):
                with contextlib.suppress(FileNotFoundError):
                    _obstore().delete(self._store, name)
                del self._equal[name]

    def _list(self) -> dict[str, int]:
        """The sizes of all objects but the lock and hidden ones."""
        objects = [each for chunk in _obstore().list(self._store) for each in chunk]
        # Also "..": what a name says must not lead out of the local folder.
        objects = [each for each in objects if each["path"] != _LOCK and not _is_hidden(each["path"])]
        self._tags = {each["path"]: each["e_tag"] for each in objects}
        return {each["path"]: each["size"] for each in objects}

    def _read(self, name: str, size: int) -> None:
        path = self.folder.joinpath(*name.split("/"))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            for start in range(0, size, _RANGE):
                end = min(start + _RANGE, size)
                file.write(_obstore().get_range(self._store, name, start=start, end=end))

    def _write(self, name: str) -> None:
        path = self.folder / name
        try:
            _obstore().put(self._store, name, path)
        except FileNotFoundError:
            if path.exists():  # there is no such bucket
                raise
            # Otherwise a tracker's process has removed it.

    def _states(self) -> dict[str, tuple[int, int, int]]:
        """The time of the last change, the size and the number of each local file."""
        found = {}
        for folder, _, names in os.walk(self.folder):
            for path in (Path(folder, name) for name in names):
                name = path.relative_to(self.folder).as_posix()
                if name == _LOCK or _is_hidden(name) or path.is_symlink():
                    continue
                with contextlib.suppress(FileNotFoundError):  # a tracker's process has removed it
                    state = path.stat()
                    found[name] = state.st_mtime_ns, state.st_size, state.st_ino
        return found

    def _check_owner(self) -> None:
        if self._owner is None:  # another worker, or a command other than training
            return
        try:
            there = bytes(_obstore().get(self._store, _LOCK).bytes())
        except FileNotFoundError:
            raise InputError(f"{self.url} was deleted; this process stops") from None
        if there != self._owner:
            raise InputError(f"another process has taken over {self.url} ({_about(there)}); this one stops")

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turns an error of the store, which has repeated what may help, into one line."""
        kinds = _obstore().exceptions
        try:
            yield
        except (FileNotFoundError, kinds.PermissionDeniedError, kinds.UnauthenticatedError) as error:
            raise InputError(f"cannot use {self.url}: {_reason(error)}") from error
        except kinds.BaseError as error:
            if _REFUSED.search(str(error)):
                raise InputError(f"cannot use {self.url}: {_reason(error)}") from error
            raise TryAgain(f"{self.url}: {_reason(error)}; the same command may succeed later") from error


def _checked(url: str) -> tuple[str, str]:
    """The URL with two slashes and none at its end, and the folder's own name."""
    scheme, _, rest = url.partition(":")
    bucket, *folders = [part for part in rest.split("/") if part] or [""]
    if not folders or _is_hidden("/".join(folders)):
        raise InputError(f"{url} names no folder; give {scheme}://BUCKET/FOLDER")
    return f"{scheme}://{'/'.join((bucket, *folders))}", folders[-1]


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))


def _about(lock: bytes) -> str:
    try:
        found = json.loads(lock)
        return one_line(f"process {found['process']} on {found['host']}, since {found['since']}")
    except (ValueError, KeyError, TypeError):
        return "its lock cannot be read"


def _reason(error: Exception) -> str:
    """The first paragraph of an error; its details follow it."""
    return one_line(str(error).partition("\n\n")[0], 300)


def _obstore() -> Any:
    try:
        import obstore.exceptions
    except ModuleNotFoundError as error:
        if error.name not in ("obstore", "obstore.exceptions"):
            raise
        raise InputError(
            "obstore is not installed; install what object storage needs: "
            "pip install 'keras-resnet-zoo[remote]'"
        ) from error
    return obstore


def _open_store(url: str) -> Any:
    kinds = _obstore().exceptions
    from obstore.store import from_url

    try:
        return from_url(url, client_options=_CLIENT, retry_config=_RETRIES)
    except (ValueError, kinds.BaseError) as error:  # such as credentials in a file that does not exist
        raise InputError(f"cannot use {url}: {_reason(error)}") from error
