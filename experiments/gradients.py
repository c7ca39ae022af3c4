"""`python -m experiments.gradients`: do gradients vanish in deep plain networks?"""

from experiments.command import command_of
from keras_resnet import cli

COMMAND = command_of("gradients", "Do gradients vanish in deep plain networks?")

if __name__ == "__main__":
    cli.run(COMMAND)
