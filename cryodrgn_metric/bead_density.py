r"""The density of beads: Gaussians that stand for residues or for pseudo-atoms, beside a volume.

    rho(x) = sum over beads of w_a g(x - x_a),  g a Gaussian of the beads' width and of integral 1

Its overlap with a volume V is a sum over beads, sum_a w_a (g * V)(x_a), and its square norm one
over pairs of beads, both without rendering a voxel. That makes the correlation, and its gradient
by the beads, cheap: V is blurred once, then sampled where the beads are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from cryodrgn_metric.so3.conventions import windowed

__all__ = ["BlurredVolumes", "correlation", "rendered"]

_BEADS_AT_ONCE = 64  # the planes of a batch of volumes take memory


def rendered(positions: Tensor, weights: Tensor, width: float, box: int) -> Tensor:
    """The density of beads in a box.

    Arguments:
        positions: (B, A, 3), x, y, z in voxels from the origin voxel n // 2.
        weights: (A,), the integral of each bead.
        width: Standard deviation of a bead, in voxels.
        box: n.

    Returns:
        (B, n, n, n) [z, y, x], of the dtype of the positions.

    Example:
        >>> density = rendered(torch.zeros(1, 1, 3), torch.ones(1), width=1.5, box=16)
        >>> round(float(density.sum()), 3), int(density.argmax()) == (8 * 16 + 8) * 16 + 8
        (1.0, True)
    """
    axis = torch.arange(box, dtype=positions.dtype, device=positions.device) - box // 2
    norm = math.sqrt(2 * math.pi) * width
    total = positions.new_zeros(len(positions), box * box, box)
    for some, mass in zip(
        positions.split(_BEADS_AT_ONCE, dim=1), weights.split(_BEADS_AT_ONCE), strict=True
    ):
        exponents = -((axis - some[..., None]) ** 2) / (2 * width**2)
        x, y, z = (exponents.exp() / norm).unbind(dim=2)
        planes = torch.einsum("baz,bay->bzya", z * mass[:, None], y).flatten(1, 2)
        total += planes @ x
    density: Tensor = total.unflatten(1, (box, box))
    return density


def correlation(
    positions: Tensor,
    weights: Tensor,
    width: float,
    volumes: Tensor,
    window: Tensor,
    max_frequency: float | None = None,
) -> Tensor:
    """Pearson correlation of the beads' density with volumes, within the window.

    Arguments:
        positions, weights, width: As in `rendered`.
        volumes: (B, n, n, n), windowed.
        window: (n, n, n).
        max_frequency: The beads' density is cut to this ball, as the volumes are; None: it isn't.

    Returns:
        (B,), from -1 to 1.
    """
    density = rendered(positions, weights, width, volumes.shape[-1])
    if max_frequency is not None:
        density = _within_ball(density, max_frequency)
    density = windowed(density, window)
    overlap = (density * volumes).sum(dim=(1, 2, 3))
    norms = density.square().sum(dim=(1, 2, 3)) * volumes.square().sum(dim=(1, 2, 3))
    return overlap / norms.sqrt().clamp(min=torch.finfo(norms.dtype).tiny)


def _within_ball(density: Tensor, max_frequency: float) -> Tensor:
    box = density.shape[-1]
    radius = _frequencies(box, density) * box
    spectrum = torch.fft.rfftn(density, dim=(1, 2, 3))
    inside = spectrum * (radius <= max_frequency)
    cut: Tensor = torch.fft.irfftn(inside, s=(box,) * 3, dim=(1, 2, 3))
    return cut


def _frequencies(box: int, like: Tensor) -> Tensor:
    """|k| in cycles a voxel, of rfftn."""
    x, y, z = _axes(box, like)
    radius: Tensor = (x**2 + y**2 + z**2).sqrt()
    return radius


def _axes(box: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x, y, z of the frequencies of rfftn, in cycles a voxel, to be broadcast."""
    full = torch.fft.fftfreq(box, dtype=like.dtype, device=like.device)
    half = torch.fft.rfftfreq(box, dtype=like.dtype, device=like.device)
    return half, full[:, None], full[:, None, None]


class BlurredVolumes:
    """Volumes at one level of blur, and how beads that are blurred alike correlate with them.

    Both are blurred by a Gaussian of standard deviation `blur`, the beads have their own `width`
    on top. What the window does to the beads' density is left out: beads lie within it.

    Arguments:
        volumes: (B, n, n, n), windowed: their mean under the window is 0.
        window: (n, n, n).
        width, blur: In voxels.
    """

    def __init__(self, volumes: Tensor, window: Tensor, width: float, blur: float) -> None:
        self._box = volumes.shape[-1]
        self._inside = float(window.sum())
        self._variance = width**2 + blur**2
        squared = (2 * math.pi * _frequencies(self._box, volumes)) ** 2
        spectrum = torch.fft.rfftn(volumes, dim=(1, 2, 3))
        sides = (self._box,) * 3
        blurred = torch.fft.irfftn(spectrum * torch.exp(-squared * blur**2 / 2), s=sides)
        self._norms = blurred.square().sum(dim=(1, 2, 3)).sqrt()
        seen = spectrum * torch.exp(-squared * (self._variance + blur**2) / 2)
        along = _axes(self._box, volumes)
        parts = [seen, *(seen * (2j * math.pi * axis) for axis in along)]
        self._fields = torch.stack([torch.fft.irfftn(one, s=sides) for one in parts], dim=1)

    def correlation(self, positions: Tensor, weights: Tensor, apart: Tensor) -> Tensor:
        """The correlation of beads with each volume, (B,); differentiable.

        Arguments:
            positions: (B, A, 3), in voxels from the origin voxel.
            weights: (A,).
            apart: Distances between beads, (B, A, A).
        """
        values: Tensor = _Sampled.apply(positions, self._fields)  # type: ignore[no-untyped-call]
        overlap = values @ weights
        kernel = torch.exp(-apart.square() / (4 * self._variance))
        norm = (kernel @ weights) @ weights / (4 * math.pi * self._variance) ** 1.5
        mean = weights.sum().square() / self._inside  # of Pearson's correlation
        found: Tensor = overlap / (self._norms * (norm - mean).clamp(min=1e-30).sqrt())
        return found


class _Sampled(torch.autograd.Function):
    """Fields at places (B, A, 3), and the gradient from the fields' own derivatives.

    That of the interpolated field itself would jump at every voxel's edge, and draw beads to
    where voxels are: copies of one molecule, turned, then differed by 1.7 Å instead of 0.8 (in
    voxels of 2.5).
    """

    @staticmethod
    def forward(ctx: Any, positions: Tensor, fields: Tensor) -> Tensor:
        box = fields.shape[-1]
        places = (positions + box // 2) * (2 / (box - 1)) - 1
        found = grid_sample(fields, places[:, :, None, None], align_corners=True)[..., 0, 0]
        ctx.save_for_backward(found[:, 1:])
        values: Tensor = found[:, 0]
        return values

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (slopes,) = ctx.saved_tensors
        return (gradients[0][:, None] * slopes).mT, None
