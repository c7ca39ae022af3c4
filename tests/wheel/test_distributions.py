"""The metadata and the contents of the wheel and the source distribution in dist/."""

import re
import tarfile
import zipfile

import pytest
import trove_classifiers
from helpers.environments import EXTRAS, ROOT
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from keras_resnet.version import __version__

pytestmark = pytest.mark.wheel

LINK = re.compile(r"\]\(([^)]*)\)")
INFO = f"keras_resnet_zoo-{__version__}.dist-info"


def source_files():
    paths = [path.relative_to(ROOT) for path in ROOT.glob("keras_resnet/**/*") if path.is_file()]
    return {path.as_posix() for path in paths if "__pycache__" not in path.parts}


@pytest.fixture(scope="module")
def contents(wheel):
    """The files of the wheel, by name."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def metadata(contents):
    return Metadata.from_email(contents[f"{INFO}/METADATA"], validate=True)


def test_the_metadata_are_what_a_package_index_accepts(metadata):
    assert (metadata.name, str(metadata.version)) == ("keras-resnet-zoo", __version__)
    assert (metadata.license_expression, metadata.license) == ("Apache-2.0", None)
    assert metadata.license_files == ["LICENSE"]
    assert set(metadata.classifiers) <= trove_classifiers.classifiers
    assert not set(metadata.classifiers) & set(trove_classifiers.deprecated_classifiers)
    assert "Typing :: Typed" in metadata.classifiers
    assert metadata.project_urls
    assert all(address.startswith("https://") for address in metadata.project_urls.values())


def test_the_description_has_no_dead_links(metadata):
    assert metadata.description_content_type == "text/markdown"
    readme = (ROOT / "README.md").read_text()
    absolute = [link for link in LINK.findall(readme) if link.startswith("https://")]
    assert len(absolute) < len(LINK.findall(readme))
    assert LINK.findall(metadata.description) == absolute
    assert metadata.description.startswith(readme[: readme.index("[")])


def test_the_wheel_has_one_package_with_all_of_its_files(contents):
    assert {name for name in contents if not name.startswith(INFO)} == source_files()
    assert "keras_resnet/py.typed" in contents
    assert contents[f"{INFO}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()
    scripts = "[console_scripts]\nkeras-resnet = keras_resnet.__main__:main\n"
    assert contents[f"{INFO}/entry_points.txt"].decode().strip() == scripts.strip()


def test_the_source_distribution_has_the_documentation(contents):
    (path,) = ROOT.glob("dist/*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
        info = archive.extractfile(f"keras_resnet_zoo-{__version__}/PKG-INFO")
        assert info is not None
        assert info.read() == contents[f"{INFO}/METADATA"]
    assert names >= source_files()
    assert names >= {"LICENSE", "README.md", "setup.py", "setup.cfg", "pyproject.toml"}
    assert names >= {"CHANGELOG.md", "docs/guide.md"}
    assert not [name for name in names if name.startswith("tests")]


def test_the_oldest_versions_are_the_lower_bounds(metadata):
    """`make test-oldest` installs the versions of this file."""
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    pinned = {canonicalize_name(pin.name): str(pin.specifier).removeprefix("==") for pin in pins}
    bounds = 0
    for requirement in metadata.requires_dist:
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
            for bound in requirement.specifier:
                assert SpecifierSet(f"=={bound.version}.*").contains(
                    pinned[canonicalize_name(requirement.name)]
                )
                bounds += 1
    assert bounds > 15
