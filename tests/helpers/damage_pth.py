"""A program for `test_reference_pth.py`: damages `.pth` files of a small network, and loads each."""

import faulthandler
import io
import json
import os
import pickle
import pickletools
import random
import sys
import zipfile
from collections import Counter
from pathlib import Path

import torch
from helpers.torch_zoo import randomize, run, timm
from helpers.zoo_networks import images, relative_difference

from keras_resnet import InputError, build_resnet
from keras_resnet.models.config import get_config
from keras_resnet.weights import open_weights

ONES = (1, 1, 1, 1)  # blocks, and filters, of each stage
HANG = 60  # seconds for one file


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def saved(content, legacy):
    """The bytes of a file."""
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


def position(data, rng):
    """A place in a file: two times in three near an end, where its structure is rather than its numbers."""
    margin = min(4000, len(data))
    near = rng.randrange(margin)
    return rng.choice([rng.randrange(len(data)), near, len(data) - 1 - near])


def bits(data, rng, files):
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        damaged[position(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def truncated(data, rng, files):
    return data[: position(data, rng)]


def inserted(data, rng, files):
    start = position(data, rng)
    return data[:start] + rng.randbytes(rng.randint(1, 64)) + data[start:]


def removed(data, rng, files):
    start = position(data, rng)
    return data[:start] + data[start + rng.randint(1, 64) :]


def spliced(data, rng, files):
    """The beginning of one file and the end of another."""
    other = rng.choice(files)
    return data[: position(data, rng)] + other[position(other, rng) :]


def pickles(data, rng, files):
    """A file whose parts agree with each other, but with two pickles cut together, or a damaged one."""
    zips = [file for file in files if file.startswith(b"PK")]
    first, second = (rng.choice(zips) for _ in range(2))
    source = zipfile.ZipFile(io.BytesIO(first))
    (name,) = (name for name in source.namelist() if name.endswith("/data.pkl"))
    one = source.read(name)
    two = zipfile.ZipFile(io.BytesIO(second)).read(name)
    if rng.random() < 0.5:
        # Between whole operations, so that more of it makes sense.
        cuts = [rng.choice([place for *_, place in pickletools.genops(pickled)]) for pickled in (one, two)]
        changed = one[: cuts[0]] + two[cuts[1] :]
    else:
        changed = rng.choice([bits, inserted, removed])(one, rng, files)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for entry in source.namelist():
            target.writestr(entry, changed if entry == name else source.read(entry))
    return file.getvalue()


def values(model):
    """All weights, as bytes: numbers that are not numbers equal themselves, too."""
    return [value.tobytes() for value in model.get_weights()]


DAMAGES = [bits, truncated, inserted, removed, spliced, pickles]


def main(folder, count):
    rng, sprung = random.Random(0), folder / "sprung"
    torch.manual_seed(0)
    resnet = timm().models.resnet
    network = randomize(resnet.ResNet(resnet.BasicBlock, layers=ONES, channels=ONES, num_classes=3))
    config = get_config("resnet18", stage_depths=ONES, stage_filters=ONES, classes=3)
    model = build_resnet(config, input_shape=(32, 32, 3), classifier_activation=None, name="small")

    state = network.state_dict()
    contents = [
        state,
        {"state_dict": state, "epoch": 3},
        {"model": {f"module.{n}": v for n, v in state.items()}},
    ]
    whole = [saved(content, legacy) for legacy in (False, True) for content in contents]
    path, batch = folder / "damaged.pth", images(1, 32, 32, 3)
    for data in whole:
        path.write_bytes(data)
        open_weights(path, config).load(model)
        assert relative_difference(model(batch), run(network, batch)) <= 1e-4
    # These are only for splicing: the class of a network, and code.
    others = [saved(content, legacy) for legacy in (False, True) for content in (network, Trap(sprung))]
    files = [*whole, *others, pickle.dumps({"a": Trap(sprung)})]

    refused, loaded, wrong = Counter(), Counter(), []
    for number in range(count):
        damage = DAMAGES[number % len(DAMAGES)]
        path.write_bytes(damage(rng.choice(whole), rng, files))
        before = values(model)
        faulthandler.dump_traceback_later(HANG, exit=True)
        try:
            open_weights(path, config).load(model)
            loaded[damage.__name__] += 1
        except InputError as error:
            refused[damage.__name__] += 1
            if "\n" in str(error):
                wrong.append(f"{number}: not one line: {error}")
            if values(model) != before:
                wrong.append(f"{number}: refused, but the network was changed")
        except BaseException as error:
            wrong.append(f"{number}, {damage.__name__}: {type(error).__name__}: {error}")
        faulthandler.cancel_dump_traceback_later()
        if sprung.exists():
            wrong.append(f"{number}, {damage.__name__}: its code was run")
            sprung.rmdir()
    print(json.dumps({"refused": refused, "loaded": loaded, "wrong": wrong}))


if __name__ == "__main__":
    faulthandler.enable()
    main(Path(sys.argv[1]), int(sys.argv[2]))
