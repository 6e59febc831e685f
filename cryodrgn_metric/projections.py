"""Flat pictures of volumes: projections and central slices along z, y and x."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cryodrgn_metric.errors import ArgumentError

__all__ = ["central_slices", "projections"]

Array = TypeVar("Array", npt.NDArray[Any], Tensor)


def projections(volumes: Array) -> Array:
    """Sums along each axis of every volume.

    Arguments:
        volumes: (B, n, n, n) [z, y, x], numpy array or tensor.

    Returns:
        (B, 3, n, n) of the input's kind: along z, a picture [y, x]; along y, [z, x]; along x,
        [z, y].

    Raises:
        ArgumentError: Another shape.

    Example:
        >>> projections(np.ones((1, 4, 4, 4))).shape
        (1, 3, 4, 4)
    """
    cubes = _cubes(volumes)
    return _as_given(torch.stack([cubes.sum(dim=axis) for axis in (1, 2, 3)], dim=1), volumes)


def central_slices(volumes: Array) -> Array:
    """The planes through the origin voxel n // 2, across each axis of every volume.

    Arguments:
        volumes: (B, n, n, n) [z, y, x], numpy array or tensor.

    Returns:
        (B, 3, n, n) of the input's kind: across z, a picture [y, x]; across y, [z, x]; across
        x, [z, y].

    Raises:
        ArgumentError: Another shape.

    Example:
        >>> volume = np.zeros((1, 4, 4, 4))
        >>> volume[0, 2, 1, 3] = 1  # z, y, x
        >>> central_slices(volume)[0, 0, 1, 3]
        np.float64(1.0)
    """
    cubes = _cubes(volumes)
    middle = cubes.shape[-1] // 2
    planes = [cubes.select(axis, middle) for axis in (1, 2, 3)]
    return _as_given(torch.stack(planes, dim=1), volumes)


def _cubes(volumes: Array) -> Tensor:
    # a flipped numpy view has negative strides, which torch refuses
    cubes = volumes if isinstance(volumes, Tensor) else torch.from_numpy(np.array(volumes))
    if cubes.ndim != 4 or len(set(cubes.shape[1:])) != 1:
        raise ArgumentError(f"volumes must be cubes (B, n, n, n); got {tuple(cubes.shape)}.")
    return cubes


def _as_given(pictures: Tensor, volumes: Array) -> Array:
    return pictures if isinstance(volumes, Tensor) else np.asarray(pictures)
