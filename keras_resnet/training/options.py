"""Options of a run that do not change what is learned: devices, precision, seed, checkpoints, memory."""

import dataclasses

from keras_resnet.errors import require, unknown_name
from keras_resnet.training.recipe import described
from keras_resnet.training.trackers import check_trackers

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
"""Keras' dtype policy for each precision of `RunOptions`."""

_LEAST = {0: ("seed", "checkpoint_every", "max_bad_images"), 1: ("keep", "steps_per_call", "accumulate")}


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a recipe is run. Each field's `metadata["help"]` describes it."""

    strategy: str = described("auto, one_device, mirrored or multi_worker.", "auto")
    precision: str = described("float32, bfloat16 or float16.", "float32")
    seed: int = described("Seed of the initial weights, the data order and the augmentation.", 0)
    data_dir: str | None = described("Where TFDS keeps its datasets. Default: its own folder.", None)
    checkpoint_every: int = described("Steps between checkpoints, in addition to one after each epoch.", 0)
    keep: int = described("Number of checkpoints kept.", 2)
    steps_per_call: int = described("Optimizer steps in one call of the compiled graph.", 1)
    accumulate: int = described("Parts into which each replica's batch is split, to save memory.", 1)
    jit: bool = described("Compile the steps with XLA.", False)
    remat: bool = described("Recompute activations for the gradient, to save memory.", False)
    sync_batch_norm: bool = described("Compute batch statistics over all replicas.", False)
    compress_gradients: bool = described("Send gradients between devices in bfloat16: half the bytes.", False)
    max_bad_images: int = described("Undecodable images that are skipped before the run stops.", 100)
    worker_timeout: float = described("Seconds to wait for other workers.", 300)
    track: tuple[str, ...] = described("Where to log metrics: tensorboard, mlflow, wandb.", ("tensorboard",))

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        for least, names in _LEAST.items():
            for name in names:
                require(getattr(self, name) >= least, f"{name} must be at least {least}", getattr(self, name))
        check_trackers(self.track)
        require(self.seed < 2**32, "seed must be less than 4294967296", self.seed)
