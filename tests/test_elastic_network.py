"""An elastic network: nothing resists a rigid motion, and small ones cost what the modes say."""

import numpy as np
import pytest
import torch
from open_closed import Enzyme
from scipy.spatial.transform import Rotation

from cryodrgn_metric.elastic_network import ElasticNetwork


@pytest.fixture(scope="module")
def network():
    return ElasticNetwork.of(Enzyme().beads(0))


def energy(network, positions):
    models = torch.from_numpy(positions)[None]
    return float(network.energies(torch.cdist(models, models))[0])


def test_a_rigid_motion_costs_nothing(network):
    turned = network.rest @ Rotation.random(random_state=0).as_matrix().T + [3, -5, 8]
    assert energy(network, turned) < 1e-12


def test_six_modes_have_no_stiffness_and_no_more(network):
    values, modes = network.modes()
    assert (values[:6] < 1e-9 * values[-1]).all() and values[6] > 1e-6 * values[-1]
    np.testing.assert_allclose(modes @ modes.T, np.eye(len(modes)), atol=1e-9)


@pytest.mark.parametrize("number", [6, 40, 400])
def test_small_motions_cost_what_their_mode_says(network, number):
    values, modes = network.modes()
    step = 1e-3
    bent = network.rest + step * modes[number].reshape(-1, 3)
    expected = values[number] * step**2 / (2 * len(network.rest) * network.spacing**2)
    assert energy(network, bent) == pytest.approx(expected, rel=0.01)


def test_what_lies_apart_is_joined(generator):
    """Two clouds far from each other: without a spring between, one would drift off."""
    cloud = generator.normal(size=(30, 3))
    network = ElasticNetwork.of(np.concatenate([cloud, cloud + [100, 0, 0]]))
    assert (network.stiffness[:30, 30:] > 0).sum() == 1


def test_the_softest_modes_open_the_enzyme(network):
    """As Tama & Sanejouand (2001) found: few modes tell most of the way from closed to open."""
    change = Enzyme().beads(24)
    turn, _ = Rotation.align_vectors(network.rest - network.rest.mean(0), change - change.mean(0))
    moved = turn.apply(change - change.mean(0)) - (network.rest - network.rest.mean(0))
    _, modes = network.modes()
    shares = (modes[6:26] @ moved.ravel()) ** 2 / (moved**2).sum()
    assert shares.sum() > 0.7
