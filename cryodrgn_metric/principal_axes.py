"""z' in its own axes: unit, centre and rotation become part of the network that maps to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cryodrgn_metric.networks import Perceptron, evaluate_in_chunks

__all__ = ["turn_to_principal_axes"]

MOST_FOR_AXES = 100_000  # particles that fix centre and axes


def turn_to_principal_axes(network: Perceptron, z: Tensor, unit: float, seed: int) -> None:
    """Folds unit, centre and rotation into the last layer: an isometry, and a scale.

    Arguments:
        network: Is changed: its outputs are multiplied by ``unit`` and centred, the axis of the
            largest variance comes first, the third moment along each is not negative.
        z: Its inputs, on its device, of which at most 100,000 fix the axes. (N, d)
        unit: What one unit of the outputs stands for.
        seed: The seed of the draw.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randperm(len(z), generator=generator)[:MOST_FOR_AXES].to(z.device)
    points = evaluate_in_chunks(network, z[rows], z.device).double().numpy()
    mean = points.mean(axis=0)
    axes = principal_axes(points - mean)
    last = network.layers[-1]
    assert isinstance(last, nn.Linear)
    weight = unit * (axes @ last.weight.detach().double().cpu().numpy())
    bias = unit * (axes @ (last.bias.detach().double().cpu().numpy() - mean))
    with torch.no_grad():
        last.weight.copy_(torch.from_numpy(weight))
        last.bias.copy_(torch.from_numpy(bias))


def principal_axes(centred: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The orthonormal rows onto which to project, largest variance first, signs fixed."""
    _, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1].T
    moments = ((centred @ axes.T) ** 3).sum(axis=0)
    signs = np.where(moments < 0, -1.0, 1.0)
    return np.asarray(signs[:, None] * axes)
