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

from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil, pi

import finufft
import numpy as np
import torch
from torch import Tensor

from cryodrgn_metric.so3.conventions import WINDOW_EDGE
from cryodrgn_metric.so3.harmonics import degree_slice, gauss_legendre, legendre_table

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


def _quadrature_size(band: int) -> tuple[int, int]:
    """(n_theta of the full sphere, n_phi): exact for products of total degree `band`."""
    n_theta = ceil((band + 1) / 2)
    return n_theta + n_theta % 2, band + 1


@dataclass(frozen=True)
class _Shell:
    """One shell: its points on the northern half sphere and the table that integrates them."""

    frequency: float
    lmax: int
    n_theta: int
    n_phi: int
    points: np.ndarray  # (n_theta * n_phi, 3) x, y, z in 1/box
    waves: Tensor  # (n_phi, wave, m): cosines and sines of m phi
    table: Tensor  # (m, l, n_theta): Legendre table times quadrature weight
    places: Tensor  # of the packed coefficients among (m, l, wave, part)

    @classmethod
    def make(cls, frequency: float, lmax: int, weight: float, reach: float) -> _Shell:
        l_signal = ceil(2 * pi * frequency * reach) + 5
        lmax = min(lmax, l_signal)
        n_theta, n_phi = _quadrature_size(lmax + l_signal)
        theta, theta_weights = gauss_legendre(n_theta)
        theta, theta_weights = theta[: n_theta // 2], theta_weights[: n_theta // 2]
        phi = np.arange(n_phi) * (2 * pi / n_phi)
        points = frequency * np.stack(
            [
                np.outer(np.sin(theta), np.cos(phi)),
                np.outer(np.sin(theta), np.sin(phi)),
                np.outer(np.cos(theta), np.ones(n_phi)),
            ],
            axis=-1,
        )
        # Twice: the southern half repeats the northern one by F(-k) = conj F(k).
        scale = 2 * theta_weights * (2 * pi / n_phi) * weight
        table = legendre_table(lmax, theta) * torch.from_numpy(scale.copy())
        table[1:] *= 2**0.5
        angles = torch.from_numpy(np.outer(phi, np.arange(lmax + 1)))
        waves = torch.stack([angles.cos(), angles.sin()], dim=1)
        size = n_theta // 2, n_phi
        return cls(frequency, lmax, *size, points.reshape(-1, 3), waves, table, _places(lmax))

    def to(self, device: torch.device, dtype: torch.dtype) -> _Shell:
        """The same with its tables where and as they are used."""
        waves, table = self.waves.to(device, dtype), self.table.to(device, dtype)
        return replace(self, waves=waves, table=table, places=self.places.to(device))

    def analyse(self, samples: Tensor) -> Tensor:
        """Project samples on the harmonics of degree <= lmax.

        Two products; an FFT over phi would be no faster at these sizes, and needs more calls.

        Arguments:
            samples: Real and imaginary parts on the half sphere, (2, volumes, points).

        Returns:
            ((lmax + 1)^2, volumes).
        """
        volumes = samples.shape[1]
        rings = samples.unflatten(2, (self.n_theta, self.n_phi)).flatten(0, 2)
        orders = (rings @ self.waves.flatten(1)).view(2, volumes, self.n_theta, 2, -1)
        by_order = orders.permute(4, 2, 3, 0, 1).flatten(2)  # m, theta, (wave, part, volume)
        return torch.bmm(self.table, by_order).view(-1, volumes)[self.places]


def _places(lmax: int) -> Tensor:
    """Where each packed coefficient (l, m) stands among (|m|, l, wave, part).

    The wave is a cosine, or a sine for m < 0; even l come from the real part, odd ones from the
    imaginary part.
    """
    places = [
        ((abs(m) * (lmax + 1) + degree) * 2 + (m < 0)) * 2 + degree % 2
        for degree in range(lmax + 1)
        for m in range(-degree, degree + 1)
    ]
    return torch.tensor(places)


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
        frequencies: np.ndarray = np.arange(self.n_shells) + 0.5
        return frequencies * (self.max_frequency / self.n_shells)

    @cached_property
    def _shells(self) -> list[_Shell]:
        # Midpoint rule: |F|^2 has support < 1 in the variable conjugate to k, so step 1 is exact.
        step = self.max_frequency / self.n_shells
        weights = np.sqrt(self.frequencies**2 * step / self.full_box**3)
        return [
            _Shell.make(float(k), self.lmax, float(w), self.reach).to(self.device, self.dtype)
            for k, w in zip(self.frequencies, weights, strict=True)
        ]

    @cached_property
    def _points(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        points = np.concatenate([shell.points for shell in self._shells]) * (2 * pi / self.box)
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
