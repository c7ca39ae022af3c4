"""`python -m keras_resnet.training`: another spelling of `python -m keras_resnet recipes`."""

import runpy

if __name__ == "__main__":
    runpy.run_module("keras_resnet.commands.recipes", run_name="__main__")
