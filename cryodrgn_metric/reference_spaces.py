"""The usual embeddings of latents, with which z' is compared: z itself, PCA, UMAP."""

from __future__ import annotations

import logging
import warnings

import numpy as np
import numpy.typing as npt
from sklearn.decomposition import PCA

from cryodrgn_metric.errors import ArgumentError

__all__ = ["principal_components", "reference_spaces", "umap_of"]

logger = logging.getLogger(__name__)

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MOST_FOR_UMAP = 50_000


def reference_spaces(
    latents: npt.ArrayLike,
    landmark_indices: npt.ArrayLike,
    dimension: int,
    seed: int,
    skip_umap: bool = False,
) -> dict[str, FloatArray]:
    r"""Embeds the landmarks in the usual ways, to be compared with z'.

    Arguments:
        latents: The latents of all particles. :math:`(N, d)`
        landmark_indices: Rows of z of the landmarks. :math:`(L,)`
        dimension: The dimension d' of PCA and UMAP; PCA has at most d.
        seed: The seed of UMAP and of the particles it sees.
        skip_umap: Leaves UMAP out.

    Returns:
        ``z`` (:math:`(L, d)`), ``pca`` (:math:`(L, \min(d, d'))`) and, unless skipped, ``umap``
        (:math:`(L, d')`, of at most 50,000 particles with the landmarks in it).

    Raises:
        ArgumentError: If latents are not (N, d), indices out of range, or dimension < 1.

    References:
        | UMAP (McInnes et al., 2018), arXiv:1802.03426

    Example:
        >>> z = np.random.default_rng(0).normal(size=(100, 4))
        >>> spaces = reference_spaces(z, [3, 1, 4], dimension=2, seed=0, skip_umap=True)
        >>> {name: found.shape for name, found in spaces.items()}
        {'z': (3, 4), 'pca': (3, 2)}
    """
    z = np.asarray(latents, dtype=np.float64)
    rows = np.asarray(landmark_indices, dtype=np.int64)
    if z.ndim != 2 or dimension < 1:
        raise ArgumentError(
            f"expected latents (N, d), dimension >= 1; got {z.shape}, {dimension}."
        )
    if len(rows) == 0 or rows.min() < 0 or rows.max() >= len(z):
        raise ArgumentError(f"expected landmark indices in 0..{len(z) - 1}; got {rows}.")
    pca = PCA(min(dimension, *z.shape), svd_solver="full").fit(z)
    spaces: dict[str, FloatArray] = {"z": z[rows], "pca": pca.transform(z[rows])}
    if not skip_umap:
        spaces["umap"] = _umap_rows(z, rows, dimension, seed)
    return spaces


def umap_of(points: npt.ArrayLike, dimension: int, seed: int) -> FloatArray:
    """Runs UMAP with its usual settings, reproducibly; fewer neighbours for few points.

    Arguments:
        points: (n, d).
        dimension: Of the embedding.
        seed: Of UMAP.

    Returns:
        (n, dimension) float64.
    """
    import umap  # slow to import: numba

    sample = np.asarray(points, dtype=np.float64)
    logger.info("UMAP of %d particles", len(sample))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="umap")
        reducer = umap.UMAP(
            n_components=dimension,
            n_neighbors=min(15, len(sample) - 1),
            init="random" if dimension >= len(sample) - 1 else "spectral",
            random_state=seed,
        )
        return np.asarray(reducer.fit_transform(sample), dtype=np.float64)


def _umap_rows(z: FloatArray, rows: IntArray, dimension: int, seed: int) -> FloatArray:
    """UMAP of at most 50,000 particles with `rows` in it; the coordinates of `rows`."""
    others = np.setdiff1d(np.arange(len(z)), rows)
    room = max(0, min(len(others), MOST_FOR_UMAP - len(rows)))
    extra = np.random.default_rng(seed).choice(others, room, replace=False)
    return umap_of(z[np.concatenate([rows, extra])], dimension, seed)[: len(rows)]


def principal_components(points: npt.ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Coordinates along the principal axes, (n, d), and the share of variance of each, (d,)."""
    sample = np.asarray(points, dtype=np.float64)
    pca = PCA(svd_solver="full").fit(sample)
    return pca.transform(sample), pca.explained_variance_ratio_
