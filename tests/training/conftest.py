"""Two CPU devices for the distribution tests, and a recipe small enough to run in seconds."""

import pytest
import tensorflow as tf

from keras_resnet.training import get_recipe

# Before TensorFlow makes its devices; the threads stay the same.
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)

TINY = {"stage_depths": (1, 1, 1), "stage_filters": (4, 8, 8)}


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Where the session's digits are prepared, once."""
    return str(tmp_path_factory.mktemp("tfds"))


@pytest.fixture
def tiny():
    """Digits at 16 pixels, 4 epochs of 5 steps."""
    return get_recipe("digits").replace(
        model_overrides=TINY, image_size=16, batch_size=64, train_split="train[:320]", epochs=4
    )
