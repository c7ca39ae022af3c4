"""What a person sees of a run: a progress bar, a line an epoch, TensorBoard."""

import sys
import time

import tensorflow as tf
from matplotlib.figure import Figure
from tqdm import tqdm

from keras_resnet.files import atomic_path
from keras_resnet.run_folder import RunFolder

HISTORY = (
    "epoch",
    "step",
    "learning_rate",
    "train_loss",
    "train_top1",
    "val_loss",
    "val_top1",
    "images_per_second",
)


class Reports:
    """Tells one process' person how the run goes; silent where `visible` is False."""

    def __init__(self, workdir: RunFolder, total_steps: int, batch_size: int, visible: bool):
        self._workdir = workdir
        self._total_steps = total_steps
        self._batch_size = batch_size
        self._visible = visible
        self._bar = None
        self._writer = None

    def say(self, line: str) -> None:
        """One line, beside the progress bar."""
        if self._visible:
            tqdm.write(line, file=sys.stderr)

    def begin(self, step: int) -> None:
        """The first step is about to be taken."""
        self._begun = self._epoch_begun = time.perf_counter()
        self._begun_step = self._epoch_step = self._step = step
        if not self._visible:
            return
        self._writer = tf.summary.create_file_writer(str(self._workdir.tensorboard))
        self._bar = tqdm(
            total=self._total_steps * self._batch_size,
            initial=step * self._batch_size,
            unit=" images",
            unit_scale=True,
            dynamic_ncols=True,
            disable=None,  # no bar where standard error is no terminal
        )

    def advance(self, step: int, loss: float, top1: float) -> None:
        """`step` steps are done; loss and top-1 since the epoch began."""
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, top-1 {top1:.1%}", refresh=False)
            self._bar.update((step - self._step) * self._batch_size)
        self._step = step

    def images_per_second(self) -> float:
        """The training speed since the epoch began, or since the run was taken up."""
        seconds = time.perf_counter() - self._epoch_begun
        return (self._step - self._epoch_step) * self._batch_size / seconds

    def epoch(self, row: dict, epochs: int) -> None:
        """An epoch ended, with this row of history.csv."""
        now = time.perf_counter()
        left = (now - self._begun) / max(1, self._step - self._begun_step) * (self._total_steps - self._step)
        self.say(
            f"epoch {row['epoch']:g}/{epochs}: "
            f"train loss {row['train_loss']:.4f}, top-1 {row['train_top1']:.2%}; "
            f"val loss {row['val_loss']:.4f}, top-1 {row['val_top1']:.2%}; "
            f"{row['images_per_second']:,.0f} images/s, {_duration(left)} left"
        )
        if self._writer is not None:
            with self._writer.as_default(step=row["step"]):
                for name, value in row.items():
                    if name not in ("epoch", "step"):
                        tf.summary.scalar(name.replace("_", "/", 1), value)
            self._writer.flush()
        self._epoch_begun, self._epoch_step = time.perf_counter(), self._step

    def end(self) -> None:
        """The run is over."""
        if self._bar is not None:
            self._bar.close()
        if self._writer is not None:
            self._writer.close()


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def draw_curves(folder: RunFolder, title: str) -> None:
    """Draws curves.png from history.csv: error in % and loss, over epochs."""
    rows = folder.read_history()
    if not rows:
        return
    epochs = [float(row["epoch"]) for row in rows]
    figure = Figure(figsize=(10, 4), layout="constrained")
    figure.suptitle(title)
    error, loss = figure.subplots(1, 2)
    for split, style in (("train", "--"), ("val", "-")):
        error.plot(epochs, [100 - 100 * float(row[f"{split}_top1"]) for row in rows], style, label=split)
        loss.plot(epochs, [float(row[f"{split}_loss"]) for row in rows], style, label=split)
    error.set_ylabel("top-1 error (%)")
    loss.set_ylabel("loss")
    loss.set_yscale("log")
    for axes in (error, loss):
        axes.set_xlabel("epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    error.set_ylim(bottom=0)
    with atomic_path(folder.curves, suffix=".png") as temporary:
        figure.savefig(temporary, dpi=120, metadata={"Software": None})
