"""cryoDRGN's decoder networks, laid open: their layers, encodings, and the points they keep.

They are built by cryoDRGN's own loaders and filled from checkpoints that `safe_files/` reads.
This is the only file that imports cryoDRGN's models.
"""

from __future__ import annotations

import copy
import functools
import itertools
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cryodrgn_metric.errors import WorkdirError, brief
from cryodrgn_metric.runlog import logging_kept
from cryodrgn_metric.safe_files.checkpoints import load_checkpoint
from cryodrgn_metric.workdir import Workdir

__all__ = ["HostModel", "Hypervolume", "Layer", "PositionalModel", "load_host_model"]

LARGEST_EXTENT = 1e6  # cryoDRGN's are 0.5, or half the box; its lattice is float32
# The positional encodings of cryoDRGN 4.3.
ENCODINGS = (
    "geom_ft",
    "geom_full",
    "geom_lowf",
    "geom_nohighf",
    "linear_lowf",
    "gaussian",
    "none",
)
WITH_ENCODER = ("train_vae", "abinit_het_old")
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


# -- from a workdir


def load_host_model(workdir: Workdir, as_trained: bool = False) -> HostModel:
    """The network of a workdir; its checkpoint is read without executing anything.

    Arguments:
        workdir: from `open_workdir`.
        as_trained: for DRGN-AI, see `Hypervolume`; other kinds are the same either way.

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
    checkpoint = load_checkpoint(workdir.weights_path)
    described: dict[str, Any] = {
        "box_size": workdir.box_size,
        "latent_dim": workdir.latents.shape[1],
        "extent": _extent(workdir),
        "domain": workdir.domain,
    }
    if workdir.kind != "abinit":
        return PositionalModel(network=_load_positional(workdir, checkpoint), **described)
    network = _load_hypervolume(workdir, checkpoint)
    radius = _mask_radius(workdir, checkpoint)
    return Hypervolume(network=network, radius=radius, as_trained=as_trained, **described)


def _extent(workdir: Workdir) -> float:
    extent = workdir.config["lattice_args"].get("extent", 0.5)
    if type(extent) not in (int, float) or not 1 / LARGEST_EXTENT <= extent <= LARGEST_EXTENT:
        raise WorkdirError(
            f"{workdir.config_path}: lattice_args.extent must be positive, at most "
            f"{LARGEST_EXTENT:g}; got {brief(extent)}."
        )
    return float(extent)


def _mask_radius(workdir: Workdir, checkpoint: dict[str, Any]) -> int:
    """The radius of DRGN-AI's output mask, in Fourier voxels; without one, the whole ball."""
    radius = checkpoint.get("output_mask_radius")
    if radius is None:
        return workdir.box_size // 2
    if type(radius) not in (int, float) or not 1 <= radius <= workdir.box_size:
        raise WorkdirError(
            f"{workdir.weights_path}: output_mask_radius must be from 1 to {workdir.box_size}; "
            f"got a {type(radius).__name__} that is not."
        )
    return int(radius)


def _load_positional(workdir: Workdir, checkpoint: dict[str, Any]) -> torch.nn.Module:
    """The decoder of train_vae, train_dec or abinit_het_old; an encoder is left out."""
    state = _checked_state(checkpoint, "model_state_dict", workdir.weights_path)
    if workdir.kind in WITH_ENCODER:
        prefix = "decoder."
        state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    return _filled(workdir, workdir.config_path, state, lambda: _positional(workdir, len(state)))


def _positional(workdir: Workdir, most_layers: int) -> torch.nn.Module:
    """What cryoDRGN's own loaders make of a config, but no encoder and no lattice."""
    with logging_kept():
        from cryodrgn import config as cryodrgn_config
        from cryodrgn import models
    config = cryodrgn_config.update_config_v1(copy.deepcopy(workdir.config))
    args = config["model_args"]
    sizes = ("players", "pdim") if workdir.kind in WITH_ENCODER else ("layers", "dim")
    layers, width = (args[key] for key in sizes)
    # the rest would be noticed when memory is full, or when a volume is decoded
    if not 0 <= layers <= most_layers:
        raise ValueError(f"{layers} layers, but weights of {most_layers}")
    if args["pe_type"] not in ENCODINGS:
        raise ValueError(f"pe_type must be one of {', '.join(ENCODINGS)}; got {args['pe_type']}")
    activation = {"relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU}[args["activation"]]
    encoding = args["pe_type"], args["pe_dim"], activation, args["feat_sigma"]
    inputs, size = 3 + args["zdim"], config["lattice_args"]["D"]
    model: torch.nn.Module = models.get_decoder(
        inputs, size, layers, width, args["domain"], *encoding
    )
    return model


def _load_hypervolume(workdir: Workdir, checkpoint: dict[str, Any]) -> torch.nn.Module:
    """The network of DRGN-AI, which its checkpoint describes."""
    given = checkpoint.get("hypervolume_params")
    params = given if isinstance(given, dict) else {}
    expected = {"resolution": workdir.box_size + 1, "z_dim": workdir.latents.shape[1]}
    # types first: to compare or print a tensor may fail, or take long
    found = {key: n if type(n := params.get(key)) is int else None for key in expected}
    if found != expected:
        raise WorkdirError(
            f"{workdir.weights_path} doesn't hold the model that {workdir.config_path} describes:"
            f" expected hypervolume_params with {expected}; got {brief(found)}."
        )
    state = _checked_state(checkpoint, "hypervolume_state_dict", workdir.weights_path)
    build = functools.partial(_hypervolume, params, len(state))
    return _filled(workdir, workdir.weights_path, state, build)


def _hypervolume(params: dict[str, Any], most_layers: int) -> torch.nn.Module:
    with logging_kept():
        from cryodrgn.models_ai import HyperVolume
    # of a tensor, HyperVolume would compute with all that it claims to hold
    if not all(type(value) in (int, float, str, bool, type(None)) for value in params.values()):
        raise TypeError("hypervolume_params must be numbers and words")
    layers = params.get("n_layers")
    if type(layers) is not int or not 0 <= layers <= most_layers:
        raise ValueError(f"{layers} layers, but weights of {most_layers}")
    network: torch.nn.Module = HyperVolume(**params)
    return network


def _filled(
    workdir: Workdir, described_in: Path, state: dict[str, Tensor], build: Callable[[], Any]
) -> torch.nn.Module:
    """The network that `build` makes, with the tensors of a checkpoint for its weights."""
    try:
        with _Unfilled(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of layers without inputs
            network: torch.nn.Module = build()
    except Exception as error:  # cryoDRGN checks nothing: whatever its operations raise
        raise WorkdirError(
            f"{described_in} doesn't describe a model that this cryoDRGN can build: "
            f"{type(error).__name__} {brief(error)}."
        ) from error
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WorkdirError(
            f"{workdir.weights_path} doesn't hold the model that {workdir.config_path} describes:"
            f" {brief(error)}"
        ) from error
    return network.requires_grad_(False)


class _Unfilled(TorchFunctionMode):
    """Layers made meanwhile take no memory, whatever sizes a file claims: a checkpoint fills them.

    `torch.device("meta")` would do, but its random numbers import much and slowly.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in (torch.empty, torch.randn):
            return torch.empty(*args, **options | {"device": "meta"})
        return func(*args, **options)


def _checked_state(checkpoint: dict[str, Any], key: str, path: Path) -> dict[str, Tensor]:
    state = checkpoint.get(key)
    if not isinstance(state, dict):
        raise WorkdirError(f"{path}: expected {key}; got {type(state).__name__}.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WorkdirError(f"{path}: {key} holds a {type(value).__name__}.")
        bytes_needed = value.numel() * value.element_size()
        real = value.is_floating_point() and bytes_needed <= path.stat().st_size
        if not real or not bool(value.isfinite().all()):
            raise WorkdirError(
                f"{path}: {brief(name)} should be finite numbers; training diverged, or the file "
                "was changed. Choose an earlier epoch with --epoch."
            )
    return {name: value.float() for name, value in state.items()}
