"""What all tests share: a quiet TensorFlow, the same random numbers whatever ran before, early progress."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")  # as the commands do

import keras
import pytest


@pytest.fixture
def early_progress(monkeypatch):
    """The first line about the progress of an operation is printed at once, not after five seconds."""
    monkeypatch.setattr("keras_resnet.progress._FIRST_SECONDS", 0.0)


@pytest.fixture(autouse=True)
def seeded():
    keras.utils.set_random_seed(0)


@pytest.hookimpl(tryfirst=True)
def pytest_fixture_setup(fixturedef):
    """What a module or session shares does not depend on the tests before it either."""
    if fixturedef.scope != "function":
        keras.utils.set_random_seed(0)


@pytest.fixture(scope="module")
def chromium():
    """A browser without a window."""
    from helpers import browser  # not for the tests that need none

    with browser.launched() as launched:
        yield launched
