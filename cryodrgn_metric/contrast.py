"""Contrast: how much of Delta is a difference of norms, and what --scale unit would measure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from cryodrgn_metric.errors import ArgumentError

__all__ = ["Contrast", "contrast_of", "norm_share", "unit_distances"]

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Contrast:
    """How much the norms of volumes matter; all without units.

    Arguments:
        norm_share: The share of Delta squared that is a difference of norms, 0 to 1.
        norm_variation: The standard deviation of the norms over their mean.
        unit_spearman: The rank correlation of Delta with what --scale unit would measure.
    """

    norm_share: float
    norm_variation: float
    unit_spearman: float


def contrast_of(distances: npt.ArrayLike, volume_norms: npt.ArrayLike) -> Contrast:
    """Sums up the part that contrast plays, as `norm_share` and `unit_distances` measure it.

    Arguments:
        distances: Delta, measured with --scale none. (L, L)
        volume_norms: In units of Delta. (L,)

    Raises:
        ArgumentError: As in `unit_distances`.

    Example:
        >>> found = contrast_of([[0, 3, 5], [3, 0, 4], [5, 4, 0]], [5.0, 5.0, 5.0])
        >>> found.norm_share, found.unit_spearman
        (0.0, 1.0)
    """
    delta, norms = _checked(distances, volume_norms)
    upper = np.triu_indices(len(delta), 1)
    measured, unit = delta[upper], unit_distances(delta, norms)[upper]
    vary = len(measured) > 1 and np.ptp(measured) > 0 and np.ptp(unit) > 0
    return Contrast(
        norm_share=norm_share(norms, delta),
        norm_variation=float(norms.std() / norms.mean()),
        unit_spearman=float(spearmanr(measured, unit).statistic) if vary else float("nan"),
    )


def norm_share(volume_norms: npt.ArrayLike, distances: npt.ArrayLike) -> float:
    r"""Gives the share of the squared distances that is a difference of norms.

    .. math:: \sum_{i<j} (\|V_i\| - \|V_j\|)^2 \,\Big/ \sum_{i<j} \Delta_{ij}^2

    No rotation can take this part away: :math:`\Delta \geq | \|V_i\| - \|V_j\| |`. It holds
    what multiplies a volume, such as drifting contrast, but also density that comes and goes.

    Arguments:
        volume_norms: In units of Delta. :math:`(L,)`
        distances: Delta, measured with --scale none. :math:`(L, L)`

    Returns:
        Between 0 and 1; nan if all distances are 0.

    Raises:
        ArgumentError: As in `unit_distances`.

    Example:
        >>> norm_share([4.0, 5.0], [[0, 2], [2, 0]])
        0.25
    """
    delta, norms = _checked(distances, volume_norms)
    total = float(np.square(delta).sum())
    between = float(np.square(norms[:, None] - norms[None]).sum())
    return between / total if total > 0 else float("nan")


def unit_distances(distances: npt.ArrayLike, volume_norms: npt.ArrayLike) -> FloatArray:
    r"""Computes what --scale unit would measure, without measuring again.

    .. math:: \Delta_\text{unit}(a, b)^2 = \min_R \Big\| \frac{a}{\|a\|} -
        \frac{R b}{\|b\|} \Big\|^2 = \frac{\Delta^2 - (\|a\| - \|b\|)^2}{\|a\|\, \|b\|}

    Exact, because the rotation of least distance is the one of largest overlap, whatever the
    norms. Against a run with --scale unit small differences remain, below 0.1 %: each run drops
    its own small radial components (docs/distance.md).

    Arguments:
        distances: Delta, measured with --scale none. :math:`(L, L)`
        volume_norms: In units of Delta. :math:`(L,)`

    Returns:
        Distances of volumes of norm 1, from 0 to 2. :math:`(L, L)`

    Raises:
        ArgumentError: If shapes disagree, or a norm is not positive.

    Example:
        >>> float(unit_distances([[0, 2], [2, 0]], [4.0, 5.0])[0, 1] ** 2)  # (4 - 1) / 20
        0.15000000000000002
    """
    delta, norms = _checked(distances, volume_norms)
    squared = np.square(delta) - np.square(norms[:, None] - norms[None])
    return np.asarray(np.sqrt(np.maximum(squared, 0) / np.outer(norms, norms)))


def _checked(
    distances: npt.ArrayLike, volume_norms: npt.ArrayLike
) -> tuple[FloatArray, FloatArray]:
    delta = np.asarray(distances, dtype=np.float64)
    norms = np.asarray(volume_norms, dtype=np.float64)
    if norms.ndim != 1 or delta.shape != (len(norms), len(norms)):
        raise ArgumentError(
            f"expected distances (L, L) and norms (L,); got {delta.shape} and {norms.shape}."
        )
    if not (np.isfinite(norms) & (norms > 0)).all():
        raise ArgumentError("expected norms > 0; got 0, negative, NaN or infinity.")
    return delta, norms
