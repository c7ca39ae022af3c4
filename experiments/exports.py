"""`python -m experiments.exports`: shortcut options A, B and C."""

from experiments import command

if __name__ == "__main__":
    command.run("exports")
