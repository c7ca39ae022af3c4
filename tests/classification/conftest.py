"""Two CPU devices, tiny networks with weights in files, and the digits."""

import functools

import pytest
from helpers.devices import one_device, two_devices  # noqa: F401 (fixtures)
from helpers.evaluation_networks import write_weights

from keras_resnet.data import open_dataset


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the session's digits are prepared, once."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def digits(data_dir):
    return open_dataset("digits", data_dir)


@pytest.fixture
def weights_of(tmp_path):
    """`write_weights` in the test's own folder."""
    return functools.partial(write_weights, tmp_path)
