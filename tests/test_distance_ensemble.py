"""The ensemble: h_psi untouched, error bars of any pair, files."""

import numpy as np
import pytest
import yaml

from cryodrgn_metric.distance_ensemble import LEVELS, DistanceEnsemble
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import ArgumentError, MetricError


def toy(count: int = 90) -> tuple[np.ndarray, np.ndarray]:
    """Latents, the last column of which is a rotation, and their distances."""
    z = np.random.default_rng(0).normal(size=(count, 3))
    return z, 7.0 * np.linalg.norm(z[:, None, :2] - z[None, :, :2], axis=-1)


def quick(**options: object) -> DistanceNet:
    return DistanceNet(**{"width": 16, "max_epochs": 5, "progress": False, **options})


@pytest.fixture(scope="module")
def fitted() -> DistanceEnsemble:
    z, distances = toy()
    ensemble = DistanceEnsemble(3, quick()).fit(z[:60], distances[:60, :60])
    return ensemble.calibrate(z[60:], distances[60:, 60:])


def test_member_0_is_h_psi_itself(fitted: DistanceEnsemble) -> None:
    z, distances = toy()
    alone = quick().fit(z[:60], distances[:60, :60])
    assert np.array_equal(fitted.predict(z[:50], z[20:70]), alone.predict(z[:50], z[20:70]))
    found = DistanceEnsemble(2, alone).fit(z[:60], distances[:60, :60])
    assert found.members_[0] is alone
    assert np.array_equal(found.predict_members(z)[0], alone.predict_matrix(z))


def test_members_differ_and_the_same_seed_gives_the_same_bits(fitted: DistanceEnsemble) -> None:
    z, distances = toy()
    first, second, third = fitted.predict_members(z)
    assert np.abs(first - second).max() > 0 < np.abs(second - third).max()
    again = DistanceEnsemble(3, quick()).fit(z[:60], distances[:60, :60])
    assert np.array_equal(again.predict_members(z), fitted.predict_members(z))
    other = DistanceEnsemble(3, quick(seed=7)).fit(z[:60], distances[:60, :60])
    assert not np.array_equal(other.predict_members(z)[1], second)


def test_bars_are_positive_symmetric_and_longer_for_more_coverage(
    fitted: DistanceEnsemble,
) -> None:
    a, b = 3 * np.random.default_rng(1).normal(size=(2, 500, 3))
    bars = [fitted.error_bar(a, b, level) for level in LEVELS]
    assert all(bar.dtype == np.float32 and (bar > 0).all() for bar in bars)
    assert (np.diff(bars, axis=0) >= 0).all()
    assert np.array_equal(fitted.error_bar(a, b), fitted.error_bar(b, a))
    assert (fitted.error_bar(a, a) > 0).all()  # that h is 0 there is certain; its bar is the floor


def test_all_ways_to_ask_agree(fitted: DistanceEnsemble, tolerance: dict[str, float]) -> None:
    z, _ = toy(20)
    i, j = np.triu_indices(20, 1)
    matrix = fitted.error_bar_matrix(z, 0.95)
    assert np.array_equal(matrix, matrix.T) and not matrix.diagonal().any()
    # spreads are differences of distances, each rounded in another order
    near = {"rtol": 200 * tolerance["float32"], "atol": 200 * tolerance["float32"]}
    np.testing.assert_allclose(fitted.error_bar(z[i], z[j], 0.95), matrix[i, j], **near)
    distances, bars = fitted.error_bars_to(z, z, 0.95)
    np.testing.assert_allclose(bars[i, j], matrix[i, j], **near)
    np.testing.assert_allclose(distances[i, j], fitted.predict(z[i], z[j]), **near)
    np.testing.assert_allclose(fitted.spread_to(z, z)[1][i, j], fitted.spread(z[i], z[j]), **near)


def test_calibrated_bars_hold_on_what_calibrated_them(fitted: DistanceEnsemble) -> None:
    """By construction: k_p is the p quantile of error / bar on these pairs."""
    z, distances = toy()
    i, j = np.triu_indices(30, 1)
    errors = np.abs(fitted.predict_members(z[60:])[0] - distances[60:, 60:])[i, j]
    for level in LEVELS:
        inside = errors <= fitted.error_bar_matrix(z[60:], level)[i, j] * (1 + 1e-6)
        assert inside.mean() == pytest.approx(level, abs=1.5 / len(errors))


def test_volumes_that_are_all_alike() -> None:
    z, distances = toy(40)
    ensemble = DistanceEnsemble(2, quick()).fit(z, 0 * distances).calibrate(z, 0 * distances)
    assert np.isfinite(ensemble.error_bar(z[:5], z[5:10])).all()


def test_save_and_load_give_the_same_bits(fitted: DistanceEnsemble, tmp_path) -> None:
    z, _ = toy()
    fitted.members_[0].save(tmp_path)
    fitted.save(tmp_path)
    names = ("h_psi", "h_psi_ensemble")
    expected = [f"{name}.{kind}" for name in names for kind in ("safetensors", "yaml")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)
    found = DistanceEnsemble.load(tmp_path)
    assert found.members == 3
    assert np.array_equal(found.predict_members(z), fitted.predict_members(z))
    for level in LEVELS:
        assert np.array_equal(found.error_bar_matrix(z, level), fitted.error_bar_matrix(z, level))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("members", []),
        ("members", "three"),
        ("members", [{"unit": 1.0}]),
        ("ratio", -1.0),
        ("ratio", None),
        ("factors", [[0.68, "much"]]),
        ("factors", {"a": 1}),
    ],
)
def test_changed_settings_are_an_error_that_names_the_file(
    fitted: DistanceEnsemble, tmp_path, name: str, value: object
) -> None:
    fitted.members_[0].save(tmp_path)
    fitted.save(tmp_path)
    settings = yaml.safe_load((tmp_path / "h_psi_ensemble.yaml").read_text())
    (tmp_path / "h_psi_ensemble.yaml").write_text(yaml.safe_dump(settings | {name: value}))
    with pytest.raises(MetricError, match=r"h_psi_ensemble\.yaml"):
        DistanceEnsemble.load(tmp_path)


def test_refusals(fitted: DistanceEnsemble, tmp_path) -> None:
    z, distances = toy(30)
    for members in (1, 0, 2.5, True):
        with pytest.raises(ArgumentError, match="at least 2 members"):
            DistanceEnsemble(members, quick()).fit(z, distances)
    with pytest.raises(MetricError, match="not fitted"):
        DistanceEnsemble(2).error_bar(z, z)
    raw = DistanceEnsemble(2, quick(max_epochs=1)).fit(z, distances)
    for ask in (lambda: raw.error_bar(z, z), lambda: raw.save(tmp_path)):
        with pytest.raises(MetricError, match="not calibrated"):
            ask()
    with pytest.raises(ArgumentError, match="a coverage among 0.5, 0.68"):
        fitted.error_bar(z, z, 0.7)
    for wrong in (distances[:, :5], distances[:1, :1], distances[0]):
        with pytest.raises(ArgumentError, match="expected distances"):
            raw.calibrate(z[: len(wrong)], wrong)
    with pytest.raises(ArgumentError, match="a latent for each row"):
        raw.calibrate(z[:20], distances)
