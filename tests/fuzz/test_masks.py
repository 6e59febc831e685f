"""Masks: every field of the header, compression, damage."""

import bz2
import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cryodrgn_metric.volumes import read_mask
from fuzz.damage import damaged
from fuzz.harness import fuzz, judge

BOX = 6
MODES = {0: "i1", 1: "i2", 2: "f4", 6: "u2", 12: "f2"}
FIELDS = {"nx": 0, "ny": 4, "nz": 8, "mode": 12, "mx": 28, "my": 32, "mz": 36, "mapc": 64}
FIELDS |= {"ispg": 88, "nsymbt": 92, "exttyp": 104, "nversion": 108, "map": 208, "machst": 212}
FIELDS |= {"nlabl": 220, "mapr": 68, "cella": 40, "rms": 216}


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("masks") / "mask.mrc"


def mrc_bytes(values, extended=b""):
    """A file of the format MRC2014, written by its offsets alone."""
    order = ">" if values.dtype.byteorder == ">" else "<"
    mode = {code: mode for mode, code in (MODES | {4: "c8"}).items()}[values.dtype.str[1:]]
    shape = (*values.shape[::-1], 1)[:3]
    head = bytearray(1024)
    struct.pack_into(f"{order}4i", head, 0, *shape, mode)
    struct.pack_into(f"{order}3i", head, 28, *shape)
    struct.pack_into(f"{order}3i", head, 64, 1, 2, 3)
    struct.pack_into(f"{order}2i", head, 88, 1, len(extended))
    head[208:216] = b"MAP " + (b"\x11\x11\0\0" if order == ">" else b"\x44\x44\0\0")
    return bytes(head) + extended + values.tobytes()


kinds = st.sampled_from(["i1", "i2", "u2", "f2", "f4", ">f4", ">i2", "c8"])


@st.composite
def masks(draw):
    """A mask, of another box or with odd voxels now and then."""
    shape = draw(st.sampled_from([(BOX,) * 3] * 6 + [(BOX, BOX), (BOX, BOX, 2), (8, 8, 8)]))
    values = np.linspace(*draw(st.sampled_from([(0, 1), (0, 1.04), (-0.04, 1), (0, 3)])), BOX**3)
    values = np.resize(values, shape).astype(draw(kinds))
    if draw(st.integers(0, 3)) == 0 and values.dtype.kind in "fc":
        values.flat[0] = draw(st.sampled_from([np.nan, np.inf, -5, 7, 65504]))
    if draw(st.integers(0, 6)) == 0:
        values[:] = 0
    return mrc_bytes(values, draw(st.sampled_from([b"", b"", b"x" * 80, b"y" * 3])))


words = st.one_of(st.integers(-10, 20), st.integers(-(2**31), 2**31 - 1), st.just(401))
packers = st.sampled_from([gzip.compress, bz2.compress])


@st.composite
def headed(draw):
    """A mask in whose header a field holds something else."""
    data = bytearray(draw(masks()))
    for place in draw(st.lists(st.sampled_from(sorted(FIELDS.values())), min_size=1, max_size=3)):
        value = draw(
            st.one_of(st.integers(-10, 20), st.integers(-(2**31), 2**31 - 1), st.just(401))
        )
        order = draw(st.sampled_from(["<i", "<i", ">i"]))
        data[place : place + 4] = struct.pack(order, value)
    return bytes(data)


compressions = st.sampled_from([bytes, bytes, bytes, gzip.compress, bz2.compress])


def expected(data):
    """The voxels, found by the offsets of the format alone."""
    order = ">" if data[212:213] == b"\x11" else "<"
    nx, ny, nz, mode = struct.unpack(f"{order}4i", data[:16])
    (skipped,) = struct.unpack(f"{order}i", data[92:96])
    assert (nx, ny, nz) == (BOX,) * 3 and skipped >= 0
    kind = np.dtype(order + MODES[mode])
    start = 1024 + skipped
    values = np.frombuffer(data[start : start + BOX**3 * kind.itemsize], kind).reshape(nz, ny, nx)
    return values.astype(np.float32)


def is_mask(values):
    return np.isfinite(values).all() and values.min() >= -0.0501 and 0 < values.max() <= 1.0501


def run(path, data, compress=bytes):
    path.write_bytes(compress(data))

    def check(mask):
        values = expected(data)
        assert is_mask(values) and mask.dtype == np.float32
        np.testing.assert_array_equal(mask, values.clip(0, 1))

    return judge("masks", path, lambda: read_mask(path, BOX), check)


@fuzz(1)
@given(data=masks(), compress=compressions)
def test_good_masks(path, data, compress):
    mask = run(path, data, compress)
    try:
        fine = is_mask(expected(data))
    except (AssertionError, KeyError):  # another box, complex numbers
        fine = False
    assert (mask is not None) == fine


@fuzz(1.5)
@given(data=headed(), compress=compressions)
def test_other_headers(path, data, compress):
    run(path, data, compress)


@fuzz(0.7)
@given(data=damaged(masks()), compress=compressions)
def test_damaged_masks(path, data, compress):
    run(path, data, compress)


@fuzz(0.7)
@given(data=st.one_of(*(damaged(masks().map(pack)) for pack in (gzip.compress, bz2.compress))))
def test_damaged_archives(path, data):
    path.write_bytes(data)

    def check(mask):
        opener = gzip if data[:2] == b"\x1f\x8b" else bz2
        inside = opener.open(path).read()
        np.testing.assert_array_equal(mask, expected(inside).clip(0, 1))

    judge("masks", path, lambda: read_mask(path, BOX), check)


@fuzz(0.05)
@given(
    size=st.sampled_from([1 << 20, 1 << 27]), pack=st.sampled_from([gzip.compress, bz2.compress])
)
def test_bombs(path, size, pack):
    zeros = bytearray(mrc_bytes(np.ones((BOX,) * 3, np.float32)))
    zeros[92:96] = struct.pack("<i", size)
    run(path, bytes(zeros) + bytes(size), pack)


@fuzz(0.3)
@given(data=st.binary(max_size=1100))
def test_bytes(path, data):
    path.write_bytes(data)
    judge("masks", path, lambda: read_mask(path, BOX), lambda mask: expected(data))
