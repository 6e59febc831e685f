"""Decode V(z) with cryoDRGN's own networks, at any box, resolution and orientation.

`Decoder.decode` equals cryoDRGN's `eval_volume`, and saves most of its work: a real density
needs half the Fourier ball, points beyond the wanted resolution are never evaluated, and the
positional encoding times the first layer is the same for every z.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cryodrgn_metric.devices import pick_device
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.fourier_points import FourierPoints
from cryodrgn_metric.host_models import HostModel
from cryodrgn_metric.model_loading import load_host_model
from cryodrgn_metric.perceptron import Perceptron
from cryodrgn_metric.workdir import Workdir

__all__ = ["Decoder"]

# Rows of one matrix product: on a CPU its activations should stay in the cache.
POINTS_PER_CHUNK = {"cpu": 1024}
POINTS_PER_CHUNK_ELSEWHERE = 65536
# decode_stream holds about six arrays of this many voxels at once.
VOXELS_PER_BATCH = 1 << 24


class Decoder:
    """V(z) of one trained cryoDRGN model.

    Arguments:
        model: cryoDRGN's network.
        norm: (mean, standard deviation) of the training images' Hartley transforms.
        device: where to compute; None takes CUDA if it is there.
        dtype: of the network's hidden layers. All else is float32 at least.
    """

    def __init__(
        self,
        model: HostModel,
        *,
        norm: tuple[float, float],
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.device = pick_device(device)
        self.dtype = dtype
        self.volume_dtype = torch.promote_types(dtype, torch.float32)
        self.model = model.moved(self.device, self.volume_dtype)
        self.box_size = model.box_size
        self.latent_dim = model.latent_dim
        self.norm = norm
        self._network = self._as_perceptron()
        self._points_cache: dict[tuple[int, float, bool], FourierPoints] = {}

    @classmethod
    def from_workdir(
        cls,
        workdir: Workdir,
        device: str | torch.device | None = None,
        dtype: torch.dtype = torch.float32,
        as_trained: bool = False,
    ) -> Decoder:
        """Load the decoder of a workdir; the checkpoint is read without executing anything.

        Arguments:
            workdir: from `open_workdir`.
            device: "cpu", "cuda", ...; None takes CUDA if it is there.
            dtype: of the network's hidden layers.
            as_trained: for DRGN-AI, include what training constrains and cryoDRGN's `eval_vol`
                leaves out, so that V(z) turns as a whole (`Hypervolume`).

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
        model = load_host_model(workdir, as_trained)
        return cls(model, norm=workdir.norm, device=device, dtype=dtype)

    def as_dtype(self, dtype: torch.dtype) -> Decoder:
        """The same V(z), with hidden layers of another dtype."""
        if dtype == self.dtype:
            return self
        return Decoder(self.model, norm=self.norm, device=self.device, dtype=dtype)

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
                    turned = points.turned(turn, self.model)
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

    def _as_perceptron(self) -> Perceptron:
        origin = torch.zeros(1, 3, device=self.device, dtype=self.volume_dtype)
        width = self.model.encode_points(origin).shape[1]
        return Perceptron(self.model.layers(self.volume_dtype), width, self.dtype, self._chunk)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    def _empty_hartley(self, count: int, side: int, max_frequency: float | None) -> Tensor:
        # eval_volume adds the mean (0 unless --norm was given) outside the ball as well
        everywhere = self.model.mean_outside and max_frequency is None
        outside = self.norm[0] if everywhere else 0.0
        shape = (count, side**3)
        return torch.full(shape, outside, device=self.device, dtype=self.volume_dtype)

    def _fill(self, hartley: Tensor, latents: Tensor, points: FourierPoints) -> None:
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
        features = self.model.encode_points(coordinates.to(self.volume_dtype))
        of_points = self._network.of_points(features)
        for of_latent in self._network.of_latents(self.model.encode_latents(latents)):
            yield self._network.output(of_points, of_latent)

    # -- the points of the ball

    def _points(self, side: int, max_frequency: float | None, turned: bool) -> FourierPoints:
        key = (side, float("inf") if max_frequency is None else float(max_frequency), turned)
        points = self._points_cache.get(key)
        if points is None:
            points = FourierPoints.laid_out(self.model, *key).to(self.device, self.volume_dtype)
            self._points_cache = {key: points}  # of the last box only; other threads may look
        return points


def _inverse_hartley(hartley: Tensor) -> Tensor:
    """cryoDRGN's `fft.ihtn_center` for a batch: (B, n, n, n) -> (B, n, n, n)."""
    axes = (1, 2, 3)
    spectrum = torch.fft.fftn(torch.fft.fftshift(hartley, dim=axes), dim=axes, norm="forward")
    volumes: Tensor = torch.fft.fftshift(spectrum.real - spectrum.imag, dim=axes)
    return volumes
