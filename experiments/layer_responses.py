"""`python -m experiments.layer_responses`: the standard deviations of layer responses (figure 7)."""

from experiments.command import command_of
from keras_resnet import cli

COMMAND = command_of("layer_responses", "The standard deviations of layer responses (figure 7).")

if __name__ == "__main__":
    cli.run(COMMAND)
