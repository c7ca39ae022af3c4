import multiprocessing

import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from keras_resnet.data import open_dataset
from keras_resnet.data.digits import Digits, held_out


def test_digits_have_the_pixels_and_the_split_of_the_rule(digits):
    source = load_digits()
    expected = {"train": [], "test": []}
    seen = [0] * 10
    for pixels, label in zip(source.data, source.target, strict=True):
        seen[label] += 1
        levels = tuple(round(level * 255 / 16) for level in pixels)
        expected["test" if seen[label] % 5 == 0 else "train"].append((int(label), levels))
    for name, rows in expected.items():
        split = digits.split(name)
        assert split.images.shape == (len(rows), 8, 8, 1)
        assert split.images.dtype == np.uint8
        found = [
            (int(y), tuple(x.ravel().tolist())) for x, y in zip(split.images, split.classes, strict=True)
        ]
        assert sorted(found) == sorted(rows)
    assert not set(expected["train"]) & set(expected["test"])


def test_digits_are_stratified(digits):
    counts = np.bincount(load_digits().target)
    assert np.bincount(digits.split("test").classes).tolist() == (counts // 5).tolist()
    assert np.bincount(digits.split("train").classes).tolist() == (counts - counts // 5).tolist()
    assert digits.sizes == {"train": 1797 - int((counts // 5).sum()), "test": int((counts // 5).sum())}
    assert digits.class_names == tuple("0123456789")
    assert (digits.classes, digits.test_split) == (10, "test")


def test_held_out_takes_every_fifth_of_a_class():
    assert np.flatnonzero(held_out(np.array([0] * 11 + [1] * 4))).tolist() == [4, 9]


def test_importing_registers_nothing():
    assert "digits" not in tfds.list_builders(with_community_datasets=False)


def _open(data_dir, barrier, results):
    barrier.wait()
    results.put(open_dataset("digits", data_dir).sizes)


@pytest.mark.slow
def test_two_processes_may_prepare_at_once(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=_open, args=(str(tmp_path), barrier, results)) for _ in range(2)]
    for process in processes:
        process.start()
    sizes = [results.get(timeout=90) for _ in processes]
    for process in processes:
        process.join()
    assert sizes == [{"train": 1442, "test": 355}] * 2
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]


def test_who_loses_the_race_reads_the_winners_files(tmp_path, monkeypatch):
    generators = Digits._split_generators

    def meanwhile(self, dl_manager):
        monkeypatch.setattr(Digits, "_split_generators", generators)
        Digits(data_dir=str(tmp_path)).download_and_prepare()
        return generators(self, dl_manager)

    monkeypatch.setattr(Digits, "_split_generators", meanwhile)
    assert len(open_dataset("digits", tmp_path).split("train")) == 1442
    assert [path.name for path in (tmp_path / "digits").iterdir()] == ["1.0.0"]
