"""Trains a network: a recipe defines what is learned, the other flags how it is run.

python train_main.py --recipe=digits --workdir=runs/digits
"""

from keras_resnet import cli
from keras_resnet.commands.recipes import TRAIN

if __name__ == "__main__":
    cli.run(TRAIN)
