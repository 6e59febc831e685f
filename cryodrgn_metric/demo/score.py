"""Three numbers that judge an embedding when the truth is known."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist
from scipy.stats import spearmanr
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

__all__ = ["embedding_spearman", "nuisance_share", "spearman", "state_auc"]


def spearman(first: ArrayLike, second: ArrayLike) -> float:
    """Rank correlation of two lists of distances."""
    return float(spearmanr(np.ravel(first), np.ravel(second)).statistic)


def embedding_spearman(embedding: ArrayLike, truth: ArrayLike) -> float:
    """Rank correlation of Euclidean distances in an embedding (n, d) with the true ones (n, n)."""
    table = np.asarray(truth)
    return spearman(pdist(np.asarray(embedding)), table[np.triu_indices(len(table), 1)])


def nuisance_share(
    embedding: ArrayLike, motion: ArrayLike, state: ArrayLike, motion_bins: int = 40
) -> float:
    """Share of an embedding's variance among particles of the same true structure.

        sum_b n_b tr Cov_b / (N tr Cov),   b = quantile bins of the motion x states

    0 is perfect: whatever is left inside a bin is not structure. 1 says that the embedding knows
    nothing of the structure.

    Arguments:
        embedding: (N, d) coordinates
        motion, state: (N,) the true structure
        motion_bins: number of quantile bins of the motion
    """
    points, levels = np.asarray(embedding, dtype=float), np.asarray(motion, dtype=float)
    edges = np.quantile(levels, np.linspace(0, 1, motion_bins + 1)[1:-1])
    bins = np.searchsorted(edges, levels, side="right") + motion_bins * np.asarray(state, int)
    within = sum(_scatter(points[bins == number]) for number in np.unique(bins))
    return float(within / _scatter(points))


def state_auc(embedding: ArrayLike, state: ArrayLike, folds: int = 5, seed: int = 0) -> float:
    """Cross-validated area under the ROC curve of a linear discriminant for the state."""
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    points, labels = np.asarray(embedding, dtype=float), np.asarray(state)
    model = LinearDiscriminantAnalysis()
    margin = cross_val_predict(model, points, labels, cv=split, method="decision_function")
    return float(roc_auc_score(labels, margin))


def _scatter(points: NDArray[np.float64]) -> float:
    """n tr Cov of some points."""
    return float(((points - points.mean(0)) ** 2).sum())
