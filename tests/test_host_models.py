"""DRGN-AI's network against cryoDRGN's own eval_volume_method; what that leaves out of V(z)."""

import itertools

import numpy as np
import pytest
import torch
import yaml
from conftest import quiet, random_rotations
from test_decoder import DTYPES, TURNS, relative_error

from cryodrgn_metric.artifacts import save_pickle
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.errors import UnsafeFileError, WorkdirError
from cryodrgn_metric.model_loading import load_host_model
from cryodrgn_metric.workdir import open_workdir

ZDIM = 2


def make_workdir(folder, box=16, radius=None, norm=(0.0, 2.0), saved=(), **changes):
    """An abinit workdir with random weights; `changes` are of its hypervolume_params."""
    params = {
        "resolution": box + 1,
        "z_dim": ZDIM,
        "n_layers": 2,
        "hidden_dim": 20,
        "pe_type": "gaussian",
        "pe_dim": 5,
        "feat_sigma": 0.5,
        "domain": "hartley",
        "pe_type_conf": None,
        **changes,
    }
    config = {
        "dataset_args": {"particles": "particles.mrcs", "ctf": None, "ind": None},
        "lattice_args": {"D": box + 1, "extent": 0.5, "ignore_DC": True},
        "model_args": {"zdim": ZDIM, "pe_type": "gaussian", "domain": "hartley"},
        "data_norm_mean": norm[0],
        "data_norm_std": norm[1],
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_pickle(folder / "z.5.pkl", np.random.default_rng(0).standard_normal((5, ZDIM)))
    with quiet():
        from cryodrgn.models_ai import HyperVolume

        torch.manual_seed(0)
        network = HyperVolume(**params)
    checkpoint = {
        "epoch": 5,
        "hypervolume_state_dict": network.state_dict(),
        "hypervolume_params": params,
        "output_mask_radius": box // 2 if radius is None else radius,
        **dict(saved),
    }
    torch.save(checkpoint, folder / "weights.5.pkl")
    return open_workdir(folder)


def eval_volume(workdir, latent):
    """The volume that `cryodrgn eval_vol` writes (host.md 1.3)."""
    with quiet():
        from cryodrgn.lattice import Lattice
        from cryodrgn.models_ai import HyperVolume, eval_volume_method

        saved = torch.load(workdir.weights_path, weights_only=False)
        network = HyperVolume(**saved["hypervolume_params"])
        network.load_state_dict(saved["hypervolume_state_dict"])
        lattice = Lattice(workdir.box_size + 1, extent=0.5)
        radius = saved["output_mask_radius"]
        return eval_volume_method(network.eval(), lattice, ZDIM, workdir.norm, latent, radius)


def cropped(volume, box):
    """The ball of a smaller box out of a volume's transform, by cryoDRGN's own transforms."""
    with quiet():
        from cryodrgn import fft
    start = (len(volume) - box) // 2
    part = slice(start, start + box)
    k = np.arange(box) - box // 2
    ball = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2 <= (box // 2) ** 2
    hartley = fft.htn_center(torch.as_tensor(volume))[part, part, part]
    return fft.ihtn_center(hartley * torch.from_numpy(ball))


SORTS = {
    "plain": {},
    "encoded_latents": {"pe_type_conf": "geom"},
    "residual_first_layer": {"hidden_dim": 32},  # 6 * pe_dim + zdim
    "no_hidden_layer": {"n_layers": 0},
    "mean": {"norm": (0.3, 2.0)},
    "radius_5": {"radius": 5},
    **{f"box_{box}": {"box": box} for box in (10, 18, 22, 24, 26, 28, 30, 32)},
}


@pytest.mark.parametrize("sort", SORTS)
def test_equals_eval_volume_method(tmp_path, tolerance, sort):
    workdir = make_workdir(tmp_path / "w", **SORTS[sort])
    assert workdir.kind == "abinit"
    volumes = Decoder.from_workdir(workdir, device="cpu").decode(workdir.latents[:2])
    for latent, volume in zip(workdir.latents, volumes, strict=False):
        assert relative_error(volume, eval_volume(workdir, latent)) < tolerance["float32"]


@pytest.mark.parametrize("box", [8, 10, 14, 20])
def test_smaller_boxes_crop_the_spectrum(tmp_path, tolerance, box):
    workdir = make_workdir(tmp_path / "w", box=24)
    volume = Decoder.from_workdir(workdir, device="cpu").decode(workdir.latents[:1], box)[0]
    reference = cropped(eval_volume(workdir, workdir.latents[0]), box)
    assert relative_error(volume, reference) < tolerance["float32"]


def test_streams_and_chunks_give_the_same(tmp_path, tolerance, generator, monkeypatch):
    decoder = Decoder.from_workdir(make_workdir(tmp_path / "w"), device="cpu")
    latents, turns = generator.standard_normal((5, ZDIM)), random_rotations(5, generator)
    whole = decoder.decode(latents, 12, turns)
    monkeypatch.setattr("cryodrgn_metric.decoder.POINTS_PER_CHUNK", {"cpu": 100})
    parts = torch.cat([*decoder.decode_stream(latents, 12, 2, turns)])
    assert relative_error(parts, whole) < tolerance["float32"]


# -- turned volumes, and what must be there for them


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("as_trained", [False, True])
@pytest.mark.parametrize("axis", TURNS)
def test_quarter_turns_equal_rot90(tmp_path, tolerance, dtype, as_trained, axis):
    workdir = make_workdir(tmp_path / "w")
    decoder = Decoder.from_workdir(workdir, "cpu", getattr(torch, dtype), as_trained)
    matrix, axes = TURNS[axis]
    volume = decoder.decode(workdir.latents[:1], max_frequency=7)[0, 1:, 1:, 1:]
    turned = decoder.decode(workdir.latents[:1], None, np.array([matrix]), 7)[0, 1:, 1:, 1:]
    assert relative_error(turned, np.rot90(volume, 1, axes)) < tolerance[dtype]
    assert relative_error(turned, np.rot90(volume, -1, axes)) > 0.1


@pytest.mark.parametrize("as_trained", [False, True])
def test_no_turn_is_no_turn(tmp_path, tolerance, as_trained):
    workdir = make_workdir(tmp_path / "w")
    decoder = Decoder.from_workdir(workdir, "cpu", as_trained=as_trained)
    volumes = decoder.decode(workdir.latents[:2])
    turned = decoder.decode(workdir.latents[:2], rotations=torch.eye(3).expand(2, 3, 3))
    assert relative_error(turned, volumes) < tolerance["float32"]


def test_eval_volume_method_leaves_out_an_axis_that_images_train(tmp_path):
    """Then |R·V| isn't |V|: the axis holds some of the strongest frequencies there are."""
    model = load_host_model(make_workdir(tmp_path / "w"))
    trained = load_host_model(make_workdir(tmp_path / "t"), as_trained=True)
    k = np.array([*itertools.product(range(-8, 9), repeat=3)])
    points = torch.from_numpy(k / 16)
    kept, whole = model.keeps(points).numpy(), trained.keeps(points).numpy()
    radius = np.linalg.norm(k, axis=1)
    np.testing.assert_array_equal(whole, (radius <= 8) & (radius > 0))
    on_axis = ~k[:, :2].any(1)
    assert not kept[on_axis].any() and not (kept & ~whole).any()
    missing = whole & ~kept & (radius <= 6)
    np.testing.assert_array_equal(missing, on_axis & (radius > 0) & (radius <= 6))


def test_as_trained_differs_by_that_only(tmp_path, tolerance):
    workdir = make_workdir(tmp_path / "w")
    volume, whole = (
        Decoder.from_workdir(workdir, "cpu", as_trained=as_trained).decode(
            workdir.latents[:1], max_frequency=6
        )[0]
        for as_trained in (False, True)
    )
    spectrum = np.fft.fftshift(np.fft.fftn(whole - volume))
    off_axis = spectrum.copy()
    off_axis[:, 8, 8] = 0
    assert np.linalg.norm(off_axis) < tolerance["float32"] * np.linalg.norm(spectrum)


# -- what is refused


@pytest.mark.parametrize(
    "saved",
    [
        {"hypervolume_params": None},
        {"hypervolume_params": {"resolution": 17, "z_dim": ZDIM}},
        {"hypervolume_params": {"resolution": 19, "z_dim": ZDIM}},
        {"hypervolume_state_dict": None},
        {"hypervolume_state_dict": {}},
    ],
)
def test_checkpoint_and_config_must_agree(tmp_path, saved):
    workdir = make_workdir(tmp_path / "w", saved=saved)
    with pytest.raises(WorkdirError, match=r"weights\.5\.pkl"):
        Decoder.from_workdir(workdir)


@pytest.mark.parametrize("key", ["hidden_dim", "pe_dim", "n_layers", "feat_sigma", "domain"])
def test_params_that_are_tensors_are_not_computed_with(tmp_path, key):
    """A tensor of four bytes may claim a billion numbers (found by tests/fuzz)."""
    workdir = make_workdir(tmp_path / "w")
    checkpoint = torch.load(workdir.weights_path, weights_only=True)
    checkpoint["hypervolume_params"][key] = torch.zeros(1).expand(10**9)
    torch.save(checkpoint, workdir.weights_path)
    with pytest.raises(WorkdirError, match="numbers and words"):
        Decoder.from_workdir(workdir)


def test_bomb_in_the_weights(tmp_path):
    trace = tmp_path / "executed"

    class Bomb:
        def __reduce__(self):
            return __import__("os").system, (f"touch {trace}",)

    workdir = make_workdir(tmp_path / "w", saved={"hypervolume_params": Bomb()})
    with pytest.raises(UnsafeFileError):
        Decoder.from_workdir(workdir)
    assert not trace.exists()
