"""Two CPU devices for the distribution tests, and a recipe that runs in seconds."""

import pytest
from helpers import runs
from helpers.devices import one_device  # noqa: F401 (also two CPU devices)

from keras_resnet.training import RunOptions


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """The folder in which digits are prepared once per session."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(autouse=True)
def no_curves(monkeypatch):
    """A run's picture takes a third of its time. Module-scoped runs, which start before this, have one."""
    monkeypatch.setattr("keras_resnet.training.loop.draw_curves", lambda *arguments: None)


@pytest.fixture(scope="session")
def run_options(data_dir):
    """Makes a `RunOptions` of one device."""

    def make(**changes):
        return RunOptions(**{"strategy": "one_device", "data_dir": data_dir, **changes})

    return make


@pytest.fixture(scope="session")
def break_off():
    """`helpers.runs.break_off`."""
    return runs.break_off


@pytest.fixture(scope="session")
def tiny():
    """`helpers.runs.tiny_recipe`."""
    return runs.tiny_recipe()
