"""Training runs: each is trained once, in a separate process."""

import contextlib
import dataclasses
import functools
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tqdm import tqdm

from experiments.settings import Setting
from keras_resnet.classification.recipe import ClassificationRecipe
from keras_resnet.data import open_dataset, steps_per_epoch
from keras_resnet.detection import DetectionRecipe, DetectionTask, get_detector_config
from keras_resnet.errors import CommandFailed, InputError
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker, cores
from keras_resnet.progress import ProgressBar
from keras_resnet.run_folder import RunFolder
from keras_resnet.training.recipe import check_run_folder

WARMED_DEPTH = 110
"""The depth from which the ladder's networks warm up as the paper's ResNet-110 (section 4.2)."""

CLASSES = 10
"""Number of classes of all three datasets."""

_FAILURE = "failure.txt"
_PARTS = 1000  # of the progress


class RunFailed(CommandFailed):
    """A run ended without a result; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One training run; runs of the same name are the same run.

    Attributes:
        name: name of its folder.
        recipe: its paths of weights are relative to the folder of all runs.
        seed: seed of the initial weights, the data order and the augmentation.
        keep: number of checkpoints kept.
        after: a run that is trained first, because this one starts from its weights.
    """

    name: str
    recipe: ClassificationRecipe | DetectionRecipe
    seed: int
    keep: int = 1
    after: "Run | None" = None

    def __hash__(self) -> int:
        return hash(self.name)

    @property
    def layers(self) -> int:
        """Weighted layers of the network or of the detector's backbone."""
        model = self.recipe.model
        is_detector = isinstance(self.recipe, DetectionRecipe)
        return (get_detector_config(model).network if is_detector else get_config(model)).weighted_layers


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The result of a run.

    Attributes:
        history: the rows of history.csv as numbers.
        failure: the message of a training that stopped because the loss was not finite, or None.
    """

    run: Run
    folder: RunFolder
    history: tuple[dict[str, float], ...]
    failure: str | None = None

    @property
    def seconds(self) -> float:
        """Time spent in training steps, over all processes of the run."""
        before, total = 0.0, 0.0
        for row in self.history:
            total += (row["step"] - before) * self.run.recipe.batch_size / row["images_per_second"]
            before = row["step"]
        return total

    def errors(self, split: str) -> list[float]:
        """The top-1 error in % by epoch: "train", averaged over its steps, or "val", of the test images."""
        return [100 - 100 * row[f"{split}_top1"] for row in self.history]

    def error(self, split: str) -> float:
        """The last of `errors`; the error of random guessing for a run that diverged."""
        return 100 - 100 * self.last(f"{split}_top1", 1 / CLASSES)

    def last(self, column: str, diverged: float) -> float:
        """The last value of a column of history.csv; `diverged` for a run that diverged."""
        return diverged if self.failure is not None or not self.history else self.history[-1][column]


Outcomes = dict[Run, Outcome]


def ladder_run(setting: Setting, kind: str, depth: int, seed: int) -> Run:
    """A run of the degradation experiment's ladder, which other experiments share.

    A plain network and its residual twin with option A have the same variables, and with the same seed the
    same initial weights, data order and schedule. The kind is "plain" or "resnet".
    """
    model = f"cifar_{kind}{depth}"
    recipe = setting.recipe.replace(model=model)
    if depth >= WARMED_DEPTH:
        recipe = recipe.replace(error_warmup_rate=recipe.learning_rate / 10)
    return Run(f"{model}-seed{seed}", recipe, seed)


def run_all(
    runs: Iterable[Run],
    folder: Path,
    *,
    data_dir: str | None,
    jobs: int | None = None,
    work: Callable[[Run], float] = lambda run: run.layers,
) -> Outcomes:
    """Trains the runs that are not finished; their folders are in `folder`.

    Each run is a process that stops with a checkpoint when this one does. The next call skips finished runs
    and resumes interrupted ones. `jobs` runs are parallel; None: one per GPU, or one per core without GPUs.
    `work` estimates how long a run takes, in any unit, for the order and for the time left.

    Raises:
        InputError: a folder holds a run of another recipe, or a recipe does not fit its network or dataset.
        RunFailed: a process ended without a result.
    """
    runs = list(dict.fromkeys(runs))
    _check(runs, folder, data_dir)
    if any(not is_done(run, folder) for run in runs):
        _train(runs, slots(jobs), folder, data_dir, work)
    return {run: read_outcome(run, folder) for run in runs}


def read_outcome(run: Run, folder: Path) -> Outcome:
    """The result of a finished run."""
    run_folder = RunFolder(folder / run.name)
    history = tuple({key: float(value) for key, value in row.items()} for row in run_folder.read_history())
    failure = run_folder.path / _FAILURE
    return Outcome(run, run_folder, history, failure.read_text().strip() if failure.exists() else None)


def is_done(run: Run, folder: Path) -> bool:
    """Whether the run has finished."""
    run_folder = RunFolder(folder / run.name)
    return run_folder.weights.exists() or (run_folder.path / _FAILURE).exists()


def _check(runs: Iterable[Run], folder: Path, data_dir: str | None) -> None:
    """Checks the folder, the network and the data of each run, before anything is written."""
    open_once = functools.cache(lambda name: open_dataset(name, data_dir))
    detectors: dict[str, DetectionRecipe] = {}
    for run in runs:
        recipe = run.recipe
        try:
            check_run_folder(RunFolder(folder / run.name), recipe, run.seed, "float32")
        except InputError as error:
            raise InputError(str(error).replace("--workdir", "--output_dir")) from None
        if isinstance(recipe, DetectionRecipe):
            detectors[recipe.model] = recipe
            continue
        least = get_config(recipe.model, **recipe.model_overrides).total_stride
        if recipe.image_size < least:
            raise InputError(
                f"{recipe.model} needs images of at least {least} pixels; got {recipe.image_size}"
            )
        steps_per_epoch(open_once(recipe.dataset).split(recipe.train_split), recipe.batch_size)
    for recipe in detectors.values():
        DetectionTask(recipe).open(data_dir)


def slots(jobs: int | None) -> list[dict[str, str]]:
    """The environment variables of each of the runs that `run_all` trains in parallel."""
    gpus = len(tf.config.list_physical_devices("GPU"))
    if gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(index) for index in range(gpus)]
        return [{"CUDA_VISIBLE_DEVICES": name} for name in names[: min(gpus, jobs or gpus)]]
    # Small networks gain little from a second core, so two of them in parallel are faster.
    count = jobs or len(cores())
    threads = str(max(1, len(cores()) // count))
    names = ("TF_NUM_INTRAOP_THREADS", "TF_NUM_INTEROP_THREADS", "OMP_NUM_THREADS")
    return [dict.fromkeys(names, threads) for _ in range(count)]


def _train(
    runs: Sequence[Run],
    free: list[dict[str, str]],
    folder: Path,
    data_dir: str | None,
    work: Callable[[Run], float],
) -> None:
    # The longest runs first, so that the last ones end together.
    waiting = sorted((run for run in runs if not is_done(run, folder)), key=work, reverse=True)
    running: dict[Worker, tuple[Run, dict[str, str]]] = {}
    progress = _Progress(runs, folder, work)
    with progress.bar:
        try:
            while waiting or running:
                while free and (run := _take_ready(waiting, folder)):
                    slot = free.pop()
                    running[_start(run, folder, data_dir, slot)] = (run, slot)
                time.sleep(0.1)
                for worker in [worker for worker in running if worker.poll() is not None]:
                    run, slot = running.pop(worker)
                    free.append(slot)
                    tqdm.write(f"{run.name}: {_finish(worker, run, folder)}", file=sys.stderr)
                progress.update()
        finally:
            for worker in running:
                stdin: Any = worker.process.stdin
                stdin.close()  # all stop at the same time
            for worker in running:
                worker.close(wait=True)


class _Progress:
    """The share of all runs' work that is done, and the time left."""

    def __init__(self, runs: Sequence[Run], folder: Path, work: Callable[[Run], float]):
        self._folder, self._work = folder, {run: work(run) for run in runs}
        self._unfinished, self._next = list(runs), 0.0
        self._done = self._measure()
        self.bar = ProgressBar(_PARTS, "thousandths of the training", "all runs", initial=self._done)

    def update(self) -> None:
        """Reads how far the runs are, at most every two seconds."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 2
        before, self._done = self._done, self._measure()
        finished = len(self._work) - len(self._unfinished)
        self.bar.update(self._done - before, f"{finished} of {len(self._work)} runs finished")

    def _measure(self) -> int:
        self._unfinished = [run for run in self._unfinished if not is_done(run, self._folder)]
        missing = sum(self._work[run] * (1 - _share(run, self._folder)) for run in self._unfinished)
        return round(_PARTS * (1 - missing / sum(self._work.values())))


def _share(run: Run, folder: Path) -> float:
    """How much of its training an unfinished run has behind it, 0 to 1."""
    rows = RunFolder(folder / run.name).read_history()
    if not rows:
        return 0.0
    steps, last = run.recipe.steps, rows[-1]
    done = float(last["step"]) / steps if steps else float(last["epoch"]) / run.recipe.epochs
    return min(done, 1.0)


def _take_ready(waiting: list[Run], folder: Path) -> Run | None:
    """Removes and returns the first run that needs no other run first; None if there is none."""
    for run in waiting:
        if run.after is None or is_done(run.after, folder):
            waiting.remove(run)
            return run
    return None


def _start(run: Run, folder: Path, data_dir: str | None, slot: dict[str, str]) -> Worker:
    path = folder / run.name
    path.mkdir(parents=True, exist_ok=True)
    if data_dir is not None:
        data_dir = os.path.abspath(os.path.expanduser(data_dir))  # the worker runs in another folder
    options = {"seed": run.seed, "keep": run.keep, "strategy": "one_device", "data_dir": data_dir}
    task = "detection" if isinstance(run.recipe, DetectionRecipe) else "classification"
    worker = Worker(
        "experiments.worker",
        {
            "folder": str(path.absolute()),
            "task": task,
            "recipe": run.recipe.to_dict(),
            "after": run.after and run.after.name,
            "options": options,
        },
        cwd=folder,
        environment={"TF_CPP_MIN_LOG_LEVEL": "3", **slot},
        log=path / "log.txt",
        start_new_session=True,  # Ctrl-C interrupts only the command
    )
    # Linux schedules each session as a group with its own niceness, and a new one starts at 0 (sched(7)).
    with contextlib.suppress(OSError):  # other systems, and processes that have ended
        Path(f"/proc/{worker.process.pid}/autogroup").write_text(str(os.nice(0)))
    return worker


def _finish(worker: Worker, run: Run, folder: Path) -> str:
    """The result of a process that ended, in words."""
    worker.close()
    if status := worker.poll():
        path = folder / run.name / "log.txt"
        lines = [line for line in path.read_text().splitlines() if line.strip()] or ["it printed nothing"]
        raise RunFailed(f"{run.name} ended with status {status}: {lines[-1]} (full log: {path})")
    outcome = read_outcome(run, folder)
    if outcome.failure is None and isinstance(run.recipe, DetectionRecipe):
        return (
            f"mAP at IoU .5 {100 * outcome.last('val_map50', 0):.2f} %, {outcome.seconds:.0f} s of training"
        )
    return outcome.failure or (
        f"training error {outcome.error('train'):.2f} %, test error {outcome.error('val'):.2f} %, "
        f"{outcome.seconds:.0f} s of training"
    )
