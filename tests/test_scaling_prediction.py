import json
import math
import re
import shlex

import pytest
from test_benchmarks import command

from benchmarks import harness
from benchmarks.scaling_prediction import (
    Inputs,
    Published,
    compare_measured,
    compare_published,
    exposed_in_buckets,
    hierarchical,
    predict,
    ring,
)
from keras_resnet import build_model

PAGE = harness.ROOT / "docs" / "scaling.md"
COMMANDS = re.findall(r"^python -m benchmarks\.scaling (--predict.*)$", PAGE.read_text(), re.MULTILINE)

# 1 GB/s and 10 microseconds between nodes of one GPU.
ONE_LINK = {"node_gpus": 1, "network_gbits": 8.0, "network_latency": 10.0}
WITHOUT_COST = {"nvlink_gbytes": math.inf, "network_gbits": math.inf}
WITHOUT_COST |= {"nvlink_latency": 0.0, "network_latency": 0.0}


@pytest.mark.parametrize("all_reduce", [ring, hierarchical])
def test_two_gpus_send_half_a_vector_twice(all_reduce):
    assert all_reduce(Inputs(**ONE_LINK), 2, 1e9) == pytest.approx(1.0 + 2 * 10e-6)


def test_one_gpu_sends_nothing():
    assert ring(Inputs(), 1, 1e9) == hierarchical(Inputs(), 1, 1e9) == 0


def test_two_nodes():
    links = {"nvlink_gbytes": 100.0, "network_gbits": 80.0, "nvlink_latency": 2.0, "network_latency": 5.0}
    inputs = Inputs(**links)
    # 2 x 15/16 of 0.8 GB at 10 GB/s; 28 hops inside the nodes and 2 between them.
    assert ring(inputs, 16, 8e8) == pytest.approx(0.15 + 66e-6)
    # 2 x 7/8 of 0.8 GB at 100 GB/s and 0.8 GB at 10 GB/s; 14 hops and 2.
    assert hierarchical(inputs, 16, 8e8) == pytest.approx(0.014 + 0.08 + 38e-6)


@pytest.mark.parametrize("gpus", [1, 8, 24, 1024])
def test_links_without_cost_lose_nothing(gpus):
    row = predict(Inputs(**WITHOUT_COST), gpus)
    assert [row[name] for name in ("ring", "hierarchical", "buckets")] == [1, 1, 1]


def test_the_latency_grows_with_each_gpu_or_node():
    inputs = Inputs(**{**WITHOUT_COST, "nvlink_latency": 1.0, "network_latency": 3.0})
    found = [(ring(inputs, n, 1e9), hierarchical(inputs, n, 1e9)) for n in (8, 16, 1024)]
    assert found == [
        pytest.approx(microseconds) for microseconds in [(14e-6, 14e-6), (34e-6, 20e-6), (2554e-6, 776e-6)]
    ]


def test_a_slow_input_pipeline_limits_every_way_to_reduce():
    # A GPU takes 2,000 images/s, its cores deliver 1,000.
    row = predict(Inputs(gpu_images=2000.0, gpu_cores=4.0, core_images=250.0, **WITHOUT_COST), 64)
    assert [row[name] for name in ("ring", "hierarchical", "buckets")] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("each", "exposed"),
    [
        (0.25, 0.25),  # the first bucket is hidden
        (2.0, 3.0),  # the second one waits for the first
    ],
)
def test_two_buckets_of_which_the_first_is_ready_after_half_of_the_backward_pass(each, exposed):
    bandwidth = 2**20 / each
    inputs = Inputs(node_gpus=1, network_gbits=8 * bandwidth / 1e9, network_latency=0.0, bucket_mib=1.0)
    assert exposed_in_buckets(inputs, 2, 2 * 2**20, compute=3.0) == pytest.approx(exposed)


def test_one_bucket_hides_nothing():
    inputs = Inputs(**ONE_LINK, bucket_mib=2000.0)
    assert exposed_in_buckets(inputs, 2, 1e9, compute=3.0) == hierarchical(inputs, 2, 1e9)


def write_result(path, workers, cores, step, reduction, network="a"):
    """What benchmarks.scaling writes, if one worker's step takes a second."""
    ratios = {"scaling": 1 / (workers * step), "all_reduce": 1 - reduction / step}
    rows = [
        {"subject": f"workers{workers}/{name}", "ratio": ratio, "peer_name": f"one worker ({network})"}
        for name, ratio in ratios.items()
    ]
    path.write_text(json.dumps({"machine": {"cpu": "x", "cores": cores}, "rows": rows}))
    return path


def test_four_workers_are_predicted_from_the_all_reduce_of_two(tmp_path):
    # One vector through the memory takes 0.01 s: 2 for two workers, 6 for four.
    four = write_result(tmp_path / "4.json", 4, cores=2, step=0.5 + 0.06, reduction=0.06)
    two = write_result(tmp_path / "2.json", 2, cores=2, step=0.5 + 0.02, reduction=0.02)
    other = write_result(tmp_path / "b.json", 2, cores=2, step=0.5 + 0.3, reduction=0.3, network="b")
    rows = compare_measured([four, other, two])
    assert [(row["network"], row["workers"]) for row in rows] == [("a", 2), ("a", 4), ("b", 2)]
    for row in rows:
        assert row["predicted"] == pytest.approx(row["measured"])
        assert row["predicted_share"] == pytest.approx(row["measured_share"])


@pytest.mark.parametrize("batch", [10, 5])
def test_figures_that_follow_the_model_are_predicted(batch):
    # 8 GPUs compute for 0.1 s on 10 images each; 16 take half as long if they have half as many.
    inputs = Inputs(network_gbits=100.0)
    size = 4 * inputs.elements
    few = 80 / (0.1 + hierarchical(inputs, 8, size))
    many = 16 * batch / (batch / 100 + hierarchical(inputs, 16, size))
    row = compare_published(Published("source", (8, few, 10), (16, many, batch), 100.0))
    assert row["published"] == pytest.approx(many / (2 * few))
    assert row["predicted"] == pytest.approx(row["published"])


def test_a_step_of_resnet50_sends_the_default_number_of_elements():
    variables = build_model("resnet50").variables
    assert sum(math.prod(variable.shape) for variable in variables) + 4 == Inputs().elements


def test_the_prediction_of_the_projects_own_gpu_result(tmp_path):
    result, output = tmp_path / "gpu.json", tmp_path / "prediction.json"
    row = {"subject": "training/64", "ours": 1000.0}
    result.write_text(json.dumps({"machine": {}, "rows": [row]}))
    flags = [f"--gpu_result={result}", "--replica_batch=64", "--predict=12", f"--output={output}"]
    done = command("scaling", *flags)
    assert done.returncode == 0, done.stderr
    content = json.loads(output.read_text())
    assert content["inputs"]["gpu_images"] == 1000
    assert [(row["gpus"], row["nodes"]) for row in content["predicted"]] == [(8, 1), (12, 2)]


@pytest.mark.parametrize("flags", COMMANDS)
def test_the_page_has_what_the_command_prints(flags):
    done = command("scaling", *shlex.split(flags))
    assert done.returncode == 0, done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(table) > 10
    assert [line for line in table if line not in PAGE.read_text()] == []


@pytest.mark.parametrize(
    ("flag", "line"),
    [
        ("--predict=0", "--predict must be at least 1; got 0"),
        ("--network_gbits=0", "--network_gbits must be positive; got 0.0"),
        ("--network_gbits=inf", "--network_gbits must be finite; got inf"),
        ("--network_latency=-1", "--network_latency must be at least 0; got -1.0"),
        ("--measured=README.md", "README.md is not the result of a benchmark"),
        ("--gpu_result=no.json", "no.json is not the result of a benchmark"),
        (
            "--measured=benchmarks/results/build-2cores.json",
            "benchmarks/results/build-2cores.json has no subject workersN/scaling",
        ),
    ],
)
def test_bad_flags_are_one_line(flag, line):
    done = command("scaling", "--predict=8", flag)
    assert done.returncode == 2
    assert f"error: {line}" in done.stderr
    assert "Traceback" not in done.stderr
