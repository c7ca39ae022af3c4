"""`python -m experiments.layer_responses`: the standard deviations of layer responses (figure 7)."""

from experiments import command

if __name__ == "__main__":
    command.run("layer_responses")
