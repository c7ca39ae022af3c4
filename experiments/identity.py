"""`python -m experiments.identity`: trained networks, made deeper by identity blocks."""

from experiments import command

if __name__ == "__main__":
    command.run("identity")
