"""The site of `make docs`: what its pages are made from, and the built site in a real browser."""

import contextlib
import functools
import http.server
import importlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import browser

import keras_resnet
from keras_resnet.models.config import MODELS
from keras_resnet.weights.registry import ENTRIES

ROOT = Path(keras_resnet.__file__).parents[1]
DOCS = ROOT / "docs"
PACKAGES = ("", ".classification", ".data", ".detection", ".export", ".training", ".weights")
# Their contents are looked at on both devices in both color schemes, those of the others once.
CHOSEN = (
    "index.html",
    "models.html",
    "understanding_resnet.html",
    "guide.html",
    "api/detection.html",
    "results/paper/index.html",
)
ALL_LOOKS = [(device, scheme) for device in browser.DEVICES for scheme in ("light", "dark")]


@pytest.fixture
def modules(monkeypatch):
    """docs/api_reference.py and docs/tables.py, which belong to no package."""
    monkeypatch.syspath_prepend(DOCS)
    found = importlib.import_module("api_reference"), importlib.import_module("tables")
    yield found
    for module in found:
        del sys.modules[module.__name__]


# What the pages are made from


def test_the_reference_has_every_public_name_once(modules):
    reference, _ = modules
    text = "".join(reference.pages().values())
    described = re.findall(r"^::: keras_resnet\.(\S+)$", text, flags=re.MULTILINE)
    described += re.findall(r"\{#keras_resnet\.(\w+)\}", text)
    assert len(set(described)) == len(described)
    packages = {name: importlib.import_module(f"keras_resnet{name}") for name in PACKAGES}
    objects = {id(public_object(keras_resnet, path)) for path in described if path != "__version__"}
    for package in packages.values():
        names = set(package.__all__) - {"__version__"}
        assert {name for name in names if id(getattr(package, name)) not in objects} == set()
    names = {path.rpartition(".")[2] for path in described}
    assert names == {name for package in packages.values() for name in package.__all__}


def public_object(package, path):
    *folders, name = path.split(".")
    return getattr(importlib.import_module(".".join([package.__name__, *folders])), name)


def test_a_public_name_without_a_section_is_an_error(modules, monkeypatch):
    reference, _ = modules
    known = reference.public_names

    def with_another(package):
        return {**known(package), "Another": "elsewhere.Another"}

    monkeypatch.setattr(reference, "public_names", with_another)
    with pytest.raises(ValueError, match=r"keras_resnet\.Another has no section"):
        reference.pages()


def test_a_section_without_names_is_an_error(modules, monkeypatch):
    reference, _ = modules
    page = reference.Page("Empty", "keras_resnet.data", "", {"Nothing": ("nowhere",)})
    monkeypatch.setattr(reference, "PAGES", (*reference.PAGES, page))
    with pytest.raises(ValueError, match=r"without names in docs/api_reference\.py: Empty: Nothing"):
        reference.pages()


def test_the_table_of_models_has_the_registry(modules):
    _, tables = modules
    table = tables.models_table(tables.README.read_text())
    lines = re.findall(r"<tr>(.*?)</tr>", table)
    header, *rows = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", line) for line in lines]
    assert [row[0] for row in rows] == list(MODELS)
    shown = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    assert shown["resnet50_v1_5"]["parameters"] == "25,557,032"
    for name, cells in shown.items():
        accuracies = [entry.top1 for entry in ENTRIES if entry.model == name]
        assert cells["layers"] == str(MODELS[name].weighted_layers)
        assert cells["weights"] == str(len(accuracies))
        assert cells["top-1, %"] == (f"{max(accuracies):.2f}" if accuracies else "")
    families = {cells["family"] for cells in shown.values()}
    assert families == {
        *("ResNet", "ResNet v1.5", "ResNet V2", "ResNet-D", "ResNeXt", "Wide ResNet"),
        *("plain", "plain, CIFAR", "ResNet, CIFAR"),
    }


def test_an_old_table_in_the_readme_is_an_error(modules):
    _, tables = modules
    text = re.sub(r"^\| plain34 .*\n", "", tables.README.read_text(), flags=re.MULTILINE)
    with pytest.raises(SystemExit, match="make readme"):
        tables.models_table(text)


def test_a_table_without_its_place_is_an_error(modules):
    _, tables = modules
    assert tables.replaced("a <!-- table: x -->old<!-- end --> b", "x", r"\1") == (
        "a <!-- table: x -->\n\\1\n<!-- end --> b"
    )
    with pytest.raises(SystemExit, match="0 places for the table 'y'"):
        tables.replaced("a <!-- table: x --><!-- end --> b", "y", "")


@pytest.mark.parametrize(
    "page", sorted([*DOCS.rglob("*.md"), *ROOT.glob("*.md")]), ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_to_files(page):
    """On GitHub, a link to a folder works, too; on the site, it does not."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    targets = {link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in link}
    assert {target for target in targets if target and not (page.parent / target).is_file()} == set()


def test_the_numbers_of_the_tutorial_are_those_of_the_results():
    text = " ".join((DOCS / "understanding_resnet.md").read_text().split())
    numbers = set(re.findall(r"\d+\.\d+ ± \d+\.\d+", text))
    assert len(numbers) > 10
    results = (DOCS / "results" / "paper" / "README.md").read_text()
    assert {number for number in numbers if number not in results} == set()


# The built site


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


def build(folder):
    """Builds the site as `make docs` does; returns the process."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"},
        text=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the built site."""
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def host(site):
    """Serves the site; gives its address, which ends with a slash."""
    handler = functools.partial(Quiet, directory=site)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def visit(chromium, host):
    """Opens a page of the site on a device; at the end of the test, nothing may have gone wrong on it."""
    with contextlib.ExitStack() as stack:
        lists = []

        def enter(name, device, scheme="light"):
            opened = browser.opened(chromium, host + name, browser.DEVICES[device], scheme, host)
            page, found = stack.enter_context(opened)
            lists.append(found)
            return page

        yield enter
        assert [line for found in lists for line in found] == []


def in_a_browser(test):
    return pytest.mark.slow(pytest.mark.xdist_group("site")(test))


@in_a_browser
@pytest.mark.parametrize(("device", "scheme"), ALL_LOOKS)
def test_pages_have_no_fault(site, chromium, host, device, scheme):
    pages = CHOSEN
    if (device, scheme) == ("phone", "light"):
        pages = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html"))
        # Reports are pages of their own, which tests/experiments looks at.
        pages = [page for page in pages if page != "404.html" and not page.endswith("/report.html")]
        assert len(pages) > 30
        assert set(CHOSEN) < set(pages)
    faults = {}
    for name in pages:
        screen = browser.DEVICES[device]
        with browser.opened(chromium, host + name, screen, scheme, host) as (page, found):
            expected = "slate" if scheme == "dark" else "default"
            page.wait_for_selector(f"body[data-md-color-scheme={expected}]")
            width = page.evaluate("document.documentElement.scrollWidth")
            wide = [f"the page is {width} px wide"] if width > screen.width else []
            found = found + wide + browser.look(page, screen, "article")
            if found:
                faults[name] = found
    assert faults == {}


@in_a_browser
def test_the_first_page_fits_on_a_screen(visit):
    page = visit("index.html", "desktop")
    for part in ("h1", ".hero img", ".hero-code"):
        box = page.locator(part).first.bounding_box()
        assert box["y"] + box["height"] <= browser.DEVICES["desktop"].height, part


@in_a_browser
@pytest.mark.parametrize("device", browser.DEVICES)
def test_search_finds_a_function(visit, device):
    page = visit("index.html", device)
    if device == "phone":
        page.locator("label.md-header__button[for=__search]").click()
    page.locator("input.md-search__input").click()
    page.keyboard.type("build_detector")
    link = page.locator("a.md-search-result__link[href*='api/detection.html']").first
    link.click()
    page.wait_for_url(re.compile(r"api/detection\.html"))


@in_a_browser
@pytest.mark.parametrize("device", browser.DEVICES)
def test_the_table_of_models_is_sorted(visit, device):
    page = visit("models.html", device)

    def column(number):
        cells = page.locator(f".zoo tbody tr td:nth-child({number})")
        return [cell.strip() for cell in cells.all_text_contents()]

    header = page.locator(".zoo thead th", has_text="parameters")
    number = 1 + page.locator(".zoo thead th").all_text_contents().index("parameters")
    header.locator("button").click()
    ascending = [int(cell.replace(",", "")) for cell in column(number)]
    assert ascending == sorted(ascending)
    assert header.get_attribute("aria-sort") == "ascending"
    header.locator("button").click()
    assert column(number)[0] == "126,886,696"
    # Networks without an accuracy come last in both orders.
    accuracy = page.locator(".zoo thead th", has_text="top-1").locator("button")
    for _ in range(2):
        accuracy.click()
        cells = column(11)
        assert cells[0]
        assert not cells[-1]
    assert cells[0] == f"{max(entry.top1 for entry in ENTRIES):.2f}"
    assert header.get_attribute("aria-sort") is None
    page.locator(".zoo thead th button").first.click()
    names = column(1)
    assert names.index("resnet34") < names.index("resnet101")
    assert sorted(names) == sorted(MODELS)


@in_a_browser
@pytest.mark.parametrize("device", browser.DEVICES)
def test_the_table_of_models_is_filtered(visit, device):
    page = visit("models.html", device)

    def shown():
        return page.locator(".zoo tbody tr:visible td:first-child").all_text_contents()

    output = page.locator(".zoo-filter output")
    assert output.text_content() == "34 of 34 networks"
    words = page.get_by_label("Filter")
    words.fill("RESNEXT 101")
    assert shown() == ["resnext101_32x8d", "resnext101_64x4d"]
    assert output.text_content() == "2 of 34 networks"
    words.press("Enter")  # sends nothing
    assert len(shown()) == 2
    words.fill("")
    page.get_by_label("Family").select_option("plain, CIFAR")
    assert shown() == [name for name in MODELS if name.startswith("cifar_plain")]
    page.get_by_label("with published weights").check()
    assert shown() == []
    page.get_by_label("Family").select_option("all")
    assert set(shown()) == {entry.model for entry in ENTRIES}
