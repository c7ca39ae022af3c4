"""PyTorch as a peer, in a Python that need not be the one with TensorFlow."""

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping

from keras_resnet import cli
from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker

FLAG = cli.Flag("torch_python", "A Python that has PyTorch.", default=sys.executable)


class Torch:
    """PyTorch in the Python of --torch_python.

    Raises:
        InputError: there is no such Python, or no PyTorch in it.
    """

    def __init__(self, python: str):
        # A path that is valid in any folder.
        self._python = python = os.path.abspath(python) if os.sep in python else python
        remedy = "name one that has it with --torch_python=PATH, or do without: --peers=keras"
        if shutil.which(python) is None:
            raise InputError(f"--torch_python={python} is no program; {remedy}")
        command = [python, "-c", "import torch; print(torch.__version__)"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            why = done.stderr.strip().split("\n")[-1]
            raise InputError(f"{python} has no PyTorch ({why}); {remedy}")
        self.version = done.stdout.split()[-1]

    def start(self, model: str, **spec: object) -> Worker:
        """Starts `torch_worker` with a network of the zoo; `image_size` defaults to the network's own."""
        config = get_config(model)
        spec = {"image_size": config.input_size, **spec, "config": dataclasses.asdict(config)}
        return self.run("benchmarks.torch_worker", spec)

    def run(self, module: str, spec: Mapping[str, object]) -> Worker:
        """Starts a module in the Python that has PyTorch."""
        return Worker(module, spec, python=self._python)
