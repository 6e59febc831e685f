"""Decode V(z) with cryoDRGN's own networks, at any box, resolution and orientation.

`Decoder.decode` equals cryoDRGN's `eval_volume`, and saves most of its work: a real density
needs half the Fourier ball, points beyond the wanted resolution are never evaluated, and the
positional encoding times the first layer is the same for every z. This is the only file that
imports cryoDRGN's models.
"""

from __future__ import annotations

import copy
import itertools
import logging
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cryodrgn_metric.errors import ArgumentError, WorkdirError, brief
from cryodrgn_metric.runlog import logging_kept
from cryodrgn_metric.safe_files import load_checkpoint
from cryodrgn_metric.workdir import Workdir

__all__ = ["Decoder"]

logger = logging.getLogger(__name__)

# Rows of one matrix product: on a CPU its activations should stay in the cache.
POINTS_PER_CHUNK = {"cpu": 4096}
POINTS_PER_CHUNK_ELSEWHERE = 65536
# decode_stream holds about six arrays of this many voxels at once.
VOXELS_PER_BATCH = 1 << 24
# A rotated point nearer to a coordinate plane than this lies on it; rounding put it beside.
# Neighbouring points are 1/box apart, so this is below 1e-3 of a voxel up to box 1000.
ON_PLANE = 1e-6
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


@dataclass(frozen=True)
class _Points:
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


@dataclass(frozen=True)
class _Layer:
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


class Decoder:
    """V(z) of one trained cryoDRGN model.

    Arguments:
        model: cryoDRGN's decoder network, in evaluation mode.
        box_size: voxels along a side of the model's full box.
        latent_dim: zdim.
        extent: coordinate of the Nyquist frequency (0.5 unless trained with --l-extent).
        norm: (mean, standard deviation) of the training images' Hartley transforms.
        domain: "fourier" (the network gives real and imaginary parts) or "hartley".
        device: where to compute; None takes CUDA if it is there.
        dtype: of the network's arithmetic. Encodings and FFTs are float32 at least.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        box_size: int,
        latent_dim: int,
        extent: float,
        norm: tuple[float, float],
        domain: str,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = _device(device)
        self.dtype = dtype
        self.volume_dtype = torch.promote_types(dtype, torch.float32)
        # a copy, as moving a module to another device or dtype changes it
        self.model = copy.deepcopy(model).to(self.device, self.volume_dtype).eval()
        self.box_size = box_size
        self.latent_dim = latent_dim
        self.extent = extent
        self.norm = norm
        self.domain = domain
        self._layers = _read_layers(self.model, self.dtype)
        self._encodes = hasattr(self.model, "positional_encoding_geom")
        self._points_cache: dict[tuple[int, float, bool], _Points] = {}

    @classmethod
    def from_workdir(
        cls,
        workdir: Workdir,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Decoder:
        """Load the decoder of a workdir; the checkpoint is read without executing anything.

        Arguments:
            workdir: from `open_workdir`.
            device: "cpu", "cuda", ...; None takes CUDA if it is there.
            dtype: of the network's arithmetic.

        Raises:
            WorkdirError: the checkpoint doesn't fit config.yaml, or cryoDRGN cannot evaluate
                such a model itself.
            UnsafeFileError: the checkpoint would execute code.

        Example:
            >>> from cryodrgn_metric.workdir import open_workdir
            >>> decoder = Decoder.from_workdir(open_workdir("00_vae128"))  # doctest: +SKIP
            >>> decoder.decode(workdir.latents[:8], box=64).shape  # doctest: +SKIP
            torch.Size([8, 64, 64, 64])
        """
        if workdir.domain == "hartley" and workdir.config["model_args"].get("pe_type") == "none":
            raise WorkdirError(
                f"{workdir.config_path}: --pe-type none with --domain hartley is a model that "
                "cryoDRGN itself cannot evaluate at a latent; train with --domain fourier."
            )
        return cls(
            _load_model(workdir),
            box_size=workdir.box_size,
            latent_dim=workdir.latents.shape[1],
            extent=_extent(workdir),
            norm=workdir.norm,
            domain=workdir.domain,
            device=device,
            dtype=dtype,
        )

    def decode(
        self,
        latents: np.ndarray | Tensor,
        box: int | None = None,
        rotations: np.ndarray | Tensor | None = None,
        max_frequency: float | None = None,
    ) -> Tensor:
        """Decode volumes, optionally turned: R·V(z), with (R·V)(x) = V(R^T x).

        V(x) = sum over k of H(k) cas(2 pi k x / box) / box^3, where H is what the network gives
        at k times the norm. A turned volume is evaluated at R^T k, so nothing is interpolated.
        Amplitudes are those of `eval_volume`: at box d they are (box_size / d)^3 times those
        of the full volume low-passed to the same ball.

        Arguments:
            latents: (B, zdim).
            box: even number of voxels up to `box_size`, the default; Fourier cropping.
            rotations: (B, 3, 3) active rotation matrices acting on (x, y, z).
            max_frequency: radius, in Fourier voxels, beyond which the volume is zero.

        Returns:
            (B, box, box, box) [z, y, x], origin at voxel box // 2, on the decoder's device.

        Raises:
            ArgumentError: a wrong shape, an odd or too large box, NaN, a matrix that does not
                rotate.
        """
        z = self._checked_latents(latents)
        side = self._checked_box(box)
        turns = self._checked_rotations(rotations, len(z))
        points = self._points(side, max_frequency, turned=turns is not None)
        hartley = self._empty_hartley(len(z), side, max_frequency)
        with torch.inference_mode():
            if turns is None:
                self._fill(hartley, z, points)
            else:
                for row, (latent, turn) in enumerate(zip(z, turns, strict=True)):
                    turned = self._turned(points, turn)
                    self._fill(hartley[row : row + 1], latent[None], turned)
        # out of inference mode, so that the result may take part in a gradient elsewhere
        with torch.no_grad():
            return _inverse_hartley(hartley.view(-1, side, side, side))

    def decode_stream(
        self,
        latents: np.ndarray | Tensor,
        box: int | None = None,
        batch: int | None = None,
        rotations: np.ndarray | Tensor | None = None,
        max_frequency: float | None = None,
    ) -> Iterator[Tensor]:
        """Decode many volumes, a batch at a time, so that memory doesn't grow with their number.

        Arguments:
            latents: (N, zdim).
            batch: volumes at once; by default as many as make 2^24 voxels, 64 at most.
            box, rotations, max_frequency: as for `decode`.

        Returns:
            an iterator over (<= batch, box, box, box) tensors, in the order of `latents`.
        """
        side = self._checked_box(box)
        step = batch or max(1, min(64, VOXELS_PER_BATCH // side**3))
        for start in range(0, len(latents), step):
            chosen = slice(start, start + step)
            turns = None if rotations is None else rotations[chosen]
            yield self.decode(latents[chosen], side, turns, max_frequency)

    def estimate_seconds(
        self, box: int | None = None, count: int = 1, max_frequency: float | None = None
    ) -> float:
        """Guess how long `decode_stream` takes for `count` volumes, from two chunks of points.

        Arguments:
            box, max_frequency: as for `decode`.
            count: number of volumes.

        Returns:
            seconds of wall time on this device as busy as it is now.
        """
        side = self._checked_box(box)
        points = self._points(side, max_frequency, turned=False)
        sample = points.coordinates[: self._chunk]
        latents = torch.zeros(4, self.latent_dim, device=self.device, dtype=self.volume_dtype)
        with torch.inference_mode():
            _ = [*self._evaluate(sample, latents[:1])]  # wakes threads and kernels up
            start = self._now()
            _ = [*self._evaluate(sample, latents)]
            network = (self._now() - start) / len(latents) * len(points.target) / len(sample)
            start = self._now()
            _inverse_hartley(self._empty_hartley(1, side, None).view(1, side, side, side))
        return count * (network + self._now() - start)

    # -- arguments

    def _checked_latents(self, latents: np.ndarray | Tensor) -> Tensor:
        z = torch.as_tensor(latents).to(self.device, self.volume_dtype)
        if z.ndim != 2 or z.shape[1] != self.latent_dim:
            raise ArgumentError(f"latents must be (B, {self.latent_dim}); got {tuple(z.shape)}.")
        if not torch.isfinite(z).all():
            raise ArgumentError("latents must be finite; some are NaN or infinite.")
        return z

    def _checked_box(self, box: int | None) -> int:
        side = self.box_size if box is None else box
        if side < 2 or side % 2 or side > self.box_size:
            raise ArgumentError(
                f"-d/--downsample must be even and at most the model's box, {self.box_size}; "
                f"got {side}."
            )
        return side

    def _checked_rotations(
        self, rotations: np.ndarray | Tensor | None, count: int
    ) -> Tensor | None:
        if rotations is None:
            return None
        turns = torch.as_tensor(rotations).to(self.device, torch.float64)
        if turns.shape != (count, 3, 3):
            raise ArgumentError(f"rotations must be ({count}, 3, 3); got {tuple(turns.shape)}.")
        identity = torch.eye(3, device=self.device, dtype=torch.float64)
        off = (turns @ turns.mT - identity).abs().amax() if count else identity.new_zeros(())
        # written so that NaN fails too
        if not off < 1e-4 or not (torch.linalg.det(turns) > 0).all():
            raise ArgumentError("rotations must be orthogonal with determinant +1.")
        return turns

    # -- evaluation

    @property
    def _chunk(self) -> int:
        return POINTS_PER_CHUNK.get(self.device.type, POINTS_PER_CHUNK_ELSEWHERE)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _empty_hartley(self, count: int, side: int, max_frequency: float | None) -> Tensor:
        # eval_volume adds the mean (0 unless --norm was given) outside the ball as well
        outside = 0.0 if self.domain == "hartley" or max_frequency is not None else self.norm[0]
        shape = (count, side**3)
        return torch.full(shape, outside, device=self.device, dtype=self.volume_dtype)

    def _fill(self, hartley: Tensor, latents: Tensor, points: _Points) -> None:
        """Write H(k) = Re - Im and H(-k) = Re + Im of every point into (B, box^3)."""
        mean, deviation = self.norm
        start = 0
        for chunk in torch.split(points.coordinates, self._chunk):
            here = slice(start, start + len(chunk))
            start += len(chunk)
            target, mirror, sign = points.target[here], points.mirror[here], points.sign[here]
            mirrored = mirror >= 0
            mirror = mirror[mirrored]
            for row, value in zip(hartley, self._evaluate(chunk, latents), strict=True):
                real = value[:, 0].to(hartley.dtype) * deviation + mean
                imaginary = value[:, 1:].sum(1).to(hartley.dtype) * sign * deviation
                row[target] = real - imaginary
                row[mirror] = (real + imaginary)[mirrored]

    def _evaluate(self, coordinates: Tensor, latents: Tensor) -> Iterator[Tensor]:
        """Yield the network's (P, 1 or 2) output at (P, 3) coordinates for every latent."""
        first, *rest = self._layers
        features = self._encode(coordinates.to(self.volume_dtype)).to(self.dtype)
        width = features.shape[1]
        shared = torch.addmm(first.bias, features, first.weight[:width])
        shifts = latents.to(self.dtype) @ first.weight[width:]
        # all hidden layers have one width; a fresh array for every product costs page faults
        scratch = itertools.cycle([torch.empty_like(shared), torch.empty_like(shared)])
        for shift in shifts:
            values = first.activate_(torch.add(shared, shift, out=next(scratch)))
            for layer in rest[:-1]:
                torch.addmm(layer.bias, values, layer.weight, out=(out := next(scratch)))
                values = layer.activate_(out)
            yield torch.addmm(rest[-1].bias, values, rest[-1].weight)

    def _encode(self, coordinates: Tensor) -> Tensor:
        """cryoDRGN's positional encoding of (P, 3) coordinates, without the latent columns."""
        if not self._encodes:
            return coordinates
        blank = coordinates.new_zeros(len(coordinates), self.latent_dim)
        encoding: Any = self.model.positional_encoding_geom
        encoded: Tensor = encoding(torch.cat([coordinates, blank], 1))
        return encoded[:, : encoded.shape[1] - self.latent_dim]

    # -- the points of the ball

    def _points(self, side: int, max_frequency: float | None, turned: bool) -> _Points:
        key = (side, float("inf") if max_frequency is None else float(max_frequency), turned)
        points = self._points_cache.get(key)
        if points is None:
            points = self._lay_out_points(*key)
            self._points_cache = {key: points}  # of the last box only; other threads may look
        return points

    def _lay_out_points(self, side: int, max_frequency: float, turned: bool) -> _Points:
        extent = self.extent * side / self.box_size
        axis = np.linspace(-extent, extent, side + 1)
        # without the last plane of each axis: in an FFT, +Nyquist is -Nyquist
        index = np.argwhere(self._kept(axis.astype(np.float32), extent)[:-1, :-1, :-1])
        index = index[((index - side // 2) ** 2).sum(1) <= max_frequency**2]
        k = index - side // 2
        centre = float(np.float32(axis[side // 2]))
        # On the plane z = 0 eval_volume takes one point of each pair k, -k, the other being its
        # conjugate; except for models without encoding, and where rounding of the axis leaves
        # its middle at +-5e-17 (box 20 of 24, say): there it evaluates every point by itself.
        paired = turned or (self._encodes and centre == 0)
        lower = _lower_half(k) if paired else k[:, 0] <= 0
        if self.domain == "hartley":  # no conjugates: H(k) and H(-k) are two outputs
            lower = np.ones(len(k), dtype=bool)
        index, k = index[lower], k[lower]
        alone = ((k[:, 0] == 0) & (not paired)) | (k == -(side // 2)).any(1) | ~k.any(1)
        alone |= self.domain == "hartley"
        conjugated = (k[:, 0] == 0) & (not paired) & (centre > 0) & (self.domain != "hartley")
        sign = np.where(conjugated, -1.0, 1.0)
        strides = np.array([side**2, side, 1])
        return _Points(
            coordinates=self._tensor(axis[index[:, ::-1]] * sign[:, None], torch.float64),
            target=self._tensor(index @ strides, torch.int64),
            mirror=self._tensor(np.where(alone, -1, (side // 2 - k) @ strides), torch.int64),
            sign=self._tensor(sign, self.volume_dtype),
        )

    def _kept(self, axis: np.ndarray, extent: float) -> np.ndarray:
        """Which points of the (box + 1)^3 lattice are within the ball, as eval_volume rounds it.

        For the hartley domain eval_volume keeps all; there the ball is that of the integers.
        """
        if not self._encodes:
            return _unit_ball(len(axis))
        if self.domain == "fourier":
            return _ball(axis, extent)
        square = (np.arange(len(axis)) - len(axis) // 2) ** 2
        kept: np.ndarray = square[:, None, None] + square[:, None] + square <= square[0]
        return kept

    def _turned(self, points: _Points, turn: Tensor) -> _Points:
        """Move every k to R^T k, and to the half of Fourier space that is evaluated."""
        moved = points.coordinates @ turn
        if self.domain == "hartley":
            return replace(points, coordinates=moved)
        x, y, z = torch.where(moved.abs() < ON_PLANE, 0.0, moved).unbind(1)
        upper = (z > 0) | ((z == 0) & ((y > 0) | ((y == 0) & (x > 0))))
        sign = torch.where(upper, -1.0, 1.0).to(moved.dtype)
        return replace(points, coordinates=moved * sign[:, None], sign=sign.to(points.sign.dtype))

    def _tensor(self, values: np.ndarray, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(np.ascontiguousarray(values)).to(self.device, dtype)


def _ball(axis: np.ndarray, extent: float) -> np.ndarray:
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


def _lower_half(k: np.ndarray) -> np.ndarray:
    """The origin and one of each pair k, -k of [z, y, x] indices: the one cryoDRGN evaluates."""
    z, y, x = k.T
    lower: np.ndarray = (z < 0) | ((z == 0) & ((y < 0) | ((y == 0) & (x <= 0))))
    return lower


def _inverse_hartley(hartley: Tensor) -> Tensor:
    """cryoDRGN's `fft.ihtn_center` for a batch: (B, n, n, n) -> (B, n, n, n)."""
    axes = (1, 2, 3)
    spectrum = torch.fft.fftn(torch.fft.fftshift(hartley, dim=axes), dim=axes, norm="forward")
    volumes: Tensor = torch.fft.fftshift(spectrum.real - spectrum.imag, dim=axes)
    return volumes


def _device(device: str | torch.device | None) -> torch.device:
    if device is not None:
        return torch.device(device)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


# -- cryoDRGN's models


def _read_layers(model: torch.nn.Module, dtype: torch.dtype) -> list[_Layer]:
    """The linear layers of a cryoDRGN decoder, residual ones with their identity added."""
    mlp: Any = model.decoder
    modules = [module for module in mlp.main if not hasattr(module, "inplace")]
    slopes = [
        float(getattr(module, "negative_slope", 0.0))
        for module in mlp.main
        if hasattr(module, "inplace")
    ]
    layers = []
    for module, slope in itertools.zip_longest(modules, slopes):
        linear = getattr(module, "linear", module)  # ResidLinear holds one
        weight = linear.weight.detach().T
        if linear is not module:
            weight = weight + torch.eye(len(weight), device=weight.device, dtype=weight.dtype)
        layers.append(_Layer(weight.to(dtype).contiguous(), linear.bias.detach().to(dtype), slope))
    return layers


def _load_model(workdir: Workdir) -> torch.nn.Module:
    """cryoDRGN's decoder of a workdir, filled from the checkpoint; an encoder is left out."""
    state = _checked_state(load_checkpoint(workdir.weights_path), workdir.weights_path)
    if workdir.kind == "train_vae":
        prefix = "decoder."
        state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    try:
        model = _unfilled_decoder(workdir, most_layers=len(state))
    except Exception as error:  # cryoDRGN checks nothing: whatever its operations raise
        raise WorkdirError(
            f"{workdir.config_path} doesn't describe a model that this cryoDRGN can build: "
            f"{type(error).__name__} {brief(error)}."
        ) from error
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WorkdirError(
            f"{workdir.weights_path} doesn't hold the model that {workdir.config_path} describes:"
            f" {brief(error)}"
        ) from error
    return model.requires_grad_(False)


def _unfilled_decoder(workdir: Workdir, most_layers: int) -> torch.nn.Module:
    """What cryoDRGN's own loaders make of a config, but no encoder and no lattice."""
    with logging_kept():
        from cryodrgn import config as cryodrgn_config
        from cryodrgn import models
    config = cryodrgn_config.update_config_v1(copy.deepcopy(workdir.config))
    args = config["model_args"]
    sizes = ("players", "pdim") if workdir.kind == "train_vae" else ("layers", "dim")
    layers, width = (args[key] for key in sizes)
    # the rest would be noticed when memory is full, or when a volume is decoded
    if not 0 <= layers <= most_layers:
        raise ValueError(f"{layers} layers, but weights of {most_layers}")
    if args["pe_type"] not in ENCODINGS:
        raise ValueError(f"pe_type must be one of {', '.join(ENCODINGS)}; got {args['pe_type']}")
    activation = {"relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU}[args["activation"]]
    encoding = args["pe_type"], args["pe_dim"], activation, args["feat_sigma"]
    inputs, size = 3 + args["zdim"], config["lattice_args"]["D"]
    with _Unfilled(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns of layers without inputs
        model: torch.nn.Module = models.get_decoder(
            inputs, size, layers, width, args["domain"], *encoding
        )
    return model


class _Unfilled(TorchFunctionMode):
    """Layers made meanwhile take no memory, whatever config.yaml says: the checkpoint fills them.

    `torch.device("meta")` would do, but its random numbers import much and slowly.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in (torch.empty, torch.randn):
            return torch.empty(*args, **options | {"device": "meta"})
        return func(*args, **options)


def _checked_state(checkpoint: dict[str, Any], path: Path) -> dict[str, Tensor]:
    state = checkpoint.get("model_state_dict")
    if not isinstance(state, dict):
        raise WorkdirError(f"{path}: expected model_state_dict; got {type(state).__name__}.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WorkdirError(f"{path}: model_state_dict holds a {type(value).__name__}.")
        bytes_needed = value.numel() * value.element_size()
        real = value.is_floating_point() and bytes_needed <= path.stat().st_size
        if not real or not bool(value.isfinite().all()):
            raise WorkdirError(
                f"{path}: {brief(name)} should be finite numbers; training diverged, or the file "
                "was changed. Choose an earlier epoch with --epoch."
            )
    return {name: value.float() for name, value in state.items()}


def _extent(workdir: Workdir) -> float:
    extent = workdir.config["lattice_args"].get("extent", 0.5)
    if type(extent) not in (int, float) or not 1 / LARGEST_EXTENT <= extent <= LARGEST_EXTENT:
        raise WorkdirError(
            f"{workdir.config_path}: lattice_args.extent must be positive, at most "
            f"{LARGEST_EXTENT:g}; got {brief(extent)}."
        )
    return float(extent)
