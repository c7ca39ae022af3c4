"""`python -m experiments.gradients`: do gradients vanish in deep plain networks?"""

from experiments import command

if __name__ == "__main__":
    command.run("gradients")
