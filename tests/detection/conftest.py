"""Two CPU devices."""

import pytest
import tensorflow as tf

from keras_resnet.training.distribution import create

# Before TensorFlow makes its devices; tests/training and tests/classification ask for the same.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)


@pytest.fixture(scope="session")
def one_device():
    return create("one_device")


@pytest.fixture(scope="session")
def two_devices():
    distribution = create("mirrored")
    assert len(distribution.devices) == 2
    return distribution
