"""Kills training and export at random moments and compares the resumed runs with undisturbed ones.

    make test-kill

A scenario has rounds. A round starts in a new folder; each of its signals stops the command, and the same
command is given again. The last command of a round is not disturbed.
"""

import dataclasses
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from helpers.processes import TINY_FLAGS, launch_command, train_command
from helpers.tiny_detectors import recipe_flags, small_recipe
from kill import inspection
from kill.attack import VICTIM, Attack, Ended, OutOfTime, run

from keras_resnet import cli, files
from keras_resnet.errors import InputError
from keras_resnet.processes import cores
from keras_resnet.tables import markdown_table

# 3 epochs of 20 steps. The average of the weights is another set of variables that must survive.
FLAGS = (*TINY_FLAGS, "--epochs=3", "--checkpoint_every=3", "--set=ema_decay=0.9", "--set=mixup=0.2")
# 3 epochs of 6 steps.
DETECTION = {"train_split": "train[:24]", "flip": True, "scale_jitter": (0.7, 1.5)}
SIGNALS_PER_ROUND = 6
MOST_NOT_RESUMED = 3  # rounds; then a scenario is given up
DISK_BYTES = 2**25
HEADER = ("scenario", "SIGKILL", "SIGTERM", "resumed", "same bytes", "half-written files", "leftovers")
PAGE = """\
# Kills

Runs of a tiny network on the digits, their exports, and runs of tiny detectors are stopped at random moments
and resumed by the same command, up to {most} times per run. Then their files are compared with those of
undisturbed runs.

{table}

{failures}

`make test-kill`, seed {seed}, {minutes:.0f} minutes on {cores} CPU cores.

- A signal is sent at a random moment: some milliseconds after a certain step, batch of an evaluation, or
  change to a file. With two workers it is sent to one of them, to both at once, or to the launcher.
- resumed: signals after which the same command came to the end of the run.
- same bytes: the weights, the curves, history.csv (without the speeds) and the last checkpoint of a run, or
  the artifacts of an export. Not compared are TensorBoard's logs, measured latencies, and a SavedModel's
  `fingerprint.pb`, which is drawn anew in each export.
- half-written files: files with their final name and an incomplete or wrong content, after each signal.
- leftovers: files and folders, hidden ones included, that a resumed run has and the undisturbed one does not.
- The full disk stopped {total.full} more commands, which were resumed, too.
- The slowest command ended {slowest:.1f} s after its SIGTERM.
- {total.temporary} files and folders were left in the system's folder for temporary files.
"""

# What a moment is drawn from: a point, its largest count, and the longest delay in seconds.
Moments = Sequence[tuple[str, int, float]]


@dataclasses.dataclass(frozen=True)
class Scenario:
    """A command that is killed.

    Attributes:
        kills: weight among the SIGKILLs.
        terms: weight among the SIGTERMs.
        whole: folder of the undisturbed run.
        start: folder that is copied at the start of a round; None for an empty one.
        flags: those of the recipe.
        fills: whether the folder is on a disk that fills up.
    """

    name: str
    kills: int
    terms: int
    moments: Moments
    whole: Path
    start: Path | None = None
    flags: Sequence[str] = FLAGS
    workers: int = 1
    exports: bool = False
    fills: bool = False

    def attack(self, number: signal.Signals, draw: random.Random) -> Attack:
        """Draws the moment and the target of a signal."""
        point, most, longest = draw.choice(self.moments)
        count, delay = draw.randint(1, most), draw.uniform(0, longest)
        if self.workers == 1:
            return Attack(number, point, count, delay)
        # Only the first worker writes.
        worker = 0 if point == "write" else draw.randrange(self.workers)
        all_at_once = "launcher" if number == signal.SIGTERM else "group"
        return Attack(number, point, count, delay, worker, draw.choice(["process", all_at_once]))

    def command(self, folder: Path, data: Path) -> list[str]:
        """The arguments of Python."""
        if self.exports:
            return [VICTIM, "export", f"--workdir={folder}", f"--data_dir={data}"]
        if self.workers > 1:
            command = launch_command(self.workers, folder, data, recipe=self.flags)
        else:
            command = train_command(folder, data, recipe=self.flags)
        return [part.replace("train_main.py", VICTIM) for part in command]


@dataclasses.dataclass
class Result:
    """What happened in a scenario; `problems` are sentences."""

    name: str  # of the scenario
    kills: int = 0
    terms: int = 0
    resumed: int = 0  # signals after which the run came to its end
    rounds: int = 0
    not_resumed: int = 0  # rounds that did not come to their end
    same: int = 0  # rounds that ended with the files of the undisturbed run
    full: int = 0  # commands that the full disk ended
    broken: int = 0
    leftovers: int = 0
    temporary: int = 0  # files and folders in TMPDIR
    slowest_stop: float = 0.0
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        """The table's row."""
        numbers = (self.kills, self.terms, self.resumed)
        same = f"{self.same} of {self.rounds} runs"
        return [self.name, *map(str, numbers), same, str(self.broken), str(self.leftovers)]

    def problem(self, what: str, output: str = "") -> None:
        """Notes what must not happen, with the last lines of the command's output."""
        self.problems.append(f"{self.name}: {what}")
        print(f"PROBLEM {self.problems[-1]}\n{output[-2000:]}", flush=True)

    def note(self, ended: Ended, attack: Attack | None, folder: Path, whole: Path) -> None:
        """Inspects what a command has left."""
        if broken := inspection.broken(folder, whole):
            self.broken += len(broken)
            self.problem(f"half-written after {attack}: {', '.join(broken)}")
        if ended.status is None:
            self.problem(f"the command did not end after {attack}", ended.output)
        if ended.orphans:
            self.problem(f"processes were left running after {attack}")
        if "Traceback" in ended.output:
            self.problem(f"a traceback after {attack}", ended.output)
        if ended.sent and attack is not None and attack.number == signal.SIGTERM:
            self.terms += 1
            self.slowest_stop = max(self.slowest_stop, ended.seconds)
            if ended.status not in (0, 143, -signal.SIGTERM, None):
                self.problem(f"status {ended.status} after {attack}", ended.output)
        elif ended.sent:
            self.kills += 1


class Disk:
    """A small file system, of which as much is occupied as a test needs."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", folder], check=True)
        self._folder, self._ballast = folder, folder / "ballast"

    def leave(self, free: int) -> None:
        """Occupies all but `free` bytes."""
        self.empty()
        occupied = shutil.disk_usage(self._folder).free - free
        with open(self._ballast, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, occupied))

    def empty(self) -> None:
        """Gives the occupied bytes back."""
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Removes the file system."""
        subprocess.run(["umount", "--lazy", self._folder], check=True)


class Attacker:
    """Carries out a scenario.

    Args:
        data: the datasets' folder.
        deadline: of the whole test, as `time.monotonic`.
    """

    def __init__(self, scenario: Scenario, scratch: Path, data: Path, deadline: float, seed: int):
        self._scenario, self._scratch, self._data, self._deadline = scenario, scratch, data, deadline
        self._result, self._place = Result(scenario.name), scratch / "runs"
        self._draw = random.Random(f"{seed} {scenario.name}")
        self._disk: Disk | None = None

    def run(self, kills: int, terms: int) -> Result:
        """Sends the signals in random order."""
        waiting = [signal.SIGKILL] * kills + [signal.SIGTERM] * terms
        self._draw.shuffle(waiting)
        result = self._result
        if self._scenario.fills:
            self._disk = Disk(self._place)
        try:
            while waiting and result.rounds < 3 + kills + terms and result.not_resumed < MOST_NOT_RESUMED:
                self._round(self._place / str(result.rounds), waiting)
                print(f"{result.name}: {len(waiting)} signals left", flush=True)
        except OutOfTime:
            result.problem("out of time")
        finally:
            if self._disk:
                self._disk.close()
        if waiting:
            result.problem(f"{len(waiting)} signals were not sent")
        result.temporary = len(list(self._scratch.glob("tmp/*")))
        return result

    def _round(self, folder: Path, waiting: list[signal.Signals]) -> None:
        """Sends some of the waiting signals and removes them from the list; then the run comes to its end."""
        result, before = self._result, len(waiting)
        if self._scenario.start:
            shutil.copytree(self._scenario.start, folder)
        status = None
        for _ in range(SIGNALS_PER_ROUND):
            if waiting and status is None:
                status = self._attempt(folder, waiting)
        if self._disk:
            self._disk.empty()
        if status is None:
            ended = self._start(folder)
            status = ended.status
            if status:
                result.problem(f"resuming ended with status {status}", ended.output)
        result.rounds += 1
        if status != 0:
            result.not_resumed += 1
            return
        result.resumed += before - len(waiting)
        if different := inspection.differences(folder, self._scenario.whole):
            result.problem(f"other than in the undisturbed run: {', '.join(different)}")
        result.same += not different
        if left := inspection.leftovers(folder, self._scenario.whole):
            result.leftovers += len(left)
            result.problem(f"left over: {', '.join(left)}")
        shutil.rmtree(folder)

    def _attempt(self, folder: Path, waiting: list[signal.Signals]) -> int | None:
        """Starts the command and sends it the next signal.

        Returns:
            None if the command must be given again, 0 if the run came to its end, or the status of a failure.
        """
        if self._disk:
            self._disk.leave(round(self._draw.uniform(0, 1.2 * files.size(self._scenario.whole))))
        attack = self._scenario.attack(waiting[-1], self._draw)
        ended = self._start(folder, attack)
        if ended.sent:
            waiting.pop()
            return None
        if self._disk and ended.status and "No space left" in ended.output:
            self._result.full += 1
            return None
        if ended.status:
            self._result.problem(f"status {ended.status} before {attack}", ended.output)
        return ended.status

    def _start(self, folder: Path, attack: Attack | None = None) -> Ended:
        command = self._scenario.command(folder, self._data)
        ended = run(command, folder, self._scratch, self._deadline, attack)
        self._result.note(ended, attack, folder, self._scenario.whole)
        return ended


def undisturbed(scenario: Scenario, scratch: Path, data: Path, deadline: float) -> dict:
    """Makes a scenario's `whole` folder; returns how often the first worker reached each point."""
    if scenario.start:
        shutil.copytree(scenario.start, scenario.whole)
    counts = scratch / "counts.json"
    scratch.mkdir(parents=True, exist_ok=True)
    ended = run(scenario.command(scenario.whole, data), scenario.whole, scratch, deadline, counts=counts)
    if ended.status != 0:
        raise InputError(f"the undisturbed run ended with status {ended.status}: {ended.output[-2000:]}")
    print(f"undisturbed: {scenario.name}", flush=True)
    return json.loads(counts.read_text())


def prepare(place: Path, data: Path, deadline: float) -> list[Scenario]:
    """Makes the undisturbed runs, and the scenarios that refer to them."""
    names = ("one", "two", "finishing", "exported", "c4", "fpn", "two_fpn")
    one, two, finishing, exported, c4, fpn, two_fpn = (place / name for name in names)
    scratch = place / "undisturbed"

    def make(**fields) -> dict:
        return undisturbed(Scenario("run", 0, 0, (), **fields), scratch, data, deadline)

    make(whole=one)
    make(whole=two, workers=2)
    of_c4, of_fpn = (
        (*recipe_flags(small_recipe(is_fpn, **DETECTION)), "--checkpoint_every=4") for is_fpn in (False, True)
    )
    make(whole=c4, flags=of_c4)
    make(whole=fpn, flags=of_fpn)
    make(whole=two_fpn, flags=of_fpn, workers=2)
    unfinished, unfinished_two = without_result(one), without_result(two)
    saved = make(whole=finishing, start=unfinished)
    if different := inspection.differences(finishing, one):
        raise InputError(f"a run that only writes its result has other files: {', '.join(different)}")
    written = make(whole=exported, start=one, exports=True)

    training = (("train", 15, 0.05), ("write", 25, 0.005))
    evaluation = (("evaluate", 20, 0.05),)
    detection = (("train", 12, 0.1), ("evaluate", 4, 0.1), ("write", 20, 0.01))
    result = (("write", saved["write"], 0.02),)
    export = (("write", 1, written["writing_seconds"]), ("write", written["write"], 0.02))
    return [
        Scenario("training, two workers", 12, 3, training, two, workers=2),
        Scenario("detector with a pyramid, two workers", 6, 1, detection, two_fpn, flags=of_fpn, workers=2),
        Scenario("detector with a pyramid", 10, 2, detection, fpn, flags=of_fpn),
        Scenario("C4 detector", 10, 2, detection, c4, flags=of_c4),
        Scenario("training", 30, 5, training, one),
        Scenario("export", 15, 3, export, exported, start=one, exports=True),
        Scenario("evaluation inside training", 15, 3, evaluation, one),
        Scenario("training, the disk fills up", 6, 1, training, one, fills=True),
        Scenario("evaluation inside training, two workers", 5, 1, evaluation, two, workers=2),
        Scenario("writing weights and curves", 10, 2, result, one, start=unfinished),
        Scenario("export, the disk fills up", 4, 1, export, exported, start=one, exports=True, fills=True),
        Scenario("writing weights and curves, two workers", 3, 1, result, two, unfinished_two, workers=2),
    ]


def without_result(run_folder: Path) -> Path:
    """A copy of a finished run as it is before it writes its result."""
    folder = run_folder.with_name(f"{run_folder.name}_without_result")
    shutil.copytree(run_folder, folder)
    for name in ("model.weights.h5", "curves.png"):
        (folder / name).unlink()
    return folder


def shares(total: int, weights: Sequence[int]) -> list[int]:
    """Splits a number in the ratio of the weights."""
    ends = [round(total * end / sum(weights)) for end in itertools.accumulate(weights)]
    return [end - begin for begin, end in itertools.pairwise([0, *ends])]


def report(results: Sequence[Result], seed: int, minutes: float) -> str:
    """The page with the table."""
    names = ("kills", "terms", "resumed", "same", "rounds", "broken", "leftovers", "full", "temporary")
    total = Result("all", **{name: sum(getattr(result, name) for result in results) for name in names})
    problems = [problem for result in results for problem in result.problems]
    return PAGE.format(
        table=markdown_table(HEADER, [result.cells for result in (*results, total)]),
        seed=seed,
        minutes=minutes,
        cores=len(cores()),
        most=SIGNALS_PER_ROUND,
        total=total,
        slowest=max((result.slowest_stop for result in results), default=0),
        failures="\n".join(["## Failures\n", *(f"- {problem}" for problem in problems)])
        if problems
        else "No failures.",
    )


def main(
    kills: int, terms: int, seed: int, lanes: int, minutes: float, only: str | None, output: str | None
) -> int:
    """Carries out all scenarios; returns the exit status."""
    began = time.monotonic()
    deadline = began + 60 * minutes
    with tempfile.TemporaryDirectory(prefix="kill-") as place, ThreadPoolExecutor(lanes) as pool:
        data = Path(place, "data")
        scenarios = prepare(Path(place), data, deadline)
        counts = zip(
            shares(kills, [scenario.kills for scenario in scenarios]),
            shares(terms, [scenario.terms for scenario in scenarios]),
            strict=True,
        )
        futures = [
            pool.submit(Attacker(scenario, Path(place, f"scenario{index}"), data, deadline, seed).run, *count)
            for index, (scenario, count) in enumerate(zip(scenarios, counts, strict=True))
            if sum(count) and (only is None or only in scenario.name)
        ]
        results = [future.result() for future in futures]
    text = report(results, seed, (time.monotonic() - began) / 60)
    print(text)
    if output is not None:
        files.write_text(output, text)
    return 1 if any(result.problems for result in results) else 0


COMMAND = cli.Command(
    main,
    "Kills training and export at random moments, and compares the resumed runs with undisturbed ones.",
    (
        cli.Flag("kills", "Number of SIGKILLs.", int, 100),
        cli.Flag("terms", "Number of SIGTERMs.", int, 20),
        cli.Flag("seed", "Seed of the moments.", int, 0),
        cli.Flag("lanes", "Scenarios at the same time.", int, 2),
        cli.Flag("minutes", "After this time no further command is started.", float, 60.0),
        cli.Flag("only", "Only scenarios whose name contains this."),
        cli.Flag("output", "File for the table."),
    ),
)

if __name__ == "__main__":
    cli.run(COMMAND)
