"""What the benchmarks share: flags, alternating rounds, ratios, the machine, a table and a JSON file."""

import contextlib
import importlib.metadata
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from keras_resnet.errors import InputError, unknown_name
from keras_resnet.files import write_json
from keras_resnet.processes import cores
from keras_resnet.tables import markdown_table
from keras_resnet.version import __version__

ROOT = Path(__file__).resolve().parents[1]

# Whether more of a unit is better.
_UNITS = {"images/s": True, "s": False, "ms/layer": False, "MiB": False}

# Instruction sets that decide how fast a CPU trains.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

# The processes that wanted a core before this one began to work; they distort every figure.
_LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

LIMIT = "the limit we set ourselves"
"""The peer of what is compared with a number."""

Measure = Callable[[], float]
Row = dict[str, Any]

_OUTPUT = flags.DEFINE_string("output", None, "A .json file for the result, besides the table.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often ours and each peer are measured, in turn.")


def rounds() -> int:
    """The value of --rounds; to be called before the first measurement.

    Raises:
        InputError: it is below 1, or --output cannot be written.
    """
    at_least_one(rounds=_ROUNDS.value)
    if _OUTPUT.value is not None:
        path = Path(_OUTPUT.value)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"--output={path} is not a file in a folder that exists")
    return _ROUNDS.value


def define_subjects(known: Iterable[str]) -> Callable[[], list[str]]:
    """Defines --subjects; the returned function gives those that were chosen."""
    known = list(known)
    holder = flags.DEFINE_list("subjects", known, f"What to measure: {', '.join(known)}.")
    return lambda: chosen("subject", holder.value, known)


def chosen(kind: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The given names without repetitions.

    Raises:
        InputError: there are none, or one is unknown.
    """
    names, known = list(dict.fromkeys(names)), list(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    if not names:
        raise InputError(f"no {kind} is chosen; there are {', '.join(known)}")
    return names


def at_least_one(**values: int | None) -> None:
    """Raises `InputError` for a flag below 1; None is a flag that is not given."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1; got {value}")


def say(line: str) -> None:
    """Prints progress to standard error."""
    print(line, file=sys.stderr, flush=True)


def alternate(measures: Sequence[Measure], rounds: int) -> list[list[float]]:
    """Calls the measures in turn; returns the readings of each.

    Every second round goes backward, so that a machine that slowly gets faster or slower favors none.
    """
    readings: list[list[float]] = [[] for _ in measures]
    for index in range(rounds):
        order = range(len(measures)) if index % 2 == 0 else reversed(range(len(measures)))
        for i in order:
            readings[i].append(measures[i]())
    return readings


def row(subject: str, unit: str, ours: Sequence[float], peer: Sequence[float], peer_name: str) -> Row:
    """One row of the result, from one reading of ours and of the peer's per round.

    The ratio is the median of the rounds' ratios, so that what disturbs a whole round cancels. Above 1 it
    always means that ours is better, whether the unit is a speed or a time.
    """
    pairs = list(zip(ours, peer, strict=True))
    ratios = [a / b if _UNITS[unit] else b / a for a, b in pairs]
    return {
        "subject": subject,
        "unit": unit,
        "ours": statistics.median(ours),
        "peer": statistics.median(peer),
        "peer_name": peer_name,
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
        "rounds": len(pairs),
    }


def compare(subject: str, unit: str, ours: Measure, peers: Mapping[str, Measure], rounds: int) -> list[Row]:
    """Measures ours and all peers in turn, and prints each reading; returns one row for each peer."""
    if not peers:
        return []
    contenders = {"ours": ours, **peers}
    measures = [_printing(f"{subject}: {{:.2f}} {unit}, {name}", m) for name, m in contenders.items()]
    own, *others = alternate(measures, rounds)
    return [row(subject, unit, own, peer, name) for name, peer in zip(peers, others, strict=True)]


def _printing(line: str, measure: Measure) -> Measure:
    def measure_once() -> float:
        value = measure()
        say(line.format(value))
        return value

    return measure_once


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python, this project, and those of `packages` that are installed."""
    found = {"python": platform.python_version(), "keras_resnet": __version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict[str, Any]:
    """What decides about speed: CPU, cores, memory, operating system, GPUs."""
    cpu = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*: (.*)$", cpu, re.MULTILINE)
    known = re.search(r"^flags\s*: (.*)$", cpu, re.MULTILINE)
    known = known[1].split() if known else []
    memory = re.search(r"^MemTotal:\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    result = {
        "cpu": model[1] if model else platform.processor() or platform.machine(),
        "instruction_sets": [name for name in _INSTRUCTION_SETS if name in known],
        "cores": len(cores()),
        "memory_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "os": f"{platform.system()} {platform.release()}",
        "load_before": round(_LOAD, 2),
    }
    if gpus := _gpus():
        result["gpu"] = gpus
    return result


def report(rows: Sequence[Row], versions: Mapping[str, str]) -> None:
    """Prints the table, and writes the JSON file if --output names one."""
    described = machine()
    if 0.25 * described["cores"] < _LOAD:
        say(f"the machine was busy (load {_LOAD:.1f}): these figures mean little")
    print(f"{described['cpu']}, {described['cores']} cores, {described['memory_gib']} GiB", end="")
    print(f", {', '.join(described['gpu'])}" if "gpu" in described else "")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print()
    print(table(rows))
    if _OUTPUT.value is not None:
        write_json(_OUTPUT.value, {"machine": described, "versions": dict(versions), "rows": list(rows)})


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    header = ["subject", "unit", "ours", "peer", "peer is", "ratio", "spread", "rounds"]
    cells = [
        [
            str(r["subject"]),
            str(r["unit"]),
            _figure(r["ours"]),
            _figure(r["peer"]),
            str(r["peer_name"]),
            f"{r['ratio']:.2f}",
            f"{r['ratio_min']:.2f}-{r['ratio_max']:.2f}",
            str(r["rounds"]),
        ]
        for r in rows
    ]
    return markdown_table(header, cells)


def _figure(value: float) -> str:
    """Three significant digits, without an exponent."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _gpus() -> list[str]:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.split("\n")[:-1] if done.returncode == 0 else []
