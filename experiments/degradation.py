"""`python -m experiments.degradation`: deeper plain networks get worse, residual networks do not."""

from experiments import command

if __name__ == "__main__":
    command.run("degradation")
