"""`python -m experiments.shortcuts`: shortcut options A, B and C."""

from experiments import command

if __name__ == "__main__":
    command.run("shortcuts")
