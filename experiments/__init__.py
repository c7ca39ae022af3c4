"""The claims of "Deep Residual Learning for Image Recognition", each a command that writes a report."""

import os

# TensorFlow's startup messages; set before it is imported.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
