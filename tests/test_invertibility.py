"""A flow in numbers, against closed forms of flows that were set by hand."""

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.invertibility import invertibility_of
from cryodrgn_metric.metric_map import MetricMap

OPTIONS = {"width": 8, "depth": 1, "progress": False, "map": "flow"}


def latents():
    return np.random.default_rng(0).normal(size=(300, 3)) * [1, 2, 3] + 5


def fitted(components=3, steps=1):
    z = latents()
    found = MetricMap(components, steps=steps, **OPTIONS).fit(z, squareform(pdist(z)))
    with torch.no_grad():  # the identity again
        for coupling in found.flow.couplings.transforms:
            coupling.hyper[-1].weight.zero_()
            coupling.hyper[-1].bias.zero_()
    return found, z


def test_the_identity_has_moved_nothing():
    found, z = fitted()
    numbers = invertibility_of(found, z)
    assert numbers.moved < 1e-7  # of the root of a rounding error
    assert numbers.round_trip < 1e-14
    assert numbers.condition_most == pytest.approx(1)
    assert numbers.variance_left_out == 0
    assert numbers.scale == found.flow.c
    # of a cloud with variances 1, 4, 9
    np.testing.assert_allclose(numbers.variance_shares, np.array([9, 4, 1]) / 14, atol=0.03)


def test_one_stretched_axis():
    """The first coupling that changes coordinate 0 multiplies it by 3, wherever it is."""
    found, z = fitted()
    flow = found.flow
    coupling = next(one for one in flow.couplings.transforms if not one.mask[0])
    a = np.log(3)
    raw = a / (1 + a / np.log(1e-3))  # zuko keeps its scales above 1e-3
    with torch.no_grad():
        rows = coupling.hyper[-1].bias.view(-1, 2)  # shift and scale of each that is changed
        rows[0, 1] = raw
    numbers = invertibility_of(found, z)
    assert numbers.condition_median == pytest.approx(3) == pytest.approx(numbers.condition_most)
    spread = z.var(axis=0)
    moved = flow.moved(torch.from_numpy(z)).detach().numpy()
    np.testing.assert_allclose(moved.var(axis=0), spread * [9, 1, 1])
    inner = spread @ [3, 1, 1]
    cosine = inner / np.sqrt((spread @ [9, 1, 1]) * spread.sum())
    # the columns of the sample are not quite uncorrelated, which doesn't matter to this
    assert numbers.moved == pytest.approx(np.sqrt(1 - cosine**2))


def test_what_is_not_kept_is_counted_but_can_be_undone():
    found, z = fitted(components=1)
    numbers = invertibility_of(found, z)
    assert numbers.variance_left_out == pytest.approx(5 / 14, abs=0.03)
    assert numbers.round_trip < 1e-14


def test_a_perceptron_has_no_inverse():
    z = latents()
    found = MetricMap(steps=1, width=4, progress=False).fit(z, squareform(pdist(z)))
    with pytest.raises(ArgumentError, match="--map flow"):
        invertibility_of(found, z)
