"""Opening workdirs: what is found, what is refused, and that nothing in them is executed."""

import contextlib
import logging
import os
import pickle
import shutil
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from cryodrgn_metric.errors import UnsafeFileError, WorkdirError
from cryodrgn_metric.safe_files.checkpoints import load_checkpoint
from cryodrgn_metric.safe_files.pickles import load_indices, load_pickle
from cryodrgn_metric.training_inputs import find_input
from cryodrgn_metric.workdir import (
    load_latents,
    open_workdir,
)

APIX, BOX = 3.0, 24  # of the stack in conftest.py


@pytest.fixture
def copied(tmp_path, vae_workdir):
    """A train_vae workdir that a test may change."""
    folder = tmp_path / "run" / "workdir"
    shutil.copytree(vae_workdir, folder)
    return folder


def edit(folder, **sections):
    """Change keys of config.yaml's sections; None removes a key."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    for name, changes in sections.items():
        table = config if name == "top" else config[name]
        table.update(changes)
        for key in [key for key, value in changes.items() if value is None]:
            del table[key]
    path.write_text(yaml.safe_dump(config))


# -- what is found


@pytest.mark.parametrize(
    ("fixture", "kind", "domain"),
    [
        ("vae_workdir", "train_vae", "fourier"),
        ("hartley_workdir", "train_vae", "hartley"),
        ("dec_workdir", "train_dec", "fourier"),
    ],
)
def test_open_trained_workdirs(request, fixture, kind, domain):
    folder = request.getfixturevalue(fixture)
    workdir = open_workdir(folder)
    assert (workdir.kind, workdir.domain, workdir.epoch) == (kind, domain, 2)
    assert workdir.box_size == BOX and workdir.apix_in_angstroms == APIX
    assert workdir.latents.shape == (200, 3) and workdir.latents.dtype == np.float32
    assert (workdir.latents_logvar is not None) == (kind == "train_vae")
    assert workdir.outdir == folder / "metric_embed.2"
    assert workdir.norm[1] > 0
    assert str(folder) in repr(workdir) and len(repr(workdir)) < 1000
    with (folder / "z.2.pkl").open("rb") as file:
        np.testing.assert_array_equal(workdir.latents, pickle.load(file))


def test_epoch_rules(copied):
    assert open_workdir(copied, 1).z_path.name == "z.1.pkl"
    shutil.copy(copied / "z.2.pkl", copied / "z.10.pkl")
    assert open_workdir(copied).epoch == 2  # 10 has no weights
    shutil.copy(copied / "weights.2.pkl", copied / "weights.10.pkl")
    assert open_workdir(copied, -1).epoch == 10
    with pytest.raises(WorkdirError, match=r"epochs 1, 2, 10\. Type e\.g\. --epoch 2"):
        open_workdir(copied, 4)
    with pytest.raises(WorkdirError, match="-1"):
        open_workdir(copied, -2)


def test_unnumbered_files_where_there_are_no_others(copied):
    for path in [*copied.glob("z.*.pkl"), *copied.glob("weights.*.pkl")]:
        path.unlink()
    workdir = open_workdir(copied)
    assert workdir.epoch is None and workdir.weights_path.name == "weights.pkl"
    assert workdir.outdir == copied / "metric_embed"
    with pytest.raises(WorkdirError, match="leave --epoch out"):
        open_workdir(copied, 2)
    (copied / "z.pkl").unlink()
    with pytest.raises(WorkdirError, match="has not written an epoch"):
        open_workdir(copied)


# -- pixel size


def test_apix_is_rescaled_from_the_size_in_the_ctf_file_and_with_the_box(copied, tmp_path):
    table = np.tile([384.0, 1.25, 1e4, 1e4, 0, 300, 2.7, 0.1, 0], (5, 1)).astype(np.float32)
    path = tmp_path / "ctf.pkl"
    path.write_bytes(pickle.dumps(table))
    edit(copied, dataset_args={"ctf": str(path)})
    workdir = open_workdir(copied)
    assert workdir.apix_in_angstroms == 20.0  # 1.25 * 384 / 24
    assert workdir.apix_at_box(12) == 40.0


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (np.array([[24, 1.0], [24, 2.0]]), "several pixel sizes"),
        (np.array([[24, np.nan]]), "gives no pixel size"),
        (np.zeros(3), "no CTF table"),
    ],
)
def test_apix_falls_back_to_one_and_says_why(copied, tmp_path, caplog, table, said):
    path = tmp_path / "ctf.pkl"
    path.write_bytes(pickle.dumps(table))
    edit(copied, dataset_args={"ctf": str(path)})
    with caplog.at_level(logging.INFO):
        assert open_workdir(copied).apix_in_angstroms == 1.0
    assert said in caplog.text


def test_apix_without_a_ctf_file(copied, caplog):
    edit(copied, dataset_args={"ctf": "gone/ctf.pkl"})
    with caplog.at_level(logging.INFO):
        assert open_workdir(copied).apix_in_angstroms == 1.0
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    edit(copied, dataset_args={"ctf": None})
    assert open_workdir(copied).apix_in_angstroms == 1.0


def test_inputs_are_looked_for_as_written_then_here_then_in_the_parent(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workdir = tmp_path / "a" / "workdir"
    workdir.mkdir(parents=True)
    assert find_input("data/ctf.pkl", workdir) is None
    (tmp_path / "a" / "ctf.pkl").touch()
    assert find_input("data/ctf.pkl", "a/workdir") == tmp_path / "a" / "ctf.pkl"
    assert find_input("data/ctf.pkl", "a/workdir/metric_embed.2/..") == tmp_path / "a" / "ctf.pkl"
    (workdir / "ctf.pkl").touch()
    assert find_input("/stale/ctf.pkl", workdir) == workdir / "ctf.pkl"
    written = tmp_path / "data" / "ctf.pkl"
    written.parent.mkdir()
    written.touch()
    assert find_input(written, workdir) == written


# -- the particles' numbers


def test_without_ind_particles_are_numbered_by_rows(vae_workdir, caplog):
    indices = open_workdir(vae_workdir).particle_indices
    np.testing.assert_array_equal(indices, np.arange(200))
    assert indices.dtype == np.int64 and not caplog.text


@pytest.mark.parametrize("where", ["as written", "beside the files", "in the parent"])
def test_ind_of_the_training_numbers_the_particles(copied, tmp_path, caplog, where):
    chosen = np.random.default_rng(0).permutation(1000)[:200]
    folders = {"as written": tmp_path / "data", "beside the files": copied}
    folder = folders.get(where, copied.parent)
    folder.mkdir(exist_ok=True)
    (folder / "ind.pkl").write_bytes(pickle.dumps(chosen))
    edit(copied, dataset_args={"ind": str(tmp_path / "data" / "ind.pkl")})
    indices = open_workdir(copied).particle_indices
    np.testing.assert_array_equal(indices, chosen)
    assert indices.dtype == np.int64 and not caplog.text


@pytest.mark.parametrize("written", [200, "200", "/where/it/ran/200"])
def test_ind_of_drgnai_may_be_a_number(copied, caplog, written):
    edit(copied, dataset_args={"ind": written})
    np.testing.assert_array_equal(open_workdir(copied).particle_indices, np.arange(200))
    assert not caplog.text


@pytest.mark.parametrize(
    "value",
    [
        np.arange(199),
        np.arange(200.0),
        np.arange(200) - 1,
        np.arange(200, dtype=np.uint64) + np.uint64(1 << 63),
        np.ones(200, bool),
        np.arange(400).reshape(200, 2),
        [[1], [2, 3]],
        "text",
        None,
    ],
    ids=["few", "floats", "negative", "beyond int64", "mask", "table", "ragged", "text", "none"],
)
def test_unusable_ind_is_a_loud_warning(copied, caplog, value):
    (copied / "ind.pkl").write_bytes(pickle.dumps(value))
    edit(copied, dataset_args={"ind": "stale/ind.pkl"})
    np.testing.assert_array_equal(open_workdir(copied).particle_indices, np.arange(200))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "ROWS OF Z" in caplog.text and "ind.pkl" in caplog.text


@pytest.mark.parametrize("written", ["stale/ind.pkl", 199])
def test_missing_ind_is_a_loud_warning(copied, caplog, written):
    edit(copied, dataset_args={"ind": written})
    np.testing.assert_array_equal(open_workdir(copied).particle_indices, np.arange(200))
    assert "ROWS OF Z" in caplog.text and str(written) in caplog.text


def test_damaged_ind_is_a_loud_warning(copied, caplog):
    (copied / "ind.pkl").write_bytes(b"text")
    edit(copied, dataset_args={"ind": "ind.pkl"})
    np.testing.assert_array_equal(open_workdir(copied).particle_indices, np.arange(200))
    assert "ROWS OF Z" in caplog.text and "not a pickle" in caplog.text


# -- what is refused


def test_not_a_workdir(tmp_path):
    with pytest.raises(WorkdirError, match="not a folder"):
        open_workdir(tmp_path / "missing")
    with pytest.raises(WorkdirError, match="no config.yaml"):
        open_workdir(tmp_path)
    (tmp_path / "config.pkl").touch()
    with pytest.raises(WorkdirError, match="old cryoDRGN"):
        open_workdir(tmp_path)


@pytest.mark.parametrize(
    "changes",
    [
        {"lattice_args": {"D": 24}},
        {"model_args": {"domain": "real"}},
        {"dataset_args": {"norm": None}},
        {"model_args": {"players": None, "qlayers": None}},
        {"top": {"model_args": None}},
        {"model_args": {"zdim": 5}},
    ],
)
def test_odd_configs(copied, changes):
    edit(copied, **changes)
    with pytest.raises(WorkdirError):
        open_workdir(copied)


@pytest.mark.parametrize("text", ["", "- 1\n", "a: [", "a: \x00"])
def test_files_that_are_no_config(copied, text):
    (copied / "config.yaml").write_text(text)
    with pytest.raises(WorkdirError):
        open_workdir(copied)


@pytest.mark.parametrize(
    "value",
    [
        np.full((4, 3), np.nan, np.float32),
        np.array([[1.0, np.inf, 0.0]]),
        np.zeros((0, 3)),
        np.zeros(3),
        np.zeros((4, 2)),
        np.array([["a", "b", "c"]]),
        [1, 2, 3],
    ],
    ids=lambda value: str(getattr(value, "shape", "list")),
)
def test_malformed_latents(copied, value):
    (copied / "z.2.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(WorkdirError, match=r"z\.2\.pkl"):
        open_workdir(copied)


def test_z_of_another_length_than_the_poses(copied, tmp_path, caplog):
    rows = np.zeros((150, 3, 3), np.float32)
    (tmp_path / "other.pkl").write_bytes(pickle.dumps((rows, rows[:, 0, :2])))
    edit(copied, dataset_args={"poses": str(tmp_path / "other.pkl")})
    with pytest.raises(WorkdirError, match=r"z\.2\.pkl holds 200 .*other\.pkl 150"):
        open_workdir(copied)
    # found by its name alone, it may be another data set's: that is no reason to refuse
    edit(copied, dataset_args={"poses": "gone/other.pkl"})
    (tmp_path / "other.pkl").rename(copied / "other.pkl")
    assert len(open_workdir(copied).latents) == 200
    assert "is that the file of this training?" in caplog.text


def test_z_of_another_length_than_the_ctf_is_said(copied, tmp_path, caplog):
    (tmp_path / "ctf.pkl").write_bytes(pickle.dumps(np.full((150, 9), 24.0)))
    edit(copied, dataset_args={"ctf": str(tmp_path / "ctf.pkl")})
    assert len(open_workdir(copied).latents) == 200
    assert "holds 200 particles, but" in caplog.text


def test_second_array_must_fit_the_first(copied):
    z = np.zeros((4, 3), np.float32)
    (copied / "z.2.pkl").write_bytes(pickle.dumps(z) + pickle.dumps(z[:3]))
    with pytest.raises(WorkdirError, match="one shape"):
        open_workdir(copied)


def test_load_latents_takes_the_first_pickle_as_float32(vae_workdir, tmp_path):
    first = load_latents(vae_workdir / "z.2.pkl")
    np.testing.assert_array_equal(first, open_workdir(vae_workdir).latents)
    (tmp_path / "z.pkl").write_bytes(pickle.dumps(np.ones((2, 3))))
    assert load_latents(tmp_path / "z.pkl").dtype == np.float32


# -- reading executes nothing


class Bomb:
    """Pickles to a call of os.system that leaves a file behind."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        import os

        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("name", ["z.2.pkl", "weights.2.pkl", "ctf.pkl", "ind.pkl"])
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bombs_do_not_go_off(copied, name, protocol):
    trace = copied / "executed"
    data = pickle.dumps([np.zeros((2, 3)), Bomb(trace)], protocol=protocol)
    (copied / name).write_bytes(data)
    if name in ("ctf.pkl", "ind.pkl"):
        edit(copied, dataset_args={name.removesuffix(".pkl"): name})
    with pytest.raises(UnsafeFileError, match=name) as caught:
        load_checkpoint(open_workdir(copied).weights_path)
    assert not trace.exists()
    assert "weights_only=False" not in str(caught.value)  # no advice to load it unsafely


def test_bomb_after_the_first_array(copied):
    trace = copied / "executed"
    z = pickle.dumps(np.zeros((4, 3), np.float32))
    (copied / "z.2.pkl").write_bytes(z + pickle.dumps(Bomb(trace)))
    with pytest.raises(UnsafeFileError, match="system"):
        open_workdir(copied)
    assert not trace.exists()


def test_bomb_within_a_torch_file(copied):
    trace = copied / "executed"
    torch.save({"model_state_dict": Bomb(trace)}, copied / "weights.2.pkl")
    with pytest.raises(UnsafeFileError, match="system"):
        load_checkpoint(copied / "weights.2.pkl")
    assert not trace.exists()


def test_bomb_in_the_config(copied):
    trace = copied / "executed"
    with (copied / "config.yaml").open("a") as file:
        file.write(f"bomb: !!python/object/apply:os.system ['touch {trace}']\n")
    with pytest.raises(UnsafeFileError, match="config.yaml"):
        open_workdir(copied)
    assert not trace.exists()


HIDDEN_WAYS = [
    b"cbuiltins\neval\n(S'1'\ntR.",
    b"cbuiltins\ngetattr\n.",
    b"cnumpy\nload\n.",
    b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
    b"\x80\x04\x8c\x05numpy\x8c\x0fndarray.tobytes\x93.",
    b"cnumpy.testing._private.utils\nrunstring\n.",
    b"ctorch\nload\n.",
    b"ccodecs\nopen\n.",
]


@pytest.mark.parametrize("data", HIDDEN_WAYS)
def test_other_names_are_refused(tmp_path, data):
    (tmp_path / "z.pkl").write_bytes(data)
    with pytest.raises(UnsafeFileError, match="refused"):
        load_pickle(tmp_path / "z.pkl")


@pytest.mark.parametrize("data", [b"", b"text", b"\x80\x04", b"cnumpy\ndtype\n(I3\ntR."])
def test_damaged_files_are_typed_errors(tmp_path, data):
    (tmp_path / "z.pkl").write_bytes(data)
    with pytest.raises(WorkdirError, match=r"z\.pkl") as caught:
        load_pickle(tmp_path / "z.pkl")
    assert not isinstance(caught.value, UnsafeFileError)
    with pytest.raises(WorkdirError, match=r"z\.pkl"):
        load_checkpoint(tmp_path / "z.pkl")


def test_missing_files_are_typed_errors(tmp_path):
    with pytest.raises(WorkdirError, match="cannot be read"):
        load_pickle(tmp_path / "z.pkl")
    with pytest.raises(WorkdirError, match=r"z\.pkl"):
        load_checkpoint(tmp_path / "z.pkl")


VALUES = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.asfortranarray(np.arange(6.0).reshape(2, 3)),
    np.arange(3, dtype=">i4"),
    np.array(["a", "bc"]),
    np.array([True, False]),
    np.array([1j]),
    np.array([None, 1], dtype=object),
    np.float32(2.5),
    np.int64(3),
    np.dtype("f8"),
    (np.eye(3), [1, 2.5, 1j], {"a": {1}, "b": frozenset({2})}, b"x", bytearray(b"y"), None),
    OrderedDict(a=np.zeros(2)),
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_arrays_in_builtin_containers_come_back(tmp_path, value, protocol):
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(value, protocol=protocol))
    back = load_pickle(tmp_path / "x.pkl")
    assert type(back) is type(value)
    np.testing.assert_equal(back, value)
    if isinstance(value, np.ndarray):
        plain = pickle.loads(pickle.dumps(value, protocol=protocol))  # may be in native order
        assert back.dtype == plain.dtype and back.flags.f_contiguous == value.flags.f_contiguous


@pytest.mark.parametrize("core", ["core", "_core"])
@pytest.mark.parametrize("protocol", range(3))
def test_both_names_of_numpys_private_package(tmp_path, core, protocol):
    # in protocols 0 to 2 a global is a line of text, so that it can be renamed in place
    value = [np.arange(4.0), np.float32(1.5)]
    data = pickle.dumps(value, protocol=protocol)
    for written in (b"numpy._core.", b"numpy.core."):
        data = data.replace(b"c" + written, b"c" + f"numpy.{core}.".encode())
    assert f"cnumpy.{core}.multiarray\n".encode() in data
    (tmp_path / "z.pkl").write_bytes(data)
    array, scalar = load_pickle(tmp_path / "z.pkl")
    np.testing.assert_array_equal(array, value[0])
    assert scalar == np.float32(1.5)


def test_a_pickle_cannot_change_what_the_next_one_reads(tmp_path):
    """BUILD with a slot state sets attributes of whatever a pickle looked up."""
    for name in (b"_frombuffer", b"_reconstruct", b"dtype"):
        module = b"numpy" if name == b"dtype" else b"numpy._core.numeric"
        data = b"c" + module + b"\n" + name + b"\n(N(S'__defaults__'\n(ttd" + b"tb."
        (tmp_path / "x.pkl").write_bytes(data)
        with contextlib.suppress(WorkdirError):
            load_pickle(tmp_path / "x.pkl")
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "y.pkl").write_bytes(pickle.dumps(np.arange(3.0), protocol=protocol))
        np.testing.assert_array_equal(load_pickle(tmp_path / "y.pkl"), np.arange(3.0))


def test_checkpoints_are_read_as_torch_saved_them(vae_workdir):
    checkpoint = load_checkpoint(vae_workdir / "weights.2.pkl")
    unsafe = torch.load(vae_workdir / "weights.2.pkl", weights_only=False)
    assert checkpoint.keys() == unsafe.keys()
    for name, value in unsafe["model_state_dict"].items():
        assert torch.equal(checkpoint["model_state_dict"][name], value)


# -- a small file costs little, whatever it claims (found by tests/fuzz)


def object_array_without_its_flag():
    """A dtype of objects whose state denies it: the array's bytes would be taken for addresses."""
    body = b"cnumpy\n_frombuffer\n(" + pickle.dumps(b"AAAAAAAA", 3)[2:-1]
    body += b"cnumpy\ndtype\n(S'O8'\nI00\nI01\ntR"
    return body + pickle.dumps((3, "|", None, None, None, -1, -1, 0), 0)[:-1] + b"b(I1\ntS'C'\ntR."


def nested(levels):
    """Tuples of twice the one before; hashing or printing the last takes 2^levels steps."""
    pairs = b"".join(b"(g%d\ng%d\ntp%d\n0" % (i, i, i + 1) for i in range(levels))
    return b"(tp0\n0" + pairs + b"g%d\n" % levels


COSTLY = {
    "memo": b"\x80\x02Nr\xff\xff\xff\xff0.",
    "bytes8": b"\x80\x04\x8e" + (1 << 36).to_bytes(8, "little") + b".",
    "bytearray8": b"\x80\x05\x96" + (1 << 36).to_bytes(8, "little") + b".",
    "bytearray": b"cbuiltins\nbytearray\n(L100000000000L\ntR.",
    "bytes": b"cbuiltins\nbytes\n(L100000000000L\ntR.",
    "hash": b"}" + nested(60) + b"Ns.",
    "hashes": b"cbuiltins\nset\n(" + nested(60) + b"ltR.",
    "addresses": object_array_without_its_flag(),
    "no size": pickle.dumps(np.zeros(3, "S1"), 2).replace(
        b"X\x02\x00\x00\x00S1", b"X\x02\x00\x00\x00S0"
    ),
}


@pytest.mark.parametrize("name", COSTLY)
def test_costly_pickles_are_refused_at_once(tmp_path, name):
    (tmp_path / "z.pkl").write_bytes(COSTLY[name])
    with contextlib.suppress(WorkdirError):
        assert load_pickle(tmp_path / "z.pkl") is None  # the memo's number is but a name
    with pytest.raises(WorkdirError, match=r"z\.pkl"):
        load_latents(tmp_path / "z.pkl")
    with pytest.raises(WorkdirError, match=r"z\.pkl"):
        load_checkpoint(tmp_path / "z.pkl")


def test_pipes_are_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "z.pkl")
    for read in (load_pickle, load_checkpoint):
        with pytest.raises(WorkdirError, match=r"z\.pkl.*not a file"):
            read(tmp_path / "z.pkl")


LAUGHS = "a0: &a0 [x]\n" + "".join(f"a{i + 1}: &a{i + 1} [*a{i}, *a{i}]\n" for i in range(60))
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{i + 1}: &a{i + 1} {{<<: [*a{i}, *a{i}]}}\n" for i in range(60)
)
ODD_TEXTS = {
    "laughs": LAUGHS,
    "merges": MERGES,
    "itself": "a: &a [*a]",
    "deep": "a: " + "[" * 5000,
    "digits": "a: " + "9" * 5000,
    "hexadecimal": "a: 0x" + "f" * 5000,
    "month": "a: 2001-13-01",
    "no float": "a: !!float x",
    "key": "? [1]\n: 2",
    "long": "a: " + "x" * (1 << 20),
}


@pytest.mark.parametrize("name", ODD_TEXTS)
def test_odd_yaml_is_a_typed_error(copied, name):
    with (copied / "config.yaml").open("a") as file:
        file.write(ODD_TEXTS[name] + "\n")
    with pytest.raises(WorkdirError, match=r"config\.yaml") as caught:
        open_workdir(copied)
    assert not isinstance(caught.value, UnsafeFileError)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_args": {"zdim": [3]}},
        {"model_args": {"zdim": True}},
        {"lattice_args": {"D": (1 << 40) + 1}},
        {"dataset_args": {"norm": "12"}},
        {"dataset_args": {"norm": {0: 1, 1: 2}}},
        {"dataset_args": {"norm": [0, 10**400]}},
        {"dataset_args": {"norm": [0, float("nan")]}},
        {"dataset_args": {"ctf": 5}},
        {"model_args": {"players": None, "zdim": None, "layers": None, "qlayers": None, 5: 6}},
    ],
)
def test_values_of_another_kind(copied, changes):
    edit(copied, **changes)
    with pytest.raises(WorkdirError, match=r"config\.yaml"):
        open_workdir(copied)


def test_a_name_too_long_for_a_file_is_no_input(tmp_path):
    assert find_input("x" * 5000, tmp_path) is None
    assert find_input("a\0b", tmp_path) is None


@pytest.mark.parametrize(
    "table",
    [
        np.array([["a", "b"]]),
        np.array([[1j, 2]]),
        np.array([[None, {}]], dtype=object),
        np.array([[0, np.nan]], dtype=np.longdouble),
        np.frombuffer(b"\0\0\0\0\x01\0\x80\x7f", "<f4").reshape(1, 2),  # a signalling NaN
    ],
)
def test_ctf_tables_of_no_numbers(copied, tmp_path, table):
    (tmp_path / "ctf.pkl").write_bytes(pickle.dumps(table))
    edit(copied, dataset_args={"ctf": str(tmp_path / "ctf.pkl")})
    assert open_workdir(copied).apix_in_angstroms == 1.0


@pytest.mark.parametrize("value", [1e300, np.frombuffer(b"\x01\0\0\0\0\0\xf0\x7f")[0]])
def test_latents_that_warn_as_they_become_float32(tmp_path, value):
    """Too large, or a signalling NaN: no warning, the error that they get anyway."""
    (tmp_path / "z.pkl").write_bytes(pickle.dumps(np.full((2, 3), value)))
    with pytest.raises(WorkdirError, match="infinite"):
        load_latents(tmp_path / "z.pkl")


@pytest.mark.parametrize("value", [np.arange(3), [0, 1, 2], (0, 1, 2), np.ones(3, bool)])
def test_indices(tmp_path, value):
    (tmp_path / "ind.pkl").write_bytes(pickle.dumps(value))
    np.testing.assert_array_equal(load_indices(tmp_path / "ind.pkl"), np.asarray(value))


@pytest.mark.parametrize("value", [[[1, 2], [3]], [1.5], "01", {1: 2}, np.zeros((2, 2), int), 3])
def test_indices_of_another_kind(tmp_path, value):
    (tmp_path / "ind.pkl").write_bytes(pickle.dumps(value))
    with pytest.raises(WorkdirError, match=r"ind\.pkl"):
        load_indices(tmp_path / "ind.pkl")


def rezip(path, compression=zipfile.ZIP_STORED, **changes):
    """Write a torch file anew; changes by the last part of a member's name, without dots."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            change = changes.get(Path(name).name.replace(".", "_"), lambda data: data)
            archive.writestr(name, change(data))


def test_checkpoints_that_take_more_room_than_they_have(tmp_path):
    path = tmp_path / "weights.pkl"
    grown = {
        "bytearray": lambda data: b"\x80\x02cbuiltins\nbytearray\nJ\x00\x00\x00\x7f\x85R.",
        "tensor": lambda data: b"\x80\x02ctorch\nFloatTensor\nJ\x00\x00\x00\x7f\x85R.",
        "numbers": lambda data: data.replace(b"K\x04t", b"J\x00\x00\x00\x7ft"),
        "hash": lambda data: b"}" + nested(60) + b"Ns.",
    }
    for change in grown.values():
        torch.save({"model_state_dict": {"a": torch.arange(4.0)}}, path)
        rezip(path, data_pkl=change)
        with pytest.raises(WorkdirError, match=r"weights\.pkl"):
            load_checkpoint(path)
    torch.save({"model_state_dict": {"a": torch.zeros(10000)}}, path)
    rezip(path, zipfile.ZIP_DEFLATED)
    with pytest.raises(WorkdirError, match="claims more"):
        load_checkpoint(path)


def test_a_member_marked_as_a_folder_is_not_read_as_what_memory_holds(tmp_path):
    path = tmp_path / "weights.pkl"
    torch.save({"model_state_dict": {"a": torch.ones(4)}}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            member = zipfile.ZipInfo(name)
            member.external_attr = 0x10 if name.endswith("/0") else 0
            archive.writestr(member, data)
    with pytest.raises(WorkdirError, match="folder"):
        load_checkpoint(path)


def test_a_flipped_bit_of_a_checkpoint_is_seen(tmp_path):
    path = tmp_path / "weights.pkl"
    torch.save({"model_state_dict": {"a": torch.full((9,), 1.5)}}, path)
    at = path.read_bytes().index(np.full(9, 1.5, np.float32).tobytes())
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(WorkdirError, match="checksum"):
        load_checkpoint(path)


@pytest.mark.parametrize("legacy", [True, False])
def test_checkpoints_of_both_formats(tmp_path, legacy):
    state = {"model_state_dict": OrderedDict(a=torch.arange(4.0)), "epoch": 3}
    torch.save(state, tmp_path / "w.pkl", _use_new_zipfile_serialization=not legacy)
    back = load_checkpoint(tmp_path / "w.pkl")
    assert back["epoch"] == 3 and torch.equal(back["model_state_dict"]["a"], torch.arange(4.0))


def test_extended_precision_is_no_matter(copied, tmp_path):
    """Found by fuzzing: numpy warns of its NaN and infinities when they become shorter."""
    table = np.array([[24, 3, np.nan]] * 200, dtype=np.longdouble)
    (tmp_path / "ctf.pkl").write_bytes(pickle.dumps(table))
    edit(copied, dataset_args={"ctf": str(tmp_path / "ctf.pkl")})
    assert open_workdir(copied).apix == 3.0
    (copied / "z.2.pkl").write_bytes(pickle.dumps(np.full((200, 3), np.nan, np.longdouble)))
    with pytest.raises(WorkdirError, match="NaN or infinite"):
        open_workdir(copied)


@pytest.mark.parametrize("name", ["poses", "ctf"])
def test_damaged_files_that_are_not_needed_are_said(copied, tmp_path, caplog, name):
    """Without the pixel size, or the number of poses, all the rest can be done."""
    (tmp_path / "other.pkl").write_bytes(pickle.dumps(np.zeros(9))[:-9])
    edit(copied, dataset_args={name: str(tmp_path / "other.pkl")})
    assert len(open_workdir(copied).latents) == 200
    assert "other.pkl is not a pickle" in caplog.text
