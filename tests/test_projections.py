"""Projections and slices: which axis is which, and what is summed."""

import numpy as np
import pytest
import torch

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.projections import central_slices, projections


def voxel(n, z, y, x):
    volume = np.zeros((1, n, n, n), np.float32)
    volume[0, z, y, x] = 1
    return volume


def test_one_voxel_is_seen_where_it_lies():
    along_z, along_y, along_x = projections(voxel(6, 1, 2, 4))[0]
    assert np.argwhere(along_z).tolist() == [[2, 4]]  # y, x
    assert np.argwhere(along_y).tolist() == [[1, 4]]  # z, x
    assert np.argwhere(along_x).tolist() == [[1, 2]]  # z, y


def test_slices_pass_through_the_origin_alone():
    assert not central_slices(voxel(6, 1, 2, 4)).any()
    across_z, across_y, across_x = central_slices(voxel(6, 3, 2, 4))[0]
    assert np.argwhere(across_z).tolist() == [[2, 4]]
    assert not across_y.any() and not across_x.any()


def test_sums_are_kept_and_tensors_stay_tensors(generator):
    volumes = generator.standard_normal((2, 4, 4, 4))
    found = projections(torch.from_numpy(volumes))
    assert isinstance(found, torch.Tensor)
    np.testing.assert_allclose(found.sum((2, 3)), volumes.sum((1, 2, 3))[:, None].repeat(3, 1))
    flipped = projections(volumes[:, ::-1])
    np.testing.assert_allclose(flipped[:, 1], found[:, 1].flip(1))  # its rows are z
    np.testing.assert_array_equal(projections(volumes), found.numpy())


def test_only_cubes():
    for bad in (np.zeros((4, 4, 4)), np.zeros((1, 4, 4, 6))):
        with pytest.raises(ArgumentError, match="cubes"):
            projections(bad)
        with pytest.raises(ArgumentError, match="cubes"):
            central_slices(bad)
