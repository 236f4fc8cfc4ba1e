"""What PyTorch pickled, read without running any of it: tensors as descriptions, all else as inert stand-ins."""

import io
import pickle
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

# Element types of PyTorch's storages. A bfloat16 is the upper half of a float32, and NumPy does not know it.
STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": "bfloat16",
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}


class Inert:
    """Cannot be given attributes by a pickle, neither a class nor an instance: `__setstate__` comes before."""

    __slots__ = ()

    def __setstate__(*args: Any) -> None:
        """Drop what comes; a class is called with the state alone."""


@dataclass(frozen=True)
class Storage(Inert):
    """A run of numbers, not yet read: its name in the file, its element type and how many they are."""

    key: str
    dtype: str  # a value of `STORAGES`
    size: int


@dataclass(frozen=True)
class Tensor(Inert):
    """A view of a storage, not yet read; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


class StandIn(Inert):
    """An object of a class that we do not know. It takes all that a pickle can do to it, and does nothing.

    Every unknown name of a pickle becomes a subclass, whose `name` says which. Calling an instance gives another one.
    """

    __slots__ = ()
    name = ""

    def __new__(cls, *args: Any, **kwargs: Any) -> "StandIn":
        """Make one of whatever arguments."""
        return super().__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any):
        pass

    def __call__(self, *args: Any) -> "StandIn":
        """Return another one."""
        return type(self)()

    def _nothing(*args: Any) -> None:
        """Drop what comes."""

    __setitem__ = append = extend = add = _nothing


class StateDict(Inert, dict):
    """Stands for collections.OrderedDict; PyTorch's `_metadata` is dropped."""


class _Function(Inert):
    """A function of ours that a pickle may call."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]):
        self._call = call

    def __call__(self, *args: Any) -> Any:
        return self._call(*args)


@dataclass(frozen=True)
class _StorageType(Inert):
    dtype: str


def read_pickle(stream: io.BytesIO, storages: dict[str, Storage] | None = None) -> Any:
    """Read one pickle from a stream, which is left behind it.

    Nothing of the pickle runs: the few names that describe tensors stand for functions of this module, every other name
    is a `StandIn`.

    Args:
        stream: bytes in memory.
        storages: takes in all storages that the pickle refers to, by their names.

    Returns:
        Numbers, strings, lists and dicts of them, of `Tensor`s and of `StandIn`s.

    Raises:
        Exception: of any kind: the stream holds no pickle, or a damaged one.
    """
    start = stream.tell()
    _check_codes(stream)
    end = stream.tell()
    unpickler = _Unpickler(io.BytesIO(stream.getbuffer()[start:end]))
    unpickler.storages = {} if storages is None else storages
    return unpickler.load()


def _check_codes(stream: io.BytesIO) -> None:
    """Walk over one pickle's instructions, which takes no memory, and refuse those that could take much of it."""
    length = stream.getbuffer().nbytes
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("PUT", "BINPUT", "LONG_BINPUT") and argument > length:
            raise pickle.UnpicklingError("a memo larger than the file")
        if code.name.startswith(("EXT", "BYTEARRAY8", "NEXT_BUFFER")):
            raise pickle.UnpicklingError(f"{code.name} has no place in a state dict")


class _Unpickler(pickle.Unpickler):
    """Looks names up in a table of ours alone."""

    storages: dict[str, Storage]

    def find_class(self, module: str, name: str) -> Any:
        """Return what stands for a name; nothing is imported."""
        known = _KNOWN.get((module, name))
        return known or type("StandIn", (StandIn,), {"__slots__": (), "name": f"{module}.{name}"})

    def persistent_load(self, identity: Any) -> Storage | StandIn:
        """Return the storage that a pickle refers to, or what stands for the source text of a whole module."""
        if identity[0] == "module":
            return identity[1]
        kind, storage, key, _, size, *view = identity
        if kind != "storage" or not isinstance(storage, _StorageType) or not isinstance(key, str):
            raise pickle.UnpicklingError("an unknown kind of storage")
        if not isinstance(size, int) or size < 0 or any(part is not None for part in view):
            raise pickle.UnpicklingError("a storage of a kind that is no longer written")
        return self.storages.setdefault(key, Storage(key, storage.dtype, size))


def _tensor(storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any) -> Tensor:
    numbers = [offset, *shape, *strides]
    if not isinstance(storage, Storage) or len(shape) != len(strides):
        raise pickle.UnpicklingError("a tensor without a storage")
    if not all(isinstance(number, int) and number >= 0 for number in numbers):
        raise pickle.UnpicklingError("a tensor of impossible shape")
    return Tensor(storage, offset, tuple(shape), tuple(strides))


def _first(value: Any, *_: Any) -> Any:
    return value


def _rebuilt(function: Any, kind: Any, arguments: Any, *_: Any) -> Any:
    """Return the tensor in a subclass of a tensor, or in one with attributes."""
    return function(*arguments) if isinstance(function, _Function) else StandIn()


_KNOWN = {
    ("collections", "OrderedDict"): StateDict,
    ("torch", "Size"): _Function(lambda *sizes: tuple(*sizes)),
    ("torch._utils", "_rebuild_tensor"): _Function(_tensor),
    ("torch._utils", "_rebuild_tensor_v2"): _Function(_tensor),
    ("torch._utils", "_rebuild_parameter"): _Function(_first),
    ("torch._utils", "_rebuild_parameter_with_state"): _Function(_first),
    ("torch._tensor", "_rebuild_from_type_v2"): _Function(_rebuilt),
    **{("torch", name): _StorageType(dtype) for name, dtype in STORAGES.items()},
}
