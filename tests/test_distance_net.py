"""h_psi: the axioms that hold by construction, learning, reproducibility, files."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import ArgumentError, MetricError


def toy(count: int = 80, columns: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Latents whose last column is a rotation (if there are two), and their distances."""
    z = np.random.default_rng(0).normal(size=(count, columns))
    motion = z[:, : max(1, columns - 1)]
    return z, 7.0 * np.linalg.norm(motion[:, None] - motion[None], axis=-1)


def quick(**options: object) -> DistanceNet:
    return DistanceNet(**{"width": 32, "max_epochs": 5, "progress": False, **options})


@pytest.fixture(scope="module")
def fitted() -> DistanceNet:
    return quick(max_epochs=40, width=64).fit(*toy())


def test_axioms_hold_by_construction(fitted: DistanceNet) -> None:
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(2, 1003, 3)) * 5  # far outside the landmarks too
    assert np.array_equal(fitted.predict(a, b), fitted.predict(b, a))
    assert not fitted.predict(a, a).any()
    assert (fitted.predict(a, b) >= 0).all()
    matrix = fitted.predict_matrix(a[:50])
    assert np.array_equal(matrix, matrix.T)
    assert not matrix.diagonal().any()
    # float32 rounding of sums of 64 squares, relative to the largest side
    slack = matrix[:, :, None] + matrix[None] - matrix[:, None, :]
    assert slack.min() > -1e-5 * matrix.max()


def test_predict_matrix_agrees_with_predict(fitted: DistanceNet) -> None:
    z, _ = toy(20)
    i, j = np.triu_indices(20, 1)
    # float32: another order of summation and other batch shapes
    np.testing.assert_allclose(
        fitted.predict_matrix(z)[i, j], fitted.predict(z[i], z[j]), rtol=1e-4, atol=1e-4
    )


def test_metric_tensor_is_half_the_hessian_of_the_squared_distance(
    fitted: DistanceNet, tolerance: dict[str, float]
) -> None:
    z, _ = toy(12)
    found = fitted.metric_tensor(z)
    assert (found.shape, found.dtype) == ((12, 3, 3), np.float32)
    double = copy.deepcopy(fitted._network).double()

    def half_squared(z1: torch.Tensor, z2: torch.Tensor) -> torch.Tensor:
        return 0.5 * fitted.unit_**2 * (double(z1) - double(z2)).square().sum()

    rows = torch.from_numpy(z)
    expected = torch.stack(
        [torch.autograd.functional.hessian(partial(half_squared, row), row) for row in rows]
    ).numpy()
    # a product of two float32 Jacobians, each a product of four layers
    np.testing.assert_allclose(found, expected, atol=20 * tolerance["float32"] * expected.max())


def test_metric_tensor_is_symmetric_and_not_negative(fitted: DistanceNet) -> None:
    z = 5 * np.random.default_rng(1).normal(size=(500, 3))  # far outside the landmarks too
    found = fitted.metric_tensor(z)
    assert np.array_equal(found, found.transpose(0, 2, 1))
    assert np.linalg.eigvalsh(found.astype(np.float64)).min() > -1e-5 * found.max()
    assert fitted.metric_tensor(z[:0]).shape == (0, 3, 3)


def test_metric_tensor_measures_small_steps(fitted: DistanceNet) -> None:
    rng = np.random.default_rng(2)
    z, step = rng.normal(size=(50, 3)), 0.02 * rng.normal(size=(50, 3))
    predicted = fitted.predict(z - step / 2, z + step / 2)
    lengths = np.sqrt(np.einsum("ni,nij,nj->n", step, fitted.metric_tensor(z), step))
    # the next term is of second order in the step
    np.testing.assert_allclose(lengths, predicted, rtol=5e-3, atol=1e-3 * predicted.max())


def test_metric_tensor_of_a_known_distance() -> None:
    z, distances = toy(150)
    found = quick(width=64, max_epochs=80).fit(z, distances).metric_tensor(z)
    # Delta = 7 |motion|, blind to the last column: 49 on the diagonal, what a small net reaches
    assert np.abs(np.median(found, axis=0) / 49 - np.diag([1, 1, 0])).max() < 0.15


def test_learns_unseen_landmarks() -> None:
    z, distances = toy(150)
    train, validation, test = np.split(np.arange(150), [110, 120])
    net = quick(width=64, max_epochs=60).fit(z, distances, train, validation)
    i, j = np.triu_indices(30, 1)
    truth = distances[np.ix_(test, test)][i, j]
    error = np.abs(net.predict_matrix(z[test])[i, j] - truth) / truth
    # a short training of a small net; a constant prediction has .4
    assert np.median(error) < 0.08


def test_test_landmarks_never_matter() -> None:
    z, distances = toy()
    train, validation = np.arange(50), np.arange(50, 60)
    changed = distances.copy()
    changed[60:] *= 3
    changed[:, 60:] = changed[60:].T
    changed[60:, 60:] = distances[60:, 60:]
    nets = [quick().fit(z, d, train, validation) for d in (distances, changed)]
    assert np.array_equal(*[net.predict_matrix(z) for net in nets])


def test_same_seed_same_bits_and_global_state_untouched() -> None:
    z, distances = toy()
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    first = quick().fit(z, distances).predict_matrix(z)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(4)
    assert np.array_equal(quick().fit(z, distances).predict_matrix(z), first)
    assert not np.array_equal(quick(seed=1).fit(z, distances).predict_matrix(z), first)


def test_distances_scale() -> None:
    z, distances = toy()
    once, twice = (quick().fit(z, d).predict_matrix(z) for d in (distances, 2 * distances))
    assert np.array_equal(twice, 2 * once)  # a power of two: exact


def test_saved_net_predicts_the_same_bits(fitted: DistanceNet, tmp_path) -> None:
    z, _ = toy()
    fitted.save(tmp_path)
    loaded = DistanceNet.load(tmp_path)
    assert np.array_equal(loaded.predict_matrix(z), fitted.predict_matrix(z))
    assert loaded.history_ == fitted.history_
    assert loaded.best_epoch_ == fitted.best_epoch_
    assert sorted(p.name for p in tmp_path.iterdir()) == ["h_psi.safetensors", "h_psi.yaml"]


def test_history_has_one_entry_an_epoch_and_the_best_is_kept(fitted: DistanceNet) -> None:
    history = fitted.history_
    assert history["epoch"] == list(range(1, len(history["epoch"]) + 1))
    assert len(history["train"]) == len(history["validation"]) == len(history["epoch"])
    assert fitted.best_epoch_ == 1 + int(np.argmin(history["validation"]))


def test_tensors_in_tensors_out(fitted: DistanceNet) -> None:
    z = torch.zeros(4, 3)
    assert isinstance(fitted.predict(z, z), torch.Tensor)
    assert isinstance(fitted.predict_matrix(z), torch.Tensor)
    assert isinstance(fitted.predict(z.numpy(), z.numpy()), np.ndarray)


def test_one_column_and_constant_column_and_untouched_input() -> None:
    z, distances = toy(40, columns=1)
    z = np.hstack([z, np.full_like(z, 0.1)])
    kept = z.copy(), distances.copy()
    for latents in (z[:, :1], z):
        assert np.isfinite(quick().fit(latents, distances).predict_matrix(latents)).all()
    assert np.array_equal(z, kept[0]) and np.array_equal(distances, kept[1])


def test_all_distances_zero() -> None:
    z, distances = toy(30)
    assert np.isfinite(quick().fit(z, 0 * distances).predict_matrix(z)).all()


def test_unlike_arguments_are_refused(fitted: DistanceNet, tmp_path) -> None:
    z, distances = toy(20)
    cases = [
        (z[:, 0], distances, None, None),
        (z, distances[:10, :10], None, None),
        (np.where(z > 2, np.nan, z * np.nan), distances, None, None),
        (z, -distances, None, None),
        (z, np.triu(distances), None, None),
        (z, distances, [0, 1, 2], [2, 3]),
        (z, distances, [0, 1, 20], [2]),
        (z, distances, [0], [2]),
    ]
    for case in cases:
        with pytest.raises(ArgumentError):
            quick().fit(*case)
    with pytest.raises(ArgumentError):
        fitted.predict(z, z[:5])
    with pytest.raises(ArgumentError):
        fitted.predict(z[:, :2], z[:, :2])
    with pytest.raises(MetricError):
        quick().predict(z, z)
    with pytest.raises(MetricError):
        quick().metric_tensor(z)
    with pytest.raises(ArgumentError):
        fitted.metric_tensor(z[:, :2])
    with pytest.raises(MetricError):
        DistanceNet.load(tmp_path / "none")


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("unit", "far"),
        ("unit", float("nan")),
        ("unit", 1e39),
        ("unit", None),
        ("n_features_in", 3.0),
        ("n_features_in", 10**12),
        ("best_epoch", []),
        ("history", 5),
        ("parameters", None),
        ("parameters", {"width": 10**7}),
        ("parameters", {"depth": 10**9}),
        ("parameters", {"depth": -1}),
        ("parameters", {"width": True}),
        ("parameters", {"device": "cpu"}),
        ("parameters", {"surprise": 1}),
        ("parameters", {5: 1}),
    ],
)
def test_changed_settings_are_refused(fitted: DistanceNet, tmp_path, change, value) -> None:
    fitted.save(tmp_path)
    settings = yaml.safe_load((tmp_path / "h_psi.yaml").read_text())
    if change == "parameters" and isinstance(value, dict):
        value = settings["parameters"] | value
    (tmp_path / "h_psi.yaml").write_text(yaml.safe_dump(settings | {change: value}))
    with pytest.raises(MetricError, match=r"h_psi\.yaml"):
        DistanceNet.load(tmp_path)


@pytest.mark.parametrize("value", [torch.full((2,), torch.nan), torch.zeros(2, dtype=torch.int8)])
def test_changed_weights_are_refused(fitted: DistanceNet, tmp_path, value) -> None:
    fitted.save(tmp_path)
    state = load_file(tmp_path / "h_psi.safetensors") | {"mean": value}
    save_file(state, tmp_path / "h_psi.safetensors")
    with pytest.raises(MetricError, match=r"h_psi\.safetensors"):
        DistanceNet.load(tmp_path)
