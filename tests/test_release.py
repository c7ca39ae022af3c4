"""The changelog, the citation and the CI workflow agree with the version, the old names and the metadata."""

import configparser
import re
from pathlib import Path

import pytest

import keras_resnet
from keras_resnet.deprecation import OLD_NAMES

ROOT = Path(keras_resnet.__file__).parents[1]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()
RELEASES = re.findall(r"^## \[(.+)\] - (.+)\n", CHANGELOG, flags=re.MULTILINE)


def release(version):
    """The text about a version."""
    return re.split(r"^## ", CHANGELOG.split(f"\n## [{version}]")[1], flags=re.MULTILINE)[0]


def citation(field):
    (value,) = re.findall(rf"^{field}: (.+)$", (ROOT / "CITATION.cff").read_text(), flags=re.MULTILINE)
    return value


def test_the_newest_release_is_this_version():
    assert RELEASES[0] == (citation("version"), citation("date-released"))
    assert citation("version") == keras_resnet.__version__


def test_releases_are_in_order():
    numbers = [tuple(map(int, version.split("."))) for version, _ in RELEASES]
    dates = [date for _, date in RELEASES]
    assert numbers == sorted(numbers, reverse=True)
    assert dates == sorted(dates, reverse=True)
    assert all(re.fullmatch(r"\d{4}-\d\d-\d\d", date) for date in dates)
    assert CHANGELOG.count("\n## ") == len(RELEASES)


def test_changes_have_the_usual_headings():
    usual = ["Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"]
    for version, _ in RELEASES:
        found = re.findall(r"^### (.+)$", release(version), flags=re.MULTILINE)
        assert found == [heading for heading in usual if heading in found]


@pytest.mark.parametrize("row", OLD_NAMES, ids=lambda row: row.old)
def test_deprecations_are_announced(row):
    text = " ".join(release(row.since).split("### Deprecated")[1].split("###")[0].split())
    assert f"`{row.old}`" in text
    assert f"`{row.new}`" in text
    assert row.until in text


def test_the_workflow_runs_ci_on_the_supported_versions():
    workflow = (ROOT / ".github/workflows/ci.yml").read_text()
    assert re.findall(r"^ *- run: (.+)$", workflow, flags=re.MULTILINE) == [".ci/run"]
    (versions,) = re.findall(r"python-version: \[(.+)\]", workflow)
    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg")
    classifiers = metadata["metadata"]["classifiers"]
    supported = re.findall(r"Python :: (\d\.\d+)", classifiers)
    assert versions.replace('"', "").split(", ") == supported
    assert metadata["options"]["python_requires"] == f">={supported[0]}"
