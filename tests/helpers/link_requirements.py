"""Links what distributions require, directly or not, into the site-packages of another environment.

python link_requirements.py SITE_PACKAGES REQUIREMENT [REQUIREMENT...]

It is run by the Python of an environment in which all of that is installed; its pip parses requirements. The
first distribution is not linked itself.
"""

import sys
from importlib.metadata import distribution
from pathlib import Path

from pip._vendor.packaging.requirements import Requirement
from pip._vendor.packaging.utils import canonicalize_name


def required(texts: list[str]) -> set[str]:
    """The names of the distributions that requirements need, including their own."""
    waiting, seen = [Requirement(text) for text in texts], set()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        for extra in {"", *requirement.extras} - {extra for other, extra in seen if other == name}:
            seen.add((name, extra))
            inner = [Requirement(text) for text in distribution(name).requires or ()]
            waiting += [one for one in inner if one.marker is None or one.marker.evaluate({"extra": extra})]
    return {name for name, _ in seen}


def link(name: str, target: Path) -> None:
    """Links the files and folders of a distribution; `__pycache__` and namespaces may be several's."""
    found = distribution(name)
    tops = {file.parts[0] for file in found.files or () if file.parts[0] != ".."}  # .. leads to scripts
    for top in tops:
        if not (target / top).exists():
            (target / top).symlink_to(found.locate_file(top))


if __name__ == "__main__":
    _, site_packages, first, *others = sys.argv
    for name in required([first, *others]) - {canonicalize_name(Requirement(first).name)}:
        link(name, Path(site_packages))
