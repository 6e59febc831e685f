"""V(z) against cryoDRGN's own eval_volume, and turned volumes against numpy.rot90."""

import logging
import shutil

import numpy as np
import pytest
import torch
import yaml
from conftest import quiet, random_rotations
from shipped import DEMO

from cryodrgn_metric import pairwise_distances
from cryodrgn_metric.artifacts import save_pickle
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.errors import ArgumentError, UnsafeFileError, WorkdirError
from cryodrgn_metric.workdir import open_workdir

DTYPES = ["float32", "float64"]
TURNS = {  # quarter turns about an axis, and the axes of a [z, y, x] array that rot90 turns
    "x": ([[1, 0, 0], [0, 0, -1], [0, 1, 0]], (1, 0)),
    "y": ([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], (0, 2)),
    "z": ([[0, -1, 0], [1, 0, 0], [0, 0, 1]], (2, 1)),
}


# -- cryoDRGN's own way


def host_decoder(workdir):
    """cryoDRGN's decoder and lattice, by its own loaders."""
    with quiet():
        from cryodrgn import config, models

        settings = config.update_config_v1(str(workdir.config_path))
        weights, device = str(workdir.weights_path), torch.device("cpu")
        if workdir.kind == "train_vae":
            model, lattice = models.HetOnlyVAE.load(settings, weights, device)
            return model.decoder.eval(), lattice
        model, lattice = models.load_decoder(settings, weights, device)
        return model.eval(), lattice


def eval_volume(workdir, latent, box):
    """The volume that `cryodrgn eval_vol [-d box]` writes (host.md 1.3)."""
    model, lattice = host_decoder(workdir)
    if box == workdir.box_size:
        return model.eval_volume(lattice.coords, lattice.D, lattice.extent, workdir.norm, latent)
    extent = lattice.extent * (box / workdir.box_size)
    coordinates = lattice.get_downsample_coords(box + 1)
    return model.eval_volume(coordinates, box + 1, extent, workdir.norm, latent)


def in_ball(volume, radius):
    """The volume without its Fourier coefficients beyond a radius in Fourier voxels."""
    box = volume.shape[-1]
    k = np.fft.fftfreq(box, 1 / box)
    distance = k[:, None, None] ** 2 + k[:, None] ** 2 + k**2
    spectrum = np.fft.fftn(np.asarray(volume, dtype=float))
    return np.fft.ifftn(np.where(distance <= radius**2, spectrum, 0)).real


def relative_error(value, reference):
    value, reference = np.asarray(value, float), np.asarray(reference, float)
    return np.linalg.norm(value - reference) / np.linalg.norm(reference)


# -- untrained workdirs of every sort: quick to make, and harder to match than smooth ones


def make_workdir(folder, box=16, zdim=3, extent=0.5, norm=(0.0, 2.0), **changes):
    """A train_dec workdir with random weights; `changes` are of its model_args."""
    model_args = {
        "layers": 2,
        "dim": 20,
        "zdim": zdim,
        "pe_type": "gaussian",
        "feat_sigma": 0.5,
        "pe_dim": 5,
        "domain": "fourier",
        "activation": "relu",
        **changes,
    }
    config = {
        "dataset_args": {"ctf": None, "norm": list(norm), "poses": "poses.pkl"},
        "lattice_args": {"D": box + 1, "extent": extent, "ignore_DC": True},
        "model_args": model_args,
    }
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    save_pickle(folder / "z.1.pkl", np.random.default_rng(0).standard_normal((5, zdim)))
    with quiet():
        from cryodrgn import models

        torch.manual_seed(0)
        model, _ = models.load_decoder(config)
    torch.save({"epoch": 1, "model_state_dict": model.state_dict()}, folder / "weights.1.pkl")
    return open_workdir(folder)


FOURIER = {
    "gaussian": {},
    "geom_ft": {"pe_type": "geom_ft"},
    "geom_full": {"pe_type": "geom_full"},
    "geom_lowf": {"pe_type": "geom_lowf"},
    "geom_nohighf": {"pe_type": "geom_nohighf"},
    "linear_lowf": {"pe_type": "linear_lowf", "pe_dim": 8},
    "pe_dim_default": {"pe_dim": None},
    "leaky": {"activation": "leaky_relu"},
    "residual_first_layer": {"dim": 33},  # 6 * pe_dim + zdim
    "one_latent": {"zdim": 1},
    "no_hidden_layer": {"layers": 0},
    "mean": {"norm": (0.3, 2.0)},
    "extent": {"extent": 0.4},
    "box_10": {"box": 10},
    "no_encoding": {"pe_type": "none", "pe_dim": None},
    "no_encoding_residual": {"pe_type": "none", "pe_dim": None, "dim": 6},
}


@pytest.mark.parametrize("box", [None, 8])
@pytest.mark.parametrize("name", FOURIER)
def test_equals_eval_volume(tmp_path, tolerance, name, box):
    workdir = make_workdir(tmp_path / "w", **FOURIER[name])
    decoder = Decoder.from_workdir(workdir, device="cpu")
    volumes = decoder.decode(workdir.latents[:2], box)
    for latent, volume in zip(workdir.latents, volumes, strict=False):
        reference = eval_volume(workdir, latent, box or workdir.box_size)
        assert relative_error(volume, reference) < tolerance["float32"]


@pytest.mark.parametrize("full", [22, 24, 28, 30])
def test_equals_eval_volume_where_the_axis_is_rounded(tmp_path, tolerance, full):
    """Other boxes than powers of two: rounding decides at Nyquist and on the plane z = 0."""
    workdir = make_workdir(tmp_path / "w", box=full)
    decoder = Decoder.from_workdir(workdir, device="cpu")
    for box in range(10, full + 1, 2):
        volume = decoder.decode(workdir.latents[:1], box)[0]
        reference = eval_volume(workdir, workdir.latents[0], box)
        assert relative_error(volume, reference) < tolerance["float32"], box


@pytest.mark.parametrize("box", [None, 12])
@pytest.mark.parametrize("fixture", ["vae_workdir", "dec_workdir"])
def test_equals_eval_volume_on_trained_models(request, tolerance, fixture, box):
    workdir = open_workdir(request.getfixturevalue(fixture))
    volumes = Decoder.from_workdir(workdir, device="cpu").decode(workdir.latents[:3], box)
    for latent, volume in zip(workdir.latents, volumes, strict=False):
        reference = eval_volume(workdir, latent, box or workdir.box_size)
        assert relative_error(volume, reference) < tolerance["float32"]


@pytest.mark.parametrize("box", [None, 16])
def test_hartley_equals_eval_volume_within_the_sphere(hartley_workdir, tolerance, box):
    workdir = open_workdir(hartley_workdir)
    volume = Decoder.from_workdir(workdir, device="cpu").decode(workdir.latents[:1], box)[0]
    side = box or workdir.box_size
    reference = eval_volume(workdir, workdir.latents[0], side)
    inside = in_ball(reference, side / 2)
    assert relative_error(volume, inside) < tolerance["float32"]
    assert relative_error(reference, inside) > 1e-3  # there was something to leave out


# -- resolution, dtype, batches


def test_downsampling_crops_the_spectrum(vae_workdir):
    workdir = open_workdir(vae_workdir)
    decoder = Decoder.from_workdir(workdir, device="cpu", dtype=torch.float64)
    full, small = (decoder.decode(workdir.latents[:1], box, None, 5)[0] for box in (24, 12))
    crop = np.fft.fftshift(np.fft.fftn(full.numpy()))[6:18, 6:18, 6:18]
    spectrum = np.fft.fftshift(np.fft.fftn(small.numpy()))
    # the origin stays at voxel n // 2, which costs one sign per axis and frequency
    sign = (-1.0) ** np.add.outer(np.add.outer(np.arange(12), np.arange(12)), np.arange(12))
    np.testing.assert_allclose(spectrum / 12**3 * 1, crop / 12**3 * sign**2, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("domain", ["fourier", "hartley"])
def test_max_frequency_is_a_low_pass(tmp_path, tolerance, domain):
    workdir = make_workdir(tmp_path / "w", domain=domain)
    decoder = Decoder.from_workdir(workdir, device="cpu", dtype=torch.float64)
    volume, limited = (decoder.decode(workdir.latents[:1], None, None, r)[0] for r in (None, 4.5))
    assert relative_error(limited, in_ball(volume, 4.5)) < tolerance["float64"]


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_dtypes(vae_workdir, dtype):
    workdir = open_workdir(vae_workdir)
    single = Decoder.from_workdir(workdir, device="cpu").decode(workdir.latents[:1])
    other = Decoder.from_workdir(workdir, "cpu", getattr(torch, dtype)).decode(workdir.latents[:1])
    assert other.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert single.dtype == torch.float32
    # bfloat16 keeps 8 bits: half a percent after three layers; more on a half-trained model
    assert relative_error(other, single) < (1e-5 if dtype == "float64" else 0.03)


def test_another_dtype_of_the_same_decoder(vae_workdir):
    workdir = open_workdir(vae_workdir)
    single = Decoder.from_workdir(workdir, device="cpu")
    rounded = Decoder.from_workdir(workdir, "cpu", torch.bfloat16)
    latents = workdir.latents[:1]
    assert torch.equal(rounded.as_dtype(torch.float32).decode(latents), single.decode(latents))
    assert torch.equal(single.as_dtype(torch.bfloat16).decode(latents), rounded.decode(latents))
    assert single.as_dtype(torch.float32) is single


def test_bfloat16_moves_delta_by_less_than_a_hundredth_of_its_median():
    """Rounding is nearly the same in every volume, so distances err less than volumes do."""
    workdir = open_workdir(DEMO)
    single = Decoder.from_workdir(workdir, device="cpu")
    latents = workdir.latents[:: len(workdir.latents) // 20]
    volumes, rounded = (
        decoder.decode(latents, 24) for decoder in (single, single.as_dtype(torch.bfloat16))
    )
    assert 1e-4 < relative_error(rounded, volumes) < 0.01
    upper = np.triu_indices(len(latents), 1)
    exact, found = (
        pairwise_distances(each).distances.numpy()[upper] for each in (volumes, rounded)
    )
    assert np.abs(found - exact).max() < 0.01 * np.median(exact)
    near = exact < np.quantile(exact, 0.1)
    assert (np.abs(found - exact) / exact)[near].max() < 0.02


def test_stream_gives_the_same_in_any_batches(vae_workdir, tolerance):
    workdir = open_workdir(vae_workdir)
    decoder = Decoder.from_workdir(workdir, device="cpu")
    latents = workdir.latents[:5]
    whole = decoder.decode(latents, 12)
    for batch in (None, 1, 2, 5):
        parts = list(decoder.decode_stream(latents, 12, batch))
        assert [len(part) for part in parts] == {1: [1] * 5, 2: [2, 2, 1]}.get(batch, [5])
        assert relative_error(torch.cat(parts), whole) < tolerance["float32"]
    assert not list(decoder.decode_stream(latents[:0], 12))


def test_small_chunks_give_the_same(vae_workdir, monkeypatch, tolerance):
    workdir = open_workdir(vae_workdir)
    decoder = Decoder.from_workdir(workdir, device="cpu")
    whole = decoder.decode(workdir.latents[:2])
    monkeypatch.setattr("cryodrgn_metric.decoder.POINTS_PER_CHUNK", {"cpu": 100})
    assert relative_error(decoder.decode(workdir.latents[:2]), whole) < tolerance["float32"]


def test_volumes_may_take_part_in_a_gradient(vae_workdir):
    workdir = open_workdir(vae_workdir)
    volume = Decoder.from_workdir(workdir, device="cpu").decode(workdir.latents[:1], 8)
    scale = torch.ones((), requires_grad=True)
    (scale * volume).square().sum().backward()
    assert scale.grad is not None


def test_decoding_changes_no_argument(vae_workdir):
    workdir = open_workdir(vae_workdir)
    latents, turns = workdir.latents[:2].copy(), np.stack([np.eye(3)] * 2)
    Decoder.from_workdir(workdir, device="cpu").decode(latents, 8, turns)
    np.testing.assert_array_equal(latents, workdir.latents[:2])
    np.testing.assert_array_equal(turns, np.stack([np.eye(3)] * 2))


def test_estimate_seconds_grows_with_the_work(vae_workdir):
    decoder = Decoder.from_workdir(open_workdir(vae_workdir), device="cpu")
    assert 0 < decoder.estimate_seconds(24, 1) < 60
    assert decoder.estimate_seconds(24, 10**6) > decoder.estimate_seconds(24, 1)


# -- turned volumes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("domain", ["fourier", "hartley"])
@pytest.mark.parametrize("axis", TURNS)
def test_quarter_turns_equal_rot90(tmp_path, tolerance, dtype, domain, axis):
    """Below Nyquist R·V is V turned about voxel n // 2: rot90 of what is left without plane 0."""
    workdir = make_workdir(tmp_path / "w", domain=domain)
    decoder = Decoder.from_workdir(workdir, "cpu", getattr(torch, dtype))
    matrix, axes = TURNS[axis]
    volume = decoder.decode(workdir.latents[:1], max_frequency=7)[0, 1:, 1:, 1:]
    turned = decoder.decode(workdir.latents[:1], None, np.array([matrix]), 7)[0, 1:, 1:, 1:]
    assert relative_error(turned, np.rot90(volume, 1, axes)) < tolerance[dtype]
    assert relative_error(turned, np.rot90(volume, -1, axes)) > 0.1


def test_rot90_here_is_the_active_rotation():
    """(R·V)(x) = V(R^T x): density at x goes to R x. One voxel shows which way TURNS go."""
    point = np.array([1, 2, 3])
    for matrix, axes in TURNS.values():
        volume = np.zeros((9, 9, 9))
        volume[tuple(4 + point[::-1])] = 1
        found = np.argwhere(np.rot90(volume, 1, axes))[0][::-1] - 4
        np.testing.assert_array_equal(found, np.array(matrix) @ point)


@pytest.mark.parametrize("domain", ["fourier", "hartley"])
def test_no_turn_is_no_turn(tmp_path, tolerance, domain):
    workdir = make_workdir(tmp_path / "w", domain=domain)
    decoder = Decoder.from_workdir(workdir, device="cpu")
    volumes = decoder.decode(workdir.latents[:2])
    turned = decoder.decode(workdir.latents[:2], rotations=torch.eye(3).expand(2, 3, 3))
    assert relative_error(turned, volumes) < tolerance["float32"]


def test_turns_are_exact_between_the_voxels(tmp_path, tolerance, generator):
    """Any R: the transform of R·V at k is the network's value at R^T k."""
    workdir = make_workdir(tmp_path / "w")
    decoder = Decoder.from_workdir(workdir, "cpu", torch.float64)
    turns = random_rotations(2, generator)
    turned = decoder.decode(workdir.latents[:2], rotations=turns, max_frequency=7)
    model = host_decoder(workdir)[0].double()
    k = np.array([[3, -2, 5], [1, 4, -2], [0, 3, 0], [6, 0, 0]])  # (x, y, z)
    x = np.arange(16) - 8
    for latent, turn, volume in zip(workdir.latents[:2], turns, turned, strict=True):
        wave = np.exp(-2j * np.pi / 16 * np.multiply.outer(k, x))
        measured = np.einsum("zyx,kz,ky,kx->k", volume, wave[:, 2], wave[:, 1], wave[:, 0])
        points = np.concatenate([k @ turn / 16, np.tile(latent.astype(float), (4, 1))], 1)
        with torch.no_grad():
            real, imaginary = model.decode(torch.as_tensor(points)).T.numpy() * workdir.norm[1]
        np.testing.assert_allclose(measured, real + 1j * imaginary, rtol=1e-8)


def test_turned_volumes_stream(tmp_path, tolerance, generator):
    workdir = make_workdir(tmp_path / "w")
    decoder = Decoder.from_workdir(workdir, device="cpu")
    turns = random_rotations(5, generator)
    whole = decoder.decode(workdir.latents, 8, turns)
    parts = torch.cat([*decoder.decode_stream(workdir.latents, 8, 2, turns)])
    assert relative_error(parts, whole) < tolerance["float32"]


# -- what is refused


@pytest.mark.parametrize("box", [7, 0, -2, 18])
def test_impossible_boxes(tmp_path, box):
    decoder = Decoder.from_workdir(make_workdir(tmp_path / "w"), device="cpu")
    with pytest.raises(ArgumentError, match="downsample"):
        decoder.decode(np.zeros((1, 3)), box)


@pytest.mark.parametrize("latents", [np.zeros(3), np.zeros((1, 4)), np.full((1, 3), np.nan)])
def test_impossible_latents(tmp_path, latents):
    decoder = Decoder.from_workdir(make_workdir(tmp_path / "w"), device="cpu")
    with pytest.raises(ArgumentError, match="latents"):
        decoder.decode(latents)


@pytest.mark.parametrize(
    "turn", [np.zeros((3, 3)), -np.eye(3), np.full((3, 3), np.nan), np.eye(2)]
)
def test_impossible_rotations(tmp_path, turn):
    decoder = Decoder.from_workdir(make_workdir(tmp_path / "w"), device="cpu")
    with pytest.raises(ArgumentError, match="rotations"):
        decoder.decode(np.zeros((1, 3)), rotations=turn[None])


def test_model_that_cryodrgn_cannot_evaluate(tmp_path):
    workdir = make_workdir(tmp_path / "w", pe_type="none", pe_dim=None, domain="hartley")
    with pytest.raises(WorkdirError, match="--pe-type none"):
        Decoder.from_workdir(workdir)


@pytest.mark.parametrize("changes", [{"dim": 21}, {"activation": "gelu"}, {"pe_dim": "many"}])
def test_checkpoint_and_config_must_agree(tmp_path, changes):
    workdir = make_workdir(tmp_path / "w")
    workdir.config["model_args"].update(changes)
    with pytest.raises(WorkdirError):
        Decoder.from_workdir(workdir)
    assert workdir.config["model_args"].items() >= changes.items()


def test_checkpoint_without_a_model(tmp_path):
    workdir = make_workdir(tmp_path / "w")
    torch.save({"epoch": 1}, workdir.weights_path)
    with pytest.raises(WorkdirError, match=r"weights\.1\.pkl"):
        Decoder.from_workdir(workdir)


@pytest.mark.parametrize(
    "changes",
    [
        {"dim": 10**6},
        {"layers": 10**9},
        {"layers": None},
        {"pe_dim": 10**9},
        {"zdim": 10**6},
        {"pe_type": "unheard of"},
        {"pe_type": ["geom_lowf"]},
        {"feat_sigma": "wide", "pe_type": "gaussian"},
    ],
)
def test_sizes_of_the_config_take_no_memory(tmp_path, changes):
    workdir = make_workdir(tmp_path / "w")
    workdir.config["model_args"].update(changes)
    with pytest.raises(WorkdirError):
        Decoder.from_workdir(workdir)


@pytest.mark.parametrize("extent", ["0.5", None, -1, 0, 10**99, float("nan"), [0.5]])
def test_odd_extents(tmp_path, extent):
    workdir = make_workdir(tmp_path / "w")
    workdir.config["lattice_args"]["extent"] = extent
    with pytest.raises(WorkdirError, match="extent"):
        Decoder.from_workdir(workdir)


@pytest.mark.parametrize(
    "change",
    [
        lambda value: value * torch.nan,
        lambda value: value.int(),
        lambda value: value.to(torch.complex64),
        lambda value: value[:1].expand(10**9, *value.shape[1:]),
        lambda value: value.tolist(),
    ],
)
def test_weights_that_are_no_numbers(tmp_path, change):
    workdir = make_workdir(tmp_path / "w")
    checkpoint = torch.load(workdir.weights_path, weights_only=True)
    state = checkpoint["model_state_dict"]
    state.update({name: change(value) for name, value in state.items()})
    torch.save(checkpoint, workdir.weights_path)
    with pytest.raises(WorkdirError, match=r"weights\.1\.pkl"):
        Decoder.from_workdir(workdir)


def test_bomb_in_the_weights(vae_workdir, tmp_path):
    folder, trace = tmp_path / "w", tmp_path / "executed"
    shutil.copytree(vae_workdir, folder)

    class Bomb:
        def __reduce__(self):
            return __import__("os").system, (f"touch {trace}",)

    torch.save({"model_state_dict": Bomb()}, folder / "weights.2.pkl")
    with pytest.raises(UnsafeFileError):
        Decoder.from_workdir(open_workdir(folder))
    assert not trace.exists()


def test_loading_keeps_the_callers_logging(vae_workdir):
    """`import cryodrgn` replaces the root handlers and silences loggers made before it."""
    logger, root = logging.getLogger("cryodrgn_metric.workdir"), logging.getLogger()
    before = list(root.handlers), root.level
    Decoder.from_workdir(open_workdir(vae_workdir))
    assert not logger.disabled
    assert (root.handlers, root.level) == before
