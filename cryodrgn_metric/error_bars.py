"""What the error bars of h_psi are worth, and how large they are for every particle."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import spearmanr

from cryodrgn_metric.distance_ensemble import LEVELS, DistanceEnsemble
from cryodrgn_metric.fidelity import subsampling_interval

__all__ = ["USUAL", "judge_error_bars", "relative_error_bars"]

USUAL = 0.68  # coverage of the bars that are shown and saved
ROWS_PER_CHUNK = 16_384
MOST_LANDMARKS = 32  # that a particle's bars are taken to: memory and time grow with them


def judge_error_bars(
    ensemble: DistanceEnsemble, z: npt.ArrayLike, distances: npt.ArrayLike, seed: int = 0
) -> dict[str, Any]:
    """Counts how many errors lie within their bars, on landmarks that calibrated nothing.

    Arguments:
        ensemble: Calibrated with other landmarks.
        z: Latents of landmarks. (n, d)
        distances: Measured Delta among them. (n, n)
        seed: Of the interval.

    Returns:
        ``landmarks`` and ``pairs``: how many were judged. ``coverage``: of each level of LEVELS
        (as text) the share of pairs whose error is within the bar of that level.
        ``coverage_interval``: of the 0.68 bar, the 95 % subsampling interval over landmarks;
        nan with fewer than 3. ``median_relative_bar``: of the 0.68 bar. ``spearman``: of bars
        with the size of errors; nan where either is constant.

    Example:
        >>> from cryodrgn_metric.distance_net import DistanceNet
        >>> z = np.random.default_rng(0).normal(size=(90, 2))
        >>> distances = np.linalg.norm(z[:, None] - z[None], axis=-1)
        >>> net = DistanceNet(max_epochs=2, progress=False)
        >>> ensemble = DistanceEnsemble(members=2, net=net).fit(z[:50], distances[:50, :50])
        >>> ensemble = ensemble.calibrate(z[50:70], distances[50:70, 50:70])
        >>> judge_error_bars(ensemble, z[70:], distances[70:, 70:])["pairs"]
        190
    """
    measured = np.asarray(distances, dtype=np.float64)
    upper = np.triu_indices(len(measured), 1)
    predicted = ensemble.predict_members(z)[0].astype(np.float64)
    errors = np.abs(predicted - measured)
    inside = {level: errors <= ensemble.error_bar_matrix(z, level) for level in LEVELS}
    bars = ensemble.error_bar_matrix(z, USUAL)[upper].astype(np.float64)

    def coverage(rows: npt.NDArray[np.int64]) -> float:
        some = inside[USUAL][np.ix_(rows, rows)]
        return float(some[np.triu_indices(len(rows), 1)].mean())

    enough = len(measured) >= 3
    return {
        "landmarks": len(measured),
        "pairs": len(bars),
        "coverage": {str(level): float(inside[level][upper].mean()) for level in LEVELS},
        "coverage_interval": subsampling_interval(coverage, len(measured), seed)
        if enough
        else (np.nan, np.nan),
        "median_relative_bar": float(np.median(bars / np.maximum(predicted[upper], 1e-30))),
        "spearman": _rank_correlation(bars, errors[upper]),
    }


def _rank_correlation(bars: npt.NDArray[np.float64], errors: npt.NDArray[np.float64]) -> float:
    if len(bars) < 2 or np.ptp(bars) == 0 or np.ptp(errors) == 0:
        return float("nan")
    return float(spearmanr(bars, errors).statistic)


def relative_error_bars(
    ensemble: DistanceEnsemble, z: npt.ArrayLike, landmarks: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Says how sure the distances of each particle are: its median relative error bar.

    Arguments:
        ensemble: Calibrated.
        z: Latents of particles. (N, d)
        landmarks: Latents of the training landmarks; up to 32 of them, evenly taken, are used.
            (T, d)

    Returns:
        The median over landmarks of the 0.68 error bar, divided by the distance, which counts
        as at least a tenth of the median one. float32 (N,)
    """
    latents = np.asarray(z, dtype=np.float32)
    marks = np.asarray(landmarks, dtype=np.float32)
    marks = marks[np.unique(np.linspace(0, len(marks) - 1, MOST_LANDMARKS).round().astype(int))]
    found = []
    for start in range(0, len(latents), ROWS_PER_CHUNK):
        distances, bars = ensemble.error_bars_to(latents[start : start + ROWS_PER_CHUNK], marks)
        relative = bars / np.maximum(distances, ensemble.shortest)
        found.append(np.median(relative, axis=1).astype(np.float32))
    return np.concatenate(found)
