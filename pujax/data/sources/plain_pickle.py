"""Pickles that hold data and nothing else: dicts, lists, texts, numbers and arrays of numbers.

A pickle is a program, and may run anything. Here nothing that it names is imported: the few names that arrays are
pickled with stand for functions of this file, and any other name is refused before it is used.
"""

import io
import pickle
from typing import Any

import numpy as np

from pujax.errors import UserError

_NUMBERS = frozenset("biuf")  # kinds of types that an array may have


class _Array:
    """An array to be: NumPy makes an empty one first, and then sets its state."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, dtype, is_fortran, content = state
        self.value = np.frombuffer(_bytes(content), dtype.value).reshape(shape, order="F" if is_fortran else "C")


class _Type:
    """A type of numbers; its state is its byte order."""

    def __init__(self, name: str | bytes, *_: Any):
        self.value = _number_type(name)

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.value = self.value.newbyteorder(order) if order in ("<", ">") else self.value


def _number_type(name: str | bytes) -> np.dtype:
    text = name.decode() if isinstance(name, bytes) else str(name)
    if text[:1] not in _NUMBERS or not text[1:].isdigit():
        raise pickle.UnpicklingError(f"arrays of type {text!r} are not numbers")
    return np.dtype(text)


def _bytes(content: Any) -> bytes:
    if isinstance(content, str):  # how Python 2 wrote bytes
        return content.encode("latin1")
    if not isinstance(content, bytes | bytearray):
        raise pickle.UnpicklingError("an array of other than numbers")
    return bytes(content)


def _from_buffer(content: Any, dtype: _Type, shape: tuple, order: str) -> _Array:
    array = _Array()
    array.__setstate__((1, shape, dtype, order == "F", content))
    return array


def _encode(text: str, codec: str) -> bytes:
    if codec != "latin1":
        raise pickle.UnpicklingError(f"text in {codec!r}")
    return text.encode(codec)


_KNOWN = {"numpy.ndarray": _Array, "numpy.dtype": _Type, "_codecs.encode": _encode}
_KNOWN |= dict.fromkeys(("builtins.bytes", "__builtin__.bytes"), lambda: b"")  # how empty ones are written
for _module in ("numpy.core", "numpy._core"):
    _KNOWN[f"{_module}.multiarray._reconstruct"] = lambda *_: _Array()
    _KNOWN[f"{_module}.numeric._frombuffer"] = _from_buffer


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which is not data")
        return _KNOWN[f"{module}.{name}"]


def load_plain_pickle(data: bytes, path: str) -> Any:
    """Return what a pickle of plain data holds; arrays may be read only.

    Args:
        data: the pickle.
        path: what the message calls it.

    Raises:
        UserError: it holds something else, or is damaged.
    """
    try:
        return _plain(_Unpickler(io.BytesIO(data), encoding="bytes").load())
    except Exception as error:  # a damaged pickle raises errors of any kind
        raise UserError(
            f"{path} is damaged, or no pickle of plain arrays: {error}; bring it from its source"
        ) from error


def _plain(value: Any) -> Any:
    if isinstance(value, _Array):
        return value.value
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple) and any(isinstance(entry, _Array | dict | list | tuple) for entry in value):
        return [_plain(entry) for entry in value]
    if isinstance(value, list | tuple | str | bytes | int | float | None):
        return value
    raise pickle.UnpicklingError(f"it holds a {type(value).__name__}")
