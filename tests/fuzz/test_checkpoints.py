"""Checkpoints: damaged, zipped anew with other members, of the old format, of other models."""

import io
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.safe_files.checkpoints import load_checkpoint
from cryodrgn_metric.workdir import open_workdir
from fuzz import pickles
from fuzz.damage import damaged
from fuzz.harness import fuzz, judge
from fuzz.workdirs import abinit_workdir, plain_workdir


class Model:
    """A workdir, its checkpoint in both formats, and what it holds.

    Arguments:
        folder: Of the workdir.
        key: Of the weights in its checkpoint.
        prefix: Of the decoder's among them.
    """

    def __init__(self, folder, key, prefix):
        self.workdir, self.key, self.prefix = open_workdir(folder), key, prefix
        self.path = self.workdir.weights_path
        self.checkpoint = torch.load(self.path, weights_only=True)
        self.state = self.checkpoint[key]
        self.zipped = self.path.read_bytes()
        self.legacy = saved(self.checkpoint, legacy=True)
        with zipfile.ZipFile(io.BytesIO(self.zipped)) as archive:
            self.members = {name: archive.read(name) for name in archive.namelist()}

    def read(self, data, state=None):
        """Judge both readers; `state` is what a checkpoint that is accepted must hold."""
        self.path.write_bytes(data)

        def check(checkpoint):
            assert isinstance(checkpoint, dict)
            if state is not None:
                assert_same(checkpoint[self.key], state)

        loaded = judge("checkpoints", self.path, lambda: load_checkpoint(self.path), check)
        if loaded is not None:
            judge("models", (self.path, self.workdir.config_path), self.decoder, self.decodes)

    def decoder(self):
        return Decoder.from_workdir(self.workdir, "cpu")

    def decodes(self, decoder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of protocols
            held = torch.load(self.path, "cpu", weights_only=True)[self.key]
        for name, value in decoder.model.network.state_dict().items():
            assert torch.equal(value, held[self.prefix + name].float()) and value.isfinite().all()
        assert decoder.decode(self.workdir.latents[:1], 4).shape == (1, 4, 4, 4)


def assert_same(found, expected):
    assert [*found] == [*expected]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def saved(value, legacy=False):
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy)
    return buffer.getvalue()


@pytest.fixture(scope="module", params=["train_vae", "abinit"])
def model(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    if request.param == "abinit":
        return Model(abinit_workdir(folder), "hypervolume_state_dict", "")
    return Model(plain_workdir(folder), "model_state_dict", "decoder.")


@fuzz(2)
@given(choice=st.data())
def test_damaged_zips(model, choice):
    # each member has a checksum: what is accepted must be what was saved
    model.read(choice.draw(damaged(st.just(model.zipped))), model.state)


@fuzz(1)
@given(choice=st.data())
def test_damaged_old_files(model, choice):
    model.read(choice.draw(damaged(st.just(model.legacy))))


@fuzz(1)
@given(choice=st.data())
def test_damaged_pickles_in_a_zip(model, choice):
    """The pickle is changed and its checksum is made to fit."""
    name = next(name for name in model.members if name.endswith("data.pkl"))
    pickled = st.just(model.members[name])
    data = choice.draw(st.one_of(damaged(pickled), pickles.mutated(pickled)))
    model.read(zipped({**model.members, name: data}))


@fuzz(1)
@given(pickled=st.one_of(pickles.hostile(), pickles.claims(), pickles.soups(), pickles.bombs))
def test_hostile_pickles_in_a_zip(model, pickled):
    name = next(name for name in model.members if name.endswith("data.pkl"))
    model.read(zipped({**model.members, name: pickled}))


@fuzz(0.5)
@given(pickled=st.one_of(pickles.hostile(), pickles.claims(), pickles.mutated(), pickles.soups()))
def test_plain_pickles(model, pickled):
    model.read(pickled)


# -- zip files


def zipped(members, compression=zipfile.ZIP_STORED, twice=()):
    """A zip file of these members, some again under names that torch takes for the same."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, compression)
        for name in twice:
            archive.writestr(zipfile.ZipInfo(name.upper()), members[name], compression)
    return buffer.getvalue()


compressions = st.sampled_from(
    [zipfile.ZIP_STORED] * 3 + [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)


@fuzz(1)
@given(choice=st.data(), compression=compressions)
def test_other_members(model, choice, compression):
    members = dict(model.members)
    names = st.sampled_from(sorted(members))
    for name in choice.draw(st.lists(names, max_size=2)):
        what = choice.draw(st.sampled_from(["remove", "cut", "grow", "empty", "rename", "swap"]))
        data = members.pop(name, b"")
        other = choice.draw(names)
        changed = {"cut": data[:-1], "grow": data + bytes(8), "empty": b"", "rename": data}
        if what == "swap":
            members |= {name: members.get(other, b""), other: data}
        elif what != "remove":
            members[name + "x" if what == "rename" else name] = changed[what]
    twice = choice.draw(st.lists(st.sampled_from(sorted(members)), max_size=1))
    model.read(zipped(members, compression, twice))


@fuzz(0.03)
@given(size=st.sampled_from([1 << 20, 1 << 28]), where=st.booleans())
def test_zip_bombs(model, size, where):
    name = next(name for name in model.members if name.endswith("data.pkl" if where else "/0"))
    members = {**model.members, name: model.members[name] + bytes(size)}
    model.read(zipped(members, zipfile.ZIP_DEFLATED))


@fuzz(1)
@given(choice=st.data())
def test_other_numbers_in_the_directory_of_a_zip(model, choice):
    """Sizes, offsets, flags and methods, which no checksum covers."""
    data = bytearray(model.zipped)
    signature = choice.draw(st.sampled_from([b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06"]))
    places = [at for at in range(len(data)) if data[at : at + 4] == signature]
    for _ in range(choice.draw(st.integers(1, 2))):
        at = choice.draw(st.sampled_from(places)) + choice.draw(st.integers(4, 44))
        value = choice.draw(st.sampled_from([0, 1, 8, 0x7FFFFFFF, 0xFFFFFFFF, 0xFFFF, 1 << 20]))
        data[at : at + 4] = struct.pack("<I", value)
    model.read(bytes(data), model.state)


# -- other models

tensors = st.one_of(
    st.sampled_from(
        [torch.zeros(()), torch.zeros(0), torch.zeros(3, 4), torch.tensor(float("nan"))]
    ),
    st.builds(
        lambda shape, kind: torch.ones(shape).to(kind),
        st.lists(st.integers(0, 4), max_size=3),
        st.sampled_from(
            [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool, torch.complex64]
        ),
    ),
    st.just(torch.zeros(1).expand(10**9)),
    st.just(torch.zeros(2, 2).to_sparse()),
    st.just(torch.nn.Parameter(torch.zeros(3))),
    st.just(torch.zeros(10**6, 10**6, device="meta")),
)
others = st.one_of(tensors, pickles.atoms, st.just({}), st.just([]), st.just(OrderedDict()))
sizes = st.one_of(
    st.sampled_from([0, -1, 1, 3, 9, 1 << 20, 1 << 40, 10**99, True, 2.0, float("nan"), "geom"]),
    pickles.atoms,
    tensors,
)
changes = {
    "nan": lambda value: value * float("nan"),
    "inf": lambda value: value + float("inf"),
    "half": lambda value: value.half(),
    "double": lambda value: value.double(),
    "whole": lambda value: value.int(),
    "complex": lambda value: value.to(torch.complex64),
    "turned": lambda value: value.T if value.ndim == 2 else value,
    "flat": lambda value: value.flatten(),
    "longer": lambda value: torch.cat([value, value]),
    "strided": lambda value: value.repeat_interleave(2, -1)[..., ::2],
    "expanded": lambda value: value[:1].expand(value.shape),
    "shared": lambda value: value,
}


@fuzz(1.5)
@given(choice=st.data(), legacy=st.booleans())
def test_other_models(model, choice, legacy):
    state = OrderedDict(model.state)
    names = st.sampled_from(sorted(state))
    for name in choice.draw(st.lists(names, max_size=2, unique=True)):
        change = choice.draw(st.sampled_from([*changes, "remove", "replace"]))
        if change == "replace":
            state[name] = choice.draw(others)
        elif (value := state.pop(name, None)) is not None and change != "remove":
            state[name] = changes[change](value)
    if choice.draw(st.integers(0, 4)) == 0:
        state[choice.draw(pickles.atoms)] = choice.draw(others)
    checkpoint = {**model.checkpoint, model.key: state}
    if choice.draw(st.integers(0, 9)) == 0:
        checkpoint[choice.draw(st.sampled_from(sorted(checkpoint)))] = choice.draw(others)
    described = checkpoint.get("hypervolume_params")
    if isinstance(described, dict) and described and choice.draw(st.integers(0, 3)) == 0:
        name = choice.draw(st.sampled_from(sorted(described)))
        checkpoint["hypervolume_params"] = {**described, name: choice.draw(sizes)}
    if choice.draw(st.integers(0, 9)) == 0:
        checkpoint = choice.draw(others)
    model.read(saved_or_pickled(checkpoint, legacy))


def saved_or_pickled(checkpoint, legacy):
    try:
        return saved(checkpoint, legacy)
    except (AttributeError, RuntimeError, TypeError):
        return pickle.dumps({})
