"""The code on the pages of the documentation."""

import importlib.util
import re


def blocks(text):
    """(language, text) of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)


def section(path, heading):
    """The text below a heading of a page."""
    return path.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


def imported(text, path):
    """Writes a block to a file and imports it: TensorFlow's autograph reads the source of functions."""
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def add(language, text, folder):
    """Adds a block to the source below a folder.

    A `python` block is a file, whose path is its first line. A `diff` block changes the file that its first
    line names, at the one place with its other lines.
    """
    first, _, rest = text.partition("\n")
    path = folder / first.lstrip("#- ")
    if language == "python":
        assert not path.exists()
        path.write_text(rest)
        return
    assert language == "diff"
    lines = [(line[0], line[1:] + "\n") for line in rest.splitlines()]
    before = "".join(line for mark, line in lines if mark in " -")
    after = "".join(line for mark, line in lines if mark in " +")
    source = path.read_text()
    assert source.count(before) == 1, f"{first} does not have these lines once:\n{before}"
    path.write_text(source.replace(before, after))
