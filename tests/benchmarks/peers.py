"""Programs that lay one volume on another, each behind the same call.

    rotation = align(first, second)       first ≈ R·second, with R as in docs/conventions.md

Volumes are numpy float32 [z, y, x]. Each program keeps its defaults but for what is named here,
and works with as many threads as it likes. Its libraries are imported when it is called: they are
installed by the extra `benchmark` alone.
"""

import os
import warnings
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch


@contextmanager
def _own_warnings():
    """A peer's warnings are not ours to mend; this project's tests turn warnings into errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def aspire(first, second):
    """ASPIRE's align_BO: Bayesian optimisation over SO(3), then Nelder-Mead, at box 32."""
    _aspire_settings()
    with _own_warnings():
        from aspire.utils import align_BO
        from aspire.volume import Volume

        _, found = align_BO(
            Volume(first),
            Volume(second),
            loss_type="euclidean",
            downsampled_size=32,
            max_iters=200,
            refinement_downsampled_size=32,
            seed=0,
        )
    return np.asarray(found, dtype=float)


@cache
def _aspire_settings():
    """A temporary folder for the log, else written where one stands, and for its settings."""
    folder = TemporaryDirectory(prefix="aspire")
    settings = f"logging: {{log_dir: '{folder.name}', log_exceptions: 0}}\n"
    Path(folder.name, "config.yaml").write_text(settings, encoding="utf-8")
    os.environ["ASPIREDIR"] = folder.name  # read when it is imported
    return folder  # kept until the interpreter ends


def torch_fit_in_map(first, second):
    """torch-fit-in-map: all orientations 30 degrees apart, the best five refined by L-BFGS.

    It also searches translations, which can't be switched off; they are left out of the score.
    """
    with _own_warnings():
        from torch_fit_in_map import (
            ExhaustiveSearchConfig,
            GradientRefinementConfig,
            fit_map_in_map,
        )

        found = fit_map_in_map(
            torch.from_numpy(second),
            torch.from_numpy(first),
            ExhaustiveSearchConfig(angular_step_degrees=30, n_start=5),
            GradientRefinementConfig(),
            verbose=False,
        )
    # Its matrix M acts on (z, y, x) and pulls: turned(x) = V(M x), so R = M^T with axes reversed.
    return found.rotation_matrix.numpy().T[::-1, ::-1].astype(float)


GRID, TIMED = 36864, 256


@cache
def _hopf_grid():
    """cryoDRGN's grid of rotations some 8 degrees apart, `grid_SO3(3)`: (36864, 3, 3) float32."""
    from cryodrgn.lie_tools import quaternions_to_SO3
    from cryodrgn.so3_grid import grid_SO3

    return quaternions_to_SO3(torch.from_numpy(grid_SO3(3))).numpy()


def trilinear_sample(first, second):
    """256 rotations, spread evenly over the grid: what can be timed at the full box."""
    return trilinear_search(first, second, _hopf_grid()[:: GRID // TIMED])


def trilinear_grid(first, second):
    """All rotations of the grid at half the box, without which it would take minutes."""
    return trilinear_search(_halved(first), _halved(second), _hopf_grid())


def trilinear_search(first, second, rotations):
    """Turn `second` by each of `rotations` with trilinear interpolation; the closest one wins."""
    fixed, moving = torch.from_numpy(first), torch.from_numpy(second)
    axis = torch.arange(len(first), dtype=torch.float32) - len(first) // 2
    z, y, x = torch.meshgrid(axis, axis, axis, indexing="ij")
    points = torch.stack([x, y, z], dim=-1).flatten(0, 2)
    # Several at once: torch shares out a batch among its threads, not the points of one volume.
    distances = [
        (fixed - _turned(moving, points, batch)).square().sum(dim=(1, 2, 3))
        for batch in torch.from_numpy(rotations).split(16)
    ]
    return rotations[int(torch.cat(distances).argmin())].astype(float)


def _turned(volume, points, rotations):
    """(R·V)(x) = V(R^T x) at points (n^3, 3) x, y, z in voxels from the origin, for every R."""
    box = len(volume)
    # x @ R is R^T x for every row x. With aligned corners -1 and 1 are the outermost voxels.
    corners = (points @ rotations + box // 2) * (2 / (box - 1)) - 1
    batch = volume.expand(len(rotations), 1, box, box, box)
    grid = corners.view(-1, box, box, box, 3)
    return torch.nn.functional.grid_sample(batch, grid, align_corners=True)[:, 0]


def _halved(volume):
    """The same volume at half its box: the inner frequencies of its Fourier transform."""
    quarter = len(volume) // 4
    inner = slice(quarter, 3 * quarter)
    spectrum = np.fft.fftshift(np.fft.fftn(np.fft.ifftshift(volume)))[inner, inner, inner]
    # The Nyquist planes have no counterpart on the other side, so they are left out.
    spectrum[0] = spectrum[:, 0] = spectrum[:, :, 0] = 0
    small = np.fft.fftshift(np.fft.ifftn(np.fft.ifftshift(spectrum)).real)
    return small.astype(np.float32)
