import json
import subprocess
import sys

import pytest

from benchmarks import harness
from keras_resnet.errors import InputError
from keras_resnet.processes import Worker
from keras_resnet.version import versions

ROW_KEYS = ["subject", "unit", "ours", "peer", "peer_name", "ratio", "ratio_min", "ratio_max", "rounds"]


def python(*arguments):
    return subprocess.run([sys.executable, *arguments], cwd=harness.ROOT, capture_output=True, text=True)


def command(module, *flags):
    return python("-m", f"benchmarks.{module}", *flags)


def measured(module, folder, *flags):
    """What a benchmark writes to its JSON file, and what it prints."""
    done = command(module, "--rounds=1", *flags, f"--output={folder / 'result.json'}")
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text()), done.stdout


def row(unit, ours, peer):
    run = harness.Benchmark(rounds=len(ours))
    run.add("s", unit, ours, peer, "they")
    return run.rows[0]


def test_a_greater_speed_is_better():
    found = row("images/s", ours=[20, 30, 40], peer=[10, 10, 10])
    assert (found["ratio"], found["ratio_min"], found["ratio_max"], found["rounds"]) == (3, 2, 4, 3)
    assert (found["ours"], found["peer"]) == (30, 10)


@pytest.mark.parametrize("unit", ["s", "ms/layer", "MiB"])
def test_a_smaller_time_or_memory_is_better(unit):
    found = row(unit, ours=[1, 2, 4], peer=[4, 4, 4])
    assert (found["ratio"], found["ratio_min"], found["ratio_max"]) == (2, 1, 4)


def test_ratios_are_taken_within_a_round():
    # The second round was disturbed as a whole: the ratio of the medians would be another.
    found = row("images/s", ours=[20, 2, 22], peer=[10, 1, 11])
    assert found["ratio"] == found["ratio_min"] == found["ratio_max"] == 2


def test_unequal_numbers_of_readings_are_refused():
    with pytest.raises(ValueError):
        row("s", ours=[1, 2], peer=[1])


def test_contenders_take_turns_forward_and_backward_and_each_peer_has_a_row():
    order = []

    def measure_of(name):
        return lambda: order.append(name) or len(order)

    run = harness.Benchmark(rounds=3)
    run.compare("s", "images/s", {name: measure_of(name) for name in "abc"})
    assert "".join(order) == "abccbaabc"
    # The readings of a, b and c are 1 6 7, 2 5 8 and 3 4 9.
    assert [(r["peer_name"], r["ours"], r["peer"], r["ratio"]) for r in run.rows] == [
        ("b", 6, 5, 7 / 8),
        ("c", 6, 4, 7 / 9),
    ]


def test_the_machine_and_the_versions():
    assert {"cpu", "cores", "memory_gib", "os"} <= set(harness.machine())
    assert set(versions("keras", "no-such-package")) == {"python", "keras_resnet", "keras"}


def test_the_table():
    line = "| s       | images/s | 1,234 | 1,000 | they    |  1.23 | 1.23-1.23 |      1 |"
    assert line in harness.table([row("images/s", [1234.5], [1000.0])])


def test_choosing():
    assert harness.chosen("peer", ["b", "a", "b"], ["a", "b"]) == ["b", "a"]
    with pytest.raises(InputError, match="unknown peer 'pytorch'; did you mean torch"):
        harness.chosen("peer", ["pytorch"], ["keras", "torch"])
    with pytest.raises(InputError, match="no peer is chosen"):
        harness.chosen("peer", [], ["keras", "torch"])


def test_peak_memory_counts_what_was_given_back_and_not_the_parents():
    program = """
from benchmarks.workers import peak_memory
print(peak_memory())
held = bytearray(200 * 2**20)
held[:: 2**12] = b"x" * len(held[:: 2**12])  # touches every page
del held
print(peak_memory())
"""
    before, after = map(float, python("-c", program).stdout.split())
    assert before < 100
    assert 190 <= after - before < 250  # the interpreter gives a little back in between


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--output=.", "--output=. is not a file in a folder that exists"),
        ("--torch_python=no-such-python", "--torch_python=no-such-python is no program; name one"),
        ("--subjects=resnet51/float32", "unknown subject 'resnet51/float32'; did you mean resnet50/float32"),
    ],
)
def test_bad_flags_are_one_line(flag, line):
    done = command("train_step", flag)
    assert done.returncode == 2
    assert f"error: {line}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_python_without_torch_is_not_passed_over(tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'torch'\" >&2\nexit 1\n")
    python.chmod(0o755)
    done = command("train_step", f"--torch_python={python}")
    assert done.returncode == 2
    assert "has no PyTorch (ModuleNotFoundError" in done.stderr
    assert "--peers=keras" in done.stderr
    assert "starting" not in done.stderr


COMMANDS = "build collages detection gpu inference input_pipeline scaling train_step train_step_jax weights"


@pytest.mark.parametrize("module", COMMANDS.split())
def test_help_loads_no_tensorflow(module):
    done = python("-X", "importtime", "-m", f"benchmarks.{module}", "--help")
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "absl.flags" in imported
    assert imported & {"keras", "tensorflow", "tensorflow_datasets"} == set()
    assert f"python -m benchmarks.{module}" in done.stdout


@pytest.mark.slow
def test_training_steps_from_end_to_end(tmp_path):
    flags = ["--subjects=cifar_resnet20/float32", "--peers=keras", "--steps=1", "--batch_size=4"]
    flags += ["--image_size=8"]
    content, printed = measured("train_step", tmp_path, *flags)
    speed, memory, step = content["rows"]
    assert (speed["subject"], speed["unit"], speed["rounds"]) == ("cifar_resnet20/float32", "images/s", 1)
    assert speed["ratio"] == pytest.approx(speed["ours"] / speed["peer"])
    assert memory["subject"] == "peak_memory/cifar_resnet20/float32"
    assert step["subject"] == "step_memory/cifar_resnet20/float32"
    assert 50 < step["ours"] < memory["ours"] - 300  # TensorFlow alone takes more than 300 MiB
    assert {"keras", "tensorflow", "keras_resnet"} <= set(content["versions"])
    assert "same network with Keras' layers, fit" in printed


@pytest.mark.slow
def test_the_loop_and_the_bare_step_from_end_to_end(tmp_path):
    flags = ["--subjects=loop_overhead/cifar_resnet20", "--steps=1", "--batch_size=4", "--image_size=8"]
    (row,) = measured("train_step", tmp_path, *flags)[0]["rows"]
    assert row["subject"] == "loop_overhead/cifar_resnet20"
    assert row["ratio"] > 0


@pytest.mark.slow
def test_two_workers_from_end_to_end(tmp_path):
    scaling, reduction = measured("scaling", tmp_path, "--steps=1", "--batch_size=4")[0]["rows"]
    assert (scaling["subject"], reduction["subject"]) == ("workers2/scaling", "workers2/all_reduce")
    assert 0 < reduction["ratio"] <= 1


@pytest.mark.slow
def test_each_of_four_workers_reads_a_quarter(tmp_path):
    flags = ["--subjects=share/records", "--images=1024", "--distinct=16"]
    (row,) = measured("input_pipeline", tmp_path, *flags)[0]["rows"]
    assert row["rounds"] == 4
    assert row["peer_name"] == "1/4 of the files"
    assert row["peer"] > 10
    # The records that a worker gets may be larger or smaller than the mean.
    for key in ("ratio", "ratio_min", "ratio_max"):
        assert row[key] == pytest.approx(1, abs=0.1)


@pytest.fixture
def little_optimization(monkeypatch):
    """XLA compiles quickly to slow code."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")


@pytest.mark.slow
@pytest.mark.usefixtures("little_optimization")
def test_jax_trains_where_tensorflow_cannot_be_found():
    spec = {"model": "cifar_resnet20", "precision": "bfloat16", "batch_size": 2}
    with Worker("benchmarks.jax_worker", {**spec, "image_size": 8, "warm_up": 1}) as worker:
        assert worker.ready["parameters"] == 269_722
        assert worker.ready["first_step"] > 0
        assert worker.call("measure", steps=2) > 0
        assert worker.call("peak_memory") > 0


@pytest.mark.slow
@pytest.mark.usefixtures("little_optimization")
def test_a_gpus_benchmark_from_end_to_end(tmp_path):
    flags = ["--subjects=training/64,inference/64,pipeline/256", "--peers=", "--model=cifar_resnet20"]
    flags += ["--precision=float32", "--steps=1", "--batch_size=2", "--image_size=8", "--images=8"]
    content, _ = measured("gpu", tmp_path, *flags, "--limit_side=64")
    rows = {row["subject"]: row for row in content["rows"]}
    for task in ("training/64", "inference/64"):
        assert set(rows) >= {task, f"peak_memory/{task}", f"first_step/{task}", f"limit/{task}"}
        assert rows[task]["peer_name"] == "ours, without XLA"
        assert rows[f"limit/{task}"]["peer_name"] == "a 64 x 64 float32 matrix product"
    assert rows["pipeline/256"]["peer_name"] == "the same step on one batch in memory"
    assert all(row["ratio"] > 0 for row in rows.values())


@pytest.mark.slow
def test_a_detector_from_end_to_end(tmp_path):
    flags = ["--subjects=post_processing,onnx", "--height=64", "--width=96", "--steps=1"]
    others, onnx = measured("detection", tmp_path, *flags)[0]["rows"]
    assert (others["subject"], others["unit"]) == ("post_processing/64x96", "s")
    assert others["peer_name"] == "10 % of the whole detector"
    assert 0 < others["ours"] < 10 * others["peer"]
    assert (onnx["subject"], onnx["unit"]) == ("onnx/64x96", "images/s")
    assert onnx["peer_name"] == "a 4096 x 4096 float32 matrix product, oneDNN"
    assert onnx["ratio"] > 0


@pytest.mark.slow
def test_a_network_is_built_from_end_to_end(tmp_path):
    content, _ = measured("build", tmp_path, "--subjects=resnet18")
    assert list(content) == ["machine", "versions", "rows"]
    (row,) = content["rows"]
    assert list(row) == ROW_KEYS
    assert (row["subject"], row["unit"]) == ("build/resnet18", "ms/layer")
    assert row["peer_name"] == "keras.applications ResNet50, per layer"
