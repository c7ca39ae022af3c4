"""A report as one HTML file that needs nothing else: no network, no script, no second file."""

import base64
import collections
import contextlib
import dataclasses
import html
import os
import re
import struct
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.claims import FAILS, HOLDS, OPEN, Claim
from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path
from keras_resnet.tables import markdown_table

_CLAIM_HEADER = ("Claim", "In the paper", "Here", "Verdict")
_VERDICT_CLASS = {HOLDS: "holds", FAILS: "fails", OPEN: "open"}
_SUMMARY, _FACTS = "summary", "facts"  # anchors of the page's own headings
_NUMBER = re.compile(r"[-+−±~≈<>≤≥]?\s*\.?\d")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

# Of "Portable Network Graphics (PNG) Specification": the signature, then the chunk IHDR, which begins with
# width and height.
_PNG_START = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IHDR")


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture with its text.

    Attributes:
        name: letters, digits, `_`, `.` and `-`; of the file `<name>.png` beside the page.
        png: the file's content.
        alt: what is seen, for who does not see it.
        caption: below the picture.
    """

    name: str
    png: bytes
    alt: str
    caption: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table; the first column heads its rows, columns of numbers are aligned to the right.

    Attributes:
        header: a cell per column.
        rows: each as long as the header.
        caption: below the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Code:
    """Commands, shown line by line as they are."""

    text: str


@dataclasses.dataclass(frozen=True)
class Section:
    """One experiment's part of the page.

    Attributes:
        title: its heading.
        claims: of the paper, with what was measured; they come first.
        body: what they rest on; a `str` is a paragraph.
        anchor: the part of an address after `#`; made from the title if empty.
    """

    title: str
    claims: Sequence[Claim]
    body: Sequence[Picture | Table | Code | str]
    anchor: str = ""


def write_page(
    path: str | os.PathLike,
    title: str,
    lead: str,
    sections: Sequence[Section],
    facts: Mapping[str, str],
) -> Path:
    """Writes a report as one HTML file, whole or not at all, and each picture as `<name>.png` beside it.

    Equal input gives equal bytes.

    Args:
        path: the file; its folder is made.
        title: the heading of the page.
        lead: the first paragraph.
        sections: in order; a summary of all claims stands before them where there is more than one.
        facts: what the page says of itself at its end: commands, versions, time, machine.

    Returns:
        `path`.

    Raises:
        InputError: a picture is no PNG or its name does not fit a file or is used twice, or a table's row is
            not as long as its header.
        OSError: a file cannot be written; older ones are untouched.
    """
    path = Path(path)
    pictures = [part for section in sections for part in section.body if isinstance(part, Picture)]
    _check_names(pictures)
    files = {path: _page(title, lead, sections, facts).encode()}
    files |= {path.parent / f"{picture.name}.png": picture.png for picture in pictures}
    with contextlib.ExitStack() as stack:
        # All are written before the first one gets its name; the page, which needs no other, gets it first.
        for file, content in reversed(files.items()):
            stack.enter_context(atomic_path(file)).write_bytes(content)
    return path


def summary_markdown(
    title: str, lead: str, sections: Sequence[Section], facts: Mapping[str, str], page: str = "report.html"
) -> str:
    """The page in short, for readers of Markdown: the claims with their verdicts, and the pictures.

    Args:
        title: of the page.
        lead: its first paragraph.
        sections: its sections.
        facts: its facts.
        page: the name of the page's file; it and the pictures stand beside this text.
    """
    rows = [[_markdown(cell) for cell in _cells(claim)] for section in sections for claim in section.claims]
    parts = [f"# {_markdown(title)}", _markdown(lead), f"The whole page, with its tables: [{page}]({page})."]
    parts.append(markdown_table(_CLAIM_HEADER, rows))
    for section in sections:
        pictures = [part for part in section.body if isinstance(part, Picture)]
        if pictures:
            parts.append(f"## {_markdown(section.title)}")
        for picture in pictures:
            parts += [f"![{_markdown(picture.alt)}]({picture.name}.png)", _markdown(picture.caption)]
    if facts:
        parts.append("\n".join(f"- {_markdown(name)}: {_markdown(text)}" for name, text in facts.items()))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    # Not "\|": a backslash may stand before the bar already.
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def _cells(claim: Claim) -> tuple[str, str, str, str]:
    return claim.statement, claim.paper, claim.ours, claim.verdict


def _check_names(pictures: Iterable[Picture]) -> None:
    counts = collections.Counter(picture.name for picture in pictures)
    for name, count in counts.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"picture name {name!r} must be of letters, digits, '_', '.' and '-'")
        if count > 1:
            raise InputError(f"{count} pictures are named {name!r}; names must differ")


def _page(title: str, lead: str, sections: Sequence[Section], facts: Mapping[str, str]) -> str:
    anchors = _anchors(sections)
    parts = [f"<h1>{_text(title)}</h1>", f'<p class="lead">{_text(lead)}</p>']
    if len(sections) > 1:
        parts += _summary(sections, anchors)
    for section, anchor in zip(sections, anchors, strict=True):
        parts += _section(section, anchor)
    if facts:
        parts += _facts(facts)
    return _FRAME.format(title=_text(title), icon=_ICON, style=_STYLE, body="\n".join(parts))


def _anchors(sections: Iterable[Section]) -> list[str]:
    """An anchor for each section, all different."""
    anchors = [_SUMMARY, _FACTS]
    for section in sections:
        wanted = re.sub(r"\W+", "-", section.anchor or section.title).strip("-").lower() or "section"
        anchor, number = wanted, 1
        while anchor in anchors:
            number += 1
            anchor = f"{wanted}-{number}"
        anchors.append(anchor)
    return anchors[2:]


def _summary(sections: Sequence[Section], anchors: Sequence[str]) -> list[str]:
    groups = []
    for section, anchor in zip(sections, anchors, strict=True):
        link = f'<a href="#{urllib.parse.quote(anchor)}">{_text(section.title)}</a>'
        heading = f'<tr class="group"><th scope="rowgroup" colspan="4">{link}</th></tr>'
        groups.append([heading, *map(_claim_row, section.claims)])
    counts = collections.Counter(claim.verdict for section in sections for claim in section.claims)
    total = counts.total()
    said = [f"<span>{counts[verdict]} {_badge(verdict)}</span>" for verdict in _VERDICT_CLASS]
    return [
        f'<section aria-labelledby="{_SUMMARY}">',
        f'<h2 id="{_SUMMARY}">The claims</h2>',
        f'<p class="counts">{total} {"claim" if total == 1 else "claims"}: {" ".join(said)}</p>',
        _claim_table(groups),
        "</section>",
    ]


def _section(section: Section, anchor: str) -> list[str]:
    anchor = _text(anchor)
    parts = [f'<section aria-labelledby="{anchor}">', f'<h2 id="{anchor}">{_text(section.title)}</h2>']
    if section.claims:
        parts.append(_claim_table([[_claim_row(claim) for claim in section.claims]]))
    parts += map(_part, section.body)
    return [*parts, "</section>"]


def _claim_table(groups: Iterable[Sequence[str]]) -> str:
    header = "".join(f'<th scope="col">{cell}</th>' for cell in _CLAIM_HEADER)
    bodies = [f"<tbody>\n{_lines(rows)}\n</tbody>" for rows in groups]
    return f'<table class="claims">\n<thead><tr>{header}</tr></thead>\n{_lines(bodies)}\n</table>'


def _claim_row(claim: Claim) -> str:
    statement, paper, ours, _ = map(_text, _cells(claim))
    _, paper_label, ours_label, _ = _CLAIM_HEADER
    return (
        f'<tr><th scope="row">{statement}</th><td data-label="{paper_label}">{paper}</td>'
        f'<td data-label="{ours_label}">{ours}</td><td>{_badge(claim.verdict)}</td></tr>'
    )


def _badge(verdict: str) -> str:
    return f'<span class="badge {_VERDICT_CLASS[verdict]}">{_text(verdict)}</span>'


def _part(part: Picture | Table | Code | str) -> str:
    if isinstance(part, Picture):
        return _picture(part)
    if isinstance(part, Table):
        return _table(part)
    if isinstance(part, Code):
        return f'<pre class="scroll" tabindex="0"><code>{_text(part.text)}</code></pre>'
    return f"<p>{_text(part)}</p>"


def _picture(picture: Picture) -> str:
    if not picture.png.startswith(_PNG_START) or len(picture.png) < len(_PNG_START) + 8:
        raise InputError(f"picture {picture.name!r} is no PNG file")
    width, height = struct.unpack_from(">II", picture.png, len(_PNG_START))
    content = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<figure>\n<img src="data:image/png;base64,{content}" alt="{_text(picture.alt)}" '
        f'width="{width}" height="{height}" loading="eager">\n{_caption(picture.caption)}</figure>'
    )


def _table(table: Table) -> str:
    for row in table.rows:
        if len(row) != len(table.header):
            raise InputError(
                f"table {table.caption!r} has {len(table.header)} columns, but a row of {len(row)} cells"
            )
    right = [' class="number"' if _is_numeric(table.rows, i) else "" for i in range(len(table.header))]
    head = "".join(
        f'<th scope="col"{r}>{_text(cell)}</th>' for r, cell in zip(right, table.header, strict=True)
    )
    rows = []
    for first, *rest in table.rows:
        data = "".join(f"<td{r}>{_text(cell)}</td>" for r, cell in zip(right[1:], rest, strict=True))
        rows.append(f'<tr><th scope="row"{right[0]}>{_text(first)}</th>{data}</tr>')
    label = _text(table.caption or "Table")
    return (
        f'<figure>\n<div class="scroll" role="region" tabindex="0" aria-label="{label}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{_lines(rows)}\n</tbody>\n</table>\n</div>\n"
        f"{_caption(table.caption)}</figure>"
    )


def _is_numeric(rows: Sequence[Sequence[str]], column: int) -> bool:
    """Whether most cells begin as a number does; others may say why there is none."""
    return 2 * sum(bool(_NUMBER.match(row[column])) for row in rows) > len(rows)


def _caption(text: str) -> str:
    return f"<figcaption>{_text(text)}</figcaption>\n" if text else ""


def _facts(facts: Mapping[str, str]) -> list[str]:
    pairs = [f"<dt>{_text(name)}</dt><dd>{_text(value)}</dd>" for name, value in facts.items()]
    return [
        f'<section aria-labelledby="{_FACTS}">',
        f'<h2 id="{_FACTS}">How this page was made</h2>',
        f"<dl>\n{_lines(pairs)}\n</dl>",
        "</section>",
    ]


def _text(text: str) -> str:
    return html.escape(text)


def _lines(parts: Iterable[str]) -> str:
    return "\n".join(parts)


# Browsers ask for /favicon.ico where a page names none.
_ICON = "data:image/svg+xml," + urllib.parse.quote(
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 16 16" fill="none" stroke="#37b" stroke-width="2">'
    '<path d="M6 1v14M6 3c9 0 9 9 0 9"/><rect x="3" y="5" width="6" height="4" fill="#fff"/></svg>',
    safe=" =/:'",
)

# The policy holds a browser to what the page promises: nothing is fetched and nothing is run.
_FRAME = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" \
content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<link rel="icon" href="{icon}">
<style>
{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """\
:root {
  color-scheme: light dark;
  --ground: #fdfdfc; --raised: #f3f4f2; --line: #d8dad6; --text: #20242a; --quiet: #585e66; --link: #1f5a9e;
  --holds: #14572f; --holds-ground: #dff1e4; --fails: #8f1d1d; --fails-ground: #fbe3e1;
  --open: #5d4300; --open-ground: #fbeec8;
}
@media (prefers-color-scheme: dark) {
  :root {
    --ground: #15181c; --raised: #1e2227; --line: #363c44; --text: #e4e6e9; --quiet: #a4abb4;
    --link: #8ab8f0; --holds: #9fe0b4; --holds-ground: #173523; --fails: #ffb4ab; --fails-ground: #45201d;
    --open: #f0d384; --open-ground: #3b3013;
  }
}
* { box-sizing: border-box; }
html { background: var(--ground); color: var(--text); -webkit-text-size-adjust: 100%; }
body { margin: 0; font: 1.0625rem/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Liberation Sans",
  Arial, sans-serif; overflow-wrap: anywhere; }
main { max-width: 60rem; margin: 0 auto; padding: 2.5rem 1.25rem 5rem; }
h1, h2 { line-height: 1.2; text-wrap: balance; letter-spacing: -0.01em; }
h1 { font-size: clamp(1.75rem, 1.3rem + 2vw, 2.5rem); margin: 0 0 1rem; }
h2 { font-size: 1.5rem; margin: 0 0 1rem; }
section { margin-top: 3rem; padding-top: 2rem; border-top: 1px solid var(--line); }
p, dl { max-width: 38rem; margin: 0 0 1rem; }
.counts span { white-space: nowrap; margin-right: 0.5rem; }
.lead { font-size: 1.1875rem; color: var(--quiet); }
a { color: var(--link); text-underline-offset: 0.15em; text-decoration-thickness: 1px; }
:focus-visible { outline: 2px solid var(--link); outline-offset: 2px; }
table { border-collapse: collapse; font-size: 0.9375rem; line-height: 1.45;
  font-variant-numeric: tabular-nums; }
th, td { padding: 0.5rem 0.75rem; text-align: left; vertical-align: top; font-weight: 400;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--quiet); font-size: 0.875rem; vertical-align: bottom; }
th:first-child, td:first-child { padding-left: 0; }
th:last-child, td:last-child { padding-right: 0; }
.number { text-align: right; white-space: nowrap; }
.claims { width: 100%; table-layout: fixed; margin: 0 0 2rem; }
.claims thead th:nth-child(1) { width: 34%; }
.claims thead th:nth-child(4) { width: 10rem; }
.claims th[scope="row"] { font-weight: 600; }
.group th { padding-top: 1.5rem; }
.badge { display: inline-block; padding: 0.1rem 0.6rem; border-radius: 1rem; font-size: 0.875rem;
  font-weight: 600; line-height: 1.5; white-space: nowrap; }
.badge::before { margin-right: 0.4em; }
.holds { color: var(--holds); background: var(--holds-ground); }
.holds::before { content: "\\2713"; content: "\\2713" / ""; }
.fails { color: var(--fails); background: var(--fails-ground); }
.fails::before { content: "\\2717"; content: "\\2717" / ""; }
.open { color: var(--open); background: var(--open-ground); }
.open::before { content: "?"; content: "?" / ""; }
figure { margin: 2rem 0; }
img { display: block; max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
figcaption { max-width: 38rem; margin-top: 0.6rem; font-size: 0.9375rem; color: var(--quiet); }
.scroll { overflow-x: auto; }
.scroll table { width: max-content; }
.scroll th, .scroll td { overflow-wrap: break-word; max-width: 22rem; }
pre { background: var(--raised); border-radius: 4px; padding: 0.9rem 1rem; margin: 0 0 1rem; line-height: 1.5;
  overflow-wrap: normal; }
code, dd { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
  font-size: 0.9375rem; }
dt { color: var(--quiet); font-size: 0.9375rem; }
dd { margin: 0 0 0.75rem; white-space: pre-wrap; }
@media (max-width: 40rem) {
  main { padding-top: 1.5rem; }
  .claims, .claims tbody, .claims tr, .claims th, .claims td { display: block; }
  .claims thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  .claims tr { padding: 0.75rem 0; border-bottom: 1px solid var(--line); }
  .claims th, .claims td { padding: 0 0 0.35rem; border: 0; }
  .claims td[data-label]::before { content: attr(data-label) ": "; color: var(--quiet); }
}
"""
