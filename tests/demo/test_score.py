"""The demo's judges, on cases whose answer is known."""

import numpy as np
import pytest

from cryodrgn_metric.demo import score


@pytest.fixture
def structure(generator):
    """Motion level and state of 4,000 particles, every level equally often."""
    return np.tile(np.arange(80), 50), generator.integers(0, 2, 4000)


def test_nuisance_share_is_nothing_when_structure_is_all(structure):
    motion, state = structure
    points = np.stack([motion // 2, 50 * state], 1)
    assert score.nuisance_share(points, motion, state) == pytest.approx(0, abs=1e-12)


def test_nuisance_share_is_everything_without_structure(structure, generator):
    assert score.nuisance_share(generator.normal(size=(4000, 2)), *structure) > 0.97


def test_nuisance_share_weighs_variance(structure, generator):
    """Structure of variance 1/4 beside a nuisance of variance 1/4."""
    motion, state = structure
    points = np.stack([state, generator.normal(scale=0.5, size=4000)], 1)
    assert score.nuisance_share(points, motion, state) == pytest.approx(0.5, abs=0.03)


def test_nuisance_share_is_blind_to_scale_and_shift(structure, generator):
    points = generator.normal(size=(4000, 3))
    expected = score.nuisance_share(points, *structure)
    assert score.nuisance_share(7 * points - 3, *structure) == pytest.approx(expected)


def test_spearman_is_blind_to_monotone_maps(generator):
    points = generator.normal(size=(20, 2))
    table = np.linalg.norm(points[:, None] - points[None], axis=-1)
    assert score.embedding_spearman(points, table**3) == pytest.approx(1)
    assert score.spearman(table, -table) == pytest.approx(-1)


def test_auc_of_a_visible_and_an_invisible_state(structure, generator):
    _, state = structure
    noise = generator.normal(size=(4000, 2))
    assert score.state_auc(noise, state) == pytest.approx(0.5, abs=0.05)
    assert score.state_auc(noise + 20 * state[:, None], state) == pytest.approx(1)
