"""Which Fourier points are evaluated to decode a volume, and where their values go.

A real density needs half the ball: H(-k) follows from the conjugate at k.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from cryodrgn_metric.host_models import HostModel

__all__ = ["FourierPoints"]

# A rotated point nearer to a coordinate plane than this lies on it; rounding put it beside.
# Neighbouring points are 1/box apart, so this is below 1e-3 of a voxel up to box 1000.
ON_PLANE = 1e-6


@dataclass(frozen=True)
class FourierPoints:
    """The Fourier points to evaluate at one box, and where their values go.

    Arguments:
        coordinates: (P, 3) float64, (x, y, z) as the network expects them.
        target: (P,) flat [z, y, x] index of k in the (box, box, box) Hartley transform.
        mirror: (P,) flat index of -k, or -1 where -k is not set from this point.
        sign: (P,) +1, or -1 where the value at `coordinates` is the conjugate of that at k.
    """

    coordinates: Tensor
    target: Tensor
    mirror: Tensor
    sign: Tensor

    @classmethod
    def laid_out(
        cls, model: HostModel, side: int, max_frequency: float, turned: bool
    ) -> FourierPoints:
        """The points of a ball, on the CPU.

        Arguments:
            model: Whose rounding decides what is inside.
            side: Of the box, in voxels.
            max_frequency: Radius of the ball, in Fourier voxels.
            turned: Whether they will be turned, so that what V lacks turns with it.
        """
        extent = model.extent * side / model.box_size
        axis = np.linspace(-extent, extent, side + 1)
        ball = model.lattice_ball(axis.astype(np.float32), extent)
        # without the last plane of each axis: in an FFT, +Nyquist is -Nyquist
        index = np.argwhere(ball[:-1, :-1, :-1])
        index = index[((index - side // 2) ** 2).sum(1) <= max_frequency**2]
        k = index - side // 2
        centre = float(np.float32(axis[side // 2]))
        # On the plane z = 0 eval_volume takes one point of each pair k, -k, the other being its
        # conjugate; except for models without encoding, and where rounding of the axis leaves
        # its middle at +-5e-17 (box 20 of 24, say): there it evaluates every point by itself.
        paired = turned or (model.encodes and centre == 0)
        lower = _lower_half(k) if paired else k[:, 0] <= 0
        hartley = model.domain == "hartley"
        if hartley:  # no conjugates: H(k) and H(-k) are two outputs
            lower = np.ones(len(k), dtype=bool)
        index, k = index[lower], k[lower]
        alone = ((k[:, 0] == 0) & (not paired)) | (k == -(side // 2)).any(1) | ~k.any(1) | hartley
        conjugated = (k[:, 0] == 0) & (not paired) & (centre > 0) & (not hartley)
        sign = np.where(conjugated, -1.0, 1.0)
        strides = np.array([side**2, side, 1])
        points = cls(
            coordinates=torch.from_numpy(axis[index[:, ::-1].copy()] * sign[:, None]),
            target=torch.from_numpy(index @ strides),
            mirror=torch.from_numpy(np.where(alone, -1, (side // 2 - k) @ strides)),
            sign=torch.from_numpy(sign),
        )
        # what V lacks turns with it: where it is missing then, `turned` says
        return points if turned else points.only(model.keeps(points.coordinates))

    def to(self, device: torch.device, dtype: torch.dtype) -> FourierPoints:
        """The same on a device, with signs of that dtype."""
        moved = {name: value.to(device) for name, value in vars(self).items()}
        return FourierPoints(**moved | {"sign": moved["sign"].to(dtype)})

    def only(self, kept: Tensor) -> FourierPoints:
        """Those where `kept` (P,) is true."""
        if kept.all():
            return self
        return FourierPoints(**{name: value[kept] for name, value in vars(self).items()})

    def turned(self, turn: Tensor, model: HostModel) -> FourierPoints:
        """Move every k to R^T k, and to the half of Fourier space that is evaluated.

        Arguments:
            turn: R, (3, 3) float64.
            model: Which says what V lacks there.
        """
        moved = self.coordinates @ turn
        if model.domain == "hartley":
            return replace(self, coordinates=moved).only(model.keeps(moved))
        x, y, z = torch.where(moved.abs() < ON_PLANE, 0.0, moved).unbind(1)
        upper = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
        sign = torch.where(upper, -1.0, 1.0).to(moved.dtype)
        return replace(self, coordinates=moved * sign[:, None], sign=sign.to(self.sign.dtype))


def _lower_half(k: np.ndarray) -> np.ndarray:
    """The origin and one of each pair k, -k of [z, y, x] indices: the one cryoDRGN evaluates."""
    z, y, x = k.T
    lower: np.ndarray = (z < 0) | ((z == 0) & ((y < 0) | ((y == 0) & (x <= 0))))
    return lower
