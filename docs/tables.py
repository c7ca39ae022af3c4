"""Updates the generated tables of the README: `make readme`."""

import re
from pathlib import Path

from keras_resnet.commands.models import HEADER, zoo_rows
from keras_resnet.tables import markdown_table

README = Path(__file__).parents[1] / "README.md"


def with_tables(text: str) -> str:
    """Returns the README's text with the generated tables replaced."""
    tables = {"zoo": markdown_table(HEADER, zoo_rows())}
    for name, table in tables.items():
        mark = f"<!-- table: {name} -->"
        text, count = re.subn(
            f"{mark}.*?<!-- end -->", lambda _, t=table, m=mark: f"{m}\n{t}\n<!-- end -->", text, flags=re.S
        )
        if count != 1:
            raise SystemExit(f"{README} has {count} places for the table {name!r}, not one")
    return text


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text()))
