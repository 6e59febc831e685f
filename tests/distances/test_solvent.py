"""The solvent's level and spread, with a molecule in it."""

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, render

from cryodrgn_metric.distances.solvent import sd_below, solvent_level

BOX = 32


@pytest.mark.parametrize("reach", [5.0, 9.0])
@pytest.mark.parametrize("level", [0.0, -3.0])
def test_a_molecule_hardly_moves_it(reach, level):
    """The larger one fills a third of the sphere; the plain median would be off by half an sd."""
    noise = np.random.default_rng(0).normal(size=(BOX, BOX, BOX))
    molecule = render(compact(80, reach, np.random.default_rng(1)), BOX, 1.3)
    volume = torch.from_numpy(level + 0.1 * noise + molecule)
    found = solvent_level(volume)
    assert float(found) == pytest.approx(level, abs=0.02)
    assert float(sd_below(volume.flatten(), found)) == pytest.approx(0.1, rel=0.1)


def test_no_solvent_has_no_spread():
    assert sd_below(torch.ones(5), torch.tensor(1.0)) == 0
    assert torch.isnan(solvent_level(torch.full((8, 8, 8), torch.nan)))
