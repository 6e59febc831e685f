"""What other estimators make of the same distances: those of scikit-dimension, where it is."""

from __future__ import annotations

import warnings
from importlib import metadata

import numpy as np
import numpy.typing as npt

__all__ = ["INSTALL_LINE", "checks_version", "cross_check"]

FloatArray = npt.NDArray[np.float64]

INSTALL_LINE = "pip install 'cryodrgn_metric[dimension]'"


def checks_version() -> str | None:
    """The version of scikit-dimension, or None where it is not installed."""
    try:
        return metadata.version("scikit-dimension")
    except metadata.PackageNotFoundError:
        return None


def cross_check(distances: FloatArray, neighbors: int) -> dict[str, float]:
    """Estimate the dimension by the two estimators of scikit-dimension that take distances.

    Both see how the number of neighbours grows with distance: the correlation integral over all
    points, and the same at each of them.

    Arguments:
        distances: Symmetric, zero on the diagonal. (n, n)
        neighbors: Within which growth is seen, from half of them on.

    Returns:
        "CorrInt" and "MADA"; empty where scikit-dimension is not installed, and without one that
        found no number.

    References:
        | Measuring the strangeness of strange attractors (Grassberger & Procaccia, 1983),
          doi:10.1016/0167-2789(83)90298-1
        | Manifold-adaptive dimension estimation (Farahmand et al., 2007),
          doi:10.1145/1273496.1273530
    """
    if checks_version() is None:
        return {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it brings its own, of numba and of few points
        from skdim.id import MADA, CorrInt

        growth = CorrInt(k1=max(1, neighbors // 2), k2=neighbors, DM=True).fit(distances)
        # it writes into what it is given
        adaptive = MADA(DM=True).fit(distances.copy(), n_neighbors=neighbors)
    found = {"CorrInt": float(growth.dimension_), "MADA": float(adaptive.dimension_)}
    return {name: value for name, value in found.items() if np.isfinite(value)}
