"""`python -m experiments.detection`: do better classifiers make better detectors?"""

from experiments import command

if __name__ == "__main__":
    command.run("detection")
