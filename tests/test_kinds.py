"""Every kind of workdir that cryoDRGN trains: it decodes as eval_vol, embeds, keeps numbers."""

import shutil

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from conftest import (
    APIX,
    BOX,
    CHOSEN,
    CHOSEN_TILTED,
    KINDS,
    PARTICLES,
    TILT_PARTICLES,
    TILTS,
    WITHOUT_LATENTS,
    quiet,
    run_cryodrgn,
)
from running import run
from test_checkpoints import of_cuda
from test_decoder import in_ball, relative_error

from cryodrgn_metric.artifacts import save_pickle
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.errors import WorkdirError
from cryodrgn_metric.safe_files.pickles import load_pickle
from cryodrgn_metric.workdir import open_workdir

WITH_LATENTS = [name for name in KINDS if name not in WITHOUT_LATENTS]
HARTLEY = ("pose_sgd", "abinit_het_old", "abinit", "abinit_ind", "abinit_geom")
TINY = ["--landmarks", "20", "--ksample", "3", "--skip-umap", "--threads", "1", "-d", "16"]
TINY += ["--skip-report"]


def numbers_of(name):
    """The original numbers of the rows of z, by how the workdir was trained."""
    if name.endswith("_ind") or name == "ind":
        return CHOSEN_TILTED if name.startswith("tilt") else CHOSEN
    return np.arange(TILT_PARTICLES if name.startswith("tilt") else PARTICLES)


def embed(workdir, *options):
    """`cryodrgn metric_embed WORKDIR OPTIONS`, tiny; the workdir must come out as it went in."""
    run(workdir, *options, small=TINY)


# -- opening


@pytest.mark.parametrize("name", WITH_LATENTS)
def test_opens(workdir_of, name, caplog):
    workdir = open_workdir(workdir_of(name))
    command, _, zdim, _ = KINDS[name]
    assert (workdir.kind, workdir.epoch, workdir.box_size) == (command, 2, BOX)
    assert workdir.domain == ("hartley" if name in HARTLEY else "fourier")
    assert workdir.latents.dtype == np.float32 and workdir.apix == APIX
    assert (workdir.latents_logvar is None) == (command in ("train_dec", "abinit"))
    assert workdir.norm[0] == 0 and workdir.norm[1] > 0
    np.testing.assert_array_equal(workdir.particle_indices, numbers_of(name))
    assert workdir.latents.shape == (len(numbers_of(name)), zdim)
    assert not caplog.text


@pytest.mark.parametrize("name", WITH_LATENTS)
def test_stale_paths_do_not_matter(workdir_of, name, tmp_path, stack, tilt_series):
    """A workdir that was moved with its inputs: the paths in config.yaml lead nowhere."""
    folder, source = tmp_path / "elsewhere" / "workdir", workdir_of(name)
    shutil.copytree(source, folder)
    shutil.copy(tilt_series.ctf if name.startswith("tilt") else stack.ctf, folder.parent)
    for path in source.parent.parent.glob("*.pkl"):
        shutil.copy(path, folder)
    text = (folder / "config.yaml").read_text()
    for root in {stack.ctf.parent, tilt_series.ctf.parent, source.parent.parent}:
        text = text.replace(str(root), "/gone/where/it/ran")
    assert str(tmp_path.parent) not in yaml.safe_dump(yaml.safe_load(text)["dataset_args"])
    (folder / "config.yaml").write_text(text)
    moved, before = open_workdir(folder), open_workdir(source)
    assert moved.apix == before.apix == APIX
    np.testing.assert_array_equal(moved.particle_indices, before.particle_indices)
    volumes = (
        Decoder.from_workdir(w, "cpu").decode(before.latents[:1], 12) for w in (moved, before)
    )
    assert np.array_equal(*volumes)


@pytest.mark.parametrize("name", WITHOUT_LATENTS)
def test_one_structure_is_refused_by_name(workdir_of, name, tmp_path, capsys):
    kind = "abinit --zdim 0" if name == "abinit_zdim_0" else name
    with pytest.raises(WorkdirError, match=f"`{kind}`.*nothing to embed"):
        open_workdir(workdir_of(name))
    with pytest.raises(SystemExit):
        embed(workdir_of(name))
    assert f"`{kind}`" in capsys.readouterr().err


# -- decoding


def eval_vol(workdir, latents, folder, *options):
    """Volumes that `cryodrgn eval_vol` writes."""
    folder.mkdir()
    np.savetxt(folder / "z.txt", latents)
    files = [workdir.weights_path, "--config", workdir.config_path, "--zfile", folder / "z.txt"]
    run_cryodrgn("eval_vol", *files, "-o", folder, *options)
    return [mrcfile.read(path) for path in sorted(folder.glob("vol_*.mrc"))]


@pytest.mark.parametrize("box", [BOX, 16])
@pytest.mark.parametrize("name", WITH_LATENTS)
def test_decodes_as_eval_vol(workdir_of, name, box, tmp_path, tolerance):
    workdir = open_workdir(workdir_of(name))
    latents = workdir.latents[[0, 7]]
    if workdir.kind == "abinit" and box < BOX:  # test_host_models.py crops its volumes instead
        with pytest.raises(ValueError, match="does not support --downsample"):
            eval_vol(workdir, latents, tmp_path / "v", "--downsample", box)
        return
    expected = eval_vol(
        workdir, latents, tmp_path / "v", *(["--downsample", box] if box < BOX else [])
    )
    if workdir.domain == "hartley" and workdir.kind != "abinit":
        expected = [in_ball(volume, box / 2) for volume in expected]  # corners are untrained
    found = Decoder.from_workdir(workdir, device="cpu").decode(latents, box)
    for volume, reference in zip(found, expected, strict=True):
        assert relative_error(volume, reference) < tolerance["float32"]


@pytest.mark.parametrize("name", ["ind", "dec", "abinit_het_old", "abinit"])
def test_workdirs_of_cuda_runs_decode_on_a_cpu(workdir_of, name, tmp_path):
    folder = tmp_path / "workdir"
    shutil.copytree(workdir_of(name), folder)
    of_cuda(workdir_of(name) / "weights.2.pkl", folder / "weights.2.pkl")
    latents = open_workdir(folder).latents[:1]
    found, expected = (
        Decoder.from_workdir(open_workdir(path), "cpu").decode(latents, 12)
        for path in (folder, workdir_of(name))
    )
    np.testing.assert_array_equal(found, expected)


# -- embedding


@pytest.mark.parametrize("name", WITH_LATENTS)
def test_embeds_end_to_end(workdir_of, name, tmp_path):
    folder, numbers = tmp_path / "workdir", numbers_of(name)
    shutil.copytree(workdir_of(name), folder)
    embed(folder)
    made = folder / "metric_embed.2"
    z_metric = load_pickle(made / "z_metric.pkl")
    assert z_metric.shape == (len(numbers), 2) and np.isfinite(z_metric).all()
    with np.load(made / "distances.npz") as found:
        rows, indices = found["landmark_rows"], found["landmark_indices"]
        assert found["distances"].max() > 0
    np.testing.assert_array_equal(indices, numbers[rows])
    centers = np.loadtxt(made / "analyze.2" / "kmeans3" / "centers_ind.txt", dtype=int)
    z = np.loadtxt(made / "analyze.2" / "kmeans3" / "centers.txt").reshape(len(centers), -1)
    np.testing.assert_allclose(z, open_workdir(folder).latents[centers], rtol=1e-6)
    assert len(list((made / "analyze.2" / "kmeans3").glob("vol_*.mrc"))) == 3


@pytest.mark.parametrize("name", ["ind", "tilt_ind", "abinit_ind"])
def test_ind_option_takes_numbers_of_the_original_stack(workdir_of, name, tmp_path):
    """As `cryodrgn filter` writes them; those the run never saw are ignored, with their count."""
    numbers = numbers_of(name)
    unseen = np.setdiff1d(np.arange(PARTICLES), numbers)[:7]
    chosen = np.sort(numbers[30:60])
    save_pickle(tmp_path / "indices.pkl", np.concatenate([unseen, chosen]))
    options = ["--skip-vol", "--ind", tmp_path / "indices.pkl", "-o", tmp_path / "out"]
    embed(workdir_of(name), *options)
    with np.load(tmp_path / "out" / "distances.npz") as found:
        assert set(found["landmark_indices"]) <= set(chosen)
        assert set(found["landmark_rows"]) <= set(range(30, 60))
    log = (tmp_path / "out" / "metric_embed.log").read_text()
    assert "7 of the 37 particles in --ind are ignored" in log


def encoded(workdir, particles, poses, ctf):
    """The latents of a whole stack, by the encoder of a workdir and train_vae's own eval_z."""
    with quiet():
        from cryodrgn import dataset
        from cryodrgn.commands.train_vae import eval_z
        from cryodrgn.ctf import load_ctf_for_training
        from cryodrgn.models import HetOnlyVAE

        model, lattice = HetOnlyVAE.load(workdir.config, str(workdir.weights_path))
        tilted = particles.suffix == ".star"
        loader = dataset.TiltSeriesData if tilted else dataset.ImageDataset
        options = {"norm": workdir.norm, "invert_data": True, "lazy": False}
        data = loader(str(particles), **(options | ({"ntilts": TILTS} if tilted else {})))
        shifts = torch.from_numpy(load_pickle(poses)[1])
        table = torch.from_numpy(load_ctf_for_training(BOX, str(ctf)))
        with torch.no_grad():
            return eval_z(model.eval(), lattice, data, 20, "cpu", shifts, tilted, table)[0]


def test_row_i_is_particle_i_of_the_chosen_ones(workdir_of, stack, tolerance):
    """cryoDRGN keeps the order of --ind: its encoder says so of the images themselves."""
    workdir = open_workdir(workdir_of("ind"))
    z = encoded(workdir, stack.particles, stack.poses, stack.ctf)
    assert len(z) == PARTICLES
    assert relative_error(workdir.latents, z[workdir.particle_indices]) < tolerance["float32"]
    assert relative_error(workdir.latents, z[np.sort(workdir.particle_indices)]) > 0.1


def test_row_i_is_particle_i_of_the_chosen_tilt_series(workdir_of, tilt_series, tolerance):
    """Numbers of a tilt series count particles, not the images of which each has three."""
    workdir = open_workdir(workdir_of("tilt_ind"))
    z = encoded(workdir, tilt_series.star, tilt_series.poses, tilt_series.ctf)
    assert len(z) == TILT_PARTICLES
    assert relative_error(workdir.latents, z[workdir.particle_indices]) < tolerance["float32"]
    assert relative_error(workdir.latents, z[np.sort(workdir.particle_indices)]) > 0.1
