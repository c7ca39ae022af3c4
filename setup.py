"""Adds the long description to the metadata in setup.cfg: the README without its relative links.

They lead nowhere on a package index, which has neither the other pages nor the pictures.
"""

import re
from pathlib import Path

from setuptools import setup

_TO_A_FILE = r"\((?!https?://)[^)]*\)"
_WHERE = "The other pages are in the folder `docs` of the source distribution."

readme = Path(__file__).with_name("README.md").read_text(encoding="utf-8")
without_pictures = re.sub(rf"!\[[^\]]*\]{_TO_A_FILE}\n*", "", readme)
text = re.sub(rf"\[([^\]]*)\]{_TO_A_FILE}", r"\1", without_pictures)
setup(long_description=f"{text}\n{_WHERE}\n")
