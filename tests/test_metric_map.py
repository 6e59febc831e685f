"""f_xi: isometry of toys, collapse of rotations, laws of scale, reproducibility, files."""

import copy
import time

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform
from sklearn.base import clone

from cryodrgn_metric import networks
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import ArgumentError, MetricError
from cryodrgn_metric.fidelity import fidelity_of
from cryodrgn_metric.metric_map import MetricMap


def latents(count: int = 300, columns: int = 3) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, columns)).astype(np.float32)


def planar(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
    """The first two columns move; the others turn only."""
    return (z1 - z2)[:, :2].norm(dim=1)


def quick(components: int = 2, **options: object) -> MetricMap:
    defaults = {"width": 32, "steps": 30, "pairs_per_step": 500, "progress": False}
    return MetricMap(components, **{**defaults, **options})


def trained(components: int = 2, **options: object) -> MetricMap:
    return quick(components, **{"width": 64, "steps": 400, "pairs_per_step": 2000, **options})


@pytest.mark.parametrize("loss", ["relative", "weighted", "stress"])
def test_a_planar_distance_is_shown_as_it_is(loss: str) -> None:
    z = latents()
    found = trained(loss=loss).fit_transform(z, planar)
    stress = fidelity_of(found, squareform(pdist(z[:, :2])))["stress1_unscaled"]
    # what 400 steps of a small net leave; z itself has .3
    assert stress < 0.05


def test_pure_rotations_collapse() -> None:
    z = latents()
    turned = z.copy()
    turned[:, 2] = np.random.default_rng(1).permutation(z[:, 2])
    both = np.concatenate([z, turned])
    found = trained().fit_transform(both, planar)
    apart = np.linalg.norm(found[:300] - found[300:], axis=1)
    # 3 % of the median distance: the small net's error
    assert np.median(apart) < 0.03 * np.median(pdist(found))


def test_two_latents_at_distance_zero_meet() -> None:
    z = latents(2)
    found = quick(steps=200).fit_transform(z, np.zeros((2, 2)))
    # Adam's last steps are not zero; the start is about 1
    assert np.linalg.norm(found[0] - found[1]) < 1e-2


def test_only_the_weight_is_floored_never_the_target() -> None:
    z = latents(2)
    found = quick(steps=300, epsilon=1.0).fit_transform(z, np.array([[0, 0.02], [0.02, 0]]))
    # the target .02, far below epsilon, is reached, to 10 %
    assert abs(np.linalg.norm(found[0] - found[1]) - 0.02) < 2e-3


def test_output_scales_with_the_distance() -> None:
    z = latents()
    once = quick().fit_transform(z, planar)
    twice = quick().fit_transform(z, lambda a, b: 2 * planar(a, b))
    assert np.array_equal(twice, 2 * once)  # a power of two: exact


def test_function_matrix_and_net_agree() -> None:
    z = latents(60)
    net = DistanceNet(width=16, max_epochs=3, progress=False)
    net.fit(z, squareform(pdist(z[:, :2])))
    whole = quick().fit_transform(z, net)
    assert np.array_equal(quick().fit_transform(z, net.predict), whole)
    matrix = quick(steps=5).fit_transform(z, net.predict_matrix(z))
    function = quick(steps=5).fit_transform(z, lambda a, b: net.predict(a, b))
    # float32 sums in another order, amplified by 5 steps
    np.testing.assert_allclose(matrix, function, atol=2e-3 * np.abs(matrix).max())


def test_epsilon_is_recorded() -> None:
    z = latents()
    median = np.median(pdist(z[:, :2]))
    found = quick(steps=1).fit(z, squareform(pdist(z[:, :2]))).epsilon_
    assert found == pytest.approx(0.1 * median, rel=1e-5)  # float32 distances
    assert quick(steps=1, epsilon=0.3).fit(z, planar).epsilon_ == 0.3


def test_axes_are_centred_ordered_and_signed() -> None:
    z = latents()
    found = quick(3).fit_transform(z, planar).astype(np.float64)
    covariance = np.cov(found.T)
    # float32 coordinates
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(covariance, np.diag(covariance.diagonal()), atol=1e-5)
    assert (np.diff(covariance.diagonal()) <= 0).all()
    assert ((found**3).sum(axis=0) >= -1e-3).all()


def test_same_seed_same_bits_and_global_state_untouched() -> None:
    z = latents()
    state = torch.random.get_rng_state()
    first = quick().fit_transform(z, planar)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert np.array_equal(quick().fit_transform(z, planar), first)
    assert not np.array_equal(quick(seed=1).fit_transform(z, planar), first)


def test_saved_map_gives_the_same_bits(tmp_path) -> None:
    z = latents()
    found = quick().fit(z, planar)
    found.save(tmp_path)
    loaded = MetricMap.load(tmp_path)
    assert np.array_equal(loaded.transform(z), found.transform(z))
    assert (loaded.epsilon_, loaded.unit_) == (found.epsilon_, found.unit_)
    assert loaded.history_ == found.history_
    assert sorted(p.name for p in tmp_path.iterdir()) == ["f_xi.safetensors", "f_xi.yaml"]


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("components", [1, 4])
def test_few_dimensions(columns: int, components: int) -> None:
    z = latents(50, columns)
    found = quick(components).fit_transform(z, planar)
    assert found.shape == (50, components)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_equal_latents_have_safe_gradients() -> None:
    z = np.repeat(latents(20), 3, axis=0)
    assert np.isfinite(quick().fit_transform(z, planar)).all()


def in_double(network: torch.nn.Module, z: np.ndarray) -> torch.Tensor:
    """The network's Jacobians by reverse mode, one row at a time, in float64. (n, d', d)"""
    double = copy.deepcopy(network).double()
    rows = torch.from_numpy(z).double()
    return torch.stack([torch.autograd.functional.jacobian(double, row) for row in rows])


@pytest.mark.parametrize("components", [1, 2, 4])
def test_jacobian_is_that_of_autograd(components: int, tolerance: dict[str, float]) -> None:
    z = latents(40)
    found = quick(components).fit(z, planar)
    jacobian = found.jacobian(z)
    assert (jacobian.shape, jacobian.dtype) == ((40, components, 3), np.float32)
    expected = in_double(found._network, z).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(jacobian, expected, atol=10 * tolerance["float32"] * scale, rtol=0)


def test_jacobian_is_that_of_finite_differences() -> None:
    z = latents(40)
    found = quick().fit(z, planar)
    double = copy.deepcopy(found._network).double()
    step, rows = 1e-5, torch.from_numpy(z).double()
    with torch.no_grad():
        columns = [
            (double(rows + step * axis) - double(rows - step * axis)) / (2 * step)
            for axis in torch.eye(3, dtype=torch.float64)
        ]
    expected = torch.stack(columns, dim=-1).numpy()
    # float32 networks against differences in float64
    np.testing.assert_allclose(found.jacobian(z), expected, atol=1e-4 * np.abs(expected).max())


def test_jacobian_does_not_depend_on_chunks(monkeypatch) -> None:
    z = latents(50)
    found = quick().fit(z, planar)
    whole = found.jacobian(torch.from_numpy(z))
    assert found.jacobian(z[:0]).shape == (0, 2, 3)
    monkeypatch.setattr(networks, "ROWS_PER_CHUNK", 7 * 4 * 3)
    # another shape of product may round elsewhere
    np.testing.assert_allclose(found.jacobian(z), whole, atol=1e-5 * np.abs(whole).max())


def test_jacobian_follows_a_planar_distance() -> None:
    z = latents()
    jacobian = trained().fit(z, planar).jacobian(z)
    singular = np.linalg.svd(jacobian, compute_uv=False)
    # an isometry of the first two columns, blind to the third: what a small net reaches
    assert np.abs(np.median(singular, axis=0) - 1).max() < 0.05
    assert np.median(np.abs(jacobian[:, :, 2])) < 0.05


def test_scikit_learn_manners() -> None:
    model = quick(loss="weighted")
    assert clone(model).get_params() == model.get_params()
    assert model.set_params(n_components=3).n_components == 3
    history = quick(steps=25).fit(latents(), planar).history_
    assert history["step"] == [10, 20, 25]
    assert len(history["loss"]) == 3


def test_unlike_arguments_are_refused() -> None:
    z = latents(20)
    for options in ({"loss": "other"}, {"components": 0}, {"epsilon": 0.0}, {"steps": 0}):
        with pytest.raises(ArgumentError):
            quick(**options).fit(z, planar)
    for distance in (np.zeros((3, 3)), lambda a, b: a, lambda a, b: -planar(a, b)):
        with pytest.raises(ArgumentError):
            quick().fit(z, distance)
    with pytest.raises(ArgumentError):
        quick().fit(z[:, 0], planar)
    with pytest.raises(ArgumentError):
        quick().fit(z, planar).transform(z[:, :2])
    with pytest.raises(ArgumentError):
        quick().fit(z, planar).jacobian(z[:, :2])
    for method in ("transform", "jacobian"):
        with pytest.raises(MetricError):
            getattr(quick(), method)(z)


@pytest.mark.slow
def test_a_million_latents() -> None:
    import resource

    z = latents(1_000_000, 8)
    model = MetricMap(steps=2, progress=False).fit(z, planar)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    assert model.transform(z).shape == (1_000_000, 2)
    assert time.perf_counter() - start < 60  # seconds
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4e6  # KiB
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1e6
