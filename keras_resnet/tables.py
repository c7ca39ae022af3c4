"""Tables for terminals and Markdown."""

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table with padded cells; columns of numbers are aligned to the right."""
    header, *rows = [[cell.replace("|", "\\|") for cell in cells] for cells in (header, *rows)]
    numeric = [all(row[i][:1].isdigit() for row in rows) for i in range(len(header))]
    widths = [max(len(line[i]) for line in (header, *rows)) for i in range(len(header))]

    def line(cells):
        padded = (c.rjust(w) if n else c.ljust(w) for c, w, n in zip(cells, widths, numeric, strict=True))
        return f"| {' | '.join(padded)} |"

    rule = "|".join("-" * (w + 1) + (":" if n else "-") for w, n in zip(widths, numeric, strict=True))
    return "\n".join([line(header), f"|{rule}|", *map(line, rows)])


def engineering(count: int) -> str:
    """Returns a number of operations such as 4.09e9 or 40.6e6."""
    return f"{count / 1e9:.2f}e9" if count >= 1e9 else f"{count / 1e6:.1f}e6"
