"""One test for each trap of cryoDRGN that no other file holds.

They are numbered as in the project's notes on cryoDRGN, host.md; all on workdirs that cryoDRGN's
own commands trained in this process.
"""

import pickle
import shutil
import subprocess
import sys

import mrcfile
import numpy as np
import pytest
import torch
import yaml
from conftest import APIX, BOX, PARTICLES, run_cryodrgn
from running import hashes
from test_decoder import in_ball, make_workdir, relative_error
from test_kinds import embed, eval_vol

from cryodrgn_metric import align, pairwise_distances
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.errors import WorkdirError
from cryodrgn_metric.so3.conventions import spherical_window, windowed
from cryodrgn_metric.workdir import open_workdir


@pytest.fixture
def copied(tmp_path, workdir_of):
    """copied(name): a workdir of a kind that a test may change."""

    def copy(name):
        return shutil.copytree(workdir_of(name), tmp_path / name)

    return copy


def decoded(folder, rows=slice(1), box=None, as_trained=False, **options):
    workdir = open_workdir(folder)
    decoder = Decoder.from_workdir(workdir, "cpu", as_trained=as_trained)
    return decoder.decode(workdir.latents[rows], box, **options)


def edited(folder, section, **changes):
    """Change keys of a section of config.yaml; None removes a key."""
    path = folder / "config.yaml"
    config = yaml.safe_load(path.read_text())
    config[section].update(changes)
    config[section] = {key: value for key, value in config[section].items() if value is not None}
    path.write_text(yaml.safe_dump(config))
    return folder


# -- 1.2: epochs


def test_abinit_saves_some_epochs_only_and_no_final_one(copied, caplog):
    """host.md 1.2: most epochs of abinit have no files, and there is no z.pkl."""
    folder = copied("abinit")
    for name in ("z.1.pkl", "weights.1.pkl"):
        (folder / name).unlink()
    assert not (folder / "z.pkl").exists() and open_workdir(folder).epoch == 2
    with pytest.raises(WorkdirError, match=r"epochs 0, 2\. Type e\.g\. --epoch 0"):
        open_workdir(folder, 1)
    assert not caplog.text


def test_epoch_0_of_abinit_is_noise_before_training(workdir_of, caplog):
    """host.md 1.2: z.0.pkl of abinit is random; whoever asks for it is told."""
    assert open_workdir(workdir_of("abinit"), 0).epoch == 0
    assert "epoch 0 of abinit is pretraining" in caplog.text


def test_epochs_are_those_of_the_file_names_in_any_version(copied):
    """host.md 1.2: up to 3.4.4 they start at 0; --epoch means the file's N, 0 too."""
    folder = copied("ind")
    for name in ("z", "weights"):
        shutil.copy(folder / f"{name}.1.pkl", folder / f"{name}.0.pkl")
    assert open_workdir(folder, 0).z_path.name == "z.0.pkl"
    assert open_workdir(folder, 0).outdir.name == "metric_embed.0"


# -- 1.3: loaders


def test_old_configs_without_activation_feat_sigma_and_tilt_params(copied, tmp_path):
    """host.md 1.3: HetOnlyVAE.load raises KeyError for them without update_config_v1."""
    folder = copied("zdim_1")
    expected = decoded(folder)
    edited(folder, "model_args", activation=None, tilt_params=None)
    torch.testing.assert_close(decoded(folder), expected, rtol=0, atol=0)
    workdir = make_workdir(tmp_path / "w", pe_type="geom_ft")
    expected = decoded(workdir.path)
    edited(workdir.path, "model_args", activation=None, feat_sigma=None)
    torch.testing.assert_close(decoded(workdir.path), expected, rtol=0, atol=0)


def test_abinit_checkpoint_without_a_mask_radius(copied):
    """host.md 1.3: eval_volume_method fails at radius None; without one it is half the box."""
    folder = copied("abinit")
    expected = decoded(folder)
    saved = torch.load(folder / "weights.2.pkl", weights_only=True)
    assert saved.pop("output_mask_radius") == BOX // 2
    torch.save(saved, folder / "weights.2.pkl")
    torch.testing.assert_close(decoded(folder), expected, rtol=0, atol=0)


def test_networks_are_evaluated_not_trained(workdir_of):
    """host.md 1.3: eval_volume asserts .eval(); our copy of a network is in that mode."""
    for name in ("ind", "dec", "abinit"):
        decoder = Decoder.from_workdir(open_workdir(workdir_of(name)), device="cpu")
        assert not decoder.model.network.training


# -- 1.4: numbers


def test_smaller_volumes_have_larger_voxels(workdir_of, tolerance):
    """host.md 1.4: -d volumes are (D/d)^3 times the low-passed ones; Delta is the same."""
    workdir = open_workdir(workdir_of("ind"))
    decoder = Decoder.from_workdir(workdir, device="cpu")
    found = {}
    for box in (16, BOX):
        volumes = decoder.decode(workdir.latents[:4], box, max_frequency=6)
        distance = RotationDistance(box, full_box=BOX, max_frequency=6, lmax=12)
        prepared = windowed(volumes, spherical_window(box))
        found[box] = distance.pairwise(distance.features(prepared)).raw_distances
    # the soft window is sampled on two grids, which costs a percent
    torch.testing.assert_close(found[16], found[BOX], rtol=0.02, atol=0)


def test_corners_of_the_hartley_cube_are_left_out(workdir_of, tmp_path):
    """host.md 1.4: they were never trained, and hold much of what eval_vol writes."""
    workdir = open_workdir(workdir_of("pose_sgd"))
    volumes = eval_vol(workdir, workdir.latents[:3], tmp_path / "v")
    corners = [volume - in_ball(volume, BOX / 2) for volume in volumes]
    assert np.linalg.norm(corners) > 0.1 * np.linalg.norm(volumes)
    ours = decoded(workdir.path, slice(3)).numpy()
    assert max(relative_error(in_ball(v, BOX / 2), v) for v in ours) < 1e-5
    plain = pairwise_distances(ours).distances
    # the window of real space spreads the corners over the shell within: 1.6 percent here
    cornered = pairwise_distances(np.stack(volumes)).distances
    np.testing.assert_allclose(cornered, plain, rtol=0.03)


@pytest.mark.parametrize("name", ["ind", "abinit"])
def test_the_untrained_mean_changes_nothing(workdir_of, name):
    """host.md 1.4: DC is extrapolated; a constant added to V leaves Delta as it was."""
    volumes = decoded(workdir_of(name), slice(3), as_trained=True).double().numpy()
    offsets = np.array([0.0, 1.0, -2.0])[:, None, None, None] * volumes.std()
    plain = pairwise_distances(volumes).distances
    np.testing.assert_allclose(pairwise_distances(volumes + offsets).distances, plain, rtol=1e-6)


def test_a_mask_of_the_encoder_does_not_matter(stack, tmp_path, tolerance):
    """host.md 1.4: enc_mask shapes the encoder, which must be built to read the checkpoint."""
    for mask in (-1, 8):
        folder = tmp_path / f"mask{mask}"
        inputs = [stack.particles, "--poses", stack.poses, "--zdim", 2, "-o", folder]
        how = ["-n", 1, "-b", 50, "--no-amp", "--no-analysis", "--seed", 0, "--enc-mask", mask]
        size = ["--enc-dim", 16, "--enc-layers", 1, "--dec-dim", 16, "--dec-layers", 1]
        run_cryodrgn("train_vae", *inputs, *how, *size, "--pe-dim", 4)
        workdir = open_workdir(folder)
        expected = eval_vol(workdir, workdir.latents[:2], folder / "v")
        assert relative_error(decoded(folder, slice(2)), expected) < tolerance["float32"]


# -- 1.5, 1.6: what the command writes


@pytest.fixture(scope="module")
def ran(tmp_path_factory, workdir_of):
    """A run with one latent, analysed by cryoDRGN, then embedded at half the box."""
    folder = tmp_path_factory.mktemp("ran") / "workdir"
    shutil.copytree(workdir_of("zdim_1"), folder)
    run_cryodrgn("analyze", folder, 2)
    before = hashes(folder)
    embed(folder, "-d", 12, "--dim", 1)
    return folder, before


def test_header_holds_the_pixel_size_of_the_smaller_box(ran):
    """host.md 1.5: eval_vol -d writes the full box's; ours is rescaled."""
    path = ran[0] / "metric_embed.2" / "analyze.2" / "kmeans3" / "vol_001.mrc"
    with mrcfile.open(path) as volume:
        assert volume.data.shape == (12, 12, 12)
        assert volume.voxel_size.x == pytest.approx(APIX * BOX / 12)


def test_several_optics_groups_or_no_ctf_at_all(copied, caplog):
    """host.md 1.5: cryoDRGN takes 1.0 Å per pixel for both; so do we, and say so."""
    folder = copied("dec")
    table = np.tile([BOX, APIX, 1e4, 1e4, 0, 300, 2.7, 0.1, 0], (PARTICLES, 1))
    table[::2, 1] = 1.5
    (folder / "ctf.pkl").write_bytes(pickle.dumps(table))
    with caplog.at_level("INFO"):
        assert open_workdir(edited(folder, "dataset_args", ctf="ctf.pkl")).apix == 1.0
    assert "several pixel sizes" in caplog.text
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["dataset_args"]["ctf"] = None
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    assert open_workdir(folder).apix == 1.0


def test_one_latent_without_umap_or_kmeans_of_its_own(ran):
    """host.md 1.6: analyze writes neither for zdim 1, so that filter and dashboard fail."""
    folder, before = ran
    assert not {"analyze.2/umap.pkl", "analyze.2/kmeans20/labels.pkl"} & set(before)
    with (folder / "metric_embed.2" / "z_metric.pkl").open("rb") as file:
        assert pickle.load(file).shape == (PARTICLES, 1)
    assert (folder / "metric_embed.2" / "analyze.2" / "kmeans3" / "labels.pkl").exists()


def test_nothing_is_put_where_filter_and_dashboard_look_first(ran):
    """host.md 3.3: a kmeans folder or a umap.pkl in the user's analyze.N would be taken."""
    folder, before = ran
    after = hashes(folder)
    assert {name: after.get(name) for name in before} == before
    assert not list((folder / "analyze.2").glob("kmeans*"))
    assert not (folder / "analyze.2" / "umap.pkl").exists()


def test_refined_poses_are_not_needed(copied):
    """host.md 1.6: pose SGD keeps its poses in pose.N.pkl, other tools read the old ones."""
    folder = copied("pose_sgd")
    expected = decoded(folder)
    for path in folder.glob("pose*.pkl"):
        path.write_bytes(b"not read")
    torch.testing.assert_close(decoded(folder), expected, rtol=0, atol=0)


# -- 1.7: bugs


@pytest.mark.parametrize("name", ["dec", "abinit", "abinit_het_old", "ind"])
def test_weights_are_those_of_the_checkpoint(workdir_of, name):
    """host.md 1.7.1: analyze_landscape_full never loads train_dec's; results follow the seed."""
    found = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        found.append(decoded(workdir_of(name)))
    torch.testing.assert_close(*found, rtol=0, atol=0)
    first = open_workdir(workdir_of(name), 1)
    before = Decoder.from_workdir(first, "cpu").decode(open_workdir(first.path).latents[:1])
    assert relative_error(before, found[0]) > 1e-3  # an epoch of training shows


def test_abinit_volumes_are_not_inverted(copied, tmp_path):
    """host.md 1.7.2: analyze_landscape turns their sign, then sets what is negative to 0."""
    folder = copied("abinit")
    embed(folder, "-d", BOX)
    kmeans = folder / "metric_embed.2" / "analyze.2" / "kmeans3"
    written = mrcfile.read(kmeans / "vol_001.mrc")
    row = np.loadtxt(kmeans / "centers_ind.txt", dtype=int)[0]
    workdir = open_workdir(folder)
    (volume,) = eval_vol(workdir, workdir.latents[[row]], tmp_path / "v")
    upright, inverted = (align(written, sign * volume).distance for sign in (1, -1))
    # what eval_vol leaves out is a few percent
    assert upright < 0.3 * np.linalg.norm(volume) < 0.8 * inverted


@pytest.mark.parametrize("box", [8, 12, 16, 22])
def test_smaller_boxes_of_abinit_neither_alias_nor_crash(workdir_of, box, tolerance):
    """host.md 1.7.3: analyze_landscape -d keeps the full Nyquist, and its mask doesn't fit."""
    limit = box / 2 - 1
    full = decoded(workdir_of("abinit"), max_frequency=limit)[0]
    small = decoded(workdir_of("abinit"), box=box, max_frequency=limit)[0]
    spectra = [np.fft.fftshift(np.fft.fftn(v, norm="forward")) for v in (full.numpy(), small)]
    part = slice((BOX - box) // 2, (BOX + box) // 2)
    crop = spectra[0][part, part, part] * (BOX / box) ** 3
    assert np.linalg.norm(spectra[1] - crop) < tolerance["float32"] * np.linalg.norm(crop)


PROGRAM = """
import logging, sys
ours, theirs = logging.getLogger("cryodrgn_metric.workdir"), logging.getLogger("user")
handlers = list(logging.getLogger().handlers)
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.workdir import open_workdir
assert "cryodrgn" not in sys.modules
Decoder.from_workdir(open_workdir(sys.argv[1]), device="cpu")
assert "cryodrgn.models_ai" in sys.modules
assert not ours.disabled and not theirs.disabled
assert logging.getLogger().handlers == handlers
"""


def test_importing_cryodrgn_disables_no_logger(workdir_of):
    """host.md 1.7.11: `import cryodrgn` silences every logger that was there before."""
    # the only way to import it for the first time; our paths go with it
    arguments = [sys.executable, "-c", PROGRAM, str(workdir_of("abinit"))]
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(arguments, env=paths, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
