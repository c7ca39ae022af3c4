"""`python -m experiments.shortcuts`: shortcut options A, B and C."""

from experiments.command import command_of
from keras_resnet import cli

COMMAND = command_of("shortcuts", "Shortcut options A, B and C.")

if __name__ == "__main__":
    cli.run(COMMAND)
