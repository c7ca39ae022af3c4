"""Files that torch writes, as people have them: read, or refused in one line, and never executed."""

import argparse
import json
import os
import subprocess
import sys

import pytest
from helpers.torch_zoo import photos, reference, run
from helpers.zoo_networks import relative_difference, zeros_for_weights

from keras_resnet import InputError, build_model
from keras_resnet.models.config import get_config
from keras_resnet.weights import open_weights

pytestmark = pytest.mark.torch

NETWORKS = {"resnet18": "resnet18", "resnet50_v1_5": "resnet50"}


class Pair:
    """Their network and what it gives; ours, which takes its weights anew in each test."""

    def __init__(self, name):
        self.config, self.theirs = get_config(name), reference("torchvision", NETWORKS[name])
        self.batch = photos(128, 128)
        self.expected = run(self.theirs, self.batch)
        with zeros_for_weights():
            self.ours = build_model(name, input_shape=(128, 128, 3), classifier_activation=None)

    def load(self, path):
        for weight in self.ours.weights:
            weight.assign(weight * 0)
        open_weights(path, self.config).load(self.ours)

    def refusal(self, path):
        with pytest.raises(InputError) as error:
            open_weights(path, self.config).load(self.ours)
        sentence = str(error.value)
        assert "\n" not in sentence
        return sentence


@pytest.fixture(scope="module")
def pairs():
    return {name: Pair(name) for name in NETWORKS}


@pytest.fixture(scope="module")
def resnet18(pairs):
    return pairs["resnet18"]


def floats(network, change):
    """The state dict with its floats changed."""
    state = network.state_dict()
    return {name: change(value) if value.is_floating_point() else value for name, value in state.items()}


def channels_last(tensor):
    """The same tensor with other strides."""
    import torch

    return tensor.to(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def checkpoint(network):
    """As the training programs of torchvision and timm write it, with the optimizer's state."""
    import torch

    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    network.zero_grad()
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30)
    return {
        "model": network.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 3,
    }


# What is in the file, and how near the logits come to those of the network itself.
CONTENTS = {
    "state dict": (lambda network: network.state_dict(), 1e-4),
    "dictionary": (lambda network: dict(network.state_dict()), 1e-4),
    "state_dict": (lambda network: {"epoch": 3, "arch": "x", "state_dict": network.state_dict()}, 1e-4),
    "model": (lambda network: {"model": network.state_dict(), "best": None}, 1e-4),
    "checkpoint": (checkpoint, 1e-4),
    "parameters": (lambda network: {**network.state_dict(), **dict(network.named_parameters())}, 1e-4),
    "module.": (lambda network: {f"module.{n}": v for n, v in network.state_dict().items()}, 1e-4),
    "state_dict of module.": (
        lambda network: {"state_dict": {f"module.{n}": v for n, v in network.state_dict().items()}},
        1e-4,
    ),
    "channels last": (lambda network: floats(network, channels_last), 1e-4),
    "double": (lambda network: floats(network, lambda t: t.double()), 1e-4),
    "half": (lambda network: floats(network, lambda t: t.half()), 1e-2),
    "bfloat16": (lambda network: floats(network, lambda t: t.bfloat16()), 5e-2),
}


@pytest.mark.parametrize(
    ("name", "content", "legacy"),
    [
        *(("resnet18", content, False) for content in CONTENTS),
        *((name, "checkpoint", True) for name in NETWORKS),
    ],
)
def test_logits(name, content, legacy, pairs, tmp_path):
    import torch

    pair, (make, tolerance) = pairs[name], CONTENTS[content]
    path = tmp_path / "theirs.pth"
    torch.save(make(pair.theirs), path, _use_new_zipfile_serialization=not legacy)
    pair.load(path)
    path.unlink()
    assert relative_difference(pair.ours(pair.batch), pair.expected) <= tolerance


@pytest.mark.parametrize("content", ["half", "bfloat16"])
def test_few_bits_are_taken_as_they_are(content, resnet18, tmp_path):
    """Against the reference with the same rounded numbers: what is left is float32's own rounding."""
    import torch

    make, _ = CONTENTS[content]
    torch.save(make(resnet18.theirs), tmp_path / "theirs.pth")
    resnet18.load(tmp_path / "theirs.pth")
    rounded = reference("torchvision", "resnet18")
    rounded.load_state_dict(make(resnet18.theirs))
    assert relative_difference(resnet18.ours(resnet18.batch), run(rounded, resnet18.batch)) <= 1e-4


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_is_not_run(legacy, resnet18, tmp_path):
    import torch

    path, sprung = tmp_path / "theirs.pth", tmp_path / "sprung"
    for content in (Trap(sprung), {"state_dict": resnet18.theirs.state_dict(), "extra": Trap(sprung)}):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        assert "holds more than tensors" in resnet18.refusal(path)
        assert not sprung.exists()
        # The test of the test: a reader that unpickles runs it.
        torch.load(path, weights_only=False)
        sprung.rmdir()


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_more_than_tensors(legacy, resnet18, tmp_path):
    """A whole network, and a training program's options, are classes: they would have to be imported."""
    import torch

    path = tmp_path / "theirs.pth"
    options = {"model": resnet18.theirs.state_dict(), "args": argparse.Namespace(epochs=90)}
    for content in (resnet18.theirs, options):
        torch.save(content, path, _use_new_zipfile_serialization=not legacy)
        sentence = resnet18.refusal(path)
        assert "holds more than tensors" in sentence
        # torch advises to switch its safe reader off.
        assert "weights_only" not in sentence


def test_torchscript(resnet18, tmp_path):
    """A program with its weights, in a file of the same ending."""
    import torch

    path = tmp_path / "theirs.pt"
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(path)
    assert "holds more than tensors" in resnet18.refusal(path)


def test_tensors_that_are_no_plain_ones(resnet18, tmp_path):
    import torch

    path = tmp_path / "theirs.pth"
    for name, change in {
        "sparse": lambda t: t.to_sparse(),
        "quantized": lambda t: torch.quantize_per_tensor(t, 0.1, 0, torch.qint8),
        "without values": lambda t: t.to("meta"),
        "complex": lambda t: t.to(torch.complex64),
    }.items():
        torch.save({**resnet18.theirs.state_dict(), "fc.bias": change(torch.ones(1000))}, path)
        assert "fc.bias" in resnet18.refusal(path), name


def test_any_damage_is_refused_or_read(tmp_path):
    """1,000 damaged files, in a process of their own: a crash or a hang of it is a failure as well."""
    done = subprocess.run(
        [sys.executable, "-m", "helpers.damage_pth", str(tmp_path), "1000"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout.splitlines()[-1])
    assert sum(facts["refused"].values()) + sum(facts["loaded"].values()) == 1000
    assert facts["wrong"] == []
    # Each kind of damage gets through to the reader, and bits of the weights themselves can be any.
    assert min(facts["refused"].values()) > 10
    assert facts["loaded"]["bits"] > 10
