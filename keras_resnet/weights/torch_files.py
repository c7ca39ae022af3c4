"""Reads state dicts of torchvision and timm (.safetensors, .pth, .pt) without unpickling."""

import contextlib
import io
import mmap
import pickletools
import re
import struct
import zipfile
from pathlib import Path
from typing import Any

from keras_resnet.errors import InputError, one_line
from keras_resnet.models.config import ResNetConfig
from keras_resnet.weights.conversion import BN_ATTRIBUTES, HEAD, Budget, Source, Table, Tensors, convolutions
from keras_resnet.weights.hdf5 import check_readable, refuse_damage

SUFFIXES = (".safetensors", ".pth", ".pt")
# What torch's safe reader calls and no state dict needs: a few bytes of a pickle allocate any size.
_ALLOCATING = re.compile(r"\S+ (bytearray|\w*Tensor)")
_LEGACY_PICKLES = 5  # at the start of a file in torch's older format
_BN_NAMES = ("weight", "bias", "running_mean", "running_var")


def torch_names(config: ResNetConfig) -> Table:
    """Maps a network's variables to the tensors of a torchvision or timm state dict."""
    theirs = "torchvision's and timm's"
    if config.block == "preactivation":
        raise InputError(
            f"{theirs} ResNets normalize after their convolutions; block is 'preactivation' here"
        )
    if config.shortcut not in ("B", "C", "D"):
        raise InputError(f"{theirs} networks have projection shortcuts; shortcut is {config.shortcut!r} here")
    if config.block == "bottleneck" and config.bottleneck_stride != "3x3":
        raise InputError(
            f"{theirs} bottlenecks have their stride on the 3x3 convolution: load them into a network named "
            "..._v1_5"
        )
    table = {}
    for layer, stage, index, number in convolutions(config):
        if stage is None:
            # A deep stem is one sequence, but its last normalization is a separate module.
            conv = "conv1" if number == 0 else f"conv1.{3 * (number - 1)}"
            bn = f"conv1.{3 * number - 2}" if number in (1, 2) else "bn1"
        elif number == 0:
            first = 1 if config.shortcut == "D" else 0  # after the pooling
            conv, bn = (f"layer{stage}.{index}.downsample.{part}" for part in (first, first + 1))
        else:
            conv, bn = (f"layer{stage}.{index}.{part}{number}" for part in ("conv", "bn"))
        table[f"{layer}_conv", "kernel"] = Source((f"{conv}.weight",), (2, 3, 1, 0))  # OIHW
        for attribute, name in zip(BN_ATTRIBUTES, _BN_NAMES, strict=True):
            table[f"{layer}_bn", attribute] = Source((f"{bn}.{name}",))
    table[HEAD, "kernel"] = Source(("fc.weight",), (1, 0))
    table[HEAD, "bias"] = Source(("fc.bias",))
    return table


def read_torch_file(path: Path) -> Tensors:
    """Reads all tensors of a state dict, without the prefix `module.` of DataParallel."""
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    stripped = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if len(stripped) != len(tensors):
        raise InputError(f"{path} has tensors twice, with and without the prefix 'module.'")
    return stripped


def _read_safetensors(path: Path) -> Tensors:
    try:
        import safetensors
    except ImportError:
        raise InputError(f"{path} needs the package safetensors: pip install safetensors") from None
    tensors, budget = {}, Budget(path)
    with refuse_damage(path, safetensors.SafetensorError), safetensors.safe_open(path, "np") as file:
        for name in file.keys():  # noqa: SIM118 (not a mapping)
            budget.take(name, file.get_slice(name).get_shape())
            tensors[name] = file.get_tensor(name)
    return tensors


def _read_pth(path: Path) -> Tensors:
    try:
        content = _checked_zip(path)
    except Exception as error:  # a damaged file can raise anything
        raise _unsafe(path, error) from None
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(
            f"{path} needs PyTorch: install torch, or convert the file to .safetensors"
        ) from None
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        # CVE-2025-32434: `weights_only` could execute code.
        raise InputError(f"{path} needs torch 2.6 or newer to be read safely; this is {torch.__version__}")
    try:
        content = torch.load(content or path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise _unsafe(path, error) from None
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise InputError(f"{path} holds a {type(content).__name__}, not a state dict")
    tensors, budget = {}, Budget(path)
    for name, tensor in content.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise InputError(f"{path} holds something other than a weight at {one_line(name)}")
        budget.take(name, tensor.shape)
        try:
            if tensor.dtype == torch.bfloat16:
                tensor = tensor.float()  # unknown to NumPy
            tensors[name] = tensor.detach().numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantized, without storage, ...
            raise InputError(f"{path}: {one_line(name)} is not a plain tensor ({one_line(error)})") from None
    return tensors


def _checked_zip(path: Path) -> io.BytesIO | None:
    """Returns a copy of a zip file that compresses nothing; None for torch's older format.

    torch would inflate a file of 1 MB to 1 GB. It gets a copy, whose directory it cannot read differently.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            if path.stat().st_size:  # a map, because a file would allocate what a pickle wants to read
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                    _check_pickles(content)
            return None
        copy = io.BytesIO()
        with zipfile.ZipFile(file) as source, zipfile.ZipFile(copy, "w") as target:
            entries = source.infolist()
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
                raise ValueError("its entries are compressed")
            sizes, names = sum(entry.file_size for entry in entries), {entry.filename for entry in entries}
            if sizes > path.stat().st_size or len(names) < len(entries):
                raise ValueError("its entries overlap")
            for entry in entries:
                file.seek(entry.header_offset)
                file.seek(sum(struct.unpack("<26x2H", file.read(30))), io.SEEK_CUR)  # a name and other fields
                content = file.read(entry.file_size)
                if entry.filename.endswith(".pkl"):
                    _check_pickles(io.BytesIO(content))
                target.writestr(entry.filename, content)
    copy.seek(0)
    return copy


def _check_pickles(file: Any) -> None:
    """Raises `ValueError` for pickles, in a file or a map, that allocate memory; nothing is loaded."""
    names = set()
    with contextlib.suppress(ValueError):  # where it is no pickle, torch refuses it, too
        for _ in range(_LEGACY_PICKLES):
            for code, argument, _ in pickletools.genops(file):
                if code.name == "GLOBAL":
                    names.add(str(argument))
    if found := sorted(filter(_ALLOCATING.fullmatch, names)):
        raise ValueError(f"it calls {found[0]}")


def _unsafe(path: Path, error: Exception) -> InputError:
    check_readable(path, error)
    # The full message advises to disable the safe reader; show only the forbidden global.
    named = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
    first_sentence = str(error).split("\n")[0].split(". ")[0]
    reason = one_line(named[1] if named else first_sentence or type(error).__name__)
    return InputError(f"{path} is damaged, or holds more than tensors ({reason})")
