"""PyTorch as a peer, in a Python that need not be the one with TensorFlow."""

import dataclasses
import os
import shutil
import subprocess
import sys

from absl import flags

from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker

_TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", sys.executable, "A Python that has PyTorch. Default: the one that runs this."
)


def start_torch(model: str, **spec: object) -> Worker:
    """Starts `torch_worker` with a network of the zoo, with its own image size unless `spec` has one."""
    config = get_config(model)
    spec = {"image_size": config.input_size, **spec, "config": dataclasses.asdict(config)}
    return Worker("benchmarks.torch_worker", spec, python=_torch_python())


def check_torch() -> dict[str, str]:
    """PyTorch's version in --torch_python, as `{"torch": version}`.

    Raises:
        InputError: there is no such Python, or no PyTorch in it.
    """
    python = _torch_python()
    remedy = "name one that has it with --torch_python=PATH, or do without: --peers=keras"
    if shutil.which(python) is None:
        raise InputError(f"--torch_python={python} is no program; {remedy}")
    done = subprocess.run(
        [python, "-c", "import torch; print(torch.__version__)"], capture_output=True, text=True
    )
    if done.returncode:
        why = done.stderr.strip().split("\n")[-1]
        raise InputError(f"{python} has no PyTorch ({why}); {remedy}")
    return {"torch": done.stdout.split()[-1]}


def _torch_python() -> str:
    """The value of --torch_python, as a path that is valid in any folder."""
    python = _TORCH_PYTHON.value
    return os.path.abspath(python) if os.sep in python else python
