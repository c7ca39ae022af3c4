"""`python -m experiments.paper`: all claims that fit a budget, on one page."""

from experiments import command

if __name__ == "__main__":
    command.run("paper")
