"""`python -m experiments.paper`: all claims that fit a budget, on one page."""

from experiments import command

if __name__ == "__main__":
    command.run(
        "paper",
        experiments=command.EXPERIMENTS,
        title="Deep Residual Learning, claim by claim",
        intro="What He et al. (2015) say about depth and shortcuts, what they measured, and what these runs "
        "measured. A verdict compares means over seeds with their spread. A difference within the spread is "
        "not decided, unless the claim is that one value is not above another: that holds up to the spread.",
    )
