"""Finished pieces come back only where key and bytes fit the name of their file."""

import numpy as np
import pytest

from cryodrgn_metric import cache
from cryodrgn_metric.cache import NO_CACHE, StageCache

PIECE = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def stages(tmp_path):
    """Makes stages of one folder, as one run after another would."""

    def _stage(name="volumes", **made_from):
        return StageCache(tmp_path / "cache").stage(name, **({"box": 64} | made_from))

    return _stage


def files(tmp_path):
    return sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())


def test_pieces_come_back_to_the_bit(stages):
    first = stages()
    first.save(0, PIECE)
    first.save(7, PIECE[:1] * np.nan)
    again = stages()
    np.testing.assert_array_equal(again.load(0), PIECE)
    assert again.load(0).dtype == PIECE.dtype and np.isnan(again.load(7)).all()
    assert again.load(1) is None
    assert (first.saved, first.loaded, again.saved, again.loaded) == (2, 0, 0, 3)


@pytest.mark.parametrize(
    "other",
    [{"box": 32}, {"weights": "another digest"}, {"name": "distances"}, {"box": 64.0}],
    ids=str,
)
def test_whatever_a_piece_is_made_from_is_in_its_key(stages, other):
    stages().save(0, PIECE)
    assert stages(**other).load(0) is None
    assert stages(**other).key != stages().key


def test_our_version_and_source_are_in_the_key(stages, monkeypatch):
    stages().save(0, PIECE)
    monkeypatch.setattr(cache, "__version__", "99.0")
    assert stages().load(0) is None
    monkeypatch.undo()
    assert stages().load(0) is not None
    monkeypatch.setattr(cache, "_digest_of_this_package", lambda: "edited")
    assert stages().load(0) is None


def test_versions_of_the_libraries_are_in_the_key(stages, monkeypatch):
    stages().save(0, PIECE)
    monkeypatch.setattr(cache.metadata, "version", lambda name: "0.0")
    assert stages().load(0) is None


def test_clearing_forgets_all_stages_and_nothing_else(stages, tmp_path):
    for name in ("volumes", "distances"):
        stages(name=name).save(0, PIECE)
    (tmp_path / "cache" / "volumes" / "notes.txt").write_text("the user's")
    (tmp_path / "cache" / "volumes" / "folder").mkdir()
    StageCache(tmp_path / "cache").clear()
    assert [path.name for path in files(tmp_path)] == ["notes.txt"]
    assert stages().load(0) is None


@pytest.mark.parametrize("position", [0, 5, 9, 40, 127, 128, -1])
def test_a_flipped_bit_is_noticed(stages, tmp_path, position):
    stages().save(0, PIECE)
    (path,) = files(tmp_path)
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)
    assert stages().load(0) is None


def test_cut_swapped_renamed_and_foreign_files_are_ignored(stages, tmp_path):
    stage = stages()
    stage.save(0, PIECE)
    stage.save(1, -PIECE)
    first, second = files(tmp_path)
    one, two = first.read_bytes(), second.read_bytes()
    first.write_bytes(one[: len(one) // 2])
    assert stages().load(0) is None
    first.write_bytes(two), second.write_bytes(one)
    assert stages().load(0) is None and stages().load(1) is None
    first.write_bytes(one), second.write_bytes(two)
    second.rename(second.with_name(second.name.replace("00001", "00000")))
    np.testing.assert_array_equal(stages().load(0), PIECE)
    assert stages().load(1) is None
    first.unlink()
    first.mkdir()
    assert stages().load(0) is None


def test_pieces_of_other_parameters_are_forgotten(stages, tmp_path):
    stages(box=32).save(0, PIECE)
    now = stages()
    now.save(0, PIECE)
    now.forget_others()
    assert stages(box=32).load(0) is None and stages().load(0) is not None
    assert len(files(tmp_path)) == 1


def test_a_seal_holds_until_a_file_changes(stages, tmp_path):
    outputs = [tmp_path / "net.safetensors", tmp_path / "net.yaml"]
    assert not stages().is_sealed(outputs)
    for path in outputs:
        path.write_text(path.name)
    stages().seal(outputs)
    assert stages().is_sealed(outputs) and not stages(box=32).is_sealed(outputs)
    outputs[1].write_text("edited")
    assert not stages().is_sealed(outputs)
    outputs[1].unlink()
    assert not stages().is_sealed(outputs)


def test_no_cache_remembers_nothing():
    NO_CACHE.save(0, PIECE)
    assert NO_CACHE.load(0) is None
