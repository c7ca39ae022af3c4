"""`python -m experiments.paper`: all claims that fit a budget on one page."""

from experiments import command, degradation, gradients, identity, layer_responses, shortcuts, very_deep

EXPERIMENTS = (degradation, shortcuts, layer_responses, gradients, very_deep, identity)

if __name__ == "__main__":
    command.run(
        *EXPERIMENTS,
        name="paper",
        title="Deep Residual Learning, claim by claim",
        lead="What He et al. (2015) say about depth and shortcuts, what they measured, and what these runs "
        "measured. A verdict compares means over seeds with their spread. What lies within it is not "
        "decided, unless the claim is that one thing is not above another: that holds up to the spread.",
    )
