"""Error bars against a distance that is known in closed form."""

import numpy as np
import pytest

from cryodrgn_metric.distance_ensemble import LEVELS, DistanceEnsemble
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.error_bars import judge_error_bars, relative_error_bars

TRAINED, CALIBRATED, JUDGED = 120, 60, 120


def truth(z: np.ndarray) -> np.ndarray:
    """Points on a bent sheet, apart as the crow flies: a pseudometric that is no norm of z."""
    points = np.column_stack([z[:, 0], z[:, 1], np.sin(2 * z[:, 0])])
    return np.linalg.norm(points[:, None] - points[None], axis=-1)


@pytest.fixture(scope="module")
def made() -> tuple[DistanceEnsemble, np.ndarray]:
    z = np.random.default_rng(0).uniform(-2, 2, size=(TRAINED + CALIBRATED + JUDGED, 3))
    net = DistanceNet(width=32, max_epochs=40, progress=False)
    ensemble = DistanceEnsemble(4, net).fit(z[:TRAINED], truth(z[:TRAINED]))
    some = z[TRAINED : TRAINED + CALIBRATED]
    return ensemble.calibrate(some, truth(some)), z


def test_coverage_is_nominal_on_landmarks_that_calibrated_nothing(made) -> None:
    ensemble, z = made
    judged = z[-JUDGED:]
    found = judge_error_bars(ensemble, judged, truth(judged))
    assert found["landmarks"] == JUDGED and found["pairs"] == JUDGED * (JUDGED - 1) // 2
    for level in LEVELS:
        # pairs share landmarks: there are about as many independent ones as half the landmarks
        share = level * (1 - level)
        error = np.sqrt(share / (CALIBRATED / 2) + share / (JUDGED / 2))
        assert found["coverage"][str(level)] == pytest.approx(level, abs=2 * error)
    low, high = found["coverage_interval"]
    assert low < found["coverage"]["0.68"] < high
    assert found["spearman"] > 0.2  # longer bars, larger errors


def test_coverage_is_counted_as_by_hand(made) -> None:
    ensemble, z = made
    judged = z[-20:]
    errors = np.abs(ensemble.predict_members(judged)[0] - truth(judged))
    bars = ensemble.error_bar_matrix(judged, 0.9)
    inside = [errors[i, j] <= bars[i, j] for i in range(20) for j in range(i)]
    found = judge_error_bars(ensemble, judged, truth(judged))
    assert found["coverage"]["0.9"] == pytest.approx(np.mean(inside))


def test_two_landmarks_have_a_coverage_but_no_interval(made) -> None:
    ensemble, z = made
    found = judge_error_bars(ensemble, z[-2:], truth(z[-2:]))
    assert found["pairs"] == 1 and np.isnan(found["coverage_interval"]).all()
    assert np.isnan(found["spearman"])


def test_particles_far_from_all_landmarks_are_less_sure(made) -> None:
    ensemble, z = made
    near, far = z[-JUDGED:], z[-JUDGED:] + [0, 6, 0]
    bars = relative_error_bars(ensemble, np.concatenate([near, far]), z[:TRAINED])
    assert bars.shape == (2 * JUDGED,) and bars.dtype == np.float32 and (bars > 0).all()
    assert np.median(bars[JUDGED:]) > 1.5 * np.median(bars[:JUDGED])


def test_the_relative_bar_is_the_median_over_landmarks(made) -> None:
    ensemble, z = made
    marks = z[:9]  # fewer than are taken at most: all of them
    bars = relative_error_bars(ensemble, z[-5:], marks)
    for row, found in zip(z[-5:], bars, strict=True):
        rows = np.repeat(row[None], len(marks), axis=0)
        distances = np.maximum(ensemble.predict(rows, marks), ensemble.shortest)
        expected = np.median(ensemble.error_bar(rows, marks) / distances)
        assert found == pytest.approx(expected, rel=2e-3)  # float32 spreads, in another order
