"""What a browser says against a page: every fault as one line that names what is wrong."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from playwright import sync_api

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome-headless-shell")
FLAGS = (
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclasses.dataclass(frozen=True)
class Device:
    """A screen.

    Attributes:
        width: of the page's window, in CSS pixels.
        height: of the window.
        options: of the browser's context.
    """

    width: int
    height: int
    options: tuple[tuple[str, object], ...] = ()


DEVICES = {
    "phone": Device(360, 740, (("device_scale_factor", 2), ("has_touch", True), ("is_mobile", True))),
    "desktop": Device(1280, 800),
}


def executable() -> str:
    """The browser's path: of the variable CHROMIUM, else the first of `NAMES` on the PATH.

    Raises:
        FileNotFoundError: there is none; one line says how to get one.
    """
    wanted = os.environ.get("CHROMIUM")
    for name in [wanted] if wanted else NAMES:
        if found := shutil.which(name):
            return found
    if wanted:
        raise FileNotFoundError(f"the variable CHROMIUM names {wanted!r}, which is no program")
    raise FileNotFoundError(
        f"no browser ({', '.join(NAMES)}) on the PATH: run tests/experiments/install_browser.sh "
        "or set CHROMIUM to one's path"
    )


@contextlib.contextmanager
def launched() -> Iterator[sync_api.Browser]:
    """A browser without a window."""
    path = executable()
    with sync_api.sync_playwright() as playwright:
        # Its sandbox needs rights that root in a container lacks; what is opened here is our own.
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS, chromium_sandbox=False)
        yield browser
        browser.close()


@contextlib.contextmanager
def opened(
    browser: sync_api.Browser, address: str, device: Device, scheme: str, host: str | None = None
) -> Iterator[tuple[sync_api.Page, list[str]]]:
    """Opens a page; yields it with a list, to which a line is added for each fault while it is open.

    Args:
        browser: of `launched`.
        address: URL of the page.
        device: to show it on.
        scheme: "light" or "dark".
        host: what the URLs start with that the page may load; None: only the page itself.
    """
    found = []

    def on_request(route):
        url = route.request.url
        is_own = url.partition("#")[0] == address if host is None else url.startswith(host)
        if is_own or url.startswith("data:"):
            route.continue_()
        else:
            found.append(f"asks for {url}")
            route.abort()

    def on_console(message):
        if message.type in ("error", "warning"):
            found.append(f"console {message.type}: {message.text}")

    def on_dialog(dialog):
        found.append(f"opens a dialog: {dialog.message}")
        dialog.dismiss()

    options = {"viewport": {"width": device.width, "height": device.height}, **dict(device.options)}
    # Colors are looked at when no transition is under way.
    context = browser.new_context(color_scheme=scheme, reduced_motion="reduce", **options)
    with contextlib.closing(context):
        context.route("**/*", on_request)
        page = context.new_page()
        page.on("pageerror", lambda error: found.append(f"script error: {error}"))
        page.on("console", on_console)
        page.on("dialog", on_dialog)
        page.goto(address, wait_until="load")
        yield page, found


def look(page: sync_api.Page, device: Device, within: str = "body") -> list[str]:
    """Says what is wrong with the part of an open page that a selector names."""
    return page.evaluate(_LOOK, [device.width, within])


def faults(browser: sync_api.Browser, file: Path, device: Device, scheme: str) -> list[str]:
    """Opens an HTML file and says what is wrong with it, on a device, in the scheme "light" or "dark"."""
    with opened(browser, file.resolve().as_uri(), device, scheme) as (page, found):
        return found + look(page, device)


_LOOK = """\
([width, within]) => {
  const found = [];
  const part = document.querySelector(within);
  const name = (e) => {
    const text = (e.alt || e.textContent || e.getAttribute("src") || "").trim().replace(/\\s+/g, " ");
    return `<${e.tagName.toLowerCase()}> "${text.slice(0, 40)}"`;
  };
  const all = [...part.querySelectorAll("*")];
  const ancestors = (e) => { const l = []; for (; e; e = e.parentElement) l.push(e); return l; };
  const scrolls = (e) => ["auto", "scroll"].includes(getComputedStyle(e).overflowX);
  // Text for screen readers alone is put into a box of a pixel.
  const isUnseen = (e) => e.offsetWidth <= 1 && e.offsetHeight <= 1;

  const root = document.documentElement;
  if (root.scrollWidth > width) found.push(`the page is ${root.scrollWidth} px wide on ${width} px`);

  for (const e of part.querySelectorAll("img"))
    if (!e.complete || !e.naturalWidth) found.push(`picture not shown: ${name(e)}`);

  for (const e of part.querySelectorAll("p")) {
    const size = parseFloat(getComputedStyle(e).fontSize);
    if (size < 15) found.push(`text of ${size} px: ${name(e)}`);
  }

  for (const e of all) {
    if (ancestors(e).some((a) => a !== root && a !== document.body && (scrolls(a) || isUnseen(a)))) continue;
    // Inline elements have no such widths; the block around them has.
    if (e.clientWidth && e.scrollWidth > e.clientWidth + 1)
      found.push(`${e.scrollWidth} px in a box of ${e.clientWidth} px: ${name(e)}`);
    if (e.getBoundingClientRect().right > width + 1) found.push(`beyond the right edge: ${name(e)}`);
  }

  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const known = {};
  const rgba = (colour) => {
    if (!known[colour]) {
      pen.clearRect(0, 0, 1, 1);
      pen.fillStyle = colour;
      pen.fillRect(0, 0, 1, 1);
      known[colour] = [...pen.getImageData(0, 0, 1, 1).data];
    }
    return known[colour];
  };
  const over = (top, below) => below.map((b, i) => top[i] * top[3] / 255 + b * (1 - top[3] / 255));
  const ground = (e) => ancestors(e).reverse()
    .reduce((below, a) => over(rgba(getComputedStyle(a).backgroundColor), below), [255, 255, 255]);
  // Of WCAG 2, "relative luminance" and "contrast ratio".
  const luminance = (c) => c.map((v) => v / 255)
    .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  for (const e of all) {
    if (![...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim())) continue;
    const below = ground(e);
    const pair = [below, over(rgba(getComputedStyle(e).color), below)].map(luminance);
    const contrast = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
    if (contrast < 4.5) found.push(`contrast ${contrast.toFixed(2)}: ${name(e)}`);
  }

  const headings = [...part.querySelectorAll("h1, h2, h3, h4, h5, h6")];
  const levels = headings.map((e) => Number(e.tagName[1]));
  const first = levels.filter((level) => level === 1).length;
  if (first !== 1) found.push(`${first} headings of level 1`);
  levels.forEach((level, i) => {
    const before = i ? levels[i - 1] : 0;
    if (level > before + 1)
      found.push(`heading of level ${level} after level ${before}: ${name(headings[i])}`);
  });

  for (const e of part.querySelectorAll('a[href^="#"]'))
    if (!document.getElementById(decodeURIComponent(e.hash.slice(1))))
      found.push(`leads nowhere: ${name(e)}`);
  return found;
}
"""
