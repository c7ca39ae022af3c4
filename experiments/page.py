"""A report as one self-contained HTML file without scripts."""

import base64
import collections
import contextlib
import dataclasses
import io
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
import PIL.Image

from experiments.claims import FAILS, HOLDS, OPEN, Claim
from keras_resnet.errors import InputError
from keras_resnet.files import atomic_path
from keras_resnet.tables import markdown_table

_CLAIM_HEADER = ("Claim", "In the paper", "Here", "Verdict")
_VERDICT_CLASS = {HOLDS: "holds", FAILS: "fails", OPEN: "open"}
_RESERVED = ("summary", "facts")  # anchors of the page's own headings
_NUMBER = re.compile(r"[-+−±~≈<>≤≥]?\s*\.?\d")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")

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
    """A PNG picture; beside the page it is `<name>.png`, a name of letters, digits, `_`, `.` and `-`."""

    name: str
    png: bytes
    alt: str
    caption: str

    @property
    def base64(self) -> str:
        """The PNG file for a data URL."""
        return base64.b64encode(self.png).decode("ascii")

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels.

        Raises:
            InputError: it is not a PNG file.
        """
        try:
            return PIL.Image.open(io.BytesIO(self.png), formats=["PNG"]).size
        except OSError:
            raise InputError(f"picture {self.name!r} is not a PNG file") from None


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose first column heads its rows; columns of numbers are aligned to the right."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    @property
    def numeric(self) -> list[bool]:
        """For each column whether most cells begin with a number; others may say why there is none.

        Raises:
            InputError: a row is not as long as the header.
        """
        columns = len(self.header)
        for row in self.rows:
            if len(row) != columns:
                raise InputError(
                    f"table {self.caption!r} has {columns} columns, but a row of {len(row)} cells"
                )
        counts = [sum(bool(_NUMBER.match(row[i])) for row in self.rows) for i in range(columns)]
        return [2 * count > len(self.rows) for count in counts]


Part = Picture | Table | str
"""A part of a section's body; a `str` is a paragraph."""


@dataclasses.dataclass(frozen=True)
class Section:
    """The section of one experiment; its body is what the verdicts rest on.

    The anchor is the section's address after `#`. Default: made from the title.
    """

    title: str
    claims: Sequence[Claim]
    body: Sequence[Part]
    anchor: str = ""


def write_page(
    path: Path, title: str, intro: str, sections: Sequence[Section], environment: Mapping[str, str]
) -> Path:
    """Writes a report atomically as one HTML file, with each picture as `<name>.png` beside it.

    Equal input gives equal bytes. With more than one section with claims, a summary of all claims comes
    first. The environment says how the page was made: command, versions, time, machine.

    Raises:
        InputError: a picture is not a PNG file, its name is invalid or used twice, or a table's row is not as
            long as its header.
        OSError: a file cannot be written; older ones are unchanged.
    """
    pictures = _pictures(sections)
    for name, count in collections.Counter(picture.name for picture in pictures).items():
        if not _NAME.fullmatch(name):
            raise InputError(f"picture name {name!r} must consist of letters, digits, '_', '.' and '-'")
        if count > 1:
            raise InputError(f"{count} pictures are named {name!r}; names must differ")
    html = _ENVIRONMENT.get_template("page.html.jinja").render(
        title=title,
        intro=intro,
        sections=list(zip(sections, _anchors(sections), strict=True)),
        environment=environment,
        has_summary=sum(bool(section.claims) for section in sections) > 1,
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
    title: str, intro: str, sections: Sequence[Section], environment: Mapping[str, str]
) -> str:
    """A Markdown summary of the page report.html: the claims with their verdicts, and the pictures."""
    claims = [claim for section in sections for claim in section.claims]
    rows = [
        [_markdown(cell) for cell in (claim.statement, claim.paper, claim.ours, claim.verdict)]
        for claim in claims
    ]
    parts = [
        f"# {_markdown(title)}",
        _markdown(intro),
        "The whole page, with its tables: [report.html](report.html).",
        markdown_table(_CLAIM_HEADER, rows),
    ]
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


def _anchors(sections: Iterable[Section]) -> list[str]:
    """A different anchor for each section, none of them reserved."""
    anchors: list[str] = list(_RESERVED)
    for section in sections:
        wanted = re.sub(r"\W+", "-", section.anchor or section.title).strip("-").lower() or "section"
        names = itertools.chain([wanted], (f"{wanted}-{number}" for number in itertools.count(2)))
        anchors.append(next(name for name in names if name not in anchors))
    return anchors[len(_RESERVED) :]
