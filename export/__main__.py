"""`python -m export`: exports a training run, weights, or the whole zoo to verified artifacts."""

import dataclasses

from keras_resnet import cli
from keras_resnet.export import __main__ as library

COMMAND = dataclasses.replace(library.COMMAND, main="export.command:main")

if __name__ == "__main__":
    cli.run(COMMAND)
