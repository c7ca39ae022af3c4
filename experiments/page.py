"""A report as one self-contained HTML file: no network, no script, no second file."""

import base64
import collections
import contextlib
import dataclasses
import os
import re
import struct
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2

from experiments.claims import FAILS, HOLDS, OPEN, Claim
from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path
from keras_resnet.tables import markdown_table

_CLAIM_HEADER = ("Claim", "In the paper", "Here", "Verdict")
_VERDICT_CLASS = {HOLDS: "holds", FAILS: "fails", OPEN: "open"}
_RESERVED = ("summary", "facts")  # anchors of the page's own headings
_NUMBER = re.compile(r"[-+−±~≈<>≤≥]?\s*\.?\d")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

# "Portable Network Graphics (PNG) Specification": the signature, then the chunk IHDR, which begins with
# width and height.
_PNG_START = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4s", 13, b"IHDR")

_ENVIRONMENT = jinja2.Environment(
    loader=jinja2.FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


@dataclasses.dataclass(frozen=True)
class Picture:
    """A picture.

    Attributes:
        name: letters, digits, `_`, `.` and `-`; the file beside the page is `<name>.png`.
        png: content of the PNG file.
        alt: alternative text.
        caption: text below the picture.
    """

    name: str
    png: bytes
    alt: str
    caption: str

    @property
    def base64(self) -> str:
        """The file for a data URL."""
        return base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels.

        Raises:
            InputError: it is not a PNG file.
        """
        if not self.png.startswith(_PNG_START) or len(self.png) < len(_PNG_START) + 8:
            raise InputError(f"picture {self.name!r} is no PNG file")
        width, height = struct.unpack_from(">II", self.png, len(_PNG_START))
        return width, height


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column heads its rows; columns of numbers are aligned to the right.

    Attributes:
        header: one cell per column.
        rows: each as long as the header.
        caption: text below the table.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """Whether most cells of each column begin as a number does; others may say why there is none.

        Raises:
            InputError: a row is not as long as the header.
        """
        for row in self.rows:
            if len(row) != len(self.header):
                raise InputError(
                    f"table {self.caption!r} has {len(self.header)} columns, but a row of {len(row)} cells"
                )
        counts = [sum(bool(_NUMBER.match(row[i])) for row in self.rows) for i in range(len(self.header))]
        return [2 * count > len(self.rows) for count in counts]


Part = Picture | Table | str
"""A part of a section's body; a `str` is a paragraph."""


@dataclasses.dataclass(frozen=True)
class Section:
    """The section of one experiment.

    Attributes:
        title: its heading.
        claims: claims of the paper and what was measured; they come first.
        body: what the verdicts rest on.
        anchor: its address after `#`. Default: made from the title.
    """

    title: str
    claims: Sequence[Claim]
    body: Sequence[Part]
    anchor: str = ""


def write_page(
    path: str | os.PathLike,
    title: str,
    intro: str,
    sections: Sequence[Section],
    environment: Mapping[str, str],
) -> Path:
    """Writes a report atomically as one HTML file, with each picture as `<name>.png` beside it.

    Equal input gives equal bytes.

    Args:
        path: the file; its folder is created.
        title: heading of the page.
        intro: first paragraph.
        sections: sections in order; with more than one, a summary of all claims precedes them.
        environment: how the page was made: command, versions, time, machine.

    Returns:
        `path`.

    Raises:
        InputError: a picture is no PNG or its name does not fit a file or is used twice, or a table's row is
            not as long as its header.
        OSError: a file cannot be written; older ones are unchanged.
    """
    path = Path(path)
    pictures = _pictures(sections)
    _check_names(pictures)
    html = _ENVIRONMENT.get_template("page.html.jinja").render(
        title=title,
        intro=intro,
        sections=list(zip(sections, _anchors(sections), strict=True)),
        environment=environment,
        header=_CLAIM_HEADER,
        verdicts=_VERDICT_CLASS,
        counts=collections.Counter(claim.verdict for section in sections for claim in section.claims),
    )
    files = {path: html.encode()}
    files |= {path.parent / f"{picture.name}.png": picture.png for picture in pictures}
    with contextlib.ExitStack() as stack:
        # All are written before any is renamed; the page, which needs no other file, is renamed first.
        for file, content in reversed(files.items()):
            stack.enter_context(atomic_path(file)).write_bytes(content)
    return path


def summary_markdown(
    title: str,
    intro: str,
    sections: Sequence[Section],
    environment: Mapping[str, str],
    page: str = "report.html",
) -> str:
    """A Markdown summary of the page: the claims with their verdicts, and the pictures.

    Args:
        title: heading of the page.
        intro: first paragraph.
        sections: sections of the page.
        environment: how the page was made.
        page: name of the page's file, beside which this text stands.
    """
    claims = [claim for section in sections for claim in section.claims]
    rows = [
        [_markdown(cell) for cell in (claim.statement, claim.paper, claim.ours, claim.verdict)]
        for claim in claims
    ]
    parts = [f"# {_markdown(title)}", _markdown(intro), f"The whole page, with its tables: [{page}]({page})."]
    parts.append(markdown_table(_CLAIM_HEADER, rows))
    for section in sections:
        pictures = _pictures([section])
        if pictures:
            parts.append(f"## {_markdown(section.title)}")
        for picture in pictures:
            parts += [f"![{_markdown(picture.alt)}]({picture.name}.png)", _markdown(picture.caption)]
    if environment:
        parts.append("\n".join(f"- {_markdown(key)}: {_markdown(text)}" for key, text in environment.items()))
    return "\n\n".join(parts) + "\n"


def _markdown(text: str) -> str:
    # Not "\|": a backslash may stand before the bar already.
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "&#124;")


def _pictures(sections: Iterable[Section]) -> list[Picture]:
    return [part for section in sections for part in section.body if isinstance(part, Picture)]


def _check_names(pictures: Iterable[Picture]) -> None:
    counts = collections.Counter(picture.name for picture in pictures)
    for name, count in counts.items():
        if not _NAME.fullmatch(name):
            raise InputError(f"picture name {name!r} must be of letters, digits, '_', '.' and '-'")
        if count > 1:
            raise InputError(f"{count} pictures are named {name!r}; names must differ")


def _anchors(sections: Iterable[Section]) -> list[str]:
    """A different anchor for each section."""
    anchors: list[str] = list(_RESERVED)
    for section in sections:
        wanted = re.sub(r"\W+", "-", section.anchor or section.title).strip("-").lower() or "section"
        anchor, number = wanted, 1
        while anchor in anchors:
            number += 1
            anchor = f"{wanted}-{number}"
        anchors.append(anchor)
    return anchors[len(_RESERVED) :]
