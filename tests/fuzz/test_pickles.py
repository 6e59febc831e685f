"""Latents, CTF tables, particle numbers: everything that is a pickle."""

import pickle

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cryodrgn_metric.errors import MetricError, UnsafeFileError
from cryodrgn_metric.landmark_candidates import candidate_pool, rows_of_particles
from cryodrgn_metric.safe_files.pickles import load_indices, load_pickle
from cryodrgn_metric.workdir import load_latents, open_workdir
from fuzz import pickles
from fuzz.harness import fuzz, judge
from fuzz.workdirs import BOX, plain_workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return plain_workdir(tmp_path_factory.mktemp("pickles"), ctf="ctf.pkl")


@pytest.fixture(scope="module")
def path(folder):
    return folder / "x.pkl"


def read(path, data, check):
    path.write_bytes(data)
    return judge("pickles", path, lambda: load_pickle(path), check)


def require_plain(data):
    def check(value):
        plain = pickles.plainly(data)
        assert plain is pickles.UNKNOWN or pickles.same(value, plain)

    return check


@fuzz(1.5)
@given(value=pickles.values, protocol=pickles.protocols)
def test_good_values_come_back(path, value, protocol):
    data = pickle.dumps(value, protocol=protocol)

    def check(back):  # plain Python may give native byte order where `value` has another
        assert pickles.same(back, pickle.loads(data))

    back = read(path, data, check)
    if back is None and value is not None:  # dates and records are refused, empty texts as well
        assert any(word in data for word in (b"M8", b"V4", b"V6", b"S0", b"U0")), "it was refused"


@fuzz(3)
@given(data=pickles.mutated())
def test_damaged_pickles(path, data):
    read(path, data, require_plain(data))


@fuzz(3)
@given(data=pickles.soups())
def test_soups_of_opcodes(path, data):
    read(path, data, require_plain(data))


@fuzz(2)
@given(data=pickles.hostile())
def test_hostile_pickles(path, data):
    read(path, data, require_plain(data))


@fuzz(0.5)
@given(data=pickles.bombs)
def test_bombs_are_named(path, data):
    with pytest.raises(UnsafeFileError):
        judge_again(path, data)


def judge_again(path, data):
    read(path, data, lambda value: None)
    load_pickle(path)


@fuzz(0.7)
@given(data=pickles.claims())
def test_claims(path, data):
    read(path, data, lambda value: None)


@fuzz(0.3)
@given(data=st.binary(max_size=200))
def test_bytes(path, data):
    read(path, data, require_plain(data))


# -- latents

matrices = st.one_of(
    pickles.arrays(types=pickles.number_types),
    pickles.arrays(
        types=pickles.number_types, shapes=st.tuples(st.sampled_from([2, 2, 5]), st.just(3))
    ),
)


@fuzz(1)
@given(
    z=matrices,
    second=st.one_of(st.none(), matrices),
    protocol=pickles.protocols,
)
def test_latents_are_read_or_refused_as_they_should(folder, z, second, protocol):
    path = folder / "z.1.pkl"
    parts = [z] if second is None else [z, second]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=protocol) for part in parts))
    with np.errstate(all="ignore"):
        fine = all(part.ndim == 2 and part.dtype.kind in "fiu" and part.size for part in parts)
        fine = fine and all(np.isfinite(part.astype(np.float32)).all() for part in parts)
    fine = fine and z.shape[1] == 3 and (second is None or second.shape == z.shape)
    workdir = judge("latents", path, lambda: open_workdir(folder))
    assert (workdir is not None) == fine
    if fine:
        assert workdir.latents.dtype == np.float32
        np.testing.assert_array_equal(workdir.latents, z.astype(np.float32))
        assert (workdir.latents_logvar is None) == (second is None)


@fuzz(1)
@given(data=st.one_of(pickles.mutated(), pickles.hostile()))
def test_damaged_latents(folder, data):
    path = folder / "latents.pkl"
    path.write_bytes(data)

    def check(latents):
        plain = pickles.plainly(data)
        assert latents.dtype == np.float32 and latents.ndim == 2 and np.isfinite(latents).all()
        if plain is not pickles.UNKNOWN:
            np.testing.assert_array_equal(latents, plain.astype(np.float32))

    judge("latents", path, lambda: load_latents(path), check)


# -- CTF tables and poses

tables = pickles.arrays(shapes=st.tuples(st.integers(0, 4), st.integers(0, 9)))
poses = st.builds(
    lambda rotations, shifts: (rotations, shifts),
    pickles.arrays(types=pickles.number_types),
    pickles.arrays(types=pickles.number_types),
)
regular = st.builds(
    lambda rows, size, apix, kind: np.tile([size, apix, *range(7)], (rows, 1)).astype(kind),
    st.integers(1, 3),
    st.floats(1, 1000),
    st.floats(0.1, 10),
    st.sampled_from(["f4", "f8", ">f4", "i4"]),
)


@fuzz(1.5)
@given(value=st.one_of(tables, regular, poses, pickles.values), protocol=pickles.protocols)
def test_ctf_tables(folder, value, protocol):
    z = folder / "z.1.pkl"
    z.write_bytes(pickle.dumps(np.zeros((3, 3), np.float32)))
    path = folder / "ctf.pkl"
    path.write_bytes(pickle.dumps(value, protocol=protocol))

    def check(workdir):
        assert workdir.apix in possible_apix(value)

    judge("ctf and poses", path, lambda: open_workdir(folder), check)


def possible_apix(value):
    """The rule of `cryodrgn analyze`, told once more; of several box sizes, any may be taken."""
    table = isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.ndim == 2
    if not table or value.shape[0] < 1 or value.shape[1] < 2:
        return {1.0}
    with np.errstate(over="ignore", invalid="ignore"):
        value = value.astype(float)
    if len(set(value[:, 1].tolist())) > 1:
        return {1.0}
    found = {round(value[0, 1].item() * size / BOX, 6) for size in value[:, 0].tolist()}
    return {one if 0 < one < float("inf") else 1.0 for one in found}


@fuzz(1)
@given(data=st.one_of(pickles.mutated(st.builds(pickle.dumps, tables)), pickles.hostile()))
def test_damaged_ctf_tables(folder, data):
    (folder / "z.1.pkl").write_bytes(pickle.dumps(np.zeros((3, 3), np.float32)))
    path = folder / "ctf.pkl"
    path.write_bytes(data)

    def check(workdir):
        assert workdir.apix > 0

    judge("ctf and poses", path, lambda: open_workdir(folder), check)


@pytest.fixture(scope="module")
def posed(tmp_path_factory):
    """A workdir of three particles whose poses are found."""
    folder = plain_workdir(tmp_path_factory.mktemp("posed"))
    (folder / "z.1.pkl").write_bytes(pickle.dumps(np.zeros((3, 3), np.float32)))
    return folder


@fuzz(1)
@given(
    data=st.one_of(
        st.builds(pickle.dumps, st.one_of(poses, tables, pickles.values)),
        pickles.mutated(st.builds(pickle.dumps, poses)),
        pickles.hostile(),
    )
)
def test_poses_of_any_kind(posed, data):
    """Of poses only the number of rows is needed; found elsewhere, another one is only said."""
    path = posed / "poses.pkl"
    path.write_bytes(data)

    def check(workdir):
        assert workdir.latents.shape == (3, 3)

    judge("ctf and poses", path, lambda: open_workdir(posed), check)


# -- particle numbers

COUNT = 20
numbers = st.one_of(
    hnp.arrays(st.sampled_from(["i8", "i4", "u2", "u8", ">i4"]), st.integers(0, 30),
               elements=st.integers(0, 24)),
    hnp.arrays(bool, st.sampled_from([COUNT, 5])),
    st.lists(st.integers(-2, COUNT), max_size=30),
    st.lists(st.integers(0, COUNT - 1), min_size=10, unique=True).map(tuple),
    pickles.arrays(),
    pickles.values,
)  # fmt: skip


def read_numbers(path):
    """What --ind does: numbers of the original stack, here those of the rows themselves."""
    values = load_indices(path)
    try:
        return candidate_pool(rows_of_particles(values, np.arange(COUNT)), COUNT)
    except MetricError as error:  # it isn't told the file; the command's message names --ind
        raise MetricError(f"{path}: {error}") from error


@fuzz(1.5)
@given(value=numbers, protocol=pickles.protocols)
def test_particle_numbers(path, value, protocol):
    path.write_bytes(pickle.dumps(value, protocol=protocol))

    def check(pool):
        given = np.asarray(value)
        expected = np.flatnonzero(given) if given.dtype == bool else np.unique(given)
        expected = expected[expected < COUNT]  # particles that the run was not trained on
        np.testing.assert_array_equal(pool, expected)
        assert len(pool) >= 10 and 0 <= pool[0] and pool[-1] < COUNT

    judge("particle numbers", path, lambda: read_numbers(path), check)


@fuzz(1)
@given(data=st.one_of(pickles.mutated(st.builds(pickle.dumps, numbers)), pickles.hostile()))
def test_damaged_particle_numbers(path, data):
    path.write_bytes(data)

    def check(pool):
        assert (np.diff(pool) > 0).all() and 0 <= pool[0] and pool[-1] < COUNT

    judge("particle numbers", path, lambda: read_numbers(path), check)


@pytest.fixture(scope="module")
def chosen(tmp_path_factory):
    """A workdir trained with --ind."""
    folder = plain_workdir(tmp_path_factory.mktemp("chosen"))
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["dataset_args"]["ind"] = "ind.pkl"
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


largest = hnp.arrays("u8", 12, elements=st.sampled_from([0, 5, 2**63 - 1, 2**63, 2**64 - 1]))


def read_chosen(folder, data, is_right):
    """The numbers of the training's --ind, or those of the rows; never a wrong mixture."""
    path = folder / "ind.pkl"
    path.write_bytes(data)

    def check(workdir):
        found = workdir.particle_indices
        assert found.dtype == np.int64 and found.shape == (len(workdir.latents),)
        assert is_right(found) or np.array_equal(found, np.arange(len(found)))

    judge("training's --ind", path, lambda: open_workdir(folder), check)


@fuzz(1)
@given(
    value=st.one_of(numbers, hnp.arrays("i8", 12, elements=st.integers(-1, 1000)), largest),
    protocol=pickles.protocols,
)
def test_numbers_of_the_training(chosen, value, protocol):
    read_chosen(
        chosen, pickle.dumps(value, protocol=protocol), lambda found: np.array_equal(found, value)
    )


@fuzz(1)
@given(data=st.one_of(pickles.mutated(st.builds(pickle.dumps, numbers)), pickles.hostile()))
def test_damaged_numbers_of_the_training(chosen, data):
    read_chosen(chosen, data, lambda found: (found >= 0).all())
