"""Options of a run that do not change what is learned: devices, precision, seed, checkpoints, memory."""

import dataclasses
from typing import Any

from keras_resnet.errors import InputError, unknown_name

PRECISIONS = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}

_LEAST = {
    "seed": 0,
    "checkpoint_every": 0,
    "keep": 1,
    "steps_per_call": 1,
    "accumulate": 1,
    "max_bad_images": 0,
}


def _option(default: Any, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": text})


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a recipe is run. Each field's `metadata["help"]` describes it."""

    strategy: str = _option("auto", "auto, one_device, mirrored or multi_worker.")
    precision: str = _option("float32", "float32, bfloat16 or float16.")
    seed: int = _option(0, "Seed of the initial weights, the data order and the augmentation.")
    data_dir: str | None = _option(None, "Where TFDS keeps its datasets. Default: its own folder.")
    checkpoint_every: int = _option(0, "Steps between checkpoints, in addition to one after each epoch.")
    keep: int = _option(2, "Number of checkpoints kept.")
    steps_per_call: int = _option(1, "Optimizer steps in one call of the compiled graph.")
    accumulate: int = _option(1, "Parts into which each replica's batch is split, to save memory.")
    jit: bool = _option(False, "Compile the steps with XLA.")
    remat: bool = _option(False, "Recompute activations for the gradient, to save memory.")
    sync_batch_norm: bool = _option(False, "Compute batch statistics over all replicas.")
    max_bad_images: int = _option(100, "Undecodable images that are skipped before the run stops.")
    worker_timeout: float = _option(300, "Seconds to wait for other workers.")

    def __post_init__(self):
        if self.precision not in PRECISIONS:
            raise unknown_name("precision", self.precision, PRECISIONS)
        for name, value in _LEAST.items():
            if getattr(self, name) < value:
                raise InputError(f"{name} must be at least {value}; got {getattr(self, name)}")
