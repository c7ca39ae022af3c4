"""What every benchmark shares: rounds in turn, ratios, the machine, a table and a JSON file."""

import contextlib
import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from absl import flags

from keras_resnet.errors import InputError, unknown_name
from keras_resnet.processes import cores
from keras_resnet.tables import markdown_table

ROOT = Path(__file__).resolve().parents[1]

# Whether more of a unit is better.
UNITS = {"images/s": True, "s": False, "ms/layer": False, "MiB": False}

# Instruction sets that decide how fast a CPU trains.
_INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")

# The processes that wanted a core before this one began to work; company spoils every figure.
_LOAD = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0

Measure = Callable[[], float]
Row = dict[str, object]

_OUTPUT = flags.DEFINE_string("output", None, "A .json file for the result, besides the table.")
_ROUNDS = flags.DEFINE_integer("rounds", 5, "How often ours and each peer are measured, in turn.")


def rounds() -> int:
    """The value of --rounds.

    Raises:
        InputError: it is below 1, or --output cannot be written: better said before the run than after.
    """
    if _ROUNDS.value < 1:
        raise InputError(f"--rounds must be at least 1; got {_ROUNDS.value}")
    if _OUTPUT.value is not None:
        path = Path(_OUTPUT.value)
        if path.is_dir() or not path.absolute().parent.is_dir():
            raise InputError(f"--output={path} is not a file in a folder that exists")
    return _ROUNDS.value


def chosen(kind: str, names: Iterable[str], known: Iterable[str]) -> list[str]:
    """The names that a person listed, each once.

    Raises:
        InputError: none, or one that is not known.
    """
    names, known = list(dict.fromkeys(names)), list(known)
    for name in names:
        if name not in known:
            raise unknown_name(kind, name, known)
    if not names:
        raise InputError(f"no {kind} is chosen; there are {', '.join(known)}")
    return names


def at_least_one(**values: int | None) -> None:
    """Raises `InputError` for a flag below 1; None is a flag not given."""
    for name, value in values.items():
        if value is not None and value < 1:
            raise InputError(f"--{name} must be at least 1; got {value}")


def say(line: str) -> None:
    """Tells the waiting person what is being measured."""
    print(line, file=sys.stderr, flush=True)


def alternate(measures: Sequence[Measure], rounds: int) -> list[list[float]]:
    """Calls the measures in turn, forwards in one round and backwards in the next.

    So a machine that slowly grows faster or slower favours none of them.

    Returns:
        For each measure its readings, one a round.
    """
    readings: list[list[float]] = [[] for _ in measures]
    for index in range(rounds):
        order = range(len(measures)) if index % 2 == 0 else reversed(range(len(measures)))
        for i in order:
            readings[i].append(measures[i]())
    return readings


def row(subject: str, unit: str, ours: Sequence[float], peer: Sequence[float], peer_name: str) -> Row:
    """One line of the result, from readings of which the i-th of ours and theirs are of one round.

    The ratio is the median over the rounds' own ratios, so what disturbed a whole round cancels; above 1
    it always means that ours is better, whether the unit is a speed or a time.

    Args:
        subject: what was measured.
        unit: a key of `UNITS`.
        ours: our readings.
        peer: theirs.
        peer_name: who they are.
    """
    pairs = list(zip(ours, peer, strict=True))
    ratios = [a / b if UNITS[unit] else b / a for a, b in pairs]
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
    """Measures ours and all peers in turn; one row for each peer."""
    if not peers:
        return []
    mine, *others = alternate([ours, *peers.values()], rounds)
    return [row(subject, unit, mine, peer, name) for name, peer in zip(peers, others, strict=True)]


def versions(*packages: str) -> dict[str, str]:
    """The versions of Python, this project and the installed ones among `packages`."""
    import keras_resnet

    found = {"python": platform.python_version(), "keras_resnet": keras_resnet.__version__}
    for package in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def machine() -> dict[str, object]:
    """The machine, as far as it decides about speed: CPU, cores, memory, system, GPU if any."""
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
    """Prints the table, and writes the JSON file where --output names one."""
    described = machine()
    if 0.25 * described["cores"] < _LOAD:
        say(f"the machine was not quiet (load {_LOAD:.1f}): these figures mean little")
    print(f"{described['cpu']}, {described['cores']} cores, {described['memory_gib']} GiB", end="")
    print(f", {', '.join(described['gpu'])}" if "gpu" in described else "")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    print()
    print(table(rows))
    if _OUTPUT.value is not None:
        write(Path(_OUTPUT.value), rows, versions, described)


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


def write(
    path: Path, rows: Sequence[Row], versions: Mapping[str, str], machine: Mapping[str, object]
) -> None:
    """Writes the JSON file, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    content = {"machine": dict(machine), "versions": dict(versions), "rows": list(rows)}
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_text(json.dumps(content, indent=2) + "\n")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror}") from None


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
