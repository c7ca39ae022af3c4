"""Training steps without TensorFlow: our builders on JAX against compiled PyTorch, as on a GPU.

python -m benchmarks.train_step_jax --output=train_step_jax.json
"""

import os

from absl import flags

from benchmarks import harness, train_step
from benchmarks.torch_peer import check_torch
from keras_resnet import cli
from keras_resnet.processes import Worker

# Meant for an accelerator: a batch that fills it.
_DEFAULTS = {"subjects": ["resnet50/bfloat16"], "peers": ["torch"], "batch_size": 256, "steps": 50}
for _name, _value in _DEFAULTS.items():
    flags.FLAGS.set_default(_name, _value)
_COMPILE = flags.DEFINE_bool("compile", True, "Let PyTorch compile its network.")


def main() -> None:
    """Measures what the flags say."""
    # JAX would take most of a GPU's memory at once, and leave too little to the peer.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    names = harness.chosen("subject", train_step.subjects(), train_step.SUBJECTS)
    train_step.peers(("torch",))
    versions = harness.versions("keras", "jax", "jaxlib", "numpy") | check_torch()
    rows = []
    for name in names:
        peer = train_step.torch_peer(name, compile=_COMPILE.value)
        rows += train_step.measure(name, lambda spec: Worker("benchmarks.jax_worker", spec), peer)
    harness.report(rows, versions)


if __name__ == "__main__":
    cli.run(main)
