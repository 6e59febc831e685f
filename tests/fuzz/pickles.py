"""Pickles of all sorts, good, damaged and hostile, and what plain Python makes of them."""

import io
import pickle
import pickletools
import struct
from collections import OrderedDict

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fuzz.damage import damaged
from fuzz.harness import trip

protocols = st.integers(0, pickle.HIGHEST_PROTOCOL)

# -- good ones

number_types = st.one_of(
    hnp.floating_dtypes(endianness="?"),
    hnp.integer_dtypes(endianness="?"),
    hnp.unsigned_integer_dtypes(endianness="?"),
    hnp.boolean_dtypes(),
)
other_types = st.one_of(
    hnp.complex_number_dtypes(endianness="?"),
    hnp.byte_string_dtypes(endianness="?", max_len=4),
    hnp.unicode_string_dtypes(endianness="?", max_len=4),
    hnp.datetime64_dtypes(),
    st.just(np.dtype([("a", "f4"), ("b", "i2")])),
    st.just(np.dtype("V4")),
    st.just(np.dtype("O")),
    st.sampled_from([np.dtype("f16"), np.dtype("c32")]),
)


all_types = st.one_of(number_types, number_types, other_types)
small_shapes = st.one_of(
    st.tuples(st.integers(0, 6), st.integers(0, 4)),
    hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3),
)


@st.composite
def arrays(draw, types=None, shapes=None):
    """Arrays of all dtypes and both orders, mostly small matrices."""
    dtype = draw(all_types if types is None else types)
    shape = draw(small_shapes if shapes is None else shapes)
    size = int(np.prod(shape))
    if dtype.hasobject:
        flat = np.empty(size, dtype=object)
        flat[:] = draw(st.lists(atoms, min_size=size, max_size=size))
    else:
        flat = np.frombuffer(draw(bytes_of(size * dtype.itemsize)), dtype=dtype, count=size)
    return np.array(flat.reshape(shape), order=draw(st.sampled_from("CF")))


def bytes_of(size):
    """Random, or those of ordinary numbers."""
    plain = np.linspace(-1, 1, size // 4 + 1, dtype=np.float32).tobytes()[:size]
    return st.one_of(st.just(plain), st.binary(min_size=size, max_size=size))


atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.complex_numbers(),
    st.text(max_size=5),
    st.binary(max_size=5),
)
values = st.recursive(
    st.one_of(atoms, st.binary(max_size=5).map(bytearray), arrays(), arrays(shapes=st.just(()))),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(atoms, inner, max_size=3),
        st.dictionaries(st.text(max_size=3), inner, max_size=3).map(OrderedDict),
        st.sets(atoms, max_size=3),
        st.frozensets(atoms, max_size=3),
        arrays(types=number_types, shapes=st.just((1,))).map(lambda array: array[0]),
    ),
    max_leaves=5,
)


# -- hostile ones

MODULES = (
    "os",
    "posix",
    "nt",
    "builtins",
    "__builtin__",
    "subprocess",
    "sys",
    "importlib",
    "torch",
)
MODULES += (
    "numpy",
    "numpy.testing._private.utils",
    "runpy",
    "pickle",
    "codecs",
    "operator",
    "pdb",
)
MODULES += (
    "functools",
    "fuzz.harness",
    "numpy._core.multiarray",
    "collections",
    "webbrowser",
    "pty",
)
NAMES = (
    "system",
    "exec",
    "eval",
    "Popen",
    "exit",
    "import_module",
    "load",
    "getattr",
    "trip",
    "run",
)
NAMES += ("runstring", "_reconstruct", "dtype", "ndarray.tofile", "loads", "open", "attrgetter")
NAMES += (
    "partial",
    "__import__",
    "compile",
    "OrderedDict.fromkeys",
    "fromfile",
    "memmap",
    "spawn",
)


class Bomb:
    """Pickles to a call of `trip`."""

    def __init__(self, how=0):
        self.how = how

    def __reduce__(self):
        if self.how == 0:
            return trip, ("x",)
        if self.how == 1:
            return exec, ("import fuzz.harness; fuzz.harness.trip()",)
        if self.how == 2:
            return __import__("os").system, ("true",)
        return object.__new__, (Armed,), {"state": 1}


class Armed:
    """Trips when its state is set."""

    def __setstate__(self, state):
        trip()


def text(value):
    """An opcode that pushes a short text."""
    data = value.encode()
    return pickle.SHORT_BINUNICODE + bytes([len(data)]) + data


@st.composite
def calls(draw):
    """The bytes that look a global up and call it, in one of the ways there are."""
    module, name = draw(st.sampled_from(MODULES)), draw(st.sampled_from(NAMES))
    written = f"{module}\n{name}\n".encode()
    argument = draw(st.sampled_from([b"", text("true"), b"K\x01", b"N", b")"]))
    looked_up = draw(st.sampled_from([b"c" + written, text(module) + text(name) + b"\x93"]))
    return draw(
        st.sampled_from(
            [
                looked_up,
                looked_up + b"(" + argument + b"tR",
                b"(" + argument + b"i" + written,
                b"(" + looked_up + argument + b"o",
                looked_up + b"(" + argument + b"t\x81",
                looked_up + b"(" + argument + b"t}\x92",
                looked_up + b"(N}" + text("__call__") + b"Nstb",
                b"\x82\x01",
                b"\x83\x01\x01",
                b"\x84\x01\x00\x00\x00",
                b"P" + written.split(b"\n")[0] + b"\n",
                text(module) + b"Q",
                b"\x97",
                b"\x97\x98",
            ]
        )
    )


bombs = st.builds(
    lambda how, value, protocol: pickle.dumps([value, Bomb(how)], protocol=protocol),
    st.integers(0, 3),
    arrays(types=number_types),
    protocols,
)


@st.composite
def hostile(draw):
    """A call within, before or after what a good pickle pushes."""
    if draw(st.booleans()):
        return draw(bombs)
    call, good = draw(calls()), draw(good_pickles)[:-1]
    where = draw(st.integers(0, 2))
    parts = {0: call + b"0" + good, 1: good + b"(" + call + b"t\x86", 2: call}[where]
    return b"\x80\x05" + parts.removeprefix(b"\x80\x05") + b"."


@st.composite
def claims(draw):
    """Sizes that are not there."""
    size = draw(
        st.sampled_from([2**16, 2**28, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1])
    )
    small, large = struct.pack("<I", size & 0xFFFFFFFF), struct.pack("<Q", size)
    number = f"L{size}L\n".encode()
    opcode = draw(st.sampled_from([b"r", b"X", b"B", b"T", b"\x8b", b"j"]))
    called = draw(st.sampled_from([b"bytes", b"bytearray", b"complex", b"set", b"list", b"range"]))
    return draw(
        st.sampled_from(
            [
                b"\x80\x05N" + opcode + small + b"0N.",
                b"\x80\x05"
                + draw(st.sampled_from([b"\x8d", b"\x8e", b"\x96", b"\x95"]))
                + large
                + b".",
                b"c__builtin__\n" + called + b"\n(" + number + b"tR.",
                _claimed_array(number, b"f8"),
                _claimed_array(number + number, b"f8"),
                _claimed_array(b"I0\n" + number, b"f8"),
                _claimed_array(number, b"S0"),
                _claimed_array(number, b"O8"),
                _claimed_array(number, b"S" + str(size).encode()),
                _claimed_array(b"I-1\nI-8\n", b"f8"),
                b"}" + _nested(draw(st.integers(30, 90))) + b"Ns.",
                b"\x80\x04\x8f(" + _nested(draw(st.integers(30, 90))) + b"\x90.",
                b"\x80\x04(" + _nested(draw(st.integers(30, 90))) + b"\x91.",
                _nested(draw(st.integers(30, 90))) + b".",
                b"(" * draw(st.integers(1, 3000)) + b"I1\n" + b"t" * 3000 + b".",
                b"I1\n" + b"\x85" * draw(st.integers(1, 3000)) + b".",
            ]
        )
    )


def _claimed_array(shape, name):
    head = b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n(" + shape
    kind = b"tcnumpy\ndtype\n(S'" + name + b"'\nI00\nI01\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntb"
    return head + kind + b"I00\nS''\ntb."


def _nested(levels):
    pairs = b"".join(b"(g%d\ng%d\ntp%d\n0" % (i, i, i + 1) for i in range(levels))
    return b"(tp0\n0" + pairs + b"g%d\n" % levels


# -- damaged ones


def _dumped(value, protocol, outside):
    callback = (lambda buffer: None) if outside and protocol == 5 else None
    return pickle.dumps(value, protocol=protocol, buffer_callback=callback)


good_pickles = st.builds(
    _dumped, st.one_of(arrays(), values), protocols, st.sampled_from([False] * 5 + [True])
)


@st.composite
def mutated(draw, good=good_pickles):
    """A pickle with other opcodes or arguments at the places where opcodes are, or other bytes."""
    data = draw(good)
    if draw(st.booleans()):
        return draw(damaged(st.just(data)))
    places = [(op, place) for op, _, place in pickletools.genops(data)]
    for _ in range(draw(st.integers(1, 3))):
        op, place = draw(st.sampled_from(places))
        code = draw(st.sampled_from(OPCODES))
        data = data[:place] + code + data[place + 1 :]
    return data


OPCODES = [op.code.encode("latin1") for op in pickletools.opcodes]
STATES = [
    "(I3\nS'|'\nNNNI-1\nI-1\nI%d\nt",
    "(I3\nS'>'\nNNNI%d\nI1\nI0\nt",
    "(I4\nS'<'\nNNNI8\nI8\nI%d\nt",
]


@st.composite
def soups(draw):
    """Opcodes in any order, of which many are those that arrays are made of."""
    pieces = [
        *(code.encode("latin1") for code in "().0NtR]}asbeud2l"),
        *(b"\x85", b"\x86", b"\x87", b"\x88", b"\x8f", b"\x90", b"\x91", b"\x94", b"\x93"),
        *(b"K\x00", b"K\x01", b"K\x03", b"I-1\n", b"L99999999999L\n", b"G" + bytes(8), b"h\x00"),
        *(b"q\x00", b"q\x01", b"h\x01", b"r\xff\xff\xff\x7f", b"j\x01\x00\x00\x00"),
        *(b"C\x08AAAAAAAA", b"U\x01a", text("f8"), text("O8"), text("S0"), text("<"), text("C")),
        *(f"cnumpy._core.{where}\n".encode() for where in MULTIARRAY),
        *(b"cnumpy\n" + name + b"\n" for name in (b"dtype", b"ndarray")),
        *(
            b"c__builtin__\n" + name + b"\n"
            for name in (b"bytearray", b"bytes", b"complex", b"set")
        ),
        *(b"ccollections\nOrderedDict\n", b"c_codecs\nencode\n"),
        b"cnumpy\ndtype\n(" + text("O8") + b"I00\nI01\ntR",
        b"cnumpy\ndtype\n(" + text("f8") + b"I00\nI01\ntR",
        b"cnumpy._core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR",
        *((state % flags).encode() for state in STATES for flags in (-1, 0, 8, 63)),
    ]
    chosen = draw(st.lists(st.sampled_from(pieces), min_size=1, max_size=25))
    return b"\x80\x04" + b"".join(chosen) + b"."


MULTIARRAY = ("multiarray\n_reconstruct", "multiarray\nscalar", "numeric\n_frombuffer")

# -- the oracle: what plain Python reads; asked only of pickles whose names are harmless

HARMLESS = {
    *((f"numpy{part}", name) for part in ("", "._core.multiarray", "._core.numeric")
      for name in ("_reconstruct", "scalar", "_frombuffer", "dtype", "ndarray")),
    *((module, name) for module in ("builtins", "__builtin__")
      for name in ("bytes", "bytearray", "complex", "set", "frozenset")),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}  # fmt: skip
UNKNOWN = object()


def globals_of(data):
    """The globals that a pickle names, without reading it; UNKNOWN among them where unclear."""
    found, strings, memo = set(), [], {}
    for op, argument, _ in pickletools.genops(data):
        name = op.name
        if name in ("GLOBAL", "INST"):
            found.add(tuple(argument.split(" ", 1)))
            strings.append(None)
        elif name == "STACK_GLOBAL":
            pair = tuple(strings[-2:])
            found.add(pair if len(pair) == 2 and None not in pair else UNKNOWN)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            memo[len(memo) if name == "MEMOIZE" else argument] = (strings or [None])[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            strings.append(memo.get(argument))
        elif name not in ("FRAME", "PROTO"):
            strings.append(argument if isinstance(argument, str) else None)
    return found


def plainly(data):
    """What plain Python reads, or UNKNOWN where it isn't asked, or refuses.

    The unpickler that is written in Python: the other one makes room for any memo number.
    """
    try:
        if not globals_of(data) <= HARMLESS:
            return UNKNOWN
        return pickle._Unpickler(io.BytesIO(data)).load()
    except Exception:
        return UNKNOWN


def same(a, b, depth=0):
    """Whether two values are the same to the bit, NaN included; a stand-in is any function."""
    if depth > 40:
        return True
    if callable(b) or type(b).__name__ == "dtype":
        return True
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray):
        alike = a.dtype == b.dtype and a.shape == b.shape
        if alike and a.dtype.hasobject:
            return same(a.ravel().tolist(), b.ravel().tolist(), depth + 1)
        return alike and a.tobytes() == b.tobytes()
    if isinstance(a, dict):
        return same([*a], [*b], depth + 1) and same([*a.values()], [*b.values()], depth + 1)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(same(x, y, depth + 1) for x, y in zip(a, b, strict=True))
    if isinstance(a, np.generic):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    if isinstance(a, set | frozenset):
        return sorted(map(repr, a)) == sorted(map(repr, b))
    return a is b or repr(a) == repr(b)
