"""The training runs of an experiment: planned as data, each in a process of its own, none done twice."""

import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from experiments.settings import Setting
from keras_resnet.data import Dataset, evaluation_batches, open_dataset, steps_per_epoch
from keras_resnet.errors import CommandFailed, InputError
from keras_resnet.models.config import get_config
from keras_resnet.run_folder import RunFolder
from keras_resnet.training import Recipe
from keras_resnet.training.recipe import check_run_folder
from keras_resnet.weights import load_weights, read_spec

ROOT = Path(__file__).parents[1]

WARMED_DEPTH = 110
"""From this depth on a ladder's runs warm up as the paper's ResNet-110 (section 4.2)."""

CLASSES = 10
"""Of all three datasets; guessing is right once in so many times."""


class RunFailed(CommandFailed):
    """A run ended in a way that is no result; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
        name: of its folder; the same name is the same run.
        recipe: what is trained.
        seed: of the initial weights, the order and the augmentation.
        checkpoint_every: steps between checkpoints, besides the one after each epoch.
        keep: checkpoints kept.
    """

    name: str
    recipe: Recipe
    seed: int
    checkpoint_every: int = 0
    keep: int = 1

    def __hash__(self):
        return hash(self.name)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a run.

    Attributes:
        run: the run.
        workdir: its folder.
        history: the rows of history.csv as numbers.
        failure: None, or the line with which the training gave up, because the loss was not finite.
    """

    run: Run
    workdir: RunFolder
    history: tuple[dict[str, float], ...]
    failure: str | None = None

    @property
    def seconds(self) -> float:
        """Time spent in training steps, over all the processes that it took."""
        before, total = 0, 0.0
        for row in self.history:
            total += (row["step"] - before) * self.run.recipe.batch_size / row["images_per_second"]
            before = row["step"]
        return total

    def error(self, split: str) -> float:
        """The last top-1 error in %: "train", over the last epoch's steps, or "val", on the test images.

        A run that gave up has learned nothing: its error is that of guessing.
        """
        if self.failure is not None or not self.history:
            return 100 - 100 / CLASSES
        return 100 - 100 * self.history[-1][f"{split}_top1"]


Outcomes = dict[Run, Outcome]


def ladder_run(setting: Setting, kind: str, depth: int, seed: int) -> Run:
    """A run of the degradation experiment's ladder, which the others share.

    A plain net and its residual twin with option A have the same variables, and with the same seed the
    same initial weights, data order and schedule.

    Args:
        setting: its recipe is used.
        kind: "plain" or "resnet".
        depth: weighted layers.
        seed: of the run.
    """
    model = f"cifar_{kind}{depth}"
    recipe = setting.recipe.replace(model=model)
    if depth >= WARMED_DEPTH:
        recipe = recipe.replace(error_warmup_rate=recipe.learning_rate / 10)
    return Run(f"{model}-seed{seed}", recipe, seed)


def run_all(runs: Iterable[Run], folder: Path, *, data_dir: str | None, jobs: int | None = None) -> Outcomes:
    """Carries out what is not done yet, several at once: one a GPU, or one a core.

    Each run is a process that stops, with a checkpoint, when this one does; started again, finished
    runs are not repeated and interrupted ones go on.

    Args:
        runs: equal names are one run.
        folder: each run gets a folder in it.
        data_dir: where TFDS keeps its datasets.
        jobs: runs at once. Default: as many as there are devices.

    Raises:
        InputError: a folder holds a run of another recipe, or a recipe does not fit its network or dataset.
        RunFailed: a process ended without a result.
    """
    runs = list(dict.fromkeys(runs))
    _check(runs, folder, data_dir)
    waiting = [run for run in runs if not is_done(run, folder)]
    _carry_out(waiting, _slots(jobs), folder, data_dir)
    return {run: read_outcome(run, folder) for run in runs}


def read_outcome(run: Run, folder: Path) -> Outcome:
    """What a finished run left in its folder."""
    workdir = RunFolder(folder / run.name)
    history = tuple({key: float(value) for key, value in row.items()} for row in workdir.read_history())
    failure = _failure(workdir).read_text().strip() if _failure(workdir).exists() else None
    return Outcome(run, workdir, history, failure)


def load_network(outcome: Outcome) -> keras.Model:
    """The trained network, which gives logits."""
    spec = read_spec(outcome.workdir.weights)
    model = spec.build()
    load_weights(model, outcome.workdir.weights)
    return model


def open_data(setting: Setting) -> Dataset:
    """The setting's dataset."""
    return open_dataset(setting.dataset, setting.data_dir)


def network_images(
    outcome: Outcome, dataset: Dataset, split: str, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """The first images of a split as the outcome's network takes them in evaluation, and their classes.

    Args:
        outcome: of the network.
        dataset: to read from.
        split: of the dataset, e.g. "test".
        count: at most so many.

    Returns:
        float32 (images, height, width, channels) and int32 (images,).
    """
    spec = read_spec(outcome.workdir.weights)
    batches = evaluation_batches(dataset.split(split), spec.preprocessing, global_batch=count)
    batch = next(iter(batches))
    real = batch["weights"].numpy() > 0
    return batch["images"].numpy()[real], batch["labels"].numpy()[real]


def given_up(outcomes: Iterable[Outcome]) -> list[str]:
    """A remark on the runs that count as guessing; none if there are none."""
    names = [outcome.run.name for outcome in outcomes if outcome.failure is not None]
    sentence = "These runs gave up because the loss was not finite, and count as guessing: "
    return [f"{sentence}{', '.join(names)}."] if names else []


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _failure(workdir: RunFolder) -> Path:
    return workdir.path / "failure.txt"


def is_done(run: Run, folder: Path) -> bool:
    """Whether the run needs not be carried out any more."""
    workdir = RunFolder(folder / run.name)
    return workdir.weights.exists() or _failure(workdir).exists()


def _check(runs: Iterable[Run], folder: Path, data_dir: str | None) -> None:
    """Refuses what the first step of some run would refuse, before anything is made."""
    open_once = functools.cache(lambda name: open_dataset(name, data_dir))
    for run in runs:
        recipe = run.recipe
        try:
            check_run_folder(RunFolder(folder / run.name), recipe, run.seed, "float32")
        except InputError as error:
            raise InputError(str(error).replace("--workdir", "--output_dir")) from None
        least = get_config(recipe.model, **recipe.model_overrides).total_stride
        if recipe.image_size < least:
            raise InputError(
                f"{recipe.model} needs images of at least {least} pixels; got {recipe.image_size}"
            )
        steps_per_epoch(open_once(recipe.dataset).split(recipe.train_split), recipe.batch_size)


def places(jobs: int | None) -> int:
    """How many runs `run_all` carries out at once."""
    return len(_slots(jobs))


def _slots(jobs: int | None) -> list[dict[str, str]]:
    """The environment of each place where a run can be carried out."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        return [{"CUDA_VISIBLE_DEVICES": name} for name in names[: min(gpus, jobs or gpus)]]
    # Small networks gain little from a second core, so two of them side by side are faster.
    count = jobs or cores()
    threads = str(max(1, cores() // count))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return [dict.fromkeys(names, threads) for _ in range(count)]


@contextlib.contextmanager
def stop_on_sigterm() -> Iterator[None]:
    """SIGTERM ends the block like an interrupt, so that the runs are stopped with checkpoints."""

    def stop(*_):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _carry_out(
    waiting: Sequence[Run], slots: list[dict[str, str]], folder: Path, data_dir: str | None
) -> None:
    # The longest first: the last ones then end together.
    waiting = sorted(waiting, key=lambda run: get_config(run.recipe.model).weighted_layers)
    running: dict[subprocess.Popen, tuple[Run, dict]] = {}
    free = list(slots)
    with tqdm(total=len(waiting), unit="run", dynamic_ncols=True, disable=None) as bar:
        try:
            while waiting or running:
                while waiting and free:
                    run, slot = waiting.pop(), free.pop()
                    running[_start(run, folder, data_dir, slot)] = (run, slot)
                time.sleep(0.1)
                for process in [process for process in running if process.poll() is not None]:
                    run, slot = running.pop(process)
                    free.append(slot)
                    _check_end(process, run, folder)
                    bar.update()
                    bar.write(_ending(read_outcome(run, folder)), file=sys.stderr)
        finally:
            for process in running:
                process.stdin.close()  # asks it to stop
            for process in running:
                process.wait()


def _start(run: Run, folder: Path, data_dir: str | None, slot: dict[str, str]) -> subprocess.Popen:
    path = folder / run.name
    path.mkdir(parents=True, exist_ok=True)
    order = {**dataclasses.asdict(run), "recipe": run.recipe.to_dict()}
    with open(path / "log.txt", "a") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "experiments.worker", str(path)],
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **slot, "PYTHONPATH": _python_path()},
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            text=True,
            start_new_session=True,  # an interrupt at the keyboard is for the command alone
        )
    # The pipe stays open: its end tells the process that nobody waits for it any more.
    process.stdin.write(json.dumps({**order, "data_dir": data_dir}) + "\n")
    process.stdin.flush()
    return process


def _python_path() -> str:
    return os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))


def _check_end(process: subprocess.Popen, run: Run, folder: Path) -> None:
    if process.returncode:
        path = folder / run.name / "log.txt"
        lines = [line for line in path.read_text().splitlines() if line.strip()] or ["it said nothing"]
        raise RunFailed(f"{run.name} ended with status {process.returncode}: {lines[-1]} (all of it: {path})")


def _ending(outcome: Outcome) -> str:
    if outcome.failure is not None:
        return f"{outcome.run.name}: {outcome.failure}"
    return (
        f"{outcome.run.name}: training error {outcome.error('train'):.2f} %, "
        f"test error {outcome.error('val'):.2f} %, {outcome.seconds:.0f} s of training"
    )
