"""cryoDRGN's decoder networks, laid open: their layers, encodings, and the points they keep."""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryodrgn_metric.runlog import logging_kept

__all__ = ["HostModel", "Hypervolume", "Layer", "PositionalModel"]

# In coordinates, nearer than this to an axis is on it: below 1e-3 of a voxel up to box 1000.
ON_AXIS = 1e-6


@dataclass(frozen=True)
class Layer:
    """x -> act(x W + b); a residual layer has the identity added to W."""

    weight: Tensor  # (in, out)
    bias: Tensor  # (out,)
    slope: float | None  # of the activation's negative side; None after the last layer

    def activate_(self, values: Tensor) -> Tensor:
        """Apply the activation in place."""
        if self.slope is None:
            return values
        return torch.relu_(values) if self.slope == 0 else _leaky_(values, self.slope)


def _leaky_(values: Tensor, slope: float) -> Tensor:
    return torch.nn.functional.leaky_relu_(values, slope)


@dataclass(frozen=True, eq=False)
class HostModel(ABC):
    """One trained network that gives the Hartley or Fourier transform of V(z) at any point.

    Arguments:
        network: cryoDRGN's module.
        box_size: voxels along a side of the model's full box.
        latent_dim: zdim.
        extent: coordinate of the Nyquist frequency (0.5 unless trained with --l-extent).
        domain: "fourier" (it gives real and imaginary parts) or "hartley".
    """

    network: torch.nn.Module
    box_size: int
    latent_dim: int
    extent: float
    domain: str

    def moved(self, device: torch.device, dtype: torch.dtype) -> HostModel:
        """A copy elsewhere, as moving a module to another device or dtype changes it."""
        return replace(self, network=copy.deepcopy(self.network).to(device, dtype).eval())

    @property
    @abstractmethod
    def encodes(self) -> bool:
        """Whether coordinates are encoded before the first layer."""

    @abstractmethod
    def layers(self, dtype: torch.dtype) -> list[Layer]:
        """The linear layers, the first of which takes encoded coordinates, then latents."""

    @abstractmethod
    def encode_points(self, coordinates: Tensor) -> Tensor:
        """What the first layer takes of (P, 3) coordinates (x, y, z)."""

    @abstractmethod
    def encode_latents(self, latents: Tensor) -> Tensor:
        """What the first layer takes of (B, zdim) latents."""

    def keeps(self, coordinates: Tensor) -> Tensor:
        """Which of (P, 3) coordinates of that ball are part of V; the others are left out."""
        return torch.ones(len(coordinates), dtype=torch.bool, device=coordinates.device)

    @property
    def mean_outside(self) -> bool:
        """Whether `eval_volume` adds the mean of the norm where it left a point out."""
        return self.domain == "fourier"

    @abstractmethod
    def lattice_ball(self, axis: np.ndarray, extent: float) -> np.ndarray:
        """Which points of the (box + 1)^3 lattice are within the ball, by cryoDRGN's rounding.

        Arguments:
            axis: (box + 1,) float32, the coordinates along each side.
            extent: the largest of them, before rounding.
        """


@dataclass(frozen=True, eq=False)
class PositionalModel(HostModel):
    """The decoder of train_vae, train_dec or abinit_het_old, of either domain."""

    @property
    def encodes(self) -> bool:
        """False with --pe-type none."""
        return hasattr(self.network, "positional_encoding_geom")

    def layers(self, dtype: torch.dtype) -> list[Layer]:
        """The layers of its multi-layer perceptron."""
        mlp: Any = self.network.decoder
        return _read_layers(mlp.main, dtype)

    def encode_points(self, coordinates: Tensor) -> Tensor:
        """The positional encoding, without the columns of the latent."""
        if not self.encodes:
            return coordinates
        blank = coordinates.new_zeros(len(coordinates), self.latent_dim)
        encoding: Any = self.network.positional_encoding_geom
        encoded: Tensor = encoding(torch.cat([coordinates, blank], 1))
        return encoded[:, : encoded.shape[1] - self.latent_dim]

    def encode_latents(self, latents: Tensor) -> Tensor:
        """The latents themselves."""
        return latents

    def lattice_ball(self, axis: np.ndarray, extent: float) -> np.ndarray:
        """As `eval_volume`; for the hartley domain, where that keeps all, the integers' ball."""
        if not self.encodes:
            return _unit_ball(len(axis))
        if self.domain == "fourier":
            return _rounded_ball(axis, extent)
        return _integer_ball(len(axis))


@dataclass(frozen=True, eq=False)
class Hypervolume(HostModel):
    """The network of `cryodrgn abinit` (DRGN-AI), of the hartley domain.

    Images train the ball of radius `radius` but for its centre. cryoDRGN's `eval_volume_method`
    leaves out more: of each slice z the centre, so that the whole axis x = y = 0 is missing, and
    what is beyond the radius of the slice rounded down. The projection of such a volume onto the
    z axis is constant: it changes as the volume turns.

    Arguments:
        radius: of the training's mask, in Fourier voxels of the full box.
        as_trained: keep all that images train, not what `eval_volume_method` keeps.
    """

    radius: int
    as_trained: bool

    @property
    def encodes(self) -> bool:
        """Always."""
        return True

    @property
    def mean_outside(self) -> bool:
        """As `eval_volume_method`, which zeroes before it adds the mean."""
        return True

    def layers(self, dtype: torch.dtype) -> list[Layer]:
        """The layers of its multi-layer perceptron."""
        mlp: Any = self.network.mlp
        return _read_layers(mlp.main, dtype)

    def encode_points(self, coordinates: Tensor) -> Tensor:
        """Sines and cosines of random frequencies."""
        encoding: Any = self.network.random_fourier_encoding
        encoded: Tensor = encoding(coordinates[None])
        return encoded[0]

    def encode_latents(self, latents: Tensor) -> Tensor:
        """The latents, with --pe-type-conf geom their sines and cosines."""
        if getattr(self.network, "pe_type_conf", None) is None:
            return latents
        encoding: Any = self.network.geom_fourier_encoding_conf
        encoded: Tensor = encoding(latents)
        return encoded

    def lattice_ball(self, axis: np.ndarray, extent: float) -> np.ndarray:
        """The ball of the integers, in which `keeps` chooses."""
        return _integer_ball(len(axis))

    def keeps(self, coordinates: Tensor) -> Tensor:
        """`as_trained` or as `eval_volume_method`, with its rounding."""
        x, y, z = coordinates.to(torch.float32).unbind(1)
        in_plane = x * x + y * y
        off_axis = in_plane > ON_AXIS**2
        if not self.as_trained:
            limit = torch.from_numpy(self._limit_in_slice(z.cpu().numpy())).to(in_plane)
            return (in_plane <= limit) & off_axis
        reach = self.radius / (self.box_size // 2) * self.extent
        in_ball: Tensor = in_plane + z * z <= reach**2 * (1 + 1e-6)
        return in_ball & (off_axis | (z.abs() > ON_AXIS))

    def _limit_in_slice(self, height: np.ndarray) -> np.ndarray:
        """The largest x^2 + y^2 that `eval_volume_method` keeps at a float32 z."""
        lattice = self.box_size + 1
        # number - float32, two scalars there, is a float64 in numpy 1 and a float32 in numpy 2
        working = (1.0 - np.float32(0)).dtype.type
        square = working((2 * self.extent * self.radius / lattice) ** 2)
        inner = np.maximum(square - np.square(height).astype(working), working(0))
        pixels = np.floor(np.sqrt(inner) * working(lattice)).astype(np.float64)
        limit: np.ndarray = (pixels / (self.box_size // 2) * self.extent) ** 2
        return limit


def _integer_ball(size: int) -> np.ndarray:
    square = (np.arange(size) - size // 2) ** 2
    kept: np.ndarray = square[:, None, None] + square[:, None] + square <= square[0]
    return kept


def _rounded_ball(axis: np.ndarray, extent: float) -> np.ndarray:
    """Which points of the float32 lattice eval_volume keeps, by its own rounded comparison."""
    x, y = (part.ravel() for part in np.meshgrid(axis, axis))
    plane = torch.from_numpy(np.stack([x, y, np.zeros_like(x)], 1))
    slices = []
    for height in axis:
        points = plane + torch.tensor([0, 0, height])
        slices.append((points.pow(2).sum(dim=1) <= extent**2).numpy())
    return np.stack(slices).reshape(len(axis), len(axis), len(axis))


def _unit_ball(size: int) -> np.ndarray:
    """The same for models without positional encoding, where cryoDRGN zeroes another sphere."""
    with logging_kept():
        from cryodrgn import utils

    keep: np.ndarray = utils.zero_sphere(np.ones((size, size, size))) > 0
    return keep


def _read_layers(modules: torch.nn.Sequential, dtype: torch.dtype) -> list[Layer]:
    """The linear layers of a cryoDRGN network, residual ones with their identity added."""
    linears = [module for module in modules if not hasattr(module, "inplace")]
    slopes = [
        float(getattr(module, "negative_slope", 0.0))
        for module in modules
        if hasattr(module, "inplace")
    ]
    layers = []
    for module, slope in itertools.zip_longest(linears, slopes):
        linear: Any = getattr(module, "linear", module)  # residual layers hold one
        weight = linear.weight.detach().T
        if linear is not module:
            weight = weight + torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
        layers.append(Layer(weight.to(dtype).contiguous(), linear.bias.detach().to(dtype), slope))
    return layers
