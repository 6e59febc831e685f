"""Spherical-harmonic coefficients of a volume's Fourier transform, shell by shell.

A windowed volume is band limited in the other sense too: its Fourier transform F is smooth, so
unit-spaced shells, and on each shell a Gauss-Legendre x uniform grid that is exact for degree
lmax + l_signal, lose nothing. F is evaluated on those points by a type-2 NUFFT. The density is
real, F(-k) = conj F(k), so half of each sphere suffices and, with the factor i^l taken out, the
coefficients are real: degree l comes from Re F if l is even, from Im F if l is odd.

References:
    Kovacs & Wriggers, "Fast rotational matching", Acta Cryst. D58, 2002,
    doi:10.1107/S0907444902009794.
    Barnett, Magland, af Klinteberg, "A parallel nonuniform fast Fourier transform library based
    on an 'exponential of semicircle' kernel", SIAM J. Sci. Comput. 41, 2019, arXiv:1808.06736.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import ceil, pi

import finufft
import numpy as np
import torch
from torch import Tensor

from cryodrgn_metric.so3.conventions import WINDOW_EDGE
from cryodrgn_metric.so3.half_sphere import HalfSphere
from cryodrgn_metric.so3.harmonics import degree_slice

__all__ = ["RadialBasis", "ShellExpansion", "ball_radius", "full_band_limit", "turned_volume"]

# finufft's accuracy and the oversampling of its grid. In float32 a windowed map, smooth as it is,
# comes out to 2e-6 (1e-6 with a grid twice as fine, and Delta no better), and at box 128 seven
# times as fast.
NUFFT_OPTIONS = {
    torch.float32: {"eps": 3e-5, "upsampfac": 1.25},
    torch.float64: {"eps": 1e-13, "upsampfac": 2.0},
}


def ball_radius(box: int, max_frequency: float | None = None) -> float:
    """Radius of the Fourier ball in which volumes are compared, in 1/box: at most n/2 - 1.

    The outermost shell is left out: there the window's product folds across the Nyquist planes,
    which lie differently to every orientation.
    """
    largest = box / 2 - 1
    return largest if max_frequency is None else min(max_frequency, largest)


def full_band_limit(
    box: int, max_frequency: float | None = None, reach: float = WINDOW_EDGE / 2
) -> int:
    """Degree beyond which a windowed volume holds next to nothing: ceil(2 pi k r_out / n).

    Arguments:
        box: n, in voxels.
        max_frequency: As in `ball_radius`.
        reach: r_out / n, how far a volume reaches from where it is expanded about.
    """
    return ceil(2 * pi * reach * ball_radius(box, max_frequency))


def _sphere_of_shell(frequency: float, lmax: int, weight: float, reach: float) -> HalfSphere:
    """The points of one shell, a half: F(-k) = conj F(k)."""
    l_signal = ceil(2 * pi * frequency * reach) + 5
    lmax = min(lmax, l_signal)
    return HalfSphere.make(lmax, lmax + l_signal, weight)


class ShellExpansion:
    """Expands windowed volumes: V -> real coefficients g_lm(k) of its Fourier transform.

    sum over l, m, k of g^2 = sum over the ball of |F(k)|^2 / D^3, the squared voxel norm of the
    volume low-passed to the ball; turning V turns the orders m of each degree among themselves.

    Arguments:
        box: n of the volumes, in voxels, even.
        lmax: Angular band limit.
        full_box: D, the box whose voxel norm is meant; n if None.
        max_frequency: As in `ball_radius`.
        dtype: torch.float32 or torch.float64, of the results.
        device: Of the results. The NUFFT itself runs on the CPU.
        reach: How far volumes reach from where they are expanded about, in boxes.

    References:
        The quadrature and why degree lmax + l_signal is needed: docs/conventions.md.

    Example:
        >>> expand = ShellExpansion(box=16, lmax=4)
        >>> expand(torch.zeros(2, 16, 16, 16)).shape
        torch.Size([25, 7, 2])
    """

    def __init__(
        self,
        box: int,
        lmax: int,
        *,
        full_box: int | None = None,
        max_frequency: float | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        reach: float = WINDOW_EDGE / 2,
    ) -> None:
        self.box = box
        self.reach = reach
        self.lmax = lmax
        self.full_box = full_box or box
        self.max_frequency = ball_radius(box, max_frequency)
        self.dtype = dtype
        self.device = torch.device(device)

    @property
    def n_shells(self) -> int:
        return ceil(self.max_frequency)

    @property
    def frequencies(self) -> np.ndarray:
        """Of the shells, 1/box."""
        # Midpoint rule: |F|^2 has support < 1 in the variable conjugate to k, so step 1 is exact.
        frequencies: np.ndarray = np.arange(self.n_shells) + 0.5
        return frequencies * (self.max_frequency / self.n_shells)

    @cached_property
    def _shells(self) -> list[HalfSphere]:
        step = self.max_frequency / self.n_shells
        weights = np.sqrt(self.frequencies**2 * step / self.full_box**3)
        return [
            _sphere_of_shell(float(k), self.lmax, float(w), self.reach).to(self.device, self.dtype)
            for k, w in zip(self.frequencies, weights, strict=True)
        ]

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        shells = zip(self.frequencies, self._shells, strict=True)
        points = np.concatenate([k * shell.directions for k, shell in shells])
        points = points * (2 * pi / self.box)
        points = points.astype(np.float64 if self.dtype == torch.float64 else np.float32)
        # finufft's first axis is the array's first axis, which is z.
        return points[:, 2].copy(), points[:, 1].copy(), points[:, 0].copy()

    def _fourier_samples(self, volumes: Tensor) -> Tensor:
        """F at every point of every shell, (volumes, points) complex."""
        kind = np.complex128 if self.dtype == torch.float64 else np.complex64
        array = volumes.detach().cpu().numpy().astype(kind)
        samples = finufft.nufft3d2(
            *self._points,
            array,
            **NUFFT_OPTIONS[self.dtype],
            isign=-1,
            modeord=0,
            nthreads=torch.get_num_threads(),
        )
        return torch.from_numpy(np.atleast_2d(samples)).to(self.device)

    def _phases(self, middles: Tensor) -> Tensor:
        """exp(i k·c): F of a volume whose point c is brought to the origin."""
        z, y, x = (torch.from_numpy(axis).double() for axis in self._points)
        phase = middles.double().cpu() @ torch.stack([x, y, z])
        samples = torch.polar(torch.ones_like(phase), phase).to(self.device)
        return samples.to(torch.complex128 if self.dtype == torch.float64 else torch.complex64)

    def __call__(self, volumes: Tensor, middles: Tensor | None = None) -> Tensor:
        """Coefficients ((lmax + 1)^2, shells, volumes) of windowed volumes.

        Arguments:
            volumes: (volumes, n, n, n).
            middles: Where each is expanded about, (volumes, 3) x, y, z in voxels from the origin
                voxel, which it is if None.
        """
        samples = self._fourier_samples(volumes)
        if middles is not None:
            samples = samples * self._phases(middles)
        parts = torch.stack([samples.real, samples.imag])
        shape = (self.lmax + 1) ** 2, self.n_shells, len(volumes)
        coefficients = parts.new_zeros(shape)
        sizes = [shell.n_theta * shell.n_phi for shell in self._shells]
        for index, (shell, part) in enumerate(
            zip(self._shells, parts.split(sizes, dim=2), strict=True)
        ):
            coefficients[: (shell.lmax + 1) ** 2, index] = shell.analyse(part)
        return coefficients


@dataclass(frozen=True)
class RadialBasis:
    """Orthonormal radial directions per degree: turning a volume never mixes shells.

    The shells may be mixed freely without changing what rotation does, so per degree the few
    directions that hold the energy of all volumes replace the shells.

    Arguments:
        directions: Per degree, (shells, rank) float64.
        dropped: Mean energy per volume that the kept directions miss.
    """

    directions: list[Tensor]
    dropped: float

    @classmethod
    def fit(cls, coefficients: Tensor, max_dropped: float) -> RadialBasis:
        """Keep the fewest directions that miss at most `max_dropped` of energy per volume.

        Arguments:
            coefficients: ((lmax + 1)^2, shells, volumes), as from `ShellExpansion`.
            max_dropped: Squared norm, summed over all degrees, mean over volumes.
        """
        lmax = int(coefficients.shape[0] ** 0.5) - 1
        energies, directions = [], []
        for degree in range(lmax + 1):
            block = coefficients[degree_slice(degree)].transpose(0, 1).flatten(1).double()
            values, vectors = torch.linalg.eigh(block @ block.mT / coefficients.shape[2])
            energies.append(values.clamp(min=0))
            directions.append(vectors)
        threshold, dropped = _threshold(torch.cat(energies), max_dropped)
        kept = [
            vectors[:, values > threshold].flip(1)
            if bool((values > threshold).any())
            else vectors[:, -1:]
            for values, vectors in zip(energies, directions, strict=True)
        ]
        return cls(kept, dropped)

    @property
    def lmax(self) -> int:
        return len(self.directions) - 1

    @property
    def rank(self) -> int:
        """Real numbers kept per volume."""
        return sum((2 * degree + 1) * v.shape[1] for degree, v in enumerate(self.directions))

    def project(self, coefficients: Tensor) -> list[Tensor]:
        """Blocks per degree (2l + 1, rank_l, volumes) of packed coefficients."""
        return [
            torch.matmul(vectors.mT.to(coefficients), coefficients[degree_slice(degree)])
            for degree, vectors in enumerate(self.directions)
        ]


def _threshold(energies: Tensor, max_dropped: float) -> tuple[float, float]:
    """Largest energy that may go, and the sum of all that goes with it."""
    ascending = energies.sort().values
    running = ascending.cumsum(0)
    count = int((running <= max_dropped).sum())
    if count == 0:
        return -1.0, 0.0
    return float(ascending[count - 1]), float(running[count - 1])


def turned_volume(volume: Tensor, rotation: Tensor) -> Tensor:
    """(R·V)(x) = V(R^T x) of a windowed volume, exact within the Fourier ball |k| < n/2.

    Arguments:
        volume: (n, n, n), real, windowed.
        rotation: (3, 3), active, acting on (x, y, z).

    Returns:
        (n, n, n) of the same dtype, on the CPU.
    """
    box = volume.shape[-1]
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    frequencies = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij")[::-1], dim=-1)
    inside = frequencies.norm(dim=-1) < box / 2
    # Row vectors: k @ R is R^T k.
    points = (frequencies[inside] @ rotation.double() * (2 * pi / box)).numpy()
    samples = finufft.nufft3d2(
        *(points[:, axis_of].copy() for axis_of in (2, 1, 0)),
        volume.detach().cpu().double().numpy().astype(np.complex128),
        eps=1e-9,
        isign=-1,
        modeord=0,
    )
    spectrum = torch.zeros(box, box, box, dtype=torch.complex128)
    spectrum[inside] = torch.from_numpy(samples)
    turned: Tensor = torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectrum)).real)
    return turned.to(volume.dtype)
