"""Paths and striking pairs on disk: aligned, measured, numbered and flipped as they say."""

import shutil
from dataclasses import asdict, replace

import mrcfile
import numpy as np
import pytest
import torch
from conftest import CHOSEN, quiet
from running import SMALL, options_of, unchanged
from scipy.spatial.transform import Rotation
from shipped import copied_demo

from cryodrgn_metric import align, pairwise_distances
from cryodrgn_metric.artifacts import save_columns, save_pickle, save_text
from cryodrgn_metric.clusters import cluster_kmeans
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.frame import Frame, saved_frame
from cryodrgn_metric.measurement import measure_distances, pick_landmarks
from cryodrgn_metric.motion import add_path, write_motion
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.pair_pictures import write_striking_pairs
from cryodrgn_metric.path_volumes import write_path
from cryodrgn_metric.paths import ParticleGraph, path_between
from cryodrgn_metric.projections import projections
from cryodrgn_metric.run import prepare
from cryodrgn_metric.so3.conventions import spherical_window, windowed
from cryodrgn_metric.threads import limited_to
from cryodrgn_metric.volumes import write_movie, write_volume

BOX = 16  # of the model, 32 or 24
COUNT = 6  # k-means clusters: more than paths connect


@pytest.fixture(scope="module")
def demo_workdir(tmp_path_factory):
    """The demo's: its volumes turn by an angle that its poses don't know."""
    return copied_demo(tmp_path_factory.mktemp("demo"))


def measured_run(workdir, outdir, *options):
    """The stages before z', with the first latents in its place, and what later ones save."""
    arguments = [*SMALL, "--landmarks", 20, "-d", BOX, "--ksample", COUNT, "-o", outdir, *options]
    config = embed_config(options_of(workdir, *arguments))
    with unchanged(workdir), quiet(), limited_to(1):
        run = prepare(config)
        measured = measure_distances(run, pick_landmarks(run))
    dimension = run.config.metric_map.dimension
    z_metric = np.ascontiguousarray(run.workdir.latents[:, :dimension])
    clusters = cluster_kmeans(z_metric, config.clusters, config.seed)
    save_pickle(run.folder.z_metric, z_metric)
    save_columns(run.folder.cluster_center_indices(COUNT), clusters.centers_ind)
    save_text(run.folder.lock, "process 1")
    return run, measured, z_metric, clusters


def motion_of(workdir, outdir, *options):
    parts = measured_run(workdir, outdir, *options)
    with unchanged(workdir), quiet(), limited_to(1):
        return *parts, write_motion(*parts)


@pytest.fixture(scope="module")
def moved(demo_workdir, tmp_path_factory):
    return motion_of(demo_workdir, tmp_path_factory.mktemp("moved") / "out")


def table_of(folder):
    with np.load(folder.table) as saved:
        return dict(saved)


def volumes_of(folder):
    return np.stack([mrcfile.read(path) for path in sorted(folder.path.glob("vol_*.mrc"))])


def seen_files(folder):
    window = spherical_window(BOX)
    return windowed(torch.from_numpy(volumes_of(folder)), window).numpy()


def test_two_components_and_the_tree_of_the_five_largest(moved):
    run, _, _, clusters, summaries = moved
    assert [one.name for one in summaries[:2]] == ["pc1", "pc2"] and len(summaries) == 6
    branches = [one.numbers for one in summaries[2:]]
    largest = set(np.argsort(-np.bincount(clusters.labels), kind="stable")[:5].tolist())
    reached = set(branches[0])
    for _ in branches:
        reached |= {label for pair in branches if reached & set(pair) for label in pair}
    assert reached == largest and len(largest) == 5
    assert [folder.name for folder in run.folder.paths()] == [one.name for one in summaries]
    for one in summaries[2:]:
        rows = clusters.centers_ind[list(one.numbers)]
        np.testing.assert_array_equal(table_of_name(run, one.name)["rows"][[0, -1]], rows)
        assert (one.first, one.last) == tuple(run.workdir.particle_indices[rows])


def table_of_name(run, name):
    return table_of(next(folder for folder in run.folder.paths() if folder.name == name))


def test_every_file_of_a_path(moved):
    run, _, z_metric, _, summaries = moved
    for folder, summary in zip(run.folder.paths(), summaries, strict=True):
        table = table_of(folder)
        rows = table["rows"]
        count = summary.particles
        assert 2 <= count <= 10 and len(set(rows.tolist())) == count
        names = {"path.npz", "z_values.txt", "ind.txt", "movie.cxc"}
        names |= {f"vol_{number:03d}.mrc" for number in range(1, count + 1)}
        assert {path.name for path in folder.path.iterdir()} == names
        np.testing.assert_array_equal(np.loadtxt(folder.indices, dtype=int), rows)
        latents = run.workdir.latents[rows]
        np.testing.assert_allclose(np.loadtxt(folder.z_values), latents, rtol=1e-7)
        np.testing.assert_array_equal(table["particles"], rows)  # trained without --ind
        np.testing.assert_array_equal(table["z_metric"], z_metric[rows])
        assert table["projections"].shape == table["slices"].shape == (count, 3, BOX, BOX)
        assert table["projections"].dtype == table["slices"].dtype == np.float32
        steps = np.linalg.norm(np.diff(z_metric[rows], axis=0), axis=1)
        assert summary.length == pytest.approx(steps.sum(), rel=1e-5)


def test_the_volume_nearest_to_the_medoid_lies_in_its_frame(moved):
    run, measured, *_ = moved
    with quiet():
        latents = run.workdir.latents[[Frame.of(measured).row]]
        frame = run.stream.decoder.decode(latents, BOX)[0].numpy()
    for folder in run.folder.paths():
        found = [align(frame, volume, lmax=run.distance.lmax) for volume in volumes_of(folder)]
        nearest = min(found, key=lambda one: one.distance)
        turn = Rotation.from_matrix(nearest.rotation).magnitude()
        # it is another structure than the medoid's, so the two alignments may differ a little
        assert np.degrees(turn) < 2 or nearest.second_peak_gap < 0.01


def test_only_structure_differs_from_volume_to_volume(moved):
    """As they are decoded, they turn as well; in the files, next to nothing of that is left."""
    run, *_ = moved
    left, before = [], []
    for folder in run.folder.paths():
        rows = table_of(folder)["rows"]
        with quiet():
            plain = run.stream.volumes(run.workdir.latents[rows])
        found = pairwise_distances(volumes_of(folder), lmax=run.distance.lmax)
        steps = np.diagonal(found.distances, 1)
        left.extend(np.diagonal(found.raw_distances, 1) / steps)
        seen = torch.from_numpy(seen_files(folder))
        raw, turned = (one.diff(dim=0).flatten(1).norm(dim=1) for one in (plain, seen))
        before.extend((raw / turned).tolist())
    assert max(left) < 1.1 and np.median(left) < 1.01
    assert np.median(before) > 1.3


def test_delta_along_a_path_is_that_of_its_files(moved):
    run, _, _, _, summaries = moved
    found = {one.name: one for one in summaries}
    for folder in run.folder.paths():
        saved = table_of(folder)["distances"]
        files = pairwise_distances(volumes_of(folder), lmax=run.distance.lmax)
        # the norm is that at the model's box, where amplitudes are lower
        expected = files.distances * (BOX / run.workdir.box_size) ** 1.5
        # what the 0.25e-3 of the radial basis may drop
        np.testing.assert_allclose(saved, expected, rtol=0.02, atol=0.01 * saved.max())
        steps = np.diagonal(saved, 1)
        summary = found[folder.name]
        assert summary.measured_length == pytest.approx(steps.sum(), rel=1e-5)
        assert summary.largest_step == steps.max() and summary.end_to_end == saved[0, -1]


def test_pictures_are_of_the_turned_volumes(moved):
    run, *_ = moved
    for folder in run.folder.paths():
        table = table_of(folder)
        seen = seen_files(folder)
        size = np.abs(table["projections"]).max()
        np.testing.assert_allclose(table["projections"], projections(seen), atol=1e-4 * size)
        np.testing.assert_allclose(table["slices"][:, 2], seen[..., BOX // 2], atol=1e-4 * size)


def test_the_movie_plays_the_files_at_a_level_within_them(moved):
    run, *_ = moved
    for folder in run.folder.paths():
        lines = folder.movie.read_text().splitlines()
        opened = next(line for line in lines if line.startswith("open ")).split()
        count = len(volumes_of(folder))
        assert opened[1:-2] == [f"vol_{number:03d}.mrc" for number in range(1, count + 1)]
        assert opened[-2:] == ["vseries", "true"]
        level = float(next(line for line in lines if line.startswith("volume ")).split()[7])
        share = (volumes_of(folder) > level).mean()
        assert 0.005 < share < 0.02
        assert lines[-1].startswith("vseries play #1 loop true direction oscillate")


def test_a_single_volume_is_no_series(tmp_path, generator):
    write_volume(tmp_path / "vol_001.mrc", generator.standard_normal((8, 8, 8)), 1.0)
    write_movie(tmp_path / "movie.cxc", [tmp_path / "vol_001.mrc"], "pc1")
    assert "vseries" not in (tmp_path / "movie.cxc").read_text()


def test_a_path_added_later_is_the_one_of_the_run(moved):
    """Only saved files and the configuration are there: other paths, and this one again."""
    run, measured, _, _, summaries = moved
    first, second = summaries[2].numbers
    folder = run.folder.cluster_path(first, second)
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    table = table_of(folder)
    with quiet():
        again = prepare(run.config)
        frame = saved_frame(again)
        torch.testing.assert_close(frame.features, Frame.of(measured).features)
        assert frame.row == Frame.of(measured).row
        summary = add_path(again, first, second)
    found, expected = asdict(summary), asdict(summaries[2])
    for name in ("name", "numbers", "particles", "first", "last", "length"):
        assert found.pop(name) == expected.pop(name)
    assert found == pytest.approx(expected, rel=1e-4)
    for name, values in table_of(folder).items():
        np.testing.assert_allclose(
            values, table[name], rtol=1e-4, atol=1e-4 * np.abs(values).max()
        )
    for name in ("ind.txt", "z_values.txt"):
        assert (folder.path / name).read_bytes() == before[name]


def test_other_pairs_are_added_and_wrong_ones_refused(moved):
    run, *_, summaries = moved
    taken = {one.numbers for one in summaries}
    pair = next((a, b) for a in range(COUNT) for b in range(a) if (b, a) not in taken)
    with quiet():
        again = prepare(run.config)
        assert add_path(again, *pair).numbers == pair
    shutil.rmtree(run.folder.cluster_path(*pair).path)
    for wrong in ((0, 0), (0, COUNT), (-1, 0)):
        with pytest.raises(ArgumentError, match=f"0 to {COUNT - 1}"):
            add_path(again, *wrong)


def test_nothing_can_be_added_to_an_unfinished_run(demo_workdir, tmp_path):
    config = embed_config(options_of(demo_workdir, *SMALL, "-o", tmp_path / "none"))
    with quiet():
        run = prepare(config)
    with pytest.raises(ArgumentError, match="not finished"):
        add_path(run, 0, 1)
    with pytest.raises(ArgumentError, match="metric_embed"):
        saved_frame(run)


def test_flip_and_invert_change_files_rotations_and_pictures(moved, demo_workdir, tmp_path):
    run, *_ = moved
    flipped, *_ = motion_of(demo_workdir, tmp_path / "out", "--flip", "--invert")
    mirror = np.diag([1, 1, -1])
    for plain, other in zip(run.folder.paths(), flipped.folder.paths(), strict=True):
        old, new = table_of(plain), table_of(other)
        np.testing.assert_array_equal(new["distances"], old["distances"])
        np.testing.assert_allclose(new["rotations"], mirror @ old["rotations"] @ mirror, atol=1e-6)
        # rotations agree to the last bit or two only: BLAS adds up as arrays lie in memory
        expected = -volumes_of(plain)[:, ::-1]
        size = np.abs(expected).max()
        np.testing.assert_allclose(volumes_of(other), expected, atol=1e-5 * size)
        along_y = -old["projections"][:, 1, ::-1]
        size = np.abs(along_y).max()
        np.testing.assert_allclose(new["projections"][:, 1], along_y, atol=1e-5 * size)


def test_skip_vol_leaves_everything_but_volumes_and_movie(moved, demo_workdir, tmp_path):
    run, *_ = moved
    shutil.copytree(run.folder.path, tmp_path / "out")
    theirs = tmp_path / "out" / "analyze.120" / "path_98_99" / "notes.txt"
    stale = [theirs.parent / "path.npz", theirs.parent / "vol_001.mrc"]
    mine = theirs.parents[1] / "pc_mine" / "path.npz"
    gone = theirs.parents[1] / "pc7" / "path.npz"
    for path in (theirs, *stale, mine, gone):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    skipped, *_ = motion_of(demo_workdir, tmp_path / "out", "--skip-vol")
    for folder in skipped.folder.paths():
        names = {path.name for path in folder.path.iterdir()}
        assert names == {"path.npz", "z_values.txt", "ind.txt"}
    assert theirs.exists() and mine.exists() and not gone.parent.exists()
    assert not any(path.exists() for path in stale)
    assert len(skipped.folder.paths()) == 6


def test_particles_are_numbered_as_in_the_original_stack(workdir_of, tmp_path):
    run, *_ = motion_of(workdir_of("ind"), tmp_path / "out", "--skip-vol")
    for folder in run.folder.paths():
        table = table_of(folder)
        np.testing.assert_array_equal(table["particles"], CHOSEN[table["rows"]])


def test_one_dimension_has_one_component(workdir_of, tmp_path):
    run, _, z_metric, _, summaries = motion_of(workdir_of("zdim_1"), tmp_path / "out", "--dim", 1)
    assert [one.name for one in summaries if one.name.startswith("pc")] == ["pc1"]
    along = z_metric[table_of_name(run, "pc1")["rows"], 0]
    assert (np.diff(along) > 0).all()


def test_files_are_of_the_box_that_is_asked_for(moved, tmp_path):
    run, measured, z_metric, clusters, _ = moved
    path = path_between(ParticleGraph(z_metric), 0, 1, count=3)
    folder = replace(run.folder, path=tmp_path).cluster_path(0, 1)
    with quiet():
        write_path(run, Frame.of(measured), path, folder, z_metric, box=32)
    with mrcfile.open(folder.volume(1)) as written:
        assert written.data.shape == (32, 32, 32)
        assert written.voxel_size.x == pytest.approx(run.workdir.apix)
    assert table_of(folder)["projections"].shape[2:] == (BOX, BOX)


def test_volumes_that_cannot_be_compared_are_left_out(moved, tmp_path, monkeypatch, caplog):
    run, measured, z_metric, _, _ = moved
    path = path_between(ParticleGraph(z_metric), 0, 1, count=5)
    broken = run.workdir.latents[path.rows[[1, 2]]]
    decode = Decoder.decode

    def damaged(self, latents, *arguments, **options):
        volumes = decode(self, latents, *arguments, **options)
        for latent in broken:
            volumes[(torch.as_tensor(latents) == torch.from_numpy(latent)).all(1)] = torch.nan
        return volumes

    monkeypatch.setattr(Decoder, "decode", damaged)
    folder = replace(run.folder, path=tmp_path).cluster_path(0, 1)
    with quiet():
        found = write_path(run, Frame.of(measured), path, folder, z_metric, BOX)
    kept = path.rows[[0, 3, 4]]
    np.testing.assert_array_equal(table_of(folder)["rows"], kept)
    assert found.particles == 3 == len(volumes_of(folder))
    broken = run.workdir.latents[path.rows]
    with quiet():
        assert write_path(run, Frame.of(measured), path, folder, z_metric, BOX) is None
    assert not folder.path.exists()


def test_striking_pairs_show_what_alignment_does(moved):
    run, measured, *_ = moved
    gain = measured.pairs.raw_distances - measured.pairs.distances
    far = np.array([np.unravel_index(gain.argmax(), gain.shape)])
    with quiet():
        write_striking_pairs(run, measured, far, np.zeros((0, 2), np.int64))
    with np.load(run.folder.striking_pairs) as saved:
        images = saved["images_far"]
        assert images.shape == (1, 3, 3, BOX, BOX) and images.dtype == np.float32
        assert saved["images_near"].shape == (0, 3, 3, BOX, BOX)
        np.testing.assert_array_equal(saved["far_in_z"], far)
    first, second, turned = images[0]
    assert np.linalg.norm(turned - first) < 0.5 * np.linalg.norm(second - first)
    latents = measured.latents[far[0]]
    with quiet():
        expected = projections(run.stream.volumes(latents))
    np.testing.assert_allclose(images[0, :2], expected, rtol=1e-4, atol=1e-4 * images.max())
