"""`python -m experiments.paper`: all claims that fit a budget, on one page."""

from experiments.command import EXPERIMENTS, command_of
from keras_resnet import cli

COMMAND = command_of(
    "paper",
    "All claims that fit a budget, on one page.",
    experiments=EXPERIMENTS,
    title="Deep Residual Learning, claim by claim",
    intro="What He et al. (2015) say about depth and shortcuts, what they measured, and what these runs "
    "measured. A verdict compares means over seeds with their spread. A difference within the spread is "
    "not decided, unless the claim is that one value is not above another: that holds up to the spread.",
)

if __name__ == "__main__":
    cli.run(COMMAND)
