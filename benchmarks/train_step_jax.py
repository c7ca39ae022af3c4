"""Training steps without TensorFlow: our builders on JAX against compiled PyTorch, as on a GPU.

python -m benchmarks.train_step_jax --output=train_step_jax.json
"""

import dataclasses
import os
from functools import partial

from benchmarks import harness, train_step
from keras_resnet import cli

# Meant for an accelerator: a batch that fills it.
_DEFAULTS = {"peers": ["torch"], "batch_size": 256, "steps": 50}
_FLAGS = (
    *(dataclasses.replace(f, default=_DEFAULTS.get(f.name, f.default)) for f in train_step.FLAGS),
    cli.Flag("compile", "Let PyTorch compile its network.", bool, True),
)


if __name__ == "__main__":
    # JAX would take most of a GPU's memory at once, and leave too little to the peer.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    main = partial(
        train_step.main,
        known_peers=("torch",),
        worker="benchmarks.jax_worker",
        packages=("keras", "jax", "jaxlib", "numpy"),
    )
    harness.run(main, train_step.SUBJECTS, _FLAGS, default=["resnet50/bfloat16"])
