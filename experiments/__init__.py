"""The claims of "Deep Residual Learning for Image Recognition", each one command with a page."""

import os

# Before TensorFlow is loaded: its start-up notes would bury ours.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_resnet.quiet import quiet

with quiet():
    import keras_resnet.training  # noqa: F401
