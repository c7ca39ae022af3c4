"""Compares this project with others, measured in turn in one run, as ratios; see benchmarks/README.md."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no startup messages of TensorFlow
