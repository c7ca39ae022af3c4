"""The content of the report, read with a parser; the browser test checks its appearance."""

import base64
import html.parser
import re
import struct
import zlib

import pytest

from experiments import page
from experiments.claims import FAILS, HOLDS, OPEN, Claim
from experiments.page import Picture, Section, Table, summary_markdown, write_page
from keras_resnet.errors import InputError

HOSTILE = "<script>alert(1)</script><b>\"'&amp;</p>--> ü 深"
# Elements without content, of the HTML standard's "void elements".
VOID = {"img", "link", "meta"}
VERDICTS = (HOLDS, FAILS, OPEN)


def png(width=3, height=2):
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + b"\x80" * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


class Parsed(html.parser.HTMLParser):
    """A page's elements as (tag, attributes, text); the text includes that of nested elements."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self._open = [], []
        self.feed(text)
        self.close()
        assert not self._open, "elements are left open"

    def handle_starttag(self, tag, attributes):
        element = [tag, dict(attributes), ""]
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        assert self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for element in self._open:
            element[2] += data

    def texts(self, tag, kind=None):
        return [t for name, a, t in self.elements if name == tag and kind in (None, a.get("class"))]

    def attributes(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


def written(folder, *sections, title="Title", intro="Lead", environment=None, **options):
    path = write_page(folder / "page.html", title, intro, sections, environment or {}, **options)
    return Parsed(path.read_text(encoding="utf-8"))


def section(title, *body, anchor=""):
    claims = [Claim(f"{title} says {v}", f"{title} paper", f"{title} ours", v) for v in VERDICTS]
    return Section(title, claims, body, anchor)


def test_text_of_every_field_is_shown_as_it_is(tmp_path):
    def text(number):
        return f"{HOSTILE}{number}"

    hostile = Section(
        text(1),
        [Claim(text(2), text(3), text(4), HOLDS)],
        [
            text(5),
            Table([text(7), text(8)], [[text(9), text(10)]], text(11)),
            Picture("a", png(), text(12), text(13)),
        ],
        text(14),
    )
    around = {"title": text(15), "intro": text(16), "environment": {text(17): text(18)}}
    parsed = written(tmp_path, hostile, section("Other"), **around)
    assert not {"script", "b"} & {tag for tag, _, _ in parsed.elements}
    found = {
        "h1": [15], "title": [15], "h2": [1], "a": [1], "p": [5, 16], "figcaption": [11, 13],
        "th": [2, 7, 8, 9], "td": [3, 4, 10], "dt": [17], "dd": [18],
    }  # fmt: skip
    for tag, numbers in found.items():
        assert {text(number) for number in numbers} <= set(parsed.texts(tag)), tag
    assert [image["alt"] for image in parsed.attributes("img")] == [text(12)]
    assert text(11) in [box.get("aria-label") for box in parsed.attributes("div")]


def test_pictures_are_in_the_page_and_beside_it(tmp_path):
    first, second = png(3, 2), png(700, 40)
    body = Picture("first", first, "alt", "caption"), Picture("second", second, "alt", "")
    images = written(tmp_path, section("A", *body)).attributes("img")
    assert [(image["width"], image["height"]) for image in images] == [("3", "2"), ("700", "40")]
    contents = [image["src"].removeprefix("data:image/png;base64,") for image in images]
    assert [base64.b64decode(content, validate=True) for content in contents] == [first, second]
    assert (tmp_path / "first.png").read_bytes() == first
    assert (tmp_path / "second.png").read_bytes() == second


def test_the_summary_has_every_claim_and_its_verdict(tmp_path):
    sections = section("First"), section("Second")
    parsed = written(tmp_path, *sections)
    # Once in the summary, once in its section; the counts' badges come first.
    shown = [claim.verdict for _ in range(2) for part in sections for claim in part.claims]
    assert parsed.texts("p", kind="counts") == ["6 claims: 2 holds 2 does not hold 2 not decided"]
    assert [text for text in parsed.texts("span") if text in VERDICTS] == [*VERDICTS, *shown]
    for part in sections:
        for claim in part.claims:
            assert parsed.texts("th").count(claim.statement) == 2
            assert parsed.texts("td").count(claim.paper) == 2 * len(VERDICTS)
            assert parsed.texts("td").count(claim.ours) == 2 * len(VERDICTS)


def test_a_verdict_is_on_the_line_of_its_claim(tmp_path):
    rows = written(tmp_path, section("First")).texts("tr")
    for verdict in VERDICTS:
        assert f"First says {verdict}First paperFirst ours{verdict}" in rows


def test_a_single_section_needs_no_summary(tmp_path):
    parsed = written(tmp_path, section("Only"))
    assert parsed.texts("h2") == ["Only"]
    assert len(parsed.texts("table")) == 1


@pytest.mark.parametrize(
    ("parts", "anchors"),
    [
        ([("What a Depth costs?", ""), ("B", "")], ["what-a-depth-costs", "b"]),
        ([("A", "first"), ("A", "")], ["first", "a"]),
        ([("A", ""), ("a!", ""), ("?", "")], ["a", "a-2", "section"]),
        ([("Summary", ""), ("Facts", "")], ["summary-2", "facts-2"]),
    ],
)
def test_the_summary_leads_to_the_sections(tmp_path, parts, anchors):
    parsed = written(
        tmp_path, *(section(title, anchor=anchor) for title, anchor in parts), environment={"a": "b"}
    )
    assert [link["href"] for link in parsed.attributes("a")] == [f"#{anchor}" for anchor in anchors]
    assert [heading["id"] for heading in parsed.attributes("h2")] == ["summary", *anchors, "facts"]


def test_columns_of_numbers_are_aligned_right(tmp_path):
    rows = [
        ["plain-20", "269,722", "+1.5 ± 0.1", "3 of 3", ""],
        ["plain-56", "853,018", "diverged", "none", "−1"],
        ["resnet-56", "853,018", ".5", "none", ""],
    ]
    table = Table(["network", "parameters", "error", "seeds", "note"], rows)
    parsed = written(tmp_path, Section("A", [], [table]))
    assert parsed.texts("th", kind="number") == ["parameters", "error"]
    assert parsed.texts("td", kind="number") == [cell for row in rows for cell in row[1:3]]
    assert [attributes["scope"] for attributes in parsed.attributes("th")] == ["col"] * 5 + ["row"] * 3


def test_nothing_is_fetched_or_run(tmp_path):
    picture = Picture("a", png(), "alt", "")
    text = write_page(tmp_path / "p.html", "T", "L", [section("A", picture)], {"a": "b"}).read_text("utf-8")
    parsed = Parsed(text)
    addresses = [a[key] for _, a, _ in parsed.elements for key in ("src", "href") if key in a]
    assert [address for address in addresses if not address.startswith(("data:", "#"))] == []
    assert "script" not in text
    assert re.findall(r"url\(|@import", text) == []
    assert any(link["rel"] == "icon" for link in parsed.attributes("link"))
    assert parsed.attributes("html") == [{"lang": "en"}]


def test_equal_input_gives_equal_bytes(tmp_path):
    pages = [tmp_path / name / "page.html" for name in ("a", "b")]
    for path in pages:
        picture = Picture("a", png(), "alt", "caption")
        assert write_page(path, "T", "L", [section("A", picture)], {"one": "1", "two": "2"}) == path
    assert pages[0].read_bytes() == pages[1].read_bytes()


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (Picture("a", b"GIF89a" + png(), "", ""), "picture 'a' is not a PNG file"),
        (Picture("a", png()[:20], "", ""), "picture 'a' is not a PNG file"),
        (Picture("../a", png(), "", ""), r"picture name '\.\./a' must consist of letters"),
        (Picture("", png(), "", ""), "picture name '' must consist of letters"),
        (Picture(".a", png(), "", ""), r"picture name '\.a' must consist of letters"),
        (Table(["a", "b"], [["1", "2"], ["3"]], "c"), "table 'c' has 2 columns, but a row of 1 cells"),
    ],
)
def test_what_cannot_be_shown_is_refused_and_nothing_written(tmp_path, part, message):
    good = Picture("good", png(), "", "")
    with pytest.raises(InputError, match=message):
        written(tmp_path, section("A", good, part))
    assert list(tmp_path.iterdir()) == []


def test_two_pictures_cannot_share_a_file(tmp_path):
    picture = Picture("same", png(), "", "")
    with pytest.raises(InputError, match="2 pictures are named 'same'"):
        written(tmp_path, section("A", picture), section("B", picture))
    assert list(tmp_path.iterdir()) == []


def test_a_failed_writing_leaves_the_older_page(tmp_path, monkeypatch):
    picture = Picture("a", png(), "", "")
    written(tmp_path, section("Old", picture))
    old = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    calls = []

    def failing(path):
        calls.append(path)
        if len(calls) == 2:
            raise OSError("no space left")
        return atomic(path)

    atomic = page.atomic_path
    monkeypatch.setattr(page, "atomic_path", failing)
    with pytest.raises(OSError, match="no space left"):
        written(tmp_path, section("New", Picture("a", png(9, 9), "", "")))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == old


def test_a_page_that_cannot_have_its_name_leaves_nothing(tmp_path):
    (tmp_path / "page.html").mkdir()
    with pytest.raises(OSError, match=r"page\.html"):
        written(tmp_path, section("A", Picture("a", png(), "", "")))
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_the_summary_in_markdown():
    odd = Section("B", [Claim("a|b <b>\nc & d", "6.43", "6.61 ± 0.16", OPEN)], [])
    sections = [section("A", Picture("curves", png(), "a curve", "falling")), odd]
    text = summary_markdown("Title", "A lead.", sections, {"command": "python -m x"})
    assert text.startswith("# Title\n\nA lead.\n\n")
    assert "\n## A\n\n![a curve](curves.png)\n\nfalling\n" in text
    assert text.endswith("\n- command: python -m x\n")
    header, rule, *rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in row.strip("|").split("|")] for row in (header, *rows)]
    assert cells == [
        ["Claim", "In the paper", "Here", "Verdict"],
        *([f"A says {verdict}", "A paper", "A ours", verdict] for verdict in VERDICTS),
        ["a&#124;b &lt;b> c &amp; d", "6.43", "6.61 ± 0.16", OPEN],
    ]
    assert set(rule) == set("|-")
