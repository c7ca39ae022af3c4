import fcntl

import h5py
import numpy as np
import pytest
from helpers.damage_hdf5 import endless_names, with_endless_heap

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
    for step in (1, 2, 3, 10):
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


def test_a_broken_newest_checkpoint_never_costs_a_good_one(tmp_path):
    checkpoints.save(tmp_path, made(90), keep=1)
    broken = tmp_path / "step-000000100.h5"
    broken.write_bytes(b"not HDF5")
    checkpoints.save(tmp_path, made(91), keep=1)
    assert [path.name for path in checkpoints.list_checkpoints(tmp_path)] == [
        "step-000000091.h5",
        broken.name,
    ]
    assert same(checkpoints.load_newest(tmp_path, lambda line: None), made(91))
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "step-000000091.h5",
        f"{broken.name}.broken",
    ]
    checkpoints.save(tmp_path, made(101), keep=2)
    checkpoints.save(tmp_path, made(102), keep=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000101.h5", "step-000000102.h5"]


def test_broken_ones_keep_their_names_if_none_is_good(tmp_path):
    """Otherwise the next start would begin anew without a word."""
    checkpoints.save(tmp_path, made(1), keep=1).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(InputError, match="every checkpoint"):
            checkpoints.load_newest(tmp_path, lambda line: None)


def test_an_endless_heap_of_strings_is_read(tmp_path):
    """With a free object of size 0 the HDF5 library (1.14.6) never returns."""
    path = checkpoints.save(tmp_path, made(1), keep=1)
    path.write_bytes(with_endless_heap(path.read_bytes()))
    assert same(checkpoints.load(path), made(1))


def test_endless_names_are_broken(tmp_path):
    good, damaged = (checkpoints.save(tmp_path, made(step), keep=2) for step in (1, 2))
    damaged.write_bytes(endless_names())
    assert same(checkpoints.load_newest(tmp_path, lambda line: None), checkpoints.load(good))


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), MemoryError()])
def test_what_cannot_be_read_now_is_not_broken(error, tmp_path, monkeypatch):
    path = checkpoints.save(tmp_path, made(1), keep=1)

    def fail(*_):
        raise error

    monkeypatch.setattr(checkpoints, "open_hdf5", fail)
    with pytest.raises(InputError, match=r"cannot be read now .* may be intact") as refusal:
        checkpoints.load_newest(tmp_path, print)
    assert "delete" not in str(refusal.value)
    assert path.exists()


def test_a_locked_checkpoint_is_not_broken(tmp_path):
    path = checkpoints.save(tmp_path, made(1), keep=1)
    with open(path, "rb+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=r"cannot be read now .*may be intact"):
            checkpoints.load_newest(tmp_path, print)
    assert same(checkpoints.load_newest(tmp_path, print), made(1))


def test_a_checkpoint_is_read_back_before_it_gets_its_name(tmp_path, monkeypatch):
    """A disk that loses data without an error costs no checkpoint."""
    checkpoints.save(tmp_path, made(1), keep=1)
    write = checkpoints.Path.write_bytes

    def lose(path, data):
        half = len(data) // 2
        return write(path, bytes(data[:half]) + bytes(len(data) - half))

    monkeypatch.setattr(checkpoints.Path, "write_bytes", lose)
    with pytest.raises(BrokenCheckpoint):
        checkpoints.save(tmp_path, made(2), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000001.h5"]


@pytest.mark.parametrize("kind", ["compressed", "external", "text", "many steps", "names", "text step"])
def test_other_data_are_broken(kind, tmp_path):
    """A file of some kilobytes must not take gigabytes, nor read other files."""
    path = checkpoints.save(tmp_path, made(1), keep=1)
    with h5py.File(path, "r+") as file:
        if kind == "compressed":
            file.create_dataset("zeros", (2**14, 2**14), "f4", compression="gzip")
        elif kind == "external":
            file.create_dataset("zeros", (4,), "f4", external=[("/dev/zero", 0, 16)])
        elif kind == "text":
            file["text"] = ["a", "b"]
        elif kind == "names":
            file[b"\xff"] = 1.0
        else:
            file.attrs["step"] = [1, 2] if kind == "many steps" else "1"
    with pytest.raises(BrokenCheckpoint):
        checkpoints.load(path)
