"""cryoDRGN's decoder networks, laid open: their layers, encodings, and the points they keep.

They are built by cryoDRGN's own loaders and filled from checkpoints that `safe_files.py` reads.
This is the only file that imports cryoDRGN's models.
"""

from __future__ import annotations

import copy
import itertools
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryodrgn_metric.errors import WorkdirError
from cryodrgn_metric.runlog import logging_kept
from cryodrgn_metric.safe_files import load_checkpoint
from cryodrgn_metric.workdir import Workdir

__all__ = ["HostModel", "Layer", "PositionalModel", "load_host_model"]

WITH_ENCODER = ("train_vae", "abinit_het_old")


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


# -- from a workdir


def load_host_model(workdir: Workdir) -> HostModel:
    """The network of a workdir; its checkpoint is read without executing anything.

    Raises:
        WorkdirError: the checkpoint doesn't fit config.yaml, or cryoDRGN cannot evaluate such a
            model itself.
        UnsafeFileError: the checkpoint would execute code.
    """
    if workdir.domain == "hartley" and workdir.config["model_args"].get("pe_type") == "none":
        raise WorkdirError(
            f"{workdir.config_path}: --pe-type none with --domain hartley is a model that "
            "cryoDRGN itself cannot evaluate at a latent; train with --domain fourier."
        )
    return PositionalModel(
        network=_load_positional(workdir, load_checkpoint(workdir.weights_path)),
        box_size=workdir.box_size,
        latent_dim=workdir.latents.shape[1],
        extent=float(workdir.config["lattice_args"].get("extent", 0.5)),
        domain=workdir.domain,
    )


def _load_positional(workdir: Workdir, checkpoint: dict[str, Any]) -> torch.nn.Module:
    with logging_kept():
        from cryodrgn import config as cryodrgn_config
        from cryodrgn import models
    try:
        config = cryodrgn_config.update_config_v1(copy.deepcopy(workdir.config))
        if workdir.kind in WITH_ENCODER:
            model, _ = models.HetOnlyVAE.load(config, weights=None, device=torch.device("cpu"))
        else:
            model, _ = models.load_decoder(config, weights=None, device=torch.device("cpu"))
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise WorkdirError(
            f"{workdir.config_path} doesn't describe a model that this cryoDRGN can build: "
            f"{type(error).__name__} {error}."
        ) from error
    _fill(model, checkpoint.get("model_state_dict"), workdir)
    network: torch.nn.Module = model.decoder if workdir.kind in WITH_ENCODER else model
    return network.requires_grad_(False)


def _fill(model: torch.nn.Module, state: Any, workdir: Workdir) -> None:
    try:
        model.load_state_dict(state)
    except (AttributeError, RuntimeError, TypeError) as error:
        raise WorkdirError(
            f"{workdir.weights_path} doesn't hold the model that {workdir.config_path} describes:"
            f" {error}"
        ) from error
