"""The claims of "Deep Residual Learning for Image Recognition", each a command that writes a report."""

import os

# TensorFlow's startup messages; set before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_resnet.quiet import quiet

with quiet():
    import keras_resnet.training.recipe  # noqa: F401 (loads TensorFlow as long as recipes need it)
