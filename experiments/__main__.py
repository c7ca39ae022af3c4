"""`python -m keras_resnet experiments`: the claims of the paper."""

from experiments.command import COMMANDS
from keras_resnet import cli

COMMAND = cli.Group(
    "Trains the networks of the paper's claims and writes a page about what was measured.", COMMANDS
)

if __name__ == "__main__":
    cli.run(COMMAND)
