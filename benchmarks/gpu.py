"""ResNet-50 on a GPU: training and inference against Keras and PyTorch, and against the GPU's own limit.

python -m benchmarks.gpu --output=gpu.json
"""

import contextlib
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import harness, input_pipeline, matrix_product, torch_peer
from keras_resnet import cli
from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config
from keras_resnet.processes import Worker

_TRAINING, _INFERENCE, _PIPELINE = "training", "inference", "pipeline"
_BATCHES = (64, 128, 256, 512)
_PIPELINE_BATCH = 256
SUBJECTS = [f"{task}/{batch}" for task in (_TRAINING, _INFERENCE) for batch in _BATCHES]
SUBJECTS.append(f"{_PIPELINE}/{_PIPELINE_BATCH}")

# A forward pass counts once; a training step also has the gradients of the weights and of the activations.
_PASSES = {_TRAINING: 3, _INFERENCE: 1}
_LIMIT_SIDE = 8192
_PEERS = ("keras", "torch")
_FLAGS = (
    cli.Flag("peers", f"Peers: {', '.join(_PEERS)}.", tuple, list(_PEERS)),
    cli.Flag("model", "The network; Keras as a peer has resnet50 only.", default="resnet50"),
    cli.Flag("precision", "float32 or bfloat16.", default="bfloat16"),
    cli.Flag("steps", "Steps per round.", int, 50),
    cli.Flag("batch_size", "Images per step, instead of the subject's own.", int),
    cli.Flag("image_size", "Pixels, instead of the network's own.", int),
    cli.Flag("images", "JPEGs of the subject pipeline.", int, 4096),
    cli.Flag("limit_side", "Rows of the matrices whose product is the limit.", int, _LIMIT_SIDE),
    torch_peer.FLAG,
)


def main(
    run: harness.Benchmark,
    subjects: list[str],
    peers: list[str],
    model: str,
    precision: str,
    batch_size: int | None,
    image_size: int | None,
    images: int,
    limit_side: int,
    torch_python: str,
    steps: int,
) -> None:
    """Compares our step with and without XLA, Keras, PyTorch and a large matrix product."""
    peers = harness.chosen("peer", peers, _PEERS) if peers else []
    if "keras" in peers and model != "resnet50":
        raise InputError(f"the peer keras has resnet50 only, not {model}; give --peers=torch")
    torch = torch_peer.Torch(torch_python) if "torch" in peers else None
    for subject in subjects:
        task, _, batch = subject.partition("/")
        spec = {
            "model": model,
            "precision": precision,
            "batch_size": batch_size or int(batch),
            "image_size": image_size or get_config(model).input_size,
            "warm_up": 3,
        }
        if task == _PIPELINE:
            _measure_pipeline(run, subject, spec, steps, images)
        else:
            _measure(run, subject, task, spec, steps, "keras" in peers, torch, limit_side)
    run.report("keras", "tensorflow", "numpy", **({"torch": torch.version} if torch else {}))


def _measure(
    run: harness.Benchmark,
    subject: str,
    task: str,
    spec: dict[str, Any],
    steps: int,
    with_keras: bool,
    torch: torch_peer.Torch | None,
    limit_side: int,
) -> None:
    worker = partial(Worker, "benchmarks.keras_worker")
    own, theirs = ("ours", "applications") if task == _TRAINING else ("inference", "applications_inference")
    contenders = {
        "ours": partial(worker, {**spec, "contender": own, "jit": True}),
        "ours, without XLA": partial(worker, {**spec, "contender": own}),
    }
    if with_keras:
        name = "keras.applications, " + ("fit" if task == _TRAINING else "in a tf.function")
        for jit in (True, False):
            contender = {**spec, "contender": theirs, "jit": jit}
            contenders[f"{name}{', XLA' * jit}"] = partial(worker, contender)
    if torch is not None:
        options = {"task": task, "compile": True}
        contenders[f"PyTorch compiled, channels_last, {spec['precision']}"] = partial(
            torch.start, **spec, **options
        )
    with contextlib.ExitStack() as stack:
        workers = {}
        for name, start in contenders.items():
            harness.say(f"{subject}: starting {name}")
            workers[name] = stack.enter_context(start())
        run.compare(
            subject,
            "images/s",
            {name: partial(each.call, "measure", steps=steps) for name, each in workers.items()},
        )
        ours, *others = workers
        memory = {name: [each.call("peak_memory")] for name, each in workers.items()}
        for name in others:
            run.add(f"peak_memory/{subject}", "MiB", memory[ours], memory[name], name)
            own_first, peer_first = ([workers[each].ready["first_step"]] for each in (ours, name))
            run.add(f"first_step/{subject}", "s", own_first, peer_first, name)
        own_speed = workers[ours].call("measure", steps=steps)
        multiply_adds = _PASSES[task] * workers[ours].ready["multiply_adds"]
    with matrix_product.start(multiply_adds, spec["precision"], limit_side) as limit:
        speed = limit.call("measure", steps=steps)
    run.add(
        f"limit/{subject}",
        "images/s",
        [own_speed],
        [speed],
        matrix_product.name(spec["precision"], limit_side),
    )


def _measure_pipeline(
    run: harness.Benchmark, subject: str, spec: dict[str, Any], steps: int, images: int
) -> None:
    """Training with images from a folder, in relation to one batch that is repeated."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        count = max(images, 2 * spec["batch_size"])
        input_pipeline.write_folder(Path(folder), count, distinct=min(count, 64))
        spec = {**spec, "contender": "ours", "jit": True}
        workers = {
            "ours": stack.enter_context(Worker("benchmarks.keras_worker", {**spec, "images": folder})),
            "the same step on one batch in memory": stack.enter_context(
                Worker("benchmarks.keras_worker", spec)
            ),
        }
        measures = {name: partial(each.call, "measure", steps=steps) for name, each in workers.items()}
        run.compare(subject, "images/s", measures)


if __name__ == "__main__":
    harness.run(main, SUBJECTS, _FLAGS)
