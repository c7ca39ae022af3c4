"""Learning rates by step, and image sizes by epoch."""

import math
from collections.abc import Sequence

from keras_resnet.training.recipe import Recipe

ERROR_WINDOW = 100
"""Number of steps over which the training error is averaged to decide whether an error warm-up ends."""

_SIZE_UNIT = 32  # total stride of the networks


class Schedule:
    """The learning rate of every step of a run; `state` holds its observations as numbers for checkpoints."""

    def __init__(self, recipe: Recipe, total_steps: int, steps_per_epoch: int):
        self._recipe = recipe
        self._total = total_steps
        self._warmup = round(recipe.warmup_epochs * steps_per_epoch)
        self.state = {"decays": 0, "best_error": math.inf, "stale_epochs": 0, "warm": True}
        if recipe.error_warmup_rate:
            self.state |= {"warm": False, "window_wrong": 0.0, "window_count": 0.0}

    @property
    def error_window(self) -> int | None:
        """The rate at a multiple of this many steps depends on all earlier errors; None: no rate does."""
        return None if self.state["warm"] else ERROR_WINDOW

    def rate(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0."""
        recipe = self._recipe
        if not self.state["warm"]:
            return recipe.error_warmup_rate
        if step < self._warmup:
            return recipe.learning_rate * (step + 1) / self._warmup
        if recipe.schedule == "cosine":
            done = (step - self._warmup) / max(1, self._total - self._warmup)
            return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
        if recipe.schedule == "steps":
            decays = sum(step >= round(fraction * self._total) for fraction in recipe.boundaries)
        else:
            decays = self.state["decays"]  # stays 0 for a constant rate
        return recipe.learning_rate * recipe.decay_factor**decays

    def observe_errors(self, step: int, error_sum: float, count: float) -> None:
        """Records the training error of step `step`: its sum over `count` examples."""
        if self.state["warm"]:
            return
        self.state["window_wrong"] += error_sum
        self.state["window_count"] += count
        if (step + 1) % ERROR_WINDOW == 0:
            error = self.state["window_wrong"] / self.state["window_count"]
            self.state |= {"window_wrong": 0.0, "window_count": 0.0}
            self.state["warm"] = error < self._recipe.error_warmup_threshold

    def observe_epoch(self, val_error: float) -> None:
        """Records the validation error at the end of an epoch."""
        if self._recipe.schedule != "plateau":
            return
        if val_error < self.state["best_error"]:
            self.state |= {"best_error": val_error, "stale_epochs": 0}
            return
        self.state["stale_epochs"] += 1
        if self.state["stale_epochs"] >= self._recipe.patience:
            self.state |= {"decays": self.state["decays"] + 1, "stale_epochs": 0}


def progressive_size(shares: Sequence[float], epoch: int, epochs: float, size: int) -> int:
    """The input size in pixels in an epoch, counted from 0, of a run that starts with smaller images.

    The shares of `size`, the last of which is 1, apply to equal parts of the run; without shares the size is
    constant. Smaller sizes are rounded to multiples of 32, and at least 32.
    """
    if not shares:
        return size
    share = shares[min(int(epoch * len(shares) / epochs), len(shares) - 1)]
    if share == 1:
        return size
    return min(max(round(share * size / _SIZE_UNIT) * _SIZE_UNIT, _SIZE_UNIT), size)
