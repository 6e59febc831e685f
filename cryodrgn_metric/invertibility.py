"""What a flow did to latent space: how far it moved it, and how well it can be undone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.networks import as_latents, evaluate_in_chunks, jacobians_in_chunks

__all__ = ["Invertibility", "invertibility_of"]

FloatArray = npt.NDArray[np.float64]

MOST_FOR_CONDITION = 10_000  # particles, at random


@dataclass(frozen=True)
class Invertibility:
    r"""A flow :math:`z' = c\, T(z)` in numbers.

    Arguments:
        scale: c, in units of Delta per unit of z.
        moved: How far T is from a shift, a factor and the identity: 0 is z itself, 1 says that no
            axis of z' is anything like that axis of z.
        round_trip: The largest error of the inverse at any particle, of the standard deviation of
            z, before the coordinates that are not kept are dropped.
        condition_median, condition_95, condition_most: The condition number of the Jacobian of T:
            the longest stretch of a small step over the shortest, by particle.
        variance_left_out: The share of the variance of c·T(z) in coordinates that were not kept.
        variance_shares: That along each principal axis. (d,)
    """

    scale: float
    moved: float
    round_trip: float
    condition_median: float
    condition_95: float
    condition_most: float
    variance_left_out: float
    variance_shares: list[float]


def invertibility_of(metric_map: MetricMap, z: npt.ArrayLike, seed: int = 0) -> Invertibility:
    r"""Measures a fitted flow at the particles.

    With :math:`\bar z` the mean over particles, and the best shift b and factor a,

    .. math::
        \text{moved} = \min_{a, b} \sqrt{
            \frac{\sum_i \| a\, T(z_i) + b - z_i \|^2}{\sum_i \| z_i - \bar z \|^2} }.

    Arguments:
        metric_map: Of kind ``flow``, fitted.
        z: The latents of all particles. (N, d)
        seed: Of the particles, at most 10,000, whose Jacobians are looked at.

    Returns:
        The numbers, all in float64.

    Raises:
        ArgumentError: If the map is no flow, or z is not a finite (N, d) array.
        MetricError: If the map was not fitted.

    Example:
        >>> z = np.random.default_rng(0).normal(size=(50, 2))
        >>> distances = 3 * np.linalg.norm(z[:, None] - z[None], axis=-1)
        >>> found = MetricMap(2, steps=20, progress=False, map="flow").fit(z, distances)
        >>> numbers = invertibility_of(found, z)
        >>> round(numbers.scale, 1), numbers.moved < 0.1, numbers.round_trip < 1e-10
        (3.0, True, True)
    """
    flow = metric_map.flow.whole()
    device = flow.mean.device
    latents = as_latents(z, len(flow.mean), torch.float64)
    shown = evaluate_in_chunks(flow, latents, device)
    back = evaluate_in_chunks(flow.inverse, shown, device)
    moved = evaluate_in_chunks(flow.moved, latents, device)
    spread = max(float(latents.var(dim=0, correction=0).mean().sqrt()), 1e-300)
    rows = np.random.default_rng(seed).permutation(len(latents))[:MOST_FOR_CONDITION]
    condition = _condition_numbers(jacobians_in_chunks(flow, latents[rows], device))
    return Invertibility(
        scale=flow.c,
        moved=_unexplained(moved.numpy(), latents.numpy()),
        round_trip=float((back - latents).abs().max()) / spread,
        condition_median=float(np.median(condition)),
        condition_95=float(np.percentile(condition, 95)),
        condition_most=float(condition.max()),
        variance_left_out=float(metric_map.variance_shares_[metric_map.n_components :].sum()),
        variance_shares=metric_map.variance_shares_.tolist(),
    )


def _unexplained(points: FloatArray, target: FloatArray) -> float:
    """What a shift and a factor leave of the target: the root of 1 - r^2 over all coordinates."""
    x, y = points - points.mean(axis=0), target - target.mean(axis=0)
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    cosine = float((x * y).sum()) / norm if norm > 0 else 0.0
    return float(np.sqrt(max(0.0, 1 - cosine**2)))


def _condition_numbers(jacobians: Iterator[Tensor]) -> FloatArray:
    found = []
    for chunk in jacobians:
        lengths = torch.linalg.svdvals(chunk.cpu())
        found.append((lengths[:, 0] / lengths[:, -1].clamp_min(1e-300)).numpy())
    return np.concatenate(found)
