"""Runs commands in the tests' own process."""

import pytest

from keras_resnet import cli


def run(command, *arguments):
    """The exit status."""
    with pytest.raises(SystemExit) as end:
        cli.run(command, [str(argument) for argument in arguments])
    return end.value.code
