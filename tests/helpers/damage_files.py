"""A program for `test_damaged_files.py`: reads weight files and checkpoints with damaged structures.

A forked worker reads many files; one that crashes or hangs is replaced, and its file is listed. Keras must
use NumPy, because TensorFlow's threads do not survive a fork.
"""

import collections
import json
import os
import pickle
import random
import re
import select
import signal
import struct
import sys
import zipfile
from pathlib import Path

import h5py
import keras
import numpy as np
from safetensors.numpy import save_file

from keras_resnet.errors import InputError
from keras_resnet.models.config import get_config
from keras_resnet.processes import resident_memory
from keras_resnet.training import checkpoints
from keras_resnet.weights import ModelSpec, open_weights, save_weights
from keras_resnet.weights.hdf5 import CannotReadNow
from keras_resnet.weights.keras_applications import applications_names
from keras_resnet.weights.torch_files import torch_names

HANG = 20  # seconds for one file
MOST_MEMORY = 2**30
SMALL = {"stage_depths": (1,), "stage_filters": (4,)}
SPEC = ModelSpec.default("resnet50_v1_5", 3, SMALL, (32, 32, 3))
APPLICATIONS = get_config("resnet50", **SMALL, classes=3)
NUMBERS = (0, 1, 2, 7, 8, 255, 2**15, 2**16 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1)


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def native(path):
    save_weights(SPEC.build(), path, SPEC)


def stored_shape(source, shape):
    """The shape of another library's tensor for a variable of this shape."""
    return tuple(size for _, size in sorted(zip(source.axes, shape, strict=True)))


def tensors_of(names, config):
    """Zeros by the names of another library, for a network of these variables."""
    model = ModelSpec(
        "resnet50_v1_5",
        {**SMALL, "bottleneck_stride": config.bottleneck_stride},
        3,
        (32, 32, 3),
        SPEC.preprocessing,
    ).build()
    made = {}
    for layer in model.layers:
        for variable in layer.weights:
            source = names[layer.name, variable.name]
            for name in source.names:
                made[name] = np.zeros(stored_shape(source, variable.shape), "float32")
    return made


def applications(path):
    with h5py.File(path, "w") as file:
        layers = collections.defaultdict(dict)
        for name, value in tensors_of(applications_names(APPLICATIONS), APPLICATIONS).items():
            layer, variable = name.split("/")
            layers[layer][f"{layer}/{variable}:0"] = value
        file.attrs["layer_names"] = [layer.encode() for layer in layers]
        for layer, values in layers.items():
            group = file.create_group(layer)
            group.attrs["weight_names"] = [name.encode() for name in values]
            for name, value in values.items():
                group[name] = value


def safetensors(path):
    save_file(tensors_of(torch_names(SPEC.config), SPEC.config), path)


def pth(path):
    """A zip file as torch writes it, without torch: the pickle needs it only when it is loaded."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("m/data.pkl", pickle.dumps({"a": [1.5, "text", (1, 2)], "b": {"c": 2**40}}, 2))
        file.writestr("m/data/0", bytes(1000))
        file.writestr("m/version", "3\n")


def checkpoint(path):
    arrays = {f"weights/layer{index}/kernel": np.ones((3, index), "float32") for index in range(12)}
    arrays["loss_scale"] = np.float32(2)
    numbers = {"history": [{"epoch": epoch, "loss": 0.5} for epoch in range(5)], "seed": 0}
    checkpoints.save(path.parent, checkpoints.Checkpoint(7, arrays, numbers), keep=1).rename(path)


# Where the structures are

MESSAGES = {1: "shape", 3: "type", 8: "layout", 12: "attribute", 16: "continuation", 17: "group"}


def hdf5_structures(data):
    """(kind, start, length) of the parts of an HDF5 file of the usual, old layout."""
    found = [("superblock", 0, 96)]
    for mark, kind, length in [
        (b"TREE", "tree", 96),
        (b"HEAP", "names", 120),
        (b"SNOD", "symbols", 128),
        (b"GCOL", "strings", 160),
    ]:
        found += [(kind, match.start(), length) for match in re.finditer(mark, data)]
    headers = {struct.unpack_from("<Q", data, 64)[0]}
    for kind, start, _ in found:
        if kind == "symbols":
            count = struct.unpack_from("<H", data, start + 6)[0]
            headers |= {struct.unpack_from("<Q", data, start + 16 + 40 * index)[0] for index in range(count)}
    for address in headers:
        size = struct.unpack_from("<I", data, address + 8)[0]
        found.append(("header", address, 16 + size))
        blocks = [(address + 16, size)]
        for start, length in blocks:
            messages = start
            while messages + 8 <= start + length:
                kind, size = struct.unpack_from("<HH", data, messages)
                if kind in MESSAGES:
                    found.append((MESSAGES[kind], messages, 8 + size))
                if kind == 16:
                    blocks.append(struct.unpack_from("<QQ", data, messages + 8))
                messages += 8 + size
    return found


def zip_structures(data):
    kinds = [
        (b"PK\3\4", "local", 40),
        (b"PK\1\2", "directory", 60),
        (b"PK\5\6", "end", 22),
        (b"\x80\2", "pickle", 60),
    ]
    return [
        (kind, match.start(), length)
        for mark, kind, length in kinds
        for match in re.finditer(re.escape(mark), data)
    ]


def safetensors_structures(data):
    return [("length", 0, 8), ("json", 8, int.from_bytes(data[:8], "little"))] * 2


# What is done to them


def damaged(data, structures, rng):
    """One to three changes of one kind of structure."""
    data = bytearray(data)
    kind = rng.choice(sorted({kind for kind, _, _ in structures}))
    parts = [part for part in structures if part[0] == kind]
    starts = [start for _, start, _ in structures]
    for _ in range(rng.choice((1, 1, 2, 3))):
        _, start, length = rng.choice(parts)
        at = min(start + rng.randrange(max(1, length)), len(data) - 1)
        change = rng.randrange(9)
        if change == 0:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 1:
            data[at] = rng.choice((0, 1, 2, 3, 16, 127, 128, 255))
        elif change in (2, 3, 4):  # an address or a size, most often where one is
            at = start + rng.randrange(0, max(8, length), 8) if change < 4 else at
            value = rng.choice(
                (*NUMBERS, len(data), len(data) - 1, *rng.sample(starts, min(4, len(starts))), start, at)
            )
            data[at : at + 8] = struct.pack("<Q", value)
        elif change == 5:
            size = rng.choice((2, 4))
            data[at : at + size] = (rng.choice(NUMBERS) % 2 ** (8 * size)).to_bytes(size, "little")
        elif change == 6:
            _, other, size = rng.choice(structures)
            size = min(size, length, rng.choice((8, 16, 40, 200)))
            data[start : start + size] = data[other : other + size]
        elif change == 7:
            data[at : at + rng.choice((8, 32, 100))] = bytes(rng.choice((8, 32, 100)))
        else:
            del data[at + rng.randrange(64) :]
    return kind, bytes(data)


def other_spec(data, rng, path):
    """A native file whose description asks for another network."""
    path.write_bytes(data)
    fields = json.loads(SPEC.to_json())
    for _ in range(rng.randint(1, 2)):
        options = {
            "classes": rng.choice((*NUMBERS, -1, "3", None, 1e308)),
            "input_shape": [rng.choice((32, *NUMBERS)) for _ in range(3)],
            "labels": ["x"] * rng.choice((0, 3, 5)),
            "model": rng.choice(("resnet50", "cifar_resnet1202", "wide_resnet101_2", "resnet18d", "x", 3)),
            "overrides": {
                "stage_depths": [rng.choice((1, 2, 50, 4096))] * rng.choice((1, 2, 30)),
                "stage_filters": [rng.choice((1, 4, 64, 4096))] * rng.choice((1, 2, 30)),
                "groups": rng.choice((1, 2, 1024)),
                "width_per_group": rng.choice((1, 64, 4096)),
                "shortcut": rng.choice(("A", "B", "C", "D", None, 7)),
            },
            "normalization": rng.choice(({}, {"mean": [1e300], "std": [0]}, {"mean": [[1]], "std": 3})),
            "resize": rng.choice((None, 1, 2**40, "x")),
        }
        name = rng.choice(sorted(options))
        fields[name] = options[name]
    with h5py.File(path, "r+") as file:
        file.attrs["keras_resnet"] = json.dumps(fields)
    return "spec", path.read_bytes()


def bomb(data, rng, trap):
    """A zip file with compressed entries, entries that overlap, or code in its pickle."""
    path = trap.with_name("bomb.zip")
    kind = rng.choice(("deflated", "overlapping", "code"))
    method = zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("m/data.pkl", pickle.dumps(Trap(trap), 2))
        file.writestr("m/data/0", bytes(rng.choice((10**3, 10**7)) if kind == "deflated" else 1000))
        if kind == "overlapping":
            file.filelist += file.filelist * rng.randint(1, 1000)
    return kind, path.read_bytes()


def changed_json(data, rng):
    """A safetensors file with another header of a right length."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice(sorted(header))
    entry = header[name]
    change = rng.randrange(6)
    if change == 0:
        entry["shape"] = [rng.choice(NUMBERS) for _ in range(rng.randrange(5))]
    elif change == 1:
        entry["data_offsets"] = [rng.choice((*NUMBERS, len(data))) for _ in range(2)]
    elif change == 2:
        entry["dtype"] = rng.choice(("F64", "BF16", "I8", "BOOL", "F8_E4M3", "X", 3))
    elif change == 3:
        header = {f"{name}{index}": entry for index in range(rng.choice((2, 2000)))}
    elif change == 4:
        header["__metadata__"] = rng.choice(({"a": 3}, {"a": "x" * 10**5}, [], "x"))
    else:
        header[name] = rng.choice(("x", None, [], {}))
    text = json.dumps(header).encode()
    if rng.random() < 0.1:
        text = b'{"a":' * 20_000
    return "header", struct.pack("<Q", len(text)) + text + data[8 + length :]


MAKERS = {
    "m.weights.h5": native,
    "m.h5": applications,
    "m.safetensors": safetensors,
    "m.pth": pth,
    "checkpoint": checkpoint,
}
STRUCTURES = {"m.pth": zip_structures, "m.safetensors": safetensors_structures}


def file_of(index, whole, structures, trap):
    """The name, the kind of damage and the content of a file of the corpus."""
    rng = random.Random(index)
    name = list(MAKERS)[index % len(MAKERS)]
    data = whole[name]
    if name == "m.weights.h5" and rng.random() < 0.2:
        return name, *other_spec(data, rng, trap.with_name("spec.h5"))
    if name == "m.pth" and rng.random() < 0.2:
        return name, *bomb(data, rng, trap)
    if name == "m.safetensors" and rng.random() < 0.5:
        return name, *changed_json(data, rng)
    return name, *damaged(data, structures[name], rng)


# How they are read


def read(name, path, models):
    """Reads a file as its users do."""
    if name == "checkpoint":
        checkpoints.load(path)
        return
    config = SPEC.config if name != "m.h5" else APPLICATIONS
    if name == "m.weights.h5":
        with open_weights(path) as file:
            if file.described is not None and file.described != SPEC:
                file.build()
    with open_weights(path, config) as file:
        file.load(models[name == "m.h5"], transfer=True)


def work(numbers, report, folder, whole, structures, models):
    trap = folder / "sprung"
    for index in numbers:
        name, kind, data = file_of(index, whole, structures, trap)
        path = folder / f"damaged-{name}"
        path.write_bytes(data)
        os.write(report, f"{json.dumps([index, name, kind, 'began', ''])}\n".encode())
        before = resident_memory(peak=True)
        try:
            read(name, path, models)
            result, told = "read", ""
        except CannotReadNow as error:
            result, told = "wrong", str(error)
        except (InputError, checkpoints.BrokenCheckpoint) as error:
            result, told = "wrong" if "\n" in str(error) else "refused", str(error)
        except BaseException as error:
            result, told = "wrong", f"{type(error).__name__}: {error}"
        grown = resident_memory(peak=True) - before
        if grown > MOST_MEMORY:
            result, told = "wrong", f"took {grown / 1e9:.1f} GB"
        if trap.exists():
            result, told = "wrong", "its code was run"
            trap.rmdir()
        os.write(report, f"{json.dumps([index, name, kind, result, told[:300]])}\n".encode())


def supervise(numbers, start):
    """Yields the reports of workers that `start` forks; a crash and a hang are reports, too."""
    numbers = list(numbers)
    while numbers:
        reader, report = os.pipe()
        process = os.fork()
        if process == 0:
            os.close(reader)
            try:
                start(numbers, report)
            finally:
                os._exit(0)
        os.close(report)
        last = None
        with open(reader) as lines:
            while select.select([lines], [], [], HANG)[0] and (line := lines.readline()):
                last = json.loads(line)
                if last[3] != "began":
                    yield last
            os.kill(process, signal.SIGKILL)
        _, status = os.waitpid(process, 0)
        if last is None:
            raise RuntimeError("a worker did not begin")
        if last[3] == "began":
            hung = os.waitstatus_to_exitcode(status) == -signal.SIGKILL
            yield [*last[:3], "wrong", "hangs" if hung else f"crashes with status {status}"]
        numbers = numbers[numbers.index(last[0]) + 1 :]


def main(folder, count):
    whole, structures = {}, {}
    for name, make in MAKERS.items():
        make(folder / name if name != "checkpoint" else folder / "whole.h5")
        whole[name] = (folder / (name if name != "checkpoint" else "whole.h5")).read_bytes()
        structures[name] = STRUCTURES.get(name, hdf5_structures)(whole[name])
    models = [SPEC.build(), ModelSpec("resnet50", SMALL, 3, (32, 32, 3), SPEC.preprocessing).build()]
    for name in MAKERS:
        if name != "m.pth":  # which needs torch
            path = folder / f"damaged-{name}"
            path.write_bytes(whole[name])
            read(name, path, models)
    results, wrong = collections.Counter(), []

    def start(numbers, report):
        work(numbers, report, folder, whole, structures, models)

    for index, name, kind, result, told in supervise(range(count), start):
        results[f"{name} {kind} {result}"] += 1
        if result == "wrong":
            wrong.append([index, name, kind, told])
    print(json.dumps({"results": results, "wrong": wrong}))


if __name__ == "__main__":
    assert keras.backend.backend() == "numpy"
    main(Path(sys.argv[1]), int(sys.argv[2]))
