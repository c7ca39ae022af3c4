"""Synthetic and committed pages in a real browser."""

import io
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import browser
from matplotlib.figure import Figure

from experiments.claims import FAILS, HOLDS, OPEN, Claim
from experiments.page import Picture, Section, Table, write_page

ROOT = Path(__file__).parents[2]
MADE_UP = "made up"
COMMITTED = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs" / "results").rglob("*.html"))
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'</style>{}&nbsp;"
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 2
FOREIGN = "Größe ± 3 → 深さ глубина 𝒙"
INSTALL = Path(__file__).with_name("install_browser.sh")


def drawn(slope, dpi):
    figure = Figure(figsize=(6, 3))
    figure.subplots().plot(slope * np.arange(10.0))
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=dpi)
    return file.getvalue()


def sections():
    def claims(text):
        return [Claim(f"{text} {verdict}", text, text, verdict) for verdict in (HOLDS, FAILS, OPEN)]

    def table(text, caption):
        header = [text, *(f"epoch {i}" for i in range(1, 12))]
        rows = [[f"{text} {j}", *(f"{i * j:.2f} ± 0.01" for i in range(10)), text] for j in range(3)]
        return Table(header, rows, caption)

    return [
        Section(text, claims(text), [text, picture, table(text, text), f"{text}\n{text * 3}"], anchor)
        for text, picture, anchor in (
            (HOSTILE, Picture("small", drawn(1, 50), HOSTILE, HOSTILE), ""),
            (LONG, Picture("wide", drawn(2, 300), LONG, LONG), HOSTILE),
            (FOREIGN, Picture("steep", drawn(9, 100), FOREIGN, FOREIGN), FOREIGN),
        )
    ]


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    facts = {HOSTILE: LONG, LONG: FOREIGN, FOREIGN: HOSTILE, "Command": "python -m experiments\npython -V"}
    path = tmp_path_factory.mktemp("page") / "page.html"
    return write_page(path, f"{HOSTILE} {LONG}", f"{FOREIGN} {HOSTILE} {LONG}", sections(), facts)


def test_there_is_a_committed_page():
    assert "docs/results/paper/report.html" in COMMITTED


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("device", browser.DEVICES)
@pytest.mark.parametrize("page", [MADE_UP, *COMMITTED])
def test_a_page_has_no_fault(chromium, made_up, page, device, scheme):
    file = made_up if page == MADE_UP else ROOT / page
    assert browser.faults(chromium, file, browser.DEVICES[device], scheme) == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<h1>a</h1><script>undefinedFunction()</script>", "script error: undefinedFunction is not defined"),
        ("<h1>a</h1><script>console.warn('old')</script>", "console warning: old"),
        ("<h1>a</h1><script>alert(1)</script>", "opens a dialog: 1"),
        ('<h1>a</h1><img src="missing.png" alt="b">', 'picture not shown: <img> "b"'),
        ('<h1>a</h1><img src="data:image/png;base64,AAAA" alt="b">', 'picture not shown: <img> "b"'),
        ('<h1>a</h1><link rel="stylesheet" href="http://127.0.0.1:9/x">', "asks for http://127.0.0.1:9/x"),
        ('<h1>a</h1><div style="width:2000px">b</div>', "the page is 20"),
        ('<h1>a</h1><div style="width:2000px">b</div>', 'beyond the right edge: <div> "b"'),
        (f'<h1>a</h1><p style="width:99px">{"b" * 40}</p>', f'px in a box of 99 px: <p> "{"b" * 40}"'),
        (f'<h1>a</h1><table style="table-layout:fixed;width:99px"><td>{"b" * 30}</table>', ": <td>"),
        ('<h1>a</h1><p style="font-size:14px">b</p>', 'text of 14 px: <p> "b"'),
        ('<h1>a</h1><span style="color:#999">b</span>', 'contrast 2.85: <span> "b"'),
        ('<h1>a</h1><p style="background:#000a"><b>b</b></p>', '<b> "b"'),
        ("<h2>a</h2>", "0 headings of level 1"),
        ("<h1>a</h1><h1>b</h1>", "2 headings of level 1"),
        ("<h1>a</h1><h3>b</h3>", 'heading of level 3 after level 1: <h3> "b"'),
        ('<h1>a</h1><a href="#there" style="color:#000">b</a>', 'leads nowhere: <a> "b"'),
    ],
)
def test_a_fault_is_named(chromium, tmp_path, body, fault):
    file = tmp_path / "page.html"
    style = '<meta name="viewport" content="width=device-width"><meta charset="utf-8">'
    file.write_text(f'<!DOCTYPE html><html lang="en"><head>{style}<title>a</title></head>{body}</html>')
    found = browser.faults(chromium, file, browser.DEVICES["phone"], "light")
    assert any(fault in line for line in found), found


def test_a_scheme_is_seen(chromium, tmp_path):
    """A page that is readable in the light color scheme only."""
    file = tmp_path / "page.html"
    style = "<style>@media (prefers-color-scheme: dark) { html { background: #000 } }</style>"
    file.write_text(f"<!DOCTYPE html><title>a</title>{style}<h1>a</h1>")
    desktop = browser.DEVICES["desktop"]
    assert browser.faults(chromium, file, desktop, "light") == []
    assert browser.faults(chromium, file, desktop, "dark") == ['contrast 1.00: <h1> "a"']


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Sets the PATH to a folder with a few tools; returns a function that adds a program to it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("cat", "env", "mktemp", "rm", "chmod", "sh"):
        (folder / tool).symlink_to(shutil.which(tool))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CHROMIUM", raising=False)

    def put(name, *lines):
        (folder / name).write_text("\n".join(["#!/bin/sh", *lines, ""]))
        (folder / name).chmod(0o755)
        return str(folder / name)

    return put


def install():
    return subprocess.run([INSTALL], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", browser.NAMES)
def test_a_browser_on_the_path_is_taken(programs, name):
    path = programs(name)
    assert browser.executable() == path
    done = install()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_variable_comes_first(programs, tmp_path, monkeypatch):
    programs("chromium")
    mine = tmp_path / "mine"
    mine.symlink_to(shutil.which("sh"))
    monkeypatch.setenv("CHROMIUM", str(mine))
    assert browser.executable() == str(mine)
    assert install().returncode == 0

    mine.unlink()
    with pytest.raises(FileNotFoundError, match="CHROMIUM names"):
        browser.executable()
    assert install().returncode == 1


def test_without_a_browser_one_line_says_how_to_get_one(programs):
    with pytest.raises(FileNotFoundError, match=r"install_browser\.sh or set CHROMIUM"):
        browser.executable()
    done = install()
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "set CHROMIUM" in done.stderr


@pytest.mark.parametrize("user", [0, 1000])
def test_apt_installs_one(programs, tmp_path, monkeypatch, user):
    log = tmp_path / "log"
    monkeypatch.setenv("LOG", str(log))
    programs("id", f"echo {user}")
    programs("sudo", '[ "$1" = -n ] || exit 1', "shift", 'echo "sudo" >>"$LOG"', 'exec "$@"')
    folder = os.environ["PATH"]
    programs(
        "apt-get",
        'echo "$*" >>"$LOG"; echo chatter',
        f'[ "$1" != install ] || {{ echo >{folder}/chromium; chmod +x {folder}/chromium; }}',
    )
    done = install()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    apt = ["update", "install -y --no-install-recommends chromium"]
    assert log.read_text().splitlines() == (apt if user == 0 else ["sudo", apt[0], "sudo", apt[1]])


@pytest.mark.parametrize("status", [100, 0])
def test_an_apt_that_brings_none_is_shown(programs, status):
    programs("id", "echo 0")
    programs("apt-get", "echo 'Unable to locate package'", f"exit {status}")
    done = install()
    assert done.returncode == 1
    assert "Unable to locate package" in done.stderr
    assert "set CHROMIUM" in done.stderr.splitlines()[-1]
