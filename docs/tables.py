"""The tables of models: the README's, written by `make readme`, and the site's, written when it is built."""

import html
import re
from pathlib import Path

from keras_resnet.models.config import MODELS
from keras_resnet.tables import markdown_table
from keras_resnet.weights.registry import entries_of

README = Path(__file__).parents[1] / "README.md"
FAMILIES = {
    "cifar_plain": "plain, CIFAR",
    "cifar_resnet": "ResNet, CIFAR",
    "plain": "plain",
    "resnext": "ResNeXt",
    "wide_resnet": "Wide ResNet",
    "resnet": "ResNet",
}
SUFFIXES = {"_v1_5": "ResNet v1.5", "_v2": "ResNet V2", "d": "ResNet-D"}


def replaced(text: str, name: str, table: str) -> str:
    """Returns a text with the table between `<!-- table: name -->` and `<!-- end -->` replaced."""
    mark = f"<!-- table: {name} -->"
    text, count = re.subn(
        f"{mark}.*?<!-- end -->", lambda _: f"{mark}\n{table}\n<!-- end -->", text, flags=re.S
    )
    if count != 1:
        raise SystemExit(f"{count} places for the table {name!r}, not one")
    return text


def counted(readme: str) -> list[list[str]]:
    """The header and the rows of the README's table: counting the networks anew takes a minute."""
    table = readme.split("<!-- table: zoo -->")[1].split("<!-- end -->")[0]
    header, _, *rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.strip().splitlines()
    ]
    if [row[0] for row in rows] != list(MODELS):
        raise SystemExit("the README's table does not have the networks of the zoo: run `make readme`")
    return [header, *rows]


def family(name: str) -> str:
    """The family of a network by its name, such as "ResNet-D"."""
    if name.startswith("resnet"):
        for suffix, title in SUFFIXES.items():
            if name.endswith(suffix):
                return title
    return next(title for prefix, title in FAMILIES.items() if name.startswith(prefix))


def models_table(readme: str) -> str:
    """The networks and their published weights as an HTML table for docs/assets/zoo.js."""
    (name, *header), *models = counted(readme)
    rows = []
    for model, *cells in models:
        entries = entries_of(model)
        best = f"{max(entry.top1 for entry in entries):.2f}" if entries else ""
        rows.append((model, family(model), *cells, str(len(entries)), best))
    header = (name, "family", *header, "weights", "top-1, %")
    numeric = [all(row[i][:1].isdigit() or not row[i] for row in rows) for i in range(len(header))]

    def line(tag, cells):
        kinds = (' class="number"' if is_number else "" for is_number in numeric)
        return "".join(
            f"<{tag}{kind}>{html.escape(cell)}</{tag}>" for kind, cell in zip(kinds, cells, strict=True)
        )

    body = "\n".join(f"<tr>{line('td', row)}</tr>" for row in rows)
    return (
        '<div class="zoo"><table class="zoo-table">\n'
        f"<thead><tr>{line('th', header)}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def main() -> None:
    """Writes the README's table."""
    # Not above: it imports Keras, which building the site does not need.
    from keras_resnet.commands.models import HEADER, zoo_rows

    README.write_text(replaced(README.read_text(), "zoo", markdown_table(HEADER, zoo_rows())))


if __name__ == "__main__":
    main()
