"""Two CPU devices, for the tests of several replicas; each conftest.py that needs them imports this."""

import pytest
import tensorflow as tf

from keras_resnet.training.distribution import create

# Before TensorFlow creates its devices; the number of threads stays the same.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def one_device():
    return create("one_device")


@pytest.fixture(scope="session")
def two_devices():
    distribution = create("mirrored")
    assert distribution.replicas == len(distribution.devices) == 2
    return distribution
