"""Two CPU devices, tiny networks with weights in files, and the digits."""

import functools

import pytest
import tensorflow as tf
from helpers.evaluation_networks import write_weights

from keras_resnet.data import open_dataset
from keras_resnet.training.distribution import create

# Before TensorFlow makes its devices; tests/training asks for the same.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the session's digits are prepared, once."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture(scope="session")
def digits(data_dir):
    return open_dataset("digits", data_dir)


@pytest.fixture(scope="session")
def one_device():
    return create("one_device")


@pytest.fixture(scope="session")
def two_devices():
    distribution = create("mirrored")
    assert distribution.replicas == 2
    return distribution


@pytest.fixture
def weights_of(tmp_path):
    """`write_weights` in the test's own folder."""
    return functools.partial(write_weights, tmp_path)
