"""Volumes on disk: headers, masks, one file per cluster."""

import argparse
import bz2
import gzip
import importlib
import tracemalloc

import mrcfile
import numpy as np
import pytest
import torch
from conftest import quiet, random_rotations

from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.errors import ArgumentError, VolumeError
from cryodrgn_metric.volumes import read_mask, write_cluster_volumes, write_volume
from cryodrgn_metric.workdir import open_workdir


@pytest.fixture
def volume(generator):
    return generator.standard_normal((8, 8, 8)).astype(np.float32)


def test_written_as_cryodrgn_writes(tmp_path, volume):
    """Header fields and voxels equal those of cryoDRGN's own writer, statistics to rounding."""
    with quiet():
        from cryodrgn.mrcfile import parse_mrc, write_mrc
    write_volume(tmp_path / "ours.mrc", volume, 2.5)
    write_mrc(str(tmp_path / "theirs.mrc"), volume, Apix=2.5)
    (ours, header), (theirs, expected) = (
        parse_mrc(str(tmp_path / name)) for name in ("ours.mrc", "theirs.mrc")
    )
    np.testing.assert_array_equal(ours, theirs)
    assert header.apix == expected.apix == 2.5
    assert header.origin == expected.origin == (0.0, 0.0, 0.0)
    differing = {"nversion", "labels", "amean", "rms", "imodStamp", "creatid", "idtype"}
    for name in header.fields.keys() - differing:
        assert header.fields[name] == expected.fields[name], name
    assert header.fields["amean"] == pytest.approx(expected.fields["amean"], abs=1e-6)


def test_readable_by_mrcfile_and_view_header(tmp_path, volume, capsys):
    path = tmp_path / "new" / "vol_001.mrc"
    write_volume(path, torch.from_numpy(volume), 1.25, origin=(1.0, 2.0, 3.0))
    assert mrcfile.validate(path)
    with mrcfile.open(path) as mrc:
        assert mrc.is_volume() and mrc.data.dtype == np.float32
        np.testing.assert_array_equal(mrc.data, volume)
        assert mrc.voxel_size.tolist() == (1.25, 1.25, 1.25)
        assert mrc.header.origin.tolist() == (1.0, 2.0, 3.0)
    with quiet():
        view_header = importlib.import_module("cryodrgn.commands_utils.view_header")
    parser = argparse.ArgumentParser()
    view_header.add_args(parser)
    view_header.main(parser.parse_args([str(path)]))


def test_equal_volumes_give_equal_files(tmp_path, volume):
    write_volume(tmp_path / "a.mrc", volume, 1.0)
    write_volume(tmp_path / "b.mrc", volume, 1.0)
    assert (tmp_path / "a.mrc").read_bytes() == (tmp_path / "b.mrc").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mrc", "b.mrc"]


def test_flip_and_invert_are_cryodrgns(tmp_path, volume):
    before = volume.copy()
    write_volume(tmp_path / "v.mrc", volume, 1.0, flip=True, invert=True)
    expected = -torch.from_numpy(volume).flip([0])
    np.testing.assert_array_equal(mrcfile.read(tmp_path / "v.mrc"), expected)
    np.testing.assert_array_equal(volume, before)


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 6), (0, 0, 0)])
def test_only_cubes_are_written(tmp_path, shape):
    with pytest.raises(VolumeError):
        write_volume(tmp_path / "v.mrc", np.zeros(shape), 1.0)


def test_nothing_is_written_of_nan_or_without_a_pixel_size(tmp_path):
    with pytest.raises(VolumeError, match="NaN"):
        write_volume(tmp_path / "v.mrc", np.full((4, 4, 4), np.nan), 1.0)
    with pytest.raises(ArgumentError, match="Apix"):
        write_volume(tmp_path / "v.mrc", np.zeros((4, 4, 4)), 0.0)
    assert not list(tmp_path.iterdir())


# -- masks


def write_raw(path, values):
    with mrcfile.new(path) as mrc:
        mrc.set_data(values)
    return path


def test_masks_come_back_between_0_and_1(tmp_path):
    values = np.zeros((8, 8, 8), np.float32)
    values[2:6, 2:6, 2:6] = 1.01  # interpolation overshoots
    mask = read_mask(write_raw(tmp_path / "m.mrc", values), 8)
    assert mask.dtype == np.float32 and mask.max() == 1 and mask.sum() == 64
    mask = read_mask(write_raw(tmp_path / "i.mrc", (values > 0).astype(np.int8)), 8)
    assert mask.sum() == 64


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (np.ones((6, 6, 6)), r"expected \(8, 8, 8\)"),
        (np.ones((8, 8)), r"expected \(8, 8, 8\)"),
        (np.zeros((8, 8, 8)), "empty"),
        (np.full((8, 8, 8), np.nan), "NaN"),
        (np.full((8, 8, 8), 3.0), "from 0 to 1"),
    ],
)
@pytest.mark.filterwarnings("ignore:Data array contains NaN:RuntimeWarning")
def test_masks_that_are_refused(tmp_path, values, said):
    path = write_raw(tmp_path / "m.mrc", values.astype(np.float32))
    with pytest.raises(VolumeError, match=said):
        read_mask(path, 8)


def test_files_that_are_no_mask(tmp_path):
    with pytest.raises(VolumeError, match="readable"):
        read_mask(tmp_path / "missing.mrc", 8)
    (tmp_path / "m.mrc").write_text("not a map")
    with pytest.raises(VolumeError, match="readable"):
        read_mask(tmp_path / "m.mrc", 8)


# -- one volume per cluster


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_masks_are_masks(tmp_path, compress):
    plain = write_raw(tmp_path / "m.mrc", np.eye(8, dtype=np.float32)[None].repeat(8, 0))
    (tmp_path / "m.mrc.z").write_bytes(compress(plain.read_bytes()))
    np.testing.assert_array_equal(read_mask(tmp_path / "m.mrc.z", 8), read_mask(plain, 8))


def with_header(path, **fields):
    """A mask of 8^3 voxels in whose header some fields are changed."""
    with mrcfile.mmap(write_raw(path, np.ones((8, 8, 8), np.float32)), "r+") as mrc:
        for name, value in fields.items():
            mrc.header[name] = value
    return path


CLAIMS = {
    "huge": {"nx": 2**30, "ny": 2**30, "nz": 2**30},
    "negative": {"nx": -8, "ny": -8},
    "extended": {"nsymbt": 2**31 - 1},
    "negative extended": {"nsymbt": -4},
    "complex": {"mode": 4},
    "no mode": {"mode": 99},
    "stack": {"ispg": 401, "mz": 0},
    "cut off": {"nsymbt": 4},
}


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress])
@pytest.mark.parametrize("claim", CLAIMS)
def test_headers_are_not_believed(tmp_path, claim, compress):
    path = with_header(tmp_path / "m.mrc", **CLAIMS[claim])
    path.write_bytes(compress(path.read_bytes()))
    with pytest.raises(VolumeError, match=r"m\.mrc"):
        read_mask(path, 8)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress])
def test_compressed_masks_are_read_no_further_than_their_box(tmp_path, compress):
    plain = write_raw(tmp_path / "m.mrc", np.ones((8, 8, 8), np.float32)).read_bytes()
    (tmp_path / "m.mrc").write_bytes(compress(plain + bytes(1 << 28)))
    tracemalloc.start()
    with pytest.raises(VolumeError, match="goes on"):
        read_mask(tmp_path / "m.mrc", 8)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 24


def test_the_checksum_of_a_compressed_mask_is_compared(tmp_path):
    plain = write_raw(tmp_path / "m.mrc", np.ones((8, 8, 8), np.float32)).read_bytes()
    data = bytearray(gzip.compress(plain))
    data[-8] ^= 1
    (tmp_path / "m.mrc").write_bytes(data)
    with pytest.raises(VolumeError, match="CRC"):
        read_mask(tmp_path / "m.mrc", 8)


def test_cluster_volumes_are_turned_decoded_volumes(vae_workdir, tmp_path, generator):
    workdir = open_workdir(vae_workdir)
    decoder = Decoder.from_workdir(workdir, device="cpu")
    latents, turns, steps = workdir.latents[:3], random_rotations(3, generator), []
    apix = workdir.apix_at_box(12)
    paths = [tmp_path / "kmeans3" / f"vol_{number:03d}.mrc" for number in (1, 2, 4)]
    write_cluster_volumes(
        decoder, latents, turns, paths, 12, apix, invert=True, progress=steps.append
    )
    assert sorted((tmp_path / "kmeans3").iterdir()) == paths
    assert steps == [1, 1, 1]
    for path, expected in zip(paths, decoder.decode(latents, 12, turns), strict=True):
        with mrcfile.open(path) as mrc:
            np.testing.assert_allclose(mrc.data, -expected, rtol=1e-5, atol=1e-5)
            assert mrc.voxel_size.x == pytest.approx(6.0)  # 3 Å at box 24


def test_whole_voxels_move_cluster_volumes_by_a_roll(vae_workdir, tmp_path):
    workdir = open_workdir(vae_workdir, -1)
    decoder = Decoder.from_workdir(workdir, "cpu")
    paths = [tmp_path / "still.mrc", tmp_path / "moved.mrc"]
    moves = np.array([[0, 0, 0], [1, -2, 3]], np.float32)
    latents = np.repeat(workdir.latents[:1], 2, axis=0)
    write_cluster_volumes(decoder, latents, None, paths, 16, 2.0, translations_in_voxels=moves)
    still, moved = (mrcfile.read(path) for path in paths)
    np.testing.assert_allclose(
        moved, np.roll(still, (3, -2, 1), (0, 1, 2)), atol=1e-5 * np.abs(still).max()
    )
