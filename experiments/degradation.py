"""`python -m experiments.degradation`: deeper plain networks get worse, residual networks do not."""

from experiments.command import command_of
from keras_resnet import cli

COMMAND = command_of("degradation", "Deeper plain networks get worse, residual networks do not.")

if __name__ == "__main__":
    cli.run(COMMAND)
