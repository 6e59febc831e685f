"""A GPU gives what the CPU gives: `pytest tests/test_cuda.py`, skipped where there is none."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import quiet
from running import SMALL, options_of
from scipy.spatial.distance import squareform
from scipy.spatial.transform import Rotation
from shipped import DEMO, copied_demo

import cryodrgn_metric as cm
from cryodrgn_metric.config import DistanceNetConfig
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.pipeline import embed

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA GPU")

# float32 sums run in another order on a GPU, and refinement stops where its steps are below 1e-4
APART = 1e-4


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The demo's."""
    return copied_demo(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def latents():
    """Of forty of the demo's particles."""
    z = cm.open_workdir(DEMO).latents
    return z[np.random.default_rng(0).choice(len(z), 40, replace=False)]


def decoded(latents, device, **options):
    workdir = cm.open_workdir(DEMO)
    with quiet():
        decoder = Decoder.from_workdir(workdir, device=device, **options)
    return decoder.decode(latents)


@pytest.fixture(scope="module")
def volumes(latents):
    """Theirs, decoded on the CPU."""
    return decoded(latents, "cpu")


def relative_difference(found, expected):
    """The largest, of the largest there is."""
    found, expected = (torch.as_tensor(x).double().cpu() for x in (found, expected))
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(("dtype", "limit"), [("float32", 1e-4), ("bfloat16", 0.05)])
def test_volumes_are_decoded_alike(latents, volumes, dtype, limit):
    found = decoded(latents, "cuda", dtype=getattr(torch, dtype))
    assert found.device.type == "cuda"
    assert relative_difference(found, volumes) < limit


@pytest.mark.parametrize("compare", ["pairwise", "rigid", "transport"])
def test_distances_are_alike(volumes, compare):
    function = getattr(cm, f"{compare}_distances")
    options = {"apix_in_angstroms": 6.0} if compare == "transport" else {}
    with quiet():
        expected = function(volumes, **options)
        found = function(volumes.cuda(), device="cuda", **options)
    matrices = [x.distances.double().cpu().numpy() for x in (found, expected)]
    np.testing.assert_allclose(*map(squareform, matrices), rtol=APART)


def test_a_known_rotation_is_found(latents):
    turns = Rotation.random(len(latents), random_state=0)
    with quiet():
        decoder = Decoder.from_workdir(cm.open_workdir(DEMO), device="cuda")
    pair = torch.cat(
        [decoder.decode(latents), decoder.decode(latents, rotations=turns.as_matrix())]
    )
    found = cm.pairwise_distances(pair, device="cuda")
    i = np.arange(len(latents))
    rotations = found.rotations[i + len(i), i].double().cpu().numpy()
    off = Rotation.from_matrix(rotations) * turns.inv()
    assert np.degrees(off.magnitude()).max() < 0.5


def test_models_are_fitted_alike(volumes):
    with quiet():
        found, expected = (
            cm.fit_models(volumes[:6].numpy(), 6.0, device=device) for device in ("cuda", "cpu")
        )
    # a fit of many steps ends a little elsewhere where a volume is not explained well
    np.testing.assert_allclose(found.correlations, expected.correlations, atol=0.01)
    distances = [
        squareform(cm.atom_distances(torch.from_numpy(fits.coordinates)).distances)
        for fits in (found, expected)
    ]
    assert np.corrcoef(*distances)[0, 1] > 0.99


def test_nets_learn_on_the_gpu_and_are_read_on_the_cpu(tmp_path):
    z = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    truth = np.linalg.norm(z[:, None, :2] - z[None, :, :2], axis=-1)
    net = cm.DistanceNet(max_epochs=60, device="cuda", progress=False)
    net.fit(z[:150], truth[:150, :150])
    net.save(tmp_path)
    on_cpu = cm.DistanceNet.load(tmp_path, device="cpu")
    found = net.predict_matrix(z)
    assert relative_difference(found, on_cpu.predict_matrix(z)) < 1e-4
    held_out = np.s_[150:, 150:]
    assert np.median(np.abs(found - truth)[held_out]) < 0.1 * np.median(truth)
    for kind in ("mlp", "flow"):
        fitted = cm.MetricMap(3, map=kind, steps=200, device="cuda", progress=False).fit(z, net)
        fitted.save(tmp_path / kind)
        mapped = fitted.transform(z)
        read = cm.MetricMap.load(tmp_path / kind, device="cpu")
        assert relative_difference(mapped, read.transform(z)) < 1e-4
        if kind == "flow":
            assert relative_difference(fitted.inverse(mapped), z) < 1e-4
    assert net.metric_tensor(z).shape == (200, 3, 3)
    members = cm.DistanceEnsemble(3, cm.DistanceNet(max_epochs=20, device="cuda", progress=False))
    assert (members.fit(z, truth).spread_to(z[:5], z[5:9])[1] >= 0).all()


@pytest.mark.parametrize(
    ("options", "same_landmarks"),
    [
        ((), True),
        (("--rigid", "se3"), True),
        (("--distance", "transport"), True),
        (("--distance", "atoms", "--no-amortization"), False),  # a fit can end elsewhere
        (("--sampling", "active", "--ensemble", "2"), False),  # other nets, other landmarks
        (("--map", "flow"), True),
        (("--dim", "auto", "--precision", "bfloat16"), False),
    ],
    ids=str,
)
def test_the_whole_command_runs_on_the_gpu(workdir, tmp_path, options, same_landmarks):
    def made(device):
        parsed = options_of(workdir, *SMALL, *options, "--device", device, "-o", tmp_path / device)
        config = embed_config(parsed)
        quick = {
            "distance_net": DistanceNetConfig(max_epochs=30),
            "metric_map": replace(config.metric_map, steps=100),
        }
        with quiet():
            embed(replace(config, **quick))
        return tmp_path / device

    gpu, cpu = (made(device) for device in ("cuda", "cpu"))
    assert "device: cuda" in (gpu / "metric_embed.yaml").read_text()
    with open(gpu / "z_metric.pkl", "rb") as file:
        assert np.isfinite(pickle.load(file)).all()
    if same_landmarks:
        found, expected = (np.load(folder / "distances.npz") for folder in (gpu, cpu))
        assert np.array_equal(found["landmark_indices"], expected["landmark_indices"])
        pairs = (squareform(arrays["distances"], checks=False) for arrays in (found, expected))
        np.testing.assert_allclose(*pairs, rtol=APART)
