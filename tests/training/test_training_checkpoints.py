import numpy as np
import pytest

from keras_resnet import InputError
from keras_resnet.training import checkpoints
from keras_resnet.training.checkpoints import BrokenCheckpoint, Checkpoint


def made(step=3):
    random = np.random.default_rng(step)
    arrays = {"weights/a/kernel": random.normal(size=(3, 4)).astype("float32"), "loss_scale": np.float32(2.0)}
    return Checkpoint(step, arrays, {"sums": [0.1, 2.0], "history": [{"epoch": 1.0}], "none": None})


def same(a, b):
    return (
        (a.step, a.numbers) == (b.step, b.numbers)
        and set(a.arrays) == set(b.arrays)
        and all(np.array_equal(a.arrays[name], b.arrays[name]) for name in a.arrays)
    )


def test_round_trip_and_equal_bytes(tmp_path):
    first = checkpoints.save(tmp_path / "a", made(), keep=1)
    second = checkpoints.save(tmp_path / "b", made(), keep=1)
    assert same(checkpoints.load(first), made())
    assert first.read_bytes() == second.read_bytes()


def test_keeps_the_newest(tmp_path):
    for step in (1, 2, 10, 3):
        checkpoints.save(tmp_path, made(step), keep=2)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [
        "step-000000003.h5",
        "step-000000010.h5",
    ]
    assert list(tmp_path.glob(".*")) == []


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_newest_checkpoint_is_reported_and_skipped(tmp_path, share):
    checkpoints.save(tmp_path, made(1), keep=2)
    newest = checkpoints.save(tmp_path, made(2), keep=2)
    content = newest.read_bytes()
    newest.write_bytes(content[: int(len(content) * share)])
    reports = []
    assert same(checkpoints.load_newest(tmp_path, reports.append), made(1))
    assert len(reports) == 1
    assert str(newest) in reports[0]


def test_a_changed_byte_of_an_array_or_a_number_is_detected(tmp_path):
    path = checkpoints.save(tmp_path, made(1), keep=1)
    content = path.read_bytes()
    array = made(1).arrays["weights/a/kernel"].tobytes()
    for position in (content.index(array) + 5, content.index(b'"sums": [0.1') + 9):
        damaged = bytearray(content)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(BrokenCheckpoint):
            checkpoints.load(path)


def test_all_broken_is_an_error_and_none_is_not(tmp_path):
    assert checkpoints.load_newest(tmp_path / "none", print) is None
    checkpoints.save(tmp_path, made(1), keep=1).write_bytes(b"")
    with pytest.raises(InputError, match="every checkpoint"):
        checkpoints.load_newest(tmp_path, lambda line: None)


def test_a_failed_write_leaves_the_old_ones(tmp_path, monkeypatch):
    checkpoints.save(tmp_path, made(1), keep=1)

    def fail(self, *args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoints.Path, "write_bytes", fail)
    with pytest.raises(OSError, match="No space left"):
        checkpoints.save(tmp_path, made(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.h5"]
