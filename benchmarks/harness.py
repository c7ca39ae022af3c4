"""What the benchmarks share: flags, alternating rounds, ratios, the machine, a table and a JSON file."""

import contextlib
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from keras_resnet import cli
from keras_resnet.errors import InputError, require, unknown_name
from keras_resnet.files import write_json
from keras_resnet.processes import cores, memory_limit
from keras_resnet.tables import markdown_table
from keras_resnet.version import versions

ROOT = Path(__file__).resolve().parents[1]

# Whether more of a unit is better.
_UNITS = {"images/s": True, "s": False, "ms/layer": False, "MiB": False}

# Instruction sets that decide how fast a CPU trains.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

# The load before the benchmark starts; other processes distort every figure.
_LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

LIMIT = "the limit we set ourselves"
"""The peer of what is compared with a number."""

Measure = Callable[[], float]
Row = dict[str, Any]


class Benchmark:
    """One run of a benchmark, with the rows of its result.

    Attributes:
        rounds: how often each contender is measured.
        output: path of the JSON file; None for the table only.
        rows: in the order of `compare` and `add`.
    """

    def __init__(self, rounds: int, output: str | None = None):
        self.rounds, self.output = rounds, output
        self.rows: list[Row] = []

    def compare(
        self, subject: str, unit: str, contenders: Mapping[str, Measure], rounds: int | None = None
    ) -> None:
        """Measures contenders in turn, of which the first is ours; adds a row for each of the others.

        Every second round goes backward, so that a machine that slowly gets faster or slower favors none.
        """
        readings: dict[str, list[float]] = {name: [] for name in contenders}
        for index in range(rounds or self.rounds):
            for name in readings if index % 2 == 0 else reversed(readings):
                readings[name].append(contenders[name]())
                say(f"{subject}: {readings[name][-1]:.2f} {unit}, {name}")
        (_, ours), *peers = readings.items()
        for name, peer in peers:
            self.add(subject, unit, ours, peer, name)

    def add(
        self, subject: str, unit: str, ours: Sequence[float], peer: Sequence[float], peer_name: str
    ) -> None:
        """Adds a row from one reading of ours and of the peer per round.

        The ratio is the median of the rounds' ratios, so that what disturbs a whole round cancels. Above 1
        it always means that ours is better, whether the unit is a speed or a time.
        """
        ratios = [a / b if _UNITS[unit] else b / a for a, b in zip(ours, peer, strict=True)]
        self.rows.append(
            {
                "subject": subject,
                "unit": unit,
                "ours": statistics.median(ours),
                "peer": statistics.median(peer),
                "peer_name": peer_name,
                "ratio": statistics.median(ratios),
                "ratio_min": min(ratios),
                "ratio_max": max(ratios),
                "rounds": len(ratios),
            }
        )

    def report(self, *packages: str, **more: str) -> None:
        """Prints the table with the versions of packages and of `more`, and writes the JSON file."""
        described, found = machine(), {**versions(*packages), **more}
        if 0.25 * described["cores"] < _LOAD:
            say(f"the machine was busy (load {_LOAD:.1f}): these figures mean little")
        print(f"{described['cpu']}, {described['cores']} cores, {described['memory_gib']} GiB", end="")
        print(f", {', '.join(described['gpu'])}" if "gpu" in described else "")
        print(", ".join(f"{name} {version}" for name, version in found.items()))
        print(f"\n{table(self.rows)}")
        if self.output is not None:
            write_json(self.output, {"machine": described, "versions": found, "rows": self.rows})


def run(
    main: Callable[..., None],
    subjects: Iterable[str] = (),
    flags: Sequence[cli.Flag] = (),
    default: Sequence[str] | None = None,
) -> NoReturn:
    """Runs the program's `main` as a command, with a `Benchmark`, --subjects and its other flags.

    There is no --subjects without `subjects`. Whole numbers must be at least 1. `default` is what is
    measured without --subjects; None for all subjects.
    """
    known = list(subjects)

    def checked(output: str | None, rounds: int, **given: Any) -> None:
        at_least_one(rounds=rounds, **{flag.name: given[flag.name] for flag in flags if flag.kind is int})
        if output is not None and (Path(output).is_dir() or not Path(output).absolute().parent.is_dir()):
            raise InputError(f"--output={output} is not a file in a folder that exists")
        if known:
            given["subjects"] = chosen("subject", given["subjects"], known)
        main(Benchmark(rounds, output), **given)

    common = [
        cli.Flag("output", "A .json file for the result, besides the table."),
        cli.Flag("rounds", "How often ours and each peer are measured, in turn.", int, 5),
    ]
    if known:
        about = f"What to measure: {', '.join(known)}."
        common.append(cli.Flag("subjects", about, tuple, list(default or known)))
    cli.run(cli.Command(checked, sys.modules["__main__"].__doc__ or "", (*common, *flags)))


def chosen(kind: str, names: Iterable[str], known: Sequence[str]) -> list[str]:
    """The given names without repetitions; `InputError` if there are none, or one is unknown."""
    names = list(dict.fromkeys(names))
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    if not names:
        raise InputError(f"no {kind} is chosen; there are {', '.join(known)}")
    return names


def at_least_one(**values: int | None) -> None:
    """Raises `InputError` for a flag below 1; None is a flag that is not given."""
    for name, value in values.items():
        require(value is None or value >= 1, f"--{name} must be at least 1", value)


def say(line: str) -> None:
    """Prints progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What decides about speed: CPU, cores, memory, operating system, GPUs."""
    known, memory = _proc("cpuinfo", "flags").split(), _proc("meminfo", "MemTotal").split()
    sizes = [*(1024 * int(size) for size in memory[:1]), *filter(None, [memory_limit()])]
    result = {
        "cpu": _proc("cpuinfo", "model name") or platform.processor() or platform.machine(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in known],
        "cores": len(cores()),
        "memory_gib": round(min(sizes) / 2**30, 1) if sizes else None,
        "os": f"{platform.system()} {platform.release()}",
        "load_before": round(_LOAD, 2),
    }
    if gpus := _gpus():
        result["gpu"] = gpus
    return result


def _proc(file: str, field: str) -> str:
    """The first value of a field in a file of /proc; empty if there is none."""
    with contextlib.suppress(OSError):
        found = re.search(rf"^{field}\s*: *(.*)$", Path("/proc", file).read_text(), re.MULTILINE)
        return found[1] if found else ""
    return ""


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        return done.stdout.splitlines()
    return []


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    header = ("subject", "unit", "ours", "peer", "peer is", "ratio", "spread", "rounds")
    cells = []
    for r in rows:
        ratios = (f"{r['ratio']:.2f}", f"{r['ratio_min']:.2f}-{r['ratio_max']:.2f}", str(r["rounds"]))
        figures = (_figure(r["ours"]), _figure(r["peer"]))
        cells.append((r["subject"], r["unit"], *figures, r["peer_name"], *ratios))
    return markdown_table(header, cells)


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
