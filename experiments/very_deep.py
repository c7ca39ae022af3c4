"""`python -m experiments.very_deep`: 110 layers with and without warm-up, and 1202 layers."""

from experiments.command import command_of
from keras_resnet import cli

COMMAND = command_of("very_deep", "110 layers with and without warm-up, and 1202 layers.")

if __name__ == "__main__":
    cli.run(COMMAND)
