"""The real command on workdirs that stock cryoDRGN trained: its files, laws and refusals."""

import hashlib
import json
import pickle
import re
import shutil
from dataclasses import replace

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from conftest import APIX, BOX, PARTICLES, quiet
from running import SMALL, hashes, options_of, run, unchanged
from scipy.spatial.transform import Rotation
from shipped import copied_demo

from cryodrgn_metric import DistanceNet, MetricMap, align
from cryodrgn_metric.config import ClusterConfig, EmbedConfig, MetricMapConfig, VolumeConfig
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.fidelity import MEASURES
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.pipeline import embed
from cryodrgn_metric.so3.conventions import mirrored, spherical_window, windowed
from cryodrgn_metric.volumes import write_cluster_volumes
from cryodrgn_metric.workdir import open_workdir


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, vae_workdir):
    copy = tmp_path_factory.mktemp("embed") / "work dir ü"
    shutil.copytree(vae_workdir, copy)
    return copy


@pytest.fixture(scope="module")
def folder(workdir):
    run(workdir, "--epoch", "2")
    return workdir / "metric_embed.2"


def test_every_promised_file_is_there_and_nothing_else(folder):
    found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    found = {name for name in found if not name.startswith("cache/")}  # test_resume.py
    kmeans = {"labels.pkl", "centers.txt", "centers_ind.txt"}
    kmeans |= {f"vol_{number:03d}.mrc" for number in range(1, 5)}
    kmeans |= {f"ind_cluster{label}.pkl" for label in range(4)}
    path = {"path.npz", "z_values.txt", "ind.txt", "movie.cxc"}
    expected = {
        "metric_embed.yaml",
        "metric_embed.lock",
        "metric_embed.log",
        "z_metric.pkl",
        "z_metric.csv",
        "distances.npz",
        "fidelity.json",
        "held_out.npz",
        "intrinsic_dimension.json",
        "particles.npz",
        "report.json",
        "striking_pairs.npz",
        *(
            f"models/{name}.{kind}"
            for name in ("h_psi", "f_xi")
            for kind in ("safetensors", "yaml")
        ),
        *(f"analyze.2/kmeans4/{name}" for name in kmeans),
        *(f"analyze.2/pc{component}/{name}" for component in (1, 2) for name in path),
        "analyze.2/hdbscan/labels.pkl",
        "analyze.2/umap.pkl",
        *("config.yaml", "run.log", "weights.2.pkl", "z.2.pkl"),  # the overlay workdir
        *(
            f"landscape.2/landscape_full/{name}.pkl"
            for name in (
                "full_clustering/cluster_labels",
                "ind.sampled",
                "umap_vol_pca",
                "vol_pca_all",
                "z.sampled",
            )
        ),
    }
    volumes = {name for name in found if re.fullmatch(r"analyze\.2/p\w+/vol_\d{3}\.mrc", name)}
    branches = {name for name in found if name.startswith("analyze.2/path_")} - volumes
    assert found - volumes - branches == expected
    between = {name.split("/")[1] for name in branches}
    assert len(between) == 3  # a tree of the four clusters
    assert branches == {f"analyze.2/{name}/{one}" for name in between for one in path}
    assert {name.split("/")[1] for name in volumes} == between | {"pc1", "pc2"}


def test_z_metric_is_one_pickle_and_the_csv_agrees(folder):
    with open(folder / "z_metric.pkl", "rb") as file:
        z_metric = pickle.load(file)
        assert not file.read()
    assert z_metric.shape == (PARTICLES, 2) and z_metric.dtype == np.float32
    table = np.loadtxt(folder / "z_metric.csv", delimiter=",", skiprows=1)
    np.testing.assert_allclose(table, z_metric, rtol=1e-6)
    assert (folder / "z_metric.csv").read_text().startswith("z_metric_0,z_metric_1\n")


def test_distances_obey_their_laws(folder):
    with np.load(folder / "distances.npz") as found:
        d, raw, rotations = found["distances"], found["raw_distances"], found["rotations"]
        indices, is_test = found["landmark_indices"], found["is_test"]
        np.testing.assert_array_equal(indices, found["landmark_rows"])  # trained without --ind
        assert {found[name].dtype for name in ("distances", "rotations")} == {np.dtype("float32")}
    assert d.shape == (60, 60) and len(set(indices)) == 60
    assert is_test.sum() == 20 and is_test[:20].all()
    np.testing.assert_array_equal(d, d.T)
    assert (d <= raw).all() and (np.diag(d) == 0).all()
    np.testing.assert_array_equal(rotations, rotations.transpose(1, 0, 3, 2))


def test_fidelity_holds_the_promised_numbers(folder):
    fidelity = json.loads((folder / "fidelity.json").read_text())
    for space in ("z", "pca", "z_metric"):
        assert set(fidelity[space]) == {*MEASURES, "stress1_unscaled", "pearson"}
        assert set(fidelity["subsampling_intervals"][space]) == set(MEASURES)
    assert fidelity["pairs_per_second"] > 0 and fidelity["peak_memory_in_bytes"] > 1e7
    assert fidelity["h_psi"]["median_relative_error"] < 0.5
    assert {"volumes", "distances", "h_psi", "f_xi"} <= set(fidelity["timings_in_seconds"])


def test_saved_models_are_the_very_models(folder, workdir):
    """They load without the workdir and give the saved z' and the reported error."""
    with open(workdir / "z.2.pkl", "rb") as file:
        z = pickle.load(file)
    with open(folder / "z_metric.pkl", "rb") as file:
        z_metric = pickle.load(file)
    found = MetricMap.load(folder / "models").transform(z)
    np.testing.assert_allclose(found, z_metric, rtol=1e-5, atol=1e-5 * np.abs(z_metric).max())
    with np.load(folder / "distances.npz") as saved:
        rows, d = saved["landmark_rows"][:20], saved["distances"][:20, :20]
    upper = np.triu_indices(20, 1)
    h = DistanceNet.load(folder / "models").predict_matrix(z[rows])[upper]
    reported = json.loads((folder / "fidelity.json").read_text())["h_psi"]
    error = np.median(np.abs(h - d[upper]) / d[upper])
    assert error == pytest.approx(reported["median_relative_error"], rel=1e-4)


def test_parameters_name_version_seed_and_inputs(folder, workdir):
    parameters = yaml.safe_load((folder / "metric_embed.yaml").read_text())
    assert parameters["epoch"] == 2 and parameters["config"]["seed"] == 0
    assert parameters["box"] == BOX and parameters["apix_in_angstroms"] == pytest.approx(APIX)
    assert parameters["sha256"] == {
        name: hashlib.sha256((workdir / name).read_bytes()).hexdigest()
        for name in ("config.yaml", "z.2.pkl", "weights.2.pkl")
    }


def test_clusters_are_in_cryodrgns_formats(folder, workdir):
    kmeans = folder / "analyze.2" / "kmeans4"
    with open(kmeans / "labels.pkl", "rb") as file:
        labels = pickle.load(file)
    with open(workdir / "z.2.pkl", "rb") as file:
        z = pickle.load(file)
    indices = np.loadtxt(kmeans / "centers_ind.txt", dtype=int)
    assert labels.shape == (PARTICLES,) and set(labels) == set(range(4))
    np.testing.assert_array_equal(labels[indices], np.arange(4))
    np.testing.assert_allclose(np.loadtxt(kmeans / "centers.txt"), z[indices], rtol=1e-6)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The demo's workdir: unlike two epochs, it leaves the volume's outside empty."""
    return copied_demo(tmp_path_factory.mktemp("trained"))


def test_representatives_are_turned_volumes_of_eval_volumes_amplitude(trained):
    run(trained, "--dim", "2")
    opened = open_workdir(trained)
    kmeans = next(trained.glob("metric_embed.*/analyze.*/kmeans4"))
    indices = np.loadtxt(kmeans / "centers_ind.txt", dtype=int)
    with quiet():
        plain = Decoder.from_workdir(opened, device="cpu").decode(opened.latents[indices]).numpy()
    for number, volume in enumerate(plain, start=1):
        with mrcfile.open(kmeans / f"vol_{number:03d}.mrc") as written:
            turned = np.array(written.data)
            assert written.voxel_size.x == pytest.approx(opened.apix_in_angstroms)
            assert tuple(written.header.origin.item()) == (0, 0, 0)
        found = align(turned, volume)
        assert found.distance < 0.5 * found.raw_distance or found.raw_distance < 1e-3
        # what little density lies outside the window turns into it
        assert found.distance < 0.05 * np.linalg.norm(volume)


def test_the_same_seed_gives_the_same_bytes(folder, workdir, tmp_path):
    run(workdir, "--epoch", "2", "-o", str(tmp_path))
    assert (tmp_path / "z_metric.pkl").read_bytes() == (folder / "z_metric.pkl").read_bytes()


def test_a_second_run_leaves_nothing_stale(workdir, folder, tmp_path):
    shutil.copytree(folder, tmp_path / "again")
    run(workdir, "--skip-vol", "-o", str(tmp_path / "again"), "--landmarks", "40")
    kmeans = tmp_path / "again" / "analyze.2" / "kmeans4"
    assert not list(kmeans.glob("vol_*.mrc")) and (kmeans / "labels.pkl").exists()
    assert not list(tmp_path.rglob(".*"))


def test_what_users_put_into_our_folder_stays(workdir, folder, tmp_path):
    out = tmp_path / "again"
    shutil.copytree(folder, out)
    theirs = [
        "analyze.2/kmeans3_backup/labels.pkl",
        "analyze.2/kmeans4/vol_001_segmented.mrc",
        "analyze.2/kmeans4/notes.txt",
        "analyze.2/kmeans_notes.txt",
        "figures/mine.png",
        "figures/old.png/within.txt",
        "cache/volumes/sub/within.txt",
        "notes.txt",
        ".hidden.txt",
    ]
    for name in theirs:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("theirs")
    run(workdir, "--ksample", "3", "-o", out)
    assert {(out / name).read_text() for name in theirs} == {"theirs"}
    assert not (out / "analyze.2" / "kmeans4" / "labels.pkl").exists()
    assert (out / "analyze.2" / "kmeans3" / "labels.pkl").exists()


@pytest.mark.parametrize("kind", ["hartley_workdir", "dec_workdir"])
def test_other_decoders_run_end_to_end(kind, request, tmp_path):
    source = request.getfixturevalue(kind)
    run(source, "--dim", "1", "--loss", "weighted", "-o", str(tmp_path), "--skip-vol")
    with open(tmp_path / "z_metric.pkl", "rb") as file:
        assert pickle.load(file).shape == (PARTICLES, 1)


def config_for(workdir, tmp_path, **volumes):
    args = options_of(workdir, *SMALL, "--skip-vol", "--landmarks", "30")
    config = embed_config(args)
    return replace(config, outdir=str(tmp_path), volumes=VolumeConfig(**volumes))


def distances_of(config: EmbedConfig):
    with unchanged(config.workdir), quiet():
        folder = embed(config)
    with np.load(folder / "distances.npz") as found:
        return found["distances"], found["rotations"]


def test_box_changes_delta_only_through_resolution(workdir, tmp_path):
    small, _ = distances_of(config_for(workdir, tmp_path, downsample=16, low_pass_in_angstroms=12))
    large, _ = distances_of(config_for(workdir, tmp_path, downsample=24, low_pass_in_angstroms=12))
    upper = np.triu_indices(len(small), 1)
    assert np.median(np.abs(small - large)[upper] / large[upper]) < 0.01


def test_precision_is_of_delta_and_not_of_written_volumes(workdir, tmp_path, monkeypatch):
    written, distances, said = set(), {}, {}

    def write(decoder, *arguments, **options):
        written.add(decoder.dtype)
        write_cluster_volumes(decoder, *arguments, **options)

    monkeypatch.setattr("cryodrgn_metric.frame.write_cluster_volumes", write)
    monkeypatch.setattr("cryodrgn_metric.landmark_features.bfloat16_gain", lambda: 0.7)
    for precision in ("float32", "bfloat16"):
        config = replace(
            config_for(workdir, tmp_path / precision, downsample=16, precision=precision),
            clusters=ClusterConfig(count=3, skip_umap=True),
            metric_map=MetricMapConfig(steps=10),
        )
        distances[precision], _ = distances_of(config)
        said[precision] = (tmp_path / precision / "metric_embed.log").read_text()
    error = np.abs(distances["bfloat16"] - distances["float32"])
    # rounding is relative to |V|, of which the median Delta is a fiftieth after two epochs:
    # single pairs err by 2 % of that median
    assert 0 < np.median(error) < 0.01 * np.median(distances["float32"])
    assert written == {torch.float32}
    assert "--precision bfloat16 is 0.7 times as fast" in said["bfloat16"]
    assert "--precision" not in said["float32"]


def test_flip_mirrors_rotations_and_keeps_distances(workdir, tmp_path):
    plain, rotations = distances_of(config_for(workdir, tmp_path / "a", downsample=16))
    same, flipped = distances_of(config_for(workdir, tmp_path / "b", downsample=16, flip=True))
    mirror = np.diag([1, 1, -1]).astype(np.float32)
    np.testing.assert_array_equal(same, plain)
    np.testing.assert_allclose(flipped, mirror @ rotations @ mirror, atol=1e-6)


def test_a_spherical_mask_is_isotropic_and_a_slab_is_reported(trained, tmp_path):
    axis = np.arange(16) - 8
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2)
    slab = np.broadcast_to((np.abs(axis) < 3)[:, None, None], (16, 16, 16))
    masks = {"ball": np.clip(7 - radius, 0, 1), "slab": slab}
    for name, mask in masks.items():
        with mrcfile.new(tmp_path / f"{name}.mrc") as mrc:
            mrc.set_data(mask.astype(np.float32))
        config = config_for(
            trained, tmp_path / name, downsample=16, mask=str(tmp_path / f"{name}.mrc")
        )
        distances_of(config)
    shares = [
        float(line.split("adds ")[1].split(" %")[0])
        for name in masks
        for line in (tmp_path / name / "metric_embed.log").read_text().splitlines()
        if "The mask adds" in line
    ]
    assert shares[0] < 10 < shares[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--epoch", "7"], "7"),
        (["-d", "26"], "larger than the model's box"),
        (["--dim", "60"], "--dim 59 or less"),
        (["--mask", "nowhere.mrc"], "nowhere.mrc"),
    ],
)
def test_what_is_refused_says_what_to_type(workdir, options, words, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(workdir, *options, "-o", str(workdir.parent / "refused"))
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_unit_scale_is_blind_to_contrast(trained):
    opened = open_workdir(trained)
    with quiet():
        volumes = Decoder.from_workdir(opened, device="cpu").decode(opened.latents[:6])
    prepared = windowed(volumes, spherical_window(32))
    contrast = torch.tensor([1.0, 2.0, 0.5, 1.5, 0.1, 3.0])[:, None, None, None]
    distance = RotationDistance(32, lmax=16, unit_norm=True)
    plain = distance.pairwise(distance.features(prepared)).distances
    drifted = distance.pairwise(distance.features(prepared * contrast)).distances
    torch.testing.assert_close(drifted, plain, rtol=1e-3, atol=1e-4)
    assert plain.max() <= 2  # two vectors of norm 1


def test_representatives_lie_in_the_medoids_frame(trained):
    run(trained)
    folder = next(trained.glob("metric_embed.*"))
    with np.load(folder / "distances.npz") as found:
        medoid = found["landmark_rows"][found["distances"].sum(axis=1).argmin()]
    opened = open_workdir(trained)
    with quiet():
        frame = Decoder.from_workdir(opened, device="cpu").decode(opened.latents[[medoid]])[0]
    for path in folder.glob("analyze.*/kmeans4/vol_*.mrc"):
        found = align(frame.numpy(), mrcfile.read(path))
        turn = Rotation.from_matrix(found.rotation).magnitude()
        assert np.degrees(turn) < 1 or found.second_peak_gap < 0.01


def test_flipped_volumes_turn_by_the_flipped_rotations(trained):
    """The origin stays at voxel n // 2 only if the flipped volume is moved by one voxel."""
    opened = open_workdir(trained)
    with quiet():
        volumes = Decoder.from_workdir(opened, device="cpu").decode(opened.latents[:2]).numpy()
    plain = align(*volumes).rotation
    flipped = align(*np.roll(volumes[:, ::-1], 1, axis=1)).rotation
    off = Rotation.from_matrix(mirrored(plain)) * Rotation.from_matrix(flipped).inv()
    assert np.degrees(off.magnitude()) < 0.5


@pytest.mark.parametrize("threads", ["1", "2"])
def test_any_number_of_threads_repeats_itself(workdir, tmp_path, threads):
    for name in ("a", "b"):
        run(workdir, "--skip-vol", "--threads", threads, "-o", str(tmp_path / name))
    first, second = ((tmp_path / name / "z_metric.pkl").read_bytes() for name in ("a", "b"))
    assert first == second


def test_a_folder_that_is_not_ours_is_left_alone(workdir, tmp_path, capsys):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "fig1.png").write_bytes(b"mine")
    for folder in (tmp_path, workdir):
        before = hashes(folder)
        with pytest.raises(SystemExit):
            run(workdir, "-o", str(folder))
        said = "not made by metric_embed" if folder == tmp_path else "is, or holds, the workdir"
        assert said in capsys.readouterr().err
        assert hashes(folder) == before


def test_a_refusal_writes_nothing(workdir, tmp_path):
    for options in (["--dim", "99"], ["-d", "26"], ["--mask", str(tmp_path / "none.mrc")]):
        with pytest.raises(SystemExit):
            run(workdir, *options, "-o", str(tmp_path / "new"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("count", [10, 12])
def test_the_fewest_landmarks_run(workdir, tmp_path, count):
    run(workdir, "--landmarks", str(count), "--skip-vol", "-o", str(tmp_path))
    assert (tmp_path / "fidelity.json").exists()


def test_threads_are_as_asked_and_given_back(workdir, tmp_path):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        run(workdir, "--skip-vol", "--landmarks", "20", "--threads", "1", "-o", str(tmp_path))
        parameters = yaml.safe_load((tmp_path / "metric_embed.yaml").read_text())
        assert parameters["threads"] == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
