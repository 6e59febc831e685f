"""Rotations in batches: ZYZ Euler angles, rotation vectors, 3x3 matrices, and angles between.

scipy's `Rotation` does the same for numpy arrays; these stay in torch, on the device and in the
dtype of their input, because they run once per candidate and Newton step.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "angle_between",
    "euler_from_matrix",
    "matrix_from_euler",
    "matrix_from_rotation_vector",
    "nearest_rotation",
    "rotation_angle",
]


def _about_z(angle: Tensor) -> Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [cos, -sin, zero, sin, cos, zero, zero, zero, torch.ones_like(angle)]
    return torch.stack(rows, dim=-1).reshape(*angle.shape, 3, 3)


def _about_y(angle: Tensor) -> Tensor:
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    rows = [cos, zero, sin, zero, torch.ones_like(angle), zero, -sin, zero, cos]
    return torch.stack(rows, dim=-1).reshape(*angle.shape, 3, 3)


def matrix_from_euler(alpha: Tensor, beta: Tensor, gamma: Tensor) -> Tensor:
    """R = Rz(alpha) Ry(beta) Rz(gamma), angles in radians, any shape (...) -> (..., 3, 3)."""
    return _about_z(alpha) @ _about_y(beta) @ _about_z(gamma)


def euler_from_matrix(rotation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ZYZ angles (alpha, beta, gamma) in radians of matrices (..., 3, 3).

    beta = atan2(|sin|, cos) keeps full precision at the poles, where only alpha ± gamma is
    defined; gamma is read off Rz(-alpha) R, so it makes up for whatever alpha came out there.

    Example:
        >>> R = matrix_from_euler(*torch.tensor([0.3, 1.0, -2.0], dtype=torch.float64))
        >>> [round(float(angle), 6) for angle in euler_from_matrix(R)]
        [0.3, 1.0, -2.0]
    """
    x, y, cos_beta = rotation[..., 0, 2], rotation[..., 1, 2], rotation[..., 2, 2]
    alpha = torch.atan2(y, x)
    beta = torch.atan2(torch.hypot(x, y), cos_beta)
    second_row = alpha.cos()[..., None] * rotation[..., 1, :] - (
        alpha.sin()[..., None] * rotation[..., 0, :]
    )
    gamma = torch.atan2(second_row[..., 0], second_row[..., 1])
    return alpha, beta, gamma


def matrix_from_rotation_vector(vector: Tensor) -> Tensor:
    """exp([v]x): rotation by |v| radians about v, (..., 3) -> (..., 3, 3)."""
    zero = torch.zeros_like(vector[..., 0])
    x, y, z = vector.unbind(-1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], dim=-1).reshape(*x.shape, 3, 3)
    angle = torch.linalg.vector_norm(vector, dim=-1)[..., None, None]
    # torch.sinc(x) = sin(pi x) / (pi x) is exact at 0, as is the half-angle form of 1 - cos.
    first = torch.sinc(angle / torch.pi)
    second = 0.5 * torch.sinc(angle / (2 * torch.pi)) ** 2
    eye = torch.eye(3, dtype=vector.dtype, device=vector.device)
    return eye + first * skew + second * (skew @ skew)


def angle_between(first: Tensor, second: Tensor) -> Tensor:
    """Geodesic angle between rotations (..., 3, 3), in radians.

    From |R1 - R2|_F = 2 sqrt(2) sin(angle / 2), which keeps small angles that arccos loses.
    """
    chord: Tensor = torch.linalg.matrix_norm(first - second) / (2 * 2**0.5)
    return 2 * torch.asin(chord.clamp(max=1.0))


def rotation_angle(rotation: Tensor) -> Tensor:
    """Angle of rotations (..., 3, 3), in radians."""
    return angle_between(rotation, torch.eye(3, dtype=rotation.dtype, device=rotation.device))


def nearest_rotation(matrix: Tensor) -> Tensor:
    """The rotation nearest to a nearly orthogonal matrix (..., 3, 3), by one Newton-Schulz step.

    Products of many float32 rotations drift off SO(3) by rounding only; one step X (3 - X^T X)/2
    squares that error.
    """
    eye = torch.eye(3, dtype=matrix.dtype, device=matrix.device)
    return 0.5 * matrix @ (3 * eye - matrix.mT @ matrix)
