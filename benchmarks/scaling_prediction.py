"""Predicts the efficiency of many GPUs from one GPU's step, the bytes it sends, its input and the links.

This is a model; docs/scaling.md explains it, and compares it with published and with measured figures.
"""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import harness
from keras_resnet import cli
from keras_resnet.errors import InputError, require
from keras_resnet.files import write_json
from keras_resnet.tables import markdown_table

_RESULTS = harness.ROOT / "benchmarks" / "results"
_PIPELINE = _RESULTS / "input_pipeline-2cores.json"
_FLOAT32 = 4  # bytes
# A backward pass computes the gradients of the weights and of the activations, a forward pass one product.
_BACKWARD_SHARE = 2 / 3
_FEWEST = 8  # GPUs in the first row
_GOOD = 0.9
_NUMBER = r"\d+"


def _input(default: Any, about: str) -> Any:
    return dataclasses.field(default=default, metadata={"help": about})


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A GPU, its node and the network; by default those of a DGX A100, as others published them."""

    gpu_images: float = _input(2375.0, "Images/s of one GPU alone; published for an A100, not measured here.")
    replica_batch: int = _input(256, "Images per GPU and step.")
    elements: int = _input(25_610_156, "Elements (float32) of the vector that a step sends; ResNet-50's.")
    node_gpus: int = _input(8, "GPUs per node.")
    gpu_cores: float = _input(16.0, "CPU cores per GPU for the input pipeline.")
    core_images: float | None = _input(None, f"Images/s of the pipeline per core; from {_PIPELINE.name}.")
    nvlink_gbytes: float = _input(235.0, "Bandwidth of a ring inside a node, GB/s.")
    network_gbits: float = _input(1600.0, "Network of a node, Gbit/s in each direction.")
    nvlink_latency: float = _input(3.4, "Microseconds per hop inside a node.")
    network_latency: float = _input(9.6, "Microseconds per hop between nodes.")
    bucket_mib: float = _input(25.0, "MiB per bucket, if the all-reduce overlapped with the backward pass.")

    def __post_init__(self):
        for name, value in dataclasses.asdict(self).items():
            if name.endswith("_latency"):
                require(value >= 0, f"--{name} must be at least 0", value)
            else:
                require(value is None or value > 0, f"--{name} must be positive", value)

    def node_shape(self, gpus: int) -> tuple[int, int]:
        """GPUs per node, and nodes; the last node counts as a whole one."""
        return min(gpus, self.node_gpus), math.ceil(gpus / self.node_gpus)


FLAGS = (
    cli.Flag("predict", "Prints a prediction for up to this many GPUs, and measures nothing.", int),
    cli.Flag("gpu_result", "JSON of benchmarks.gpu: its training/REPLICA_BATCH instead of --gpu_images."),
    cli.Flag(
        "measured", "JSONs of benchmarks.scaling to compare with; default: those of the project.", tuple
    ),
    *cli.flags_of(Inputs),
)


class Published(NamedTuple):
    """Images/s of a smaller and of a greater number of GPUs, with their batch per GPU."""

    source: str
    fewer: tuple[int, float, int]
    more: tuple[int, float, int]
    network_gbits: float


_PUBLISHED = (
    Published("DeepLearningExamples, TensorFlow, AMP", (1, 2375, 256), (8, 17_400, 256), 1600),
    Published("DeepLearningExamples, TensorFlow, TF32", (1, 909, 256), (8, 7000, 256), 1600),
    Published("DeepLearningExamples, MXNet, AMP", (1, 2180, 256), (8, 16_925, 256), 1600),
    Published("DeepLearningExamples, PyTorch, AMP", (1, 2470, 256), (8, 16_621, 256), 1600),
    Published("MLPerf 2.0, NVIDIA, MXNet", (8, 27_181, 408), (64, 167_619, 51), 1600),
    Published("MLPerf 2.0, NVIDIA, MXNet", (64, 167_619, 51), (1024, 2_364_817, 35), 1600),
    # 90 epochs of 1,281,167 images in 29 hours, and 0.9 x 32 times as fast, as the abstract says.
    Published("Goyal et al. 2017, P100, Caffe2", (8, 1104, 32), (256, 31_795, 32), 50),
)


def ring(inputs: Inputs, gpus: int, size: float) -> float:
    """Seconds of an all-reduce of `size` bytes in one ring through all GPUs."""
    _, nodes = inputs.node_shape(gpus)
    steps, between = 2 * (gpus - 1), 2 * (nodes - 1)
    speeds = [inputs.nvlink_gbytes * 1e9, *([inputs.network_gbits * 1e9 / 8] if nodes > 1 else [])]
    hops = (steps - between) * inputs.nvlink_latency + between * inputs.network_latency
    return steps / gpus * size / min(speeds) + hops * 1e-6


def hierarchical(inputs: Inputs, gpus: int, size: float) -> float:
    """Seconds of an all-reduce that sums inside each node, then between nodes, and distributes inside."""
    inside, nodes = inputs.node_shape(gpus)
    nvlink = dataclasses.replace(inputs, node_gpus=inside)
    network = dataclasses.replace(inputs, node_gpus=1, nvlink_gbytes=math.inf)
    return ring(nvlink, inside, size) + ring(network, nodes, size)


def exposed_in_buckets(inputs: Inputs, gpus: int, size: float, compute: float) -> float:
    """Seconds of a hierarchical all-reduce in buckets that a backward pass does not hide.

    The buckets become ready at equal intervals, the last one at the end of the backward pass.
    """
    buckets = math.ceil(size / (inputs.bucket_mib * 2**20))
    each = hierarchical(inputs, gpus, size / buckets)
    after_the_first = _BACKWARD_SHARE * compute * (1 - 1 / buckets)
    return max(each, buckets * each - after_the_first)


def predict(inputs: Inputs, gpus: int) -> dict[str, Any]:
    """The seconds of the all-reduce, and the efficiencies: images/s over those of `gpus` GPUs alone."""
    compute = inputs.replica_batch / inputs.gpu_images
    supply = inputs.replica_batch / (inputs.gpu_cores * (inputs.core_images or math.inf))
    size = inputs.elements * _FLOAT32
    seconds = {"ring": ring(inputs, gpus, size), "hierarchical": hierarchical(inputs, gpus, size)}
    exposed = {**seconds, "buckets": exposed_in_buckets(inputs, gpus, size, compute)}
    return {
        "gpus": gpus,
        "nodes": inputs.node_shape(gpus)[1],
        **{f"{name}_seconds": value for name, value in seconds.items()},
        **{name: compute / max(compute + value, supply) for name, value in exposed.items()},
    }


def compare_published(point: Published) -> dict[str, Any]:
    """The efficiency that was published, and that which follows from the smaller number of GPUs."""
    (fewer, slow, first_batch), (more, fast, batch) = point.fewer, point.more
    inputs = Inputs(network_gbits=point.network_gbits)
    size = inputs.elements * _FLOAT32
    alone = first_batch * fewer / slow - hierarchical(inputs, fewer, size)
    seconds = alone * batch / first_batch + hierarchical(inputs, more, size)
    predicted = batch * more / seconds / (slow / fewer * more)
    published = fast / more / (slow / fewer)
    source = {"source": point.source, "fewer": fewer, "more": more, "batches": [first_batch, batch]}
    return {**source, "published": published, "predicted": predicted}


def compare_measured(paths: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Predicts each result of `benchmarks.scaling` from the all-reduce of the fewest workers.

    All processes of one machine share its memory's bandwidth: their bytes, 2 (N - 1) vectors, add up. Times
    are in units of a step of one worker, on its share of the cores, with the whole batch. Results of other
    machines and networks are not mixed.
    """
    found = []
    for path in paths:
        machine, row = _row(path, f"workers{_NUMBER}/scaling")
        workers = int(re.findall(_NUMBER, row["subject"])[0])
        share = 1 - _row(path, f"workers{workers}/all_reduce")[1]["ratio"]
        network = row["peer_name"].rpartition("(")[2].rstrip(")")
        found.append((network, machine["cpu"], machine["cores"], workers, row["ratio"], share))
    results: list[dict[str, Any]] = []
    per_vector: dict[tuple, float] = {}
    for *place, workers, efficiency, share in sorted(found):
        vectors = 2 * (workers - 1)
        reduction = vectors * per_vector.setdefault(tuple(place), share / (workers * efficiency) / vectors)
        network, cpu, cores = place
        step = 1 / min(workers, cores) + reduction
        measured = {"measured_share": share, "measured": efficiency}
        predicted = {"predicted_share": reduction / step, "predicted": 1 / (workers * step)}
        about = {"network": network, "cpu": cpu, "cores": cores, "workers": workers}
        results.append({**about, **measured, **predicted})
    return results


def main(
    run: harness.Benchmark, gpus: int, gpu_result: str | None, measured: list[str] | None, inputs: Inputs
) -> None:
    """Prints the prediction and both comparisons, and writes them to the benchmark's JSON file."""
    for name, value in dataclasses.asdict(inputs).items():
        require(value is None or math.isfinite(value), f"--{name} must be finite", value)
    if gpu_result is not None:
        row = _row(gpu_result, f"training/{inputs.replica_batch}")[1]
        inputs = dataclasses.replace(inputs, gpu_images=row["ours"])
    if (core_images := inputs.core_images) is None:
        machine, row = _row(_PIPELINE, "training")
        core_images = row["ours"] / machine["cores"]
        inputs = dataclasses.replace(inputs, core_images=core_images)
    counts = [count for i in range(gpus.bit_length()) if (count := _FEWEST << i) < gpus]
    rows = [predict(inputs, count) for count in (*counts, gpus)]
    published = [compare_published(point) for point in _PUBLISHED]
    own = compare_measured(measured or sorted(_RESULTS.glob("scaling-*.json")))
    print(", ".join(f"{name} {value:,.6g}" for name, value in dataclasses.asdict(inputs).items()))
    print(f"\nPredicted, in relation to as many GPUs alone:\n\n{_prediction_table(rows)}\n")
    for name in ("ring", "hierarchical", "buckets"):
        below = [row["gpus"] for row in rows if row[name] < _GOOD]
        print(f"{name}: " + (f"below {_GOOD} from {below[0]} GPUs" if below else f"at least {_GOOD}"))
    print(f"The input pipeline needs {inputs.gpu_images / core_images:.1f} cores per GPU.")
    print(f"\nAgainst published figures:\n\n{_published_table(published)}")
    print(f"\nAgainst processes on one machine:\n\n{_measured_table(own)}")
    if run.output is not None:
        content = {"inputs": dataclasses.asdict(inputs), "predicted": rows}
        write_json(run.output, {**content, "published": published, "measured": own})


def _row(path: str | Path, subject: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The machine of a benchmark's result, and the first row whose subject matches a pattern."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        for row in content["rows"]:
            if re.fullmatch(subject, row["subject"]):
                return content["machine"], row
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not the result of a benchmark ({type(error).__name__})") from None
    raise InputError(f"{path} has no subject {subject.replace(_NUMBER, 'N')}")


def _prediction_table(rows: Sequence[dict[str, Any]]) -> str:
    header = ["GPUs", "nodes", "ring, ms", "efficiency", "hierarchical, ms", "efficiency", "in buckets"]
    cells = []
    for row in rows:
        ring_ms, hierarchical_ms = (
            f"{1e3 * row[f'{name}_seconds']:.2f}" for name in ("ring", "hierarchical")
        )
        flat, nested, hidden = (f"{row[name]:.3f}" for name in ("ring", "hierarchical", "buckets"))
        cells.append([str(row["gpus"]), str(row["nodes"]), ring_ms, flat, hierarchical_ms, nested, hidden])
    return markdown_table(header, cells)


def _published_table(rows: Sequence[dict[str, Any]]) -> str:
    cells = []
    for row in rows:
        counts = f"{row['fewer']} to {row['more']}"
        batches = " to ".join(map(str, dict.fromkeys(row["batches"])))
        cells.append([row["source"], counts, batches, f"{row['published']:.3f}", f"{row['predicted']:.3f}"])
    return markdown_table(["source", "GPUs", "batch per GPU", "published", "predicted"], cells)


def _measured_table(rows: Sequence[dict[str, Any]]) -> str:
    names = ("measured_share", "measured", "predicted_share", "predicted")
    cells = []
    for row in rows:
        cells.append([row["network"], str(row["workers"]), *(f"{row[name]:.3f}" for name in names)])
    header = ["network", "workers", "all-reduce's share", "efficiency", "predicted share"]
    return markdown_table([*header, "predicted efficiency"], cells)
