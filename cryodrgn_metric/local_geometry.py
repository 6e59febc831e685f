"""How f_xi stretches latent space around each particle, beside the distance it should follow."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.metric_map import MetricMap

__all__ = ["LocalGeometry", "local_geometry"]

FloatArray = npt.NDArray[np.float64]
Float32Array = npt.NDArray[np.float32]

ROWS_PER_CHUNK = 32_768
LARGEST_LOGVAR = 80  # its variance, in float32, is finite and not 0
SHORT = 0.1  # of the first length: directions shorter than that are not counted
FLOOR = 0.01  # of the first length: no direction counts as shorter than that


@dataclass(frozen=True)
class LocalGeometry:
    r"""The derivative of z' at each particle; lengths are in units of Delta per unit of z.

    Arguments:
        singular_values: Of the Jacobian J of f_xi, descending. :math:`(N, \min(d, d'))` float32
        stretch: The geometric mean of the k leading ones. :math:`(N,)` float32
        density_correction: What a particle counts in z', so that the density is that per unit
            of Delta: 1 where f_xi follows h_psi, below 1 where it crowds particles together,
            above where it thins them out. :math:`(N,)` float32
        uncertainty: The standard deviation of z' from that of z, in units of Delta; None where
            the encoder gave none. :math:`(N,)` float32
        rank: The number k of leading directions.
    """

    singular_values: Float32Array
    stretch: Float32Array
    density_correction: Float32Array
    uncertainty: Float32Array | None
    rank: int


def local_geometry(
    metric_map: MetricMap,
    net: DistanceNet,
    z: npt.ArrayLike,
    logvar: npt.ArrayLike | None = None,
) -> LocalGeometry:
    r"""Compares the map with the learned distance, infinitesimally, at every particle.

    With J the Jacobian of :math:`f_\xi`, G the metric of :math:`h_\psi` (both by z), and
    :math:`\sigma_i(\cdot)` the square roots of the leading eigenvalues,

    .. math::
        \text{correction} = \sqrt{\frac{\mathrm{pdet}_k(J^\mathsf{T} J)}{\mathrm{pdet}_k(G)}}
            = \prod_{i=1}^k \frac{\sigma_i(J^\mathsf{T} J)}{\sigma_i(G)}, \qquad
        \text{uncertainty} = \sqrt{\mathrm{tr}(J\, \mathrm{diag}(e^{\text{logvar}})\,
            J^\mathsf{T})}.

    A density p(z) becomes :math:`p / \mathrm{pdet}_k(J^\mathsf{T} J)^{1/2}` in z', and
    :math:`p / \mathrm{pdet}_k(G)^{1/2}` per unit of Delta; the correction turns the first into
    the second.

    k counts the directions whose median :math:`\sigma_i(G)` over particles is at least 0.1 of
    that of the first, at most :math:`\min(d, d')`, at least 1. Along the others h_psi has next to
    no extent, as for pure rotations: the ratio of two small numbers would be noise. For the same
    reason no :math:`\sigma` counts as less than 0.01 of the median :math:`\sigma_1(G)`.

    Arguments:
        metric_map: f_xi.
        net: h_psi, which it was fitted to.
        z: The latents of all particles. :math:`(N, d)`
        logvar: The log of each latent's variance, ``z_logvar``, where the run has an encoder.
            :math:`(N, d)`

    Returns:
        The geometry at every particle.

    Raises:
        ArgumentError: If z is not a finite, non-empty (N, d) array, or logvar has another shape or
            is not finite.
        MetricError: If the map or the net was not fitted.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(60, 2))
        >>> distances = np.linalg.norm(z[:, None] - z[None], axis=-1)
        >>> net = DistanceNet(max_epochs=2, progress=False).fit(z, distances)
        >>> metric_map = MetricMap(steps=5, progress=False).fit(z, net)
        >>> found = local_geometry(metric_map, net, z)
        >>> found.singular_values.shape, found.uncertainty is None
        ((60, 2), True)
    """
    latents = np.asarray(z, dtype=np.float32)
    variances = None if logvar is None else np.asarray(logvar, dtype=np.float32)
    if latents.ndim != 2 or len(latents) == 0:
        raise ArgumentError(f"expected latents (N, d), N >= 1; got shape {latents.shape}.")
    if variances is not None:
        _check_logvar(variances, latents.shape)
    chunks = [
        slice(start, start + ROWS_PER_CHUNK) for start in range(0, len(latents), ROWS_PER_CHUNK)
    ]
    lengths = np.concatenate([_lengths(net.metric_tensor(latents[rows])) for rows in chunks])
    singular, uncertainty = _stretching(metric_map, latents, variances, chunks)
    rank = _rank(lengths, most=singular.shape[1])
    return LocalGeometry(
        singular_values=singular,
        stretch=_geometric_mean(singular[:, :rank]),
        density_correction=_correction(singular[:, :rank], lengths[:, :rank]),
        uncertainty=uncertainty,
        rank=rank,
    )


def _check_logvar(logvar: Float32Array, expected: tuple[int, ...]) -> None:
    if logvar.shape != expected:
        raise ArgumentError(f"expected logvar as latents, {expected}; got {logvar.shape}.")
    if not (np.abs(logvar) < LARGEST_LOGVAR).all():
        raise ArgumentError(
            f"expected logvar between -{LARGEST_LOGVAR} and {LARGEST_LOGVAR}; got NaN or more."
        )


def _lengths(tensors: Float32Array) -> Float32Array:
    """The square roots of the eigenvalues of G, descending. (n, d)"""
    eigenvalues = np.linalg.eigvalsh(tensors.astype(np.float64))[:, ::-1]
    return np.sqrt(np.maximum(eigenvalues, 0)).astype(np.float32)


def _stretching(
    metric_map: MetricMap,
    z: Float32Array,
    logvar: Float32Array | None,
    chunks: list[slice],
) -> tuple[Float32Array, Float32Array | None]:
    """Singular values of J, (N, min(d, d')), and the standard deviation of z', (N,)."""
    singular, uncertainty = [], []
    for rows in chunks:
        jacobian = metric_map.jacobian(z[rows]).astype(np.float64)
        singular.append(np.linalg.svd(jacobian, compute_uv=False).astype(np.float32))
        if logvar is not None:
            variance = np.exp(logvar[rows].astype(np.float64))
            total = np.einsum("nij,nj->n", jacobian**2, variance)
            uncertainty.append(np.sqrt(total).astype(np.float32))
    return np.concatenate(singular), np.concatenate(uncertainty) if uncertainty else None


def _rank(lengths: Float32Array, most: int) -> int:
    median = np.median(lengths, axis=0)
    return max(1, int((median[:most] >= SHORT * median[0]).sum()))


def _geometric_mean(lengths: Float32Array) -> Float32Array:
    with np.errstate(divide="ignore"):  # the log of 0 comes back as 0
        logs = np.log(lengths.astype(np.float64))
    return np.asarray(np.exp(logs.mean(axis=1)), dtype=np.float32)


def _correction(singular: Float32Array, lengths: Float32Array) -> Float32Array:
    shortest = FLOOR * float(np.median(lengths[:, 0]))
    floor = max(shortest, float(np.finfo(np.float32).tiny))  # all volumes alike: 1
    logs = np.log(np.maximum(singular, floor)) - np.log(np.maximum(lengths, floor))
    return np.asarray(np.exp(logs.sum(axis=1, dtype=np.float64)), dtype=np.float32)
