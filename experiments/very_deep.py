"""`python -m experiments.very_deep`: 110 layers with and without warm-up, and 1202 layers."""

from experiments import command

if __name__ == "__main__":
    command.run("very_deep")
