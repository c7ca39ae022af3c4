"""`keras_resnet.classification` by its name in the first edition, also for `python -m`."""

from keras_resnet import classification, cli
from keras_resnet.classification.__main__ import COMMAND


def __getattr__(name: str) -> object:
    return getattr(classification, name)


if __name__ == "__main__":
    cli.run(COMMAND)
