"""Pickles through an unpickler that knows numpy arrays and builtin containers only."""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cryodrgn_metric.errors import UnsafeFileError, WorkdirError, brief
from cryodrgn_metric.safe_files.files import bytes_of

__all__ = [
    "NUMPY_NAMES",
    "ArrayUnpickler",
    "load_indices",
    "load_pickle",
    "load_pickles",
    "require",
]


def load_pickle(path: str | Path) -> object:
    """Read the first pickle of a file, admitting numpy arrays in builtin containers only.

    Arguments:
        path: a pickle such as z.N.pkl, ctf.pkl, poses.pkl, or a file of particle indices.

    Returns:
        arrays, numpy scalars, and dict, list, tuple, set, str, bytes, numbers, None of them.

    Raises:
        UnsafeFileError: the pickle names anything else; nothing of it has been executed.
        WorkdirError: the file is missing, cut off, or not a pickle.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "ind.pkl"
        >>> _ = path.write_bytes(pickle.dumps(np.arange(3)))
        >>> load_pickle(path).tolist()
        [0, 1, 2]
    """
    return load_pickles(Path(path), 1)[0]


def load_indices(path: str | Path) -> np.ndarray:
    """Read particle numbers, or a mask of all particles: one pickled array, list or tuple.

    Returns:
        (M,) integers or bools, as they were written.

    Raises:
        UnsafeFileError: the file would execute code.
        WorkdirError: it cannot be read, or holds something else.
    """
    value = load_pickle(path)
    if isinstance(value, list | tuple) and all(isinstance(n, int | np.integer) for n in value):
        value = np.array(value)
    if not isinstance(value, np.ndarray) or value.ndim != 1 or value.dtype.kind not in "biu":
        came = f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else ""
        raise WorkdirError(
            f"{path}: expected particle numbers, or a mask of all particles; "
            f"got {came or type(value).__name__}."
        )
    return value


def load_pickles(path: Path, count: int) -> list[object]:
    """Read up to `count` pickles that follow one another in a file; the first must be there.

    Arguments and errors as for `load_pickle`; z.N.pkl of train_vae holds two.
    """
    data = bytes_of(path)
    file = io.BytesIO(data)
    values: list[object] = []
    while len(values) < count and (not values or file.tell() < len(data)):
        try:
            values.append(ArrayUnpickler(file, path).load())
        except UnsafeFileError:
            raise
        except Exception as error:  # damaged pickles raise nearly every builtin exception
            raise WorkdirError(f"{path} is not a pickle, or is cut off: {brief(error)}") from error
    return values


# -- the unpickler

_Unpickler: Any = pickle._Unpickler  # undocumented: nobody says what types its parts have
_OPCODES: dict[int, Callable[[Any], None]] = _Unpickler.dispatch
# They make objects of classes, fetch objects from outside, or recall what others registered.
_REFUSED_OPCODES = b"".join(
    [
        *(pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ]
)


class ArrayUnpickler(_Unpickler):  # type: ignore[misc]
    """An unpickler that resolves only the names which a pickled numpy array needs.

    It is the one written in Python, because each of its opcodes can be checked, and because it
    needs no more memory than the file has bytes: the one written in C believes any number that
    a pickle gives to what it remembers, and makes room for as many.
    """

    def __init__(self, file: io.BytesIO, path: Path) -> None:
        super().__init__(file)
        self._path = path

    def find_class(self, module: str, name: str) -> object:
        if maker := _PICKLED_NAMES.get((module, name)):
            return maker()
        wanted = brief(f"{module}.{name}")
        raise UnsafeFileError(
            f"{self._path} was refused: it asks for {wanted}, and only numpy arrays in builtin "
            "containers are read. Nothing was executed; don't open it with other tools."
        )

    def _build(self) -> None:
        _require_plain_state(self.stack[-2], self.stack[-1])
        _OPCODES[pickle.BUILD[0]](self)

    def _set_item(self) -> None:
        _require_dict(self.stack[-3])
        _require_keys(self.stack[-2:-1])
        _OPCODES[pickle.SETITEM[0]](self)

    def _set_items(self) -> None:
        _require_dict(self.metastack[-1][-1])
        _require_keys(self.stack[::2])
        _OPCODES[pickle.SETITEMS[0]](self)

    def _dict(self) -> None:
        _require_keys(self.stack[::2])
        _OPCODES[pickle.DICT[0]](self)

    def _add_items(self) -> None:
        _require_keys(self.stack)
        _OPCODES[pickle.ADDITEMS[0]](self)

    def _frozenset(self) -> None:
        _require_keys(self.stack)
        _OPCODES[pickle.FROZENSET[0]](self)

    def _bytearray(self) -> None:
        (size,) = struct.unpack("<Q", self.read(8))
        self.append(bytearray(self.read(size)))  # not room for `size` bytes before they are read

    dispatch = {
        **{code: step for code, step in _OPCODES.items() if code not in _REFUSED_OPCODES},
        pickle.BUILD[0]: _build,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: _set_items,
        pickle.DICT[0]: _dict,
        pickle.ADDITEMS[0]: _add_items,
        pickle.FROZENSET[0]: _frozenset,
        pickle.BYTEARRAY8[0]: _bytearray,
    }


def require(fine: bool, message: str) -> None:
    """Stop reading a pickle that does what no array needs."""
    if not fine:
        raise pickle.UnpicklingError(message)


def _require_dict(target: object) -> None:
    require(isinstance(target, dict), "it sets items of something that is no dictionary")


def _require_keys(keys: Iterable[object]) -> None:
    # the hash of a tuple that holds one tuple twice, which does too, ... takes for ever
    plain = (str, bytes, int, float, complex, np.generic, type(None))
    require(all(isinstance(key, plain) for key in keys), "a key is not a number or a text")


def _require_plain_state(target: object, state: Any) -> None:
    """Refuse states that numpy would believe: of dtypes other than the byte order, above all.

    A dtype of objects whose flags deny it would take any bytes of the file for addresses.
    """
    if isinstance(target, np.dtype):
        version, order, *rest = list(state)
        made: Any = target.__reduce__()
        _, _, *expected = made[2]
        require(order in ("<", ">", "|", "=") and version == 3, "it holds an odd dtype")
        require(
            all(type(a) is type(b) and a == b for a, b in zip(rest, expected, strict=True)),
            "it holds a dtype that numpy doesn't make",
        )
    elif type(target) is np.ndarray:
        _, shape, dtype, _, data = state
        _require_numbers(dtype, objects=True)
        require(isinstance(data, list if dtype.hasobject else bytes), "it holds an odd array")
        size = len(data) if dtype.hasobject else len(data) / dtype.itemsize
        require(_checked_shape(shape) == size, "it holds an array of another size than it says")
    else:  # torch keeps versions of modules beside the tensors
        fine = (
            type(target) is OrderedDict and isinstance(state, dict) and [*state] == ["_metadata"]
        )
        require(fine, f"it sets the state of a {type(target).__name__}")


def _checked_shape(shape: Any) -> int:
    plain = isinstance(shape, tuple) and all(type(n) is int and n >= 0 for n in shape)
    require(plain, "it holds an array of an odd shape")
    return math.prod(shape)


def _require_numbers(dtype: object, objects: bool = False) -> None:
    fine = isinstance(dtype, np.dtype) and dtype.itemsize > 0 and (objects or not dtype.hasobject)
    require(fine, "it holds no array of numbers")


def _dtype(name: object, *_: object) -> np.dtype[Any]:
    fine = isinstance(name, str) and re.fullmatch(r"[biufcSUO]\d{1,9}|O", name)
    require(bool(fine), "it holds records or dates, not arrays of numbers")
    return np.dtype(str(name), align=False, copy=True)  # its byte order is set after this


def _from_buffer(data: Any, dtype: Any, shape: Any, order: object, *_: object) -> np.ndarray:
    _require_numbers(dtype)
    require(isinstance(data, bytes | bytearray), "its array has no bytes")
    require(_checked_shape(shape) * dtype.itemsize == len(data), "its array has another size")
    array: np.ndarray = np.frombuffer(data, dtype=dtype)
    return np.reshape(array, shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: object) -> object:
    _require_numbers(dtype)
    require(isinstance(data, bytes) and len(data) == dtype.itemsize, "its number has no bytes")
    return _NUMPY_SCALAR(dtype, data)


def _bytearray(data: str | bytes = b"", *_: object) -> bytearray:
    # never of a number, which would be its length
    return bytearray(data.encode("latin1") if isinstance(data, str) else memoryview(data))


def _set(items: Sequence[object] = ()) -> set[object]:
    _require_keys(items)
    return set(items)


def _fresh(function: Callable[..., object]) -> Callable[[], object]:
    return lambda: lambda *arguments: function(*arguments)


def _same(value: object) -> Callable[[], object]:
    return lambda: value


_NUMPY_SCALAR: Any = np.float64(0).__reduce__()[0]
_NUMPY_NAMES: dict[str, Callable[[], object]] = {
    "ndarray": _same(None),  # only ever an argument of _reconstruct, which doesn't use it
    "dtype": _fresh(_dtype),
    "_reconstruct": _fresh(lambda *_: np.empty(0, dtype=np.int8)),
    "scalar": _fresh(_scalar),
    "_frombuffer": _fresh(_from_buffer),
}
# numpy 1 calls its private package numpy.core, numpy 2 numpy._core; files of both are about.
_NUMPY_CORES = ("core.multiarray", "core.numeric", "_core.multiarray", "_core.numeric")
_NUMPY_MODULES = ("numpy", *(f"numpy.{core}" for core in _NUMPY_CORES))
_BUILTIN_NAMES: dict[str, Callable[[], object]] = {
    "bytearray": _fresh(_bytearray),
    "bytes": _fresh(lambda: b""),  # protocols 0 to 2 hold the others in another way
    "complex": _same(complex),
    "frozenset": _fresh(lambda *items: frozenset(_set(*items))),
    "set": _fresh(_set),
}
_PICKLED_NAMES: dict[tuple[str, str], Callable[[], object]] = {
    **{(module, name): maker for module in _NUMPY_MODULES for name, maker in _NUMPY_NAMES.items()},
    **{
        (module, name): maker
        for module in ("builtins", "__builtin__")  # the latter in pickle protocols 0 to 2
        for name, maker in _BUILTIN_NAMES.items()
    },
    ("collections", "OrderedDict"): _fresh(OrderedDict[object, object]),
    # how protocols 0 to 2 hold bytes
    ("_codecs", "encode"): _fresh(lambda text, *_: text.encode("latin1")),
}

NUMPY_NAMES = tuple((module, name) for module in _NUMPY_MODULES for name in _NUMPY_NAMES)
"""What a pickled array asks for, as (module, name)."""
