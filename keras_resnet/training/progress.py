"""Progress of a run: progress bar, console lines and curves."""

import contextlib
import itertools
import sys
import time

from tqdm import tqdm

from keras_resnet.data.preview import legible
from keras_resnet.files import atomic_path
from keras_resnet.progress import ProgressBar
from keras_resnet.run_folder import RunFolder
from keras_resnet.training.task import Task

_MOST_MARKED = 20  # epochs whose points are marked in curves.png


class Progress:
    """Progress bar and console lines; does nothing unless `visible`."""

    def __init__(self, task: Task, total_steps: int, visible: bool):
        self._total_steps = total_steps
        self._batch_size = task.recipe.batch_size
        self._describe = task.describe
        self._visible = visible
        self._bar = None

    def say(self, line: str) -> None:
        """Prints a line above the progress bar."""
        if self._visible:
            with contextlib.suppress(OSError):  # the terminal may be closed; the bar disables itself then
                tqdm.write(line, file=sys.stderr)

    def begin(self, step: int) -> None:
        """Starts the clock, before the first step."""
        self._begun = self._epoch_begun = time.perf_counter()
        self._begun_step = self._epoch_step = self._step = step
        if not self._visible:
            return
        images = self._total_steps * self._batch_size
        self._bar = ProgressBar(images, "images", "training", initial=step * self._batch_size)

    def advance(self, step: int, means: dict[str, float]) -> None:
        """Shows that `step` steps are done, and the training metrics."""
        if self._bar is not None:
            self._bar.update((step - self._step) * self._batch_size, self._describe(means))
        self._step = step

    def images_per_second(self) -> float:
        """The training speed in this epoch, since the run was started or resumed."""
        seconds = time.perf_counter() - self._epoch_begun
        return (self._step - self._epoch_step) * self._batch_size / seconds

    def epoch(self, row: dict, epochs: int, train: dict[str, float], val: dict[str, float]) -> None:
        """Reports the end of one of `epochs` epochs: its row of history.csv and its metrics."""
        now = time.perf_counter()
        left = (now - self._begun) / max(1, self._step - self._begun_step) * (self._total_steps - self._step)
        self.say(
            f"epoch {row['epoch']:g}/{epochs}: train {self._describe(train)}; val {self._describe(val)}; "
            f"{row['images_per_second']:,.0f} images/s, {tqdm.format_interval(left)} left"
        )
        self._epoch_begun, self._epoch_step = time.perf_counter(), self._step

    def end(self) -> None:
        """Closes the progress bar."""
        if self._bar is not None:
            self._bar.close()


def draw_curves(folder: RunFolder, task: Task) -> None:
    """Draws curves.png from history.csv, over epochs."""
    rows, curves = folder.read_history(), task.curves
    if not rows or not curves:
        return
    from matplotlib.figure import Figure

    epochs = [float(row["epoch"]) for row in rows]
    marker = "." if len(rows) <= _MOST_MARKED else None  # a single epoch has no line
    figure = Figure(figsize=(5 * len(curves), 4), layout="constrained")
    figure.suptitle(legible(f"{task.recipe.model} on {task.recipe.dataset}"), parse_math=False)
    for curve, axes in zip(curves, figure.subplots(1, len(curves), squeeze=False)[0], strict=True):
        for metric, (split, style) in itertools.product(curve.metrics, (("train", "--"), ("val", "-"))):
            if f"{split}_{metric}" in rows[0]:
                values = [curve.value(float(row[f"{split}_{metric}"])) for row in rows]
                label = split if len(curve.metrics) == 1 else f"{split} {metric.replace('_', ' ')}"
                axes.plot(epochs, values, style, label=label, marker=marker)
        axes.set_ylabel(curve.axis)
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="medium" if len(curve.metrics) == 1 else "small")
        if curve.log:
            axes.set_yscale("log")
        else:
            axes.set_ylim(bottom=0)
    with atomic_path(folder.curves, suffix=".png") as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
