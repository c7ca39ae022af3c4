"""The first edition's name of the evaluation: `python -m keras_resnet.evaluation` still works.

The evaluation itself is in `keras_resnet.classification`.
"""

from keras_resnet.classification import *  # noqa: F403

if __name__ == "__main__":
    import runpy

    runpy.run_module("keras_resnet.classification", run_name="__main__")
