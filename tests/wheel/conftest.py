"""The built wheel, and environments with it."""

import pytest
from helpers.environments import ROOT, install, with_extras


@pytest.fixture(scope="session")
def wheel():
    (path,) = ROOT.glob("dist/*.whl")
    return path


@pytest.fixture(scope="module")
def everything(tmp_path_factory, wheel):
    """An environment in which pip installed the wheel with all extras."""
    return install(tmp_path_factory.mktemp("everything") / "home", wheel)


@pytest.fixture(scope="module")
def make_environment(everything, tmp_path_factory, wheel):
    """Makes an environment with the wheel, some extras and other distributions, and nothing else."""

    def make(*extras, others=()):
        folder = tmp_path_factory.mktemp("-".join(["only", *extras]))
        return with_extras(everything, folder, wheel, extras, others)

    return make
