"""State dicts of PyTorch networks, from safetensors and from PyTorch's own files, without PyTorch."""

import functools
import io
import math
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
from etils import epath

from pujax.errors import UserError
from pujax.importers.pickles import StandIn, Storage, Tensor, read_pickle
from pujax.weights import load_tensors

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LARGEST_PICKLE = 256 << 20  # bytes; ten thousand tensors take two million
# Entries of a checkpoint that hold the weights, and those that hold their moving average, in order of precedence.
_PLAIN = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "weights", "params")
_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "model_ema_state_dict", "ema_model", "ema", "params_ema")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "net.")
_REMEDY = "save it with torch.save(model.state_dict(), path), or as safetensors"


def read_state_dict(path: epath.Path, *, ema: bool = False) -> dict[str, np.ndarray]:
    """Read a network's tensors from `.safetensors`, or from what `torch.save` wrote. Nothing in the file is executed.

    The state dict may lie in a checkpoint, under a usual name such as "state_dict" or "model". Where the checkpoint has
    both the weights and their moving average, the weights are taken; where it has one of the two, that one. Prefixes
    that all names have, "module." of a wrapper for example, are taken off.

    Args:
        path: the file.
        ema: take the moving average.

    Returns:
        Arrays by name, of the file's element types; bfloat16 becomes float32.

    Raises:
        UserError: there is no such file, it is damaged, it is of another format, or it holds objects where tensors are
            expected.
    """
    path = epath.Path(path)
    if not path.exists() or path.is_dir():
        raise UserError(f"no weights file at {path}; give the path of a .safetensors, .pth, .pt or .bin file")
    with path.open("rb") as file:
        head = file.read(512)
    read = _reader(path, head)
    try:
        state = read(path, ema)
    except (UserError, OSError):
        raise
    except Exception as error:  # a damaged pickle can raise anything
        raise UserError(f"{path} is damaged or cut short ({type(error).__name__}); fetch or save it again") from error
    if not state:
        raise UserError(f"{path} holds no tensors; {_REMEDY}")
    return _without_prefixes(state)


def _reader(path: epath.Path, head: bytes) -> Callable[[epath.Path, bool], dict[str, np.ndarray]]:
    """Return what reads a file that begins with `head`."""
    if head[8:9] == b"{":  # first, for the length before it may begin like any other format
        return _read_safetensors
    if head.startswith(b"PK\x03\x04"):
        return _read_zip
    if head.startswith(b"\x80"):
        return _read_legacy
    if head.lstrip()[:1] == b"<":
        raise UserError(f"{path} is a web page, not weights; fetch it again from the address of the file itself")
    if head.startswith(b"version https://git-lfs"):
        raise UserError(f"{path} is a pointer to a file in Git LFS; fetch the file itself with 'git lfs pull'")
    if path.suffix == ".safetensors":
        return _read_safetensors
    raise UserError(f"{path} is neither safetensors nor a file of torch.save; {_REMEDY}")


def _read_safetensors(path: epath.Path, ema: bool) -> dict[str, np.ndarray]:
    return load_tensors(path)


def _read_zip(path: epath.Path, ema: bool) -> dict[str, np.ndarray]:
    with path.open("rb") as file, zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if any(name.endswith("/constants.pkl") for name in names):
            raise UserError(f"{path} is a TorchScript archive, which is a program; {_REMEDY}")
        root = next((name.removesuffix("data.pkl") for name in names if name.endswith("/data.pkl")), None)
        if root is None:
            raise UserError(f"{path} is a zip file, but not one of torch.save; {_REMEDY}")
        left = file.seek(0, io.SEEK_END)  # what all entries together may measure

        def read(name: str) -> bytes:
            nonlocal left
            info = archive.getinfo(root + name)
            left -= info.file_size
            if info.compress_type != zipfile.ZIP_STORED or left < 0:
                raise UserError(f"{path} is compressed, which torch.save never does; {_REMEDY}")
            return archive.read(info)

        big = f"{root}byteorder" in names and read("byteorder") == b"big"
        if archive.getinfo(f"{root}data.pkl").file_size > _LARGEST_PICKLE:
            raise UserError(f"{path} describes more than a network; {_REMEDY}")
        tensors = _tensors(read_pickle(io.BytesIO(read("data.pkl"))), path, ema)
        return _materialise(tensors, lambda storage: _numbers(read(f"data/{storage.key}"), storage, big=big))


def _read_legacy(path: epath.Path, ema: bool) -> dict[str, np.ndarray]:
    """Read the format before PyTorch 1.6: five pickles, then the storages one after another."""
    stream = io.BytesIO(path.read_bytes())
    if read_pickle(stream) != _LEGACY_MAGIC:
        raise UserError(f"{path} is a pickle, but not one of torch.save; {_REMEDY}")
    storages: dict[str, Storage] = {}
    _, system, content, keys = (read_pickle(stream, storages) for _ in range(4))
    tensors = _tensors(content, path, ema)
    places, position = {}, stream.tell()
    for key in keys:
        places[key] = position + 8  # behind the number of elements
        position += 8 + storages[key].size * _item_size(storages[key])

    def read(storage: Storage) -> np.ndarray:
        start = places[storage.key]
        data = stream.getbuffer()[start : start + storage.size * _item_size(storage)]
        return _numbers(data, storage, big=not system["little_endian"])

    return _materialise(tensors, read)


def _holds_tensor(value: Any) -> bool:
    """Whether there is a tensor in dicts and lists, however deep."""
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            return True
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            waiting.extend(value.values() if isinstance(value, dict) else value)
    return False


def _tensors(content: Any, path: epath.Path, ema: bool) -> dict[str, Tensor]:
    """Return the state dict in what a file holds; raise UserError where there is none, or an entry is no tensor."""
    where = str(path)
    for _ in range(4):  # levels of a checkpoint
        if isinstance(content, StandIn):
            raise UserError(f"{where} holds an object of {content.name}, which is not executed; {_REMEDY}")
        if not isinstance(content, dict):
            raise UserError(f"{where} holds a {type(content).__name__}, not a state dict; {_REMEDY}")
        order = _AVERAGED + _PLAIN if ema else _PLAIN + _AVERAGED
        key = next((key for key in order if isinstance(content.get(key), dict | StandIn)), None)
        if key is None:
            break
        if ema and key not in _AVERAGED and any(isinstance(value, Tensor) for value in content[key].values()):
            raise UserError(f"{where} has no moving average; leave ema out, or choose from {', '.join(content)}")
        ema, content = ema and key not in _AVERAGED, content[key]
    return {str(name): value for name, value in content.items() if _is_tensor(value, f"{path}: {name}")}


def _is_tensor(value: Any, where: str) -> bool:
    """Whether an entry of a state dict is a tensor; raise UserError if it is an object that may hold one."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, StandIn) or _holds_tensor(value):
        what = f"an object of {value.name}" if isinstance(value, StandIn) else f"a {type(value).__name__} of tensors"
        raise UserError(f"{where} is {what}, not a tensor; {_REMEDY}")
    return False


def _materialise(tensors: dict[str, Tensor], read: Callable[[Storage], np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays; every storage is read once, and tensors that share one are views of it."""
    read = functools.cache(read)
    return {name: _view(tensor, read(tensor.storage)) for name, tensor in tensors.items()}


def _view(tensor: Tensor, numbers: np.ndarray) -> np.ndarray:
    if 0 in tensor.shape:
        return np.zeros(tensor.shape, numbers.dtype)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides))
    if last >= numbers.size or math.prod(tensor.shape) > numbers.size:
        raise ValueError("a tensor larger than its storage")
    strides = [stride * numbers.itemsize for stride in tensor.strides]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)


def _numbers(data: bytes | memoryview, storage: Storage, *, big: bool) -> np.ndarray:
    """Return a storage's bytes as a vector, in this machine's byte order."""
    dtype = np.dtype("u2" if storage.dtype == "bfloat16" else storage.dtype).newbyteorder(">" if big else "<")
    if len(data) != storage.size * dtype.itemsize:
        raise ValueError("a storage of another length than it says")
    numbers = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="), copy=False)
    return (numbers.astype(np.uint32) << 16).view(np.float32) if storage.dtype == "bfloat16" else numbers


def _item_size(storage: Storage) -> int:
    return 2 if storage.dtype == "bfloat16" else np.dtype(storage.dtype).itemsize


def _without_prefixes(state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Take off, one after another, the prefixes that all names have."""
    while prefix := next((p for p in _PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state
