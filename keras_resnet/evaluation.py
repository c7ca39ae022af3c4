"""`keras_resnet.classification` by its old name, also for `python -m`."""

import sys

from keras_resnet import cli
from keras_resnet.classification.__main__ import COMMAND
from keras_resnet.deprecation import get_old_name, with_old_names

__getattr__ = with_old_names("keras_resnet.evaluation")

if __name__ == "__main__":
    print(f"warning: {get_old_name('python -m keras_resnet.evaluation').message}", file=sys.stderr)
    cli.run(COMMAND)
