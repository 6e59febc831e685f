"""The embeddings that z' is compared with: the rows asked for, the dimension asked for."""

import numpy as np
import pytest

from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.reference_spaces import principal_components, reference_spaces


def latents(count: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(count, 4))


def test_reference_spaces() -> None:
    z = latents(120)
    rows = np.array([5, 3, 90])
    found = reference_spaces(z, rows, dimension=2, seed=0, skip_umap=True)
    assert np.array_equal(found["z"], z[rows])
    assert found["pca"].shape == (3, 2)
    assert "umap" not in found
    assert reference_spaces(z[:, :1], rows, 2, 0, skip_umap=True)["pca"].shape == (3, 1)


@pytest.mark.slow  # numba compiles
def test_umap_has_the_dimension_of_z_metric() -> None:
    found = reference_spaces(latents(30), np.arange(7), dimension=1, seed=0)
    assert found["umap"].shape == (7, 1)


def test_principal_components() -> None:
    z = latents(200) * [1, 5, 0.1, 2]
    found, shares = principal_components(z)
    # turned only: all distances stay
    np.testing.assert_allclose(
        np.linalg.norm(found[0] - found[1:], axis=1), np.linalg.norm(z[0] - z[1:], axis=1)
    )
    assert (np.diff(found.var(axis=0)) < 0).all()
    np.testing.assert_allclose(shares, found.var(axis=0) / z.var(axis=0).sum())


def test_unlike_arguments_are_refused() -> None:
    for rows in ([40], [-1], []):
        with pytest.raises(ArgumentError):
            reference_spaces(latents(40), rows, 2, 0)
    for z, dimension in ((latents(40), 0), (latents(40)[:, 0], 2)):
        with pytest.raises(ArgumentError):
            reference_spaces(z, [0], dimension, 0)
