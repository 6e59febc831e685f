"""Sketches of a latent space; that they serve as landmarks is tested in test_landmarks.py."""

import numpy as np
import pytest

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.sketches import nearest_unused


def test_nearest_unused_takes_the_next_nearest() -> None:
    points = [[0.0], [1.0], [2.0], [9.0]]
    assert nearest_unused(points, [[0.0], [0.1], [0.2], [0.3]]).tolist() == [0, 1, 2, 3]
    with pytest.raises(ArgumentError):
        nearest_unused(points, np.zeros((5, 1)))
