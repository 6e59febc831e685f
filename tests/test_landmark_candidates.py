"""Which particles may be landmarks: particle numbers or a mask, and nothing else."""

import numpy as np
import pytest

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.landmark_candidates import candidate_pool, rows_of_particles


@pytest.mark.parametrize("candidates", [{"a": 1}, [0.5] * 20, [[1, 2], [3, 4]], [True] * 20])
def test_what_are_no_particle_numbers_is_refused(candidates: object) -> None:
    with pytest.raises(ArgumentError, match="--ind must hold"):
        candidate_pool(candidates, 300)  # type: ignore[arg-type]


def test_particles_of_the_original_stack_become_rows_of_z(
    caplog: pytest.LogCaptureFixture,
) -> None:
    numbers = [40, 7, 12, 3]
    np.testing.assert_array_equal(rows_of_particles([3, 40, 40], numbers), [0, 3])
    assert not caplog.text
    np.testing.assert_array_equal(rows_of_particles([12, 5, 6], numbers), [2])
    assert "2 of the 3 particles in --ind are ignored" in caplog.text
    mask = np.array([False, True, False, True])
    np.testing.assert_array_equal(rows_of_particles(mask, numbers), [1, 3])


@pytest.mark.parametrize("particles", [[-1, 7], [0.5], [[7]], [[1], [2, 3]], [True], {"a": 1}])
def test_what_are_no_numbers_or_a_wrong_mask_is_refused(particles: object) -> None:
    with pytest.raises(ArgumentError, match="--ind"):
        rows_of_particles(particles, [40, 7, 12, 3])
