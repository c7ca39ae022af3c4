"""The command `python -m keras_resnet export`, extended by the whole zoo."""

import functools

from export.zoo import export_zoo
from keras_resnet.commands.export import main as export

main = functools.partial(export, export_all=export_zoo)
