"""`python -m experiments.identity`: trained networks, made deeper by identity blocks."""

from experiments.command import command_of
from keras_resnet import cli

COMMAND = command_of("identity", "Trained networks, made deeper by identity blocks.")

if __name__ == "__main__":
    cli.run(COMMAND)
