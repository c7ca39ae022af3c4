"""The Python that has PyTorch: it need not be the one that has TensorFlow."""

import os
import shutil
import subprocess
import sys

from absl import flags

from keras_resnet.errors import InputError

_TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", sys.executable, "A Python that has PyTorch. Default: the one that runs this."
)


def check_torch(python: str) -> dict[str, str]:
    """PyTorch's version there, as `{"torch": version}`.

    Raises:
        InputError: there is no such Python, or no PyTorch in it.
    """
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


def torch_python() -> str:
    """The value of --torch_python, as a path that holds in any folder."""
    python = _TORCH_PYTHON.value
    return os.path.abspath(python) if os.sep in python else python
