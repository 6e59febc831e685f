"""An exact distance, h_psi fitted to it, and maps that follow it or another one.

Latents are uniform on a segment or square and the distance is Euclidean, so the density per unit
of distance is flat. The stretched map follows |phi(x1) - phi(x2)| instead, whose phi contracts the
middle to a quarter: phi'(x) = 1 - 0.75 / cosh(x / 0.35)^2.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.metric_map import MetricMap

HALF, WIDTH, DEPTH = 1.5, 0.35, 0.75


@dataclass(frozen=True)
class Stretched:
    """Uniform latents (N, d), h_psi of their exact distance, and the two maps."""

    z: np.ndarray
    net: DistanceNet
    stretched: MetricMap
    faithful: MetricMap


def slope(x):
    """phi'(x), the stretch that the stretched map should have along the first axis."""
    return 1 - DEPTH / np.cosh(x / WIDTH) ** 2


def _stretched_distance(z1, z2):
    first, second = (
        torch.cat([z[:, :1] - DEPTH * WIDTH * torch.tanh(z[:, :1] / WIDTH), z[:, 1:]], dim=1)
        for z in (z1, z2)
    )
    return (first - second).norm(dim=1)


@cache
def stretched_maps(dimension):
    """The same objects for every test that asks: two seconds to train."""
    z = np.random.default_rng(0).uniform(-HALF, HALF, (20_000, dimension)).astype(np.float32)
    landmarks = z[:300]
    distances = np.linalg.norm(landmarks[:, None] - landmarks[None], axis=-1)
    net = DistanceNet(max_epochs=80, progress=False).fit(landmarks, distances)
    quick = {"steps": 600, "pairs_per_step": 3000, "progress": False}
    stretched = MetricMap(dimension, **quick).fit(z, _stretched_distance)
    return Stretched(z, net, stretched, MetricMap(dimension, **quick).fit(z, net))
