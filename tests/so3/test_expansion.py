"""The expansion keeps the energy in the ball and turns exactly with the volume."""

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, render
from scipy.spatial.transform import Rotation

from cryodrgn_metric.so3.conventions import radial_distances, spherical_window, windowed
from cryodrgn_metric.so3.expansion import RadialBasis, ShellExpansion, turned_volume
from cryodrgn_metric.so3.turning import from_planes, to_planes, turned

BOX, SIGMA = 32, 1.3


def volumes_of(*atoms, dtype=torch.float64):
    volumes = torch.from_numpy(np.stack([render(a, BOX, SIGMA) for a in atoms])).to(dtype)
    return windowed(volumes, spherical_window(BOX))


def energy_in_ball(volume, radius):
    """Squared voxel norm of the volume low-passed to |k| <= radius, by a plain FFT."""
    spectrum = torch.fft.fftshift(torch.fft.fftn(volume.double()))
    inside = radial_distances(len(volume)) <= radius
    return float(spectrum[inside].abs().square().sum()) / volume.numel()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_frequency", [None, 9.5])
def test_energy_is_that_of_the_ball(dtype, max_frequency, generator):
    atoms = compact(40, 9.0, generator)
    volume = volumes_of(atoms, dtype=dtype)
    expand = ShellExpansion(BOX, 50, max_frequency=max_frequency, dtype=dtype)
    found = float(expand(volume).double().square().sum())
    expected = energy_in_ball(volume[0], max_frequency or BOX / 2 - 1)
    # the lattice's ball has a rough edge, the shells' a smooth one
    assert found == pytest.approx(expected, rel=1e-3 if max_frequency is None else 2e-2)


def test_full_box_sets_the_norm(generator):
    volume = volumes_of(compact(40, 9.0, generator))
    small = ShellExpansion(BOX, 10, dtype=torch.float64)(volume)
    large = ShellExpansion(BOX, 10, full_box=2 * BOX, dtype=torch.float64)(volume)
    torch.testing.assert_close(large * 8**0.5, small)


def test_coefficients_turn_with_the_atoms(generator):
    atoms = compact(40, 9.0, generator)
    rotation = Rotation.random(random_state=5).as_matrix()
    expand = ShellExpansion(BOX, 40, dtype=torch.float64)
    both = expand(volumes_of(atoms, atoms @ rotation.T))
    blocks = [both[d**2 : (d + 1) ** 2] for d in range(41)]
    planes = turned([to_planes(b[:, :, :1]) for b in blocks], torch.from_numpy(rotation)[None])
    moved = [from_planes(block) for block in planes]
    missed = sum(
        float((b[:, :, 1:] - m).square().sum()) for b, m in zip(blocks, moved, strict=True)
    )
    # the sampled density is not quite band limited: 2e-3 of the norm is what voxels lose
    assert missed**0.5 < 3e-3 * float(both[:, :, 0].norm())


def test_radial_basis_drops_no_more_than_it_says(generator):
    stack = [compact(30, 9.0, generator) for _ in range(6)]
    packed = ShellExpansion(BOX, 12, dtype=torch.float64)(volumes_of(*stack))
    energy = float(packed.square().sum(dim=(0, 1)).mean())
    basis = RadialBasis.fit(packed, 1e-3 * energy)
    blocks = basis.project(packed)
    kept = sum(float(block.square().sum()) for block in blocks) / packed.shape[2]
    assert basis.rank < packed[:, :, 0].numel() / 3
    assert energy - kept == pytest.approx(basis.dropped, rel=1e-6)
    assert basis.dropped <= 1e-3 * energy


def test_constant_and_outer_density_change_nothing(generator):
    volume = torch.from_numpy(generator.normal(size=(1, BOX, BOX, BOX)))
    window = spherical_window(BOX)
    outside = (radial_distances(BOX) >= 0.99 * BOX / 2).double()
    changed = windowed(volume + 7.0 + 3.0 * outside, window)
    torch.testing.assert_close(changed, windowed(volume, window))


def test_turned_volume_by_a_quarter_turn_is_rot90(generator):
    # about z, x -> y: array axes (y, x) = (1, 2); numpy turns the first axis onto the second
    volume = windowed(torch.from_numpy(generator.normal(size=(BOX,) * 3)), spherical_window(BOX))
    quarter = torch.tensor([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    inner = turned_volume(volume, torch.eye(3))[1:, 1:, 1:]  # odd, so the origin is its middle
    found = turned_volume(volume, quarter)[1:, 1:, 1:]
    expected = np.rot90(inner.numpy(), axes=(2, 1))
    np.testing.assert_allclose(found, expected, atol=1e-8)
