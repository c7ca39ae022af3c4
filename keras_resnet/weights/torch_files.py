"""Reads and writes state dicts of torchvision and timm (.safetensors, .pth, .pt); nothing is unpickled."""

import contextlib
import io
import mmap
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from keras_resnet.errors import InputError, one_line
from keras_resnet.files import atomic_path
from keras_resnet.models.config import ResNetConfig, zoo_name
from keras_resnet.weights.conversion import BN_ATTRIBUTES, HEAD, Budget, Source, Table, Tensors, convolutions
from keras_resnet.weights.hdf5 import check_readable, refuse_damage
from keras_resnet.weights.spec import SPEC_KEY, ModelSpec

SUFFIXES = (".safetensors", ".pth", ".pt")
# What torch's safe reader calls and no state dict needs: a few bytes of a pickle allocate any size.
_ALLOCATING = re.compile(r"\S+ (bytearray|\w*Tensor)")
_LEGACY_PICKLES = 5  # at the start of a file in torch's older format
_NEEDS_SAFETENSORS = "needs the package safetensors: pip install safetensors"
_BN_NAMES = ("weight", "bias", "running_mean", "running_var")


def torch_model(config: ResNetConfig, library: str = "timm") -> str:
    """Returns the name of a network in torchvision or timm; raises `InputError` if it is not there."""
    _check_architecture(config)
    name = zoo_name(config)
    if name is None:
        raise InputError(
            f"{library} has no network with these options: stage_depths is {config.stage_depths}, "
            f"stage_filters is {config.stage_filters}, shortcut is {config.shortcut!r}"
        )
    if library == "torchvision" and config.shortcut == "D":
        raise InputError(f"torchvision has no {name}; timm has")
    return name.removesuffix("_v1_5")


def torch_names(config: ResNetConfig) -> Table:
    """Maps a network's variables to the tensors of a torchvision or timm state dict."""
    _check_architecture(config)
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


def _check_architecture(config: ResNetConfig) -> None:
    theirs = "torchvision's and timm's"
    if config.block == "preactivation":
        raise InputError(
            f"{theirs} ResNets normalize after their convolutions; block is 'preactivation' here"
        )
    if config.shortcut not in ("B", "C", "D"):
        raise InputError(f"{theirs} networks have projection shortcuts; shortcut is {config.shortcut!r} here")
    if config.block == "bottleneck" and config.bottleneck_stride != "3x3":
        raise InputError(
            f"{theirs} bottlenecks have their stride on the 3x3 convolution, like the networks named "
            f"..._v1_5 here; bottleneck_stride is {config.bottleneck_stride!r}"
        )


def read_torch_file(path: Path) -> Tensors:
    """Reads all tensors of a state dict, without the prefix `module.` of DataParallel."""
    tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pth(path)
    stripped = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    if len(stripped) != len(tensors):
        raise InputError(f"{path} has tensors twice, with and without the prefix 'module.'")
    return stripped


def read_description(path: Path) -> ModelSpec | None:
    """Returns the description in a file that `write_torch_file` wrote; None for other files and for .pth."""
    if path.suffix != ".safetensors":
        return None
    with _open_safetensors(path) as file:
        text = (file.metadata() or {}).get(SPEC_KEY)
    return None if text is None else ModelSpec.from_json(text, path.stat().st_size)


def write_torch_file(tensors: Tensors, path: Path, spec: ModelSpec) -> None:
    """Writes a state dict atomically; a .safetensors file also holds `spec`, in its metadata.

    PyTorch's step counters are left out; its strict loading does not need them. Raises `InputError` without
    the package that the format needs, and `OSError` if the file cannot be written.
    """
    if path.suffix == ".safetensors":
        content = _to_safetensors(tensors, path, {"format": "pt", SPEC_KEY: spec.to_json()})
    else:
        content = _to_pth(tensors, path)
    with atomic_path(path, suffix=path.suffix) as temporary:
        temporary.write_bytes(content)


def _to_safetensors(tensors: Tensors, path: Path, metadata: dict[str, str]) -> bytes:
    try:
        from safetensors.numpy import save
    except ImportError:
        raise InputError(f"{path} {_NEEDS_SAFETENSORS}") from None
    return save(tensors, metadata)


def _to_pth(tensors: Tensors, path: Path) -> bytes:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise InputError(f"{path} needs PyTorch: install torch, or write a .safetensors file") from None
    content = io.BytesIO()
    torch.save({name: torch.from_numpy(np.array(value)) for name, value in tensors.items()}, content)
    return content.getvalue()


@contextlib.contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    try:
        import safetensors
    except ImportError:
        raise InputError(f"{path} {_NEEDS_SAFETENSORS}") from None
    with refuse_damage(path, safetensors.SafetensorError), safetensors.safe_open(path, "np") as file:
        yield file


def _read_safetensors(path: Path) -> Tensors:
    tensors, budget = {}, Budget(path)
    with _open_safetensors(path) as file:
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
