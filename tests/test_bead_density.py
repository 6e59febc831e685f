"""The beads' density: rendered, and its correlation without rendering, must agree."""

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, render
from scipy.ndimage import gaussian_filter

from cryodrgn_metric.bead_density import BlurredVolumes, correlation, rendered
from cryodrgn_metric.so3.conventions import spherical_window, windowed

BOX, WIDTH = 32, 1.4


@pytest.fixture
def case(generator):
    """A windowed volume of one molecule, and beads of another that overlaps it."""
    window = spherical_window(BOX)
    volume = torch.from_numpy(render(compact(40, 8, generator), BOX, 1.8))[None]
    beads = torch.from_numpy(compact(30, 9, generator))[None]
    weights = torch.from_numpy(generator.uniform(0.5, 2, 30))
    return windowed(volume, window), window, beads, weights


def test_rendered_is_a_sum_of_gaussians(case, generator):
    _, _, beads, weights = case
    found = rendered(beads, torch.ones_like(weights), WIDTH, BOX)[0].numpy()
    expected = render(beads[0].numpy(), BOX, WIDTH) / (np.sqrt(2 * np.pi) * WIDTH) ** 3
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_correlation_is_pearsons_within_a_sphere(case):
    volume, window, beads, weights = case
    density = windowed(rendered(beads, weights, WIDTH, BOX), window)
    expected = np.corrcoef(volume.numpy().ravel(), density.numpy().ravel())[0, 1]
    found = float(correlation(beads, weights, WIDTH, volume, window)[0])
    assert found == pytest.approx(expected, abs=2e-3)  # the window's rim counts by half


@pytest.mark.parametrize("blur", [0.0, 1.5])
def test_the_shortcut_agrees_with_voxels(case, blur):
    volume, window, beads, weights = case
    apart = torch.cdist(beads, beads)
    found = BlurredVolumes(volume, window, WIDTH, blur).correlation(beads, weights, apart)
    density = rendered(beads, weights, float(np.hypot(WIDTH, blur)), BOX)
    blurred = torch.from_numpy(
        gaussian_filter(volume[0].numpy(), blur, mode="wrap", truncate=6)
        if blur
        else volume[0].numpy()
    )[None]
    overlap = (blurred * density).sum()
    variance = density.square().sum() - weights.sum() ** 2 / window.sum()
    expected = overlap / (blurred.norm() * variance.sqrt())
    # linear interpolation of the blurred field: some 3 % at 1.4 voxels and no blur
    assert float(found[0]) == pytest.approx(float(expected), rel=0.04 if not blur else 0.03)


def test_gradients_are_those_of_the_rendered_density(case):
    volume, window, beads, weights = case
    place = beads.clone().requires_grad_()
    blurred = BlurredVolumes(volume, window, WIDTH, 0.0)
    blurred.correlation(place, weights, torch.cdist(place, place)).sum().backward()
    exact = beads.clone().requires_grad_()
    correlation(exact, weights, WIDTH, volume, window).sum().backward()
    cosine = torch.nn.functional.cosine_similarity(place.grad.flatten(), exact.grad.flatten(), 0)
    assert float(cosine) > 0.995


def test_a_cut_ball_is_cut_from_the_beads_as_well(case):
    """A coarse volume rings; sharp beads correlate with it once they are as coarse."""
    _, window, beads, weights = case
    sharp = rendered(beads, weights, 0.7, BOX)
    frequencies = np.fft.fftfreq(BOX) * BOX
    grid = np.meshgrid(frequencies, frequencies, frequencies, indexing="ij")
    inside = np.sqrt(sum(axis**2 for axis in grid)) <= 6
    coarse = torch.from_numpy(np.fft.ifftn(np.fft.fftn(sharp[0].numpy()) * inside).real)
    volume = windowed(coarse[None], window)
    assert float(correlation(beads, weights, 0.7, volume, window, 6.0)[0]) > 0.9999
    assert float(correlation(beads, weights, 0.7, volume, window)[0]) < 0.9
