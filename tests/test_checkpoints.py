"""Checkpoints of any run, on this CPU: read without executing anything, whatever they hold."""

import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from cryodrgn_metric.errors import UnsafeFileError, WorkdirError
from cryodrgn_metric.safe_files.checkpoints import Unread, load_checkpoint


@pytest.fixture
def checkpoint(workdir_of):
    """What abinit_het_old saved: the one checkpoint with more than tensors and builtins."""
    path = workdir_of("abinit_het_old") / "weights.2.pkl"
    return path, torch.load(path, weights_only=False)


class Call:
    """Pickles to a call of a function, and to a state set on what came back."""

    def __init__(self, function, *arguments, state=None):
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.reduced


def test_torch_alone_refuses_it_and_says_how_to_be_unsafe(checkpoint):
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(checkpoint[0], weights_only=True)


def test_arrays_and_dates_beside_the_tensors_are_left_unread(checkpoint):
    path, unsafe = checkpoint
    found = load_checkpoint(path)
    assert found.keys() == unsafe.keys() >= {"search_pose", "configs"}
    for name, value in unsafe["model_state_dict"].items():
        assert torch.equal(found["model_state_dict"][name], value)
    assert all(isinstance(value, Unread) for value in found["search_pose"])
    assert isinstance(found["configs"]["time"], Unread)
    assert found["configs"]["model_args"] == unsafe["configs"]["model_args"]


@pytest.mark.parametrize("where", ["search_pose", "configs", "model_state_dict"])
def test_bombs_beside_its_arrays_do_not_go_off(checkpoint, tmp_path, where):
    trace, path = tmp_path / "executed", tmp_path / "weights.1.pkl"
    torch.save({**checkpoint[1], where: [np.eye(3), Call(os.system, f"touch {trace}")]}, path)
    with pytest.raises(UnsafeFileError, match="system") as caught:
        load_checkpoint(path)
    assert not trace.exists()
    assert "safe_globals" not in str(caught.value)  # no advice to admit it


@pytest.mark.parametrize(
    "function", [np.load, np.fromfile, np.testing.assert_equal, eval, getattr, torch.load]
)
def test_names_next_to_the_admitted_ones_are_refused(tmp_path, function):
    path = tmp_path / "weights.1.pkl"
    torch.save({"model_state_dict": Call(function, "1")}, path)
    with pytest.raises(UnsafeFileError) as caught:
        load_checkpoint(path)
    assert "safe_globals" not in str(caught.value)


RECONSTRUCT = np.zeros(1).__reduce__()[0]
ABUSES = {
    "an object of any bytes": Call(np.ndarray, 1, "O", b"\x01" * 8),
    "memory without end": Call(
        RECONSTRUCT, np.ndarray, (1 << 40,), b"b", state=(1, (9,), None, False, b"x")
    ),
    "attributes of a dtype": Call(np.dtype, "f8", state={"__class__": 1, "type": 2}),
}


@pytest.mark.parametrize("abuse", ABUSES)
def test_numpys_constructors_are_not_called(tmp_path, abuse):
    path = tmp_path / "weights.1.pkl"
    torch.save({"model_state_dict": ABUSES[abuse]}, path)
    with pytest.raises(WorkdirError, match="weights.1.pkl"):
        load_checkpoint(path)
    assert np.dtype("f8").type is np.float64


@pytest.mark.parametrize("core", ["core", "_core"])
def test_both_names_of_numpys_private_package(checkpoint, tmp_path, core):
    renamed = tmp_path / "weights.1.pkl"
    rewrite(checkpoint[0], renamed, {b"numpy._core.": f"numpy.{core}.".encode()})
    assert load_checkpoint(renamed)["epoch"] == 2


def test_what_is_admitted_is_admitted_only_while_reading(checkpoint):
    load_checkpoint(checkpoint[0])
    with pytest.raises(pickle.UnpicklingError):
        torch.load(checkpoint[0], weights_only=True)


# -- runs on a GPU


def rewrite(source, target, changes):
    """Copy a torch file with bytes of its pickle changed; torch keeps its entries uncompressed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = old.read(entry)
            if entry.filename.endswith("/data.pkl"):
                for before, after in changes.items():
                    assert before in data
                    data = data.replace(before, after)
            new.writestr(entry.filename, data)


def of_cuda(source, target):
    """Tag the storages of a checkpoint as a run on a GPU does: their device is 'cuda:0'."""
    text = {name: b"X" + len(name).to_bytes(4, "little") + name for name in (b"cpu", b"cuda:0")}
    rewrite(source, target, {text[b"cpu"]: text[b"cuda:0"]})


@pytest.mark.parametrize("kind", ["ind", "dec", "abinit_het_old", "abinit"])
def test_checkpoints_of_cuda_runs_are_read_onto_the_cpu(workdir_of, tmp_path, kind):
    source, path = workdir_of(kind) / "weights.2.pkl", tmp_path / "weights.2.pkl"
    of_cuda(source, path)
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
            torch.load(path, weights_only=False)
    found, before = (load_checkpoint(p)["model_state_dict"] for p in (path, source))
    assert found.keys() == before.keys()
    assert all(torch.equal(found[name], before[name]) for name in found)
    assert {value.device.type for value in found.values()} == {"cpu"}
