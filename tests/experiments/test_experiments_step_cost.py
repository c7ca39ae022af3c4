"""The time and memory of a training step, measured in a separate process."""

import math
import subprocess

import pytest

from experiments import step_cost
from keras_resnet import InputError


@pytest.mark.slow
def test_a_tiny_step_with_and_without_remat():
    """The peak is that of each process, not of the parent, which `ru_maxrss` would begin with."""
    ballast = b"1" * 2**31
    kept, remat = (
        step_cost.measure("cifar_resnet20", 2, remat, image_size=8, steps=3) for remat in (False, True)
    )
    assert (kept["remat"], remat["remat"]) == (False, True)
    assert remat["losses"] == kept["losses"]
    for cost in (kept, remat):
        assert (cost["model"], cost["batch_size"], cost["image_size"]) == ("cifar_resnet20", 2, 8)
        assert len(cost["losses"]) == 3
        assert all(map(math.isfinite, cost["losses"]))
        assert len(ballast) > cost["peak_bytes"] > cost["base_bytes"] > 1e7
        assert min(cost[f"{name}_seconds"] for name in ("build", "first_step", "step")) > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": "cifar_resnet21", "batch_size": 2}, "unknown model 'cifar_resnet21'; did you mean"),
        ({"model": "cifar_resnet20", "batch_size": 1, "image_size": 2}, "image_size must be at least 4"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as caught:
        step_cost.measure(**arguments)
    assert "\n" not in str(caught.value)


def test_a_process_that_is_killed_is_said_so(monkeypatch):
    popen = subprocess.Popen
    killed = ["/bin/sh", "-c", "kill -9 $$"]
    monkeypatch.setattr(subprocess, "Popen", lambda command, **options: popen(killed, **options))
    with pytest.raises(
        InputError, match="ended by SIGKILL, probably out of memory; try a smaller batch_size"
    ):
        step_cost.measure("cifar_resnet20", 2)
