"""The device that the tests of this folder compare with a CPU: a GPU, or the CPU if GPU_DRY_RUN is 1."""

import os

import pytest
import tensorflow as tf
from helpers.devices import one_device, two_devices  # noqa: F401 (also two CPU devices)

DRY_RUN = os.environ.get("GPU_DRY_RUN") == "1"


@pytest.fixture(scope="session")
def gpus():
    """The names of all GPUs; in a dry run, of two CPU devices."""
    found = [device.name for device in tf.config.list_logical_devices("GPU")]
    if not found and not DRY_RUN:
        pytest.fail("TensorFlow sees no GPU; GPU_DRY_RUN=1 runs these tests on the CPU")
    return found or [device.name for device in tf.config.list_logical_devices("CPU")]


@pytest.fixture(scope="session")
def gpu(gpus):
    return gpus[0]


@pytest.fixture(autouse=True)
def float32_without_tf32():
    """Comparisons are of full float32 unless a test says otherwise."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    yield
    tf.config.experimental.enable_tensor_float_32_execution(before)
