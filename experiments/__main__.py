"""`python -m keras_resnet experiments`: the claims of the paper."""

from experiments.command import EXPERIMENTS
from keras_resnet import cli

COMMAND = cli.Group(
    "Trains the networks of the paper's claims and writes a page about what was measured.",
    {name: f"experiments.{name}" for name in ("paper", *EXPERIMENTS)},
)

if __name__ == "__main__":
    cli.run(COMMAND)
