"""Training steps without TensorFlow: our builders on JAX against compiled PyTorch, as on a GPU.

python -m benchmarks.train_step_jax --output=train_step_jax.json
"""

import os

os.environ["KERAS_BACKEND"] = "jax"
# JAX would take most of a GPU's memory at once, and leave too little to the peer.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

from absl import flags

from benchmarks import harness, train_step
from benchmarks.torch_peer import check_torch, torch_python
from benchmarks.workers import Worker
from keras_resnet import cli

FLAGS = flags.FLAGS
# Meant for an accelerator: a batch that fills it.
FLAGS.set_default("subjects", ["resnet50/bfloat16"])
FLAGS.set_default("peers", ["torch"])
FLAGS.set_default("batch_size", 256)
FLAGS.set_default("steps", 50)
_COMPILE = flags.DEFINE_bool("compile", True, "Let PyTorch compile its network.")


def main() -> None:
    """Measures as the flags say."""
    subjects = harness.chosen("subject", FLAGS.subjects, train_step.SUBJECTS)
    harness.chosen("peer", FLAGS.peers, ["torch"])
    harness.at_least_one(steps=FLAGS.steps, batch_size=FLAGS.batch_size, image_size=FLAGS.image_size)
    harness.rounds()
    versions = harness.versions("keras", "jax", "jaxlib", "numpy")
    versions |= check_torch(torch_python())
    rows = []
    for name in subjects:
        label, start = train_step.torch_peer(train_step.SUBJECTS[name], compile=_COMPILE.value)
        rows += train_step.measure(name, train_step.SUBJECTS[name], _ours, {label: start})
    harness.report(rows, versions)


def _ours(spec):
    return Worker("benchmarks.jax_worker", spec)


if __name__ == "__main__":
    cli.run(main)
