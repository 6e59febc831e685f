"""The flow: the identity at first, inverses, Jacobians, d' < d, files, and what it refuses."""

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import pdist, squareform

from cryodrgn_metric import flow as flow_module
from cryodrgn_metric.errors import ArgumentError, MetricError, MissingExtraError
from cryodrgn_metric.fidelity import fidelity_of
from cryodrgn_metric.flow import Flow, require_flow
from cryodrgn_metric.metric_map import MetricMap

SIZES = {"width": 16, "depth": 1, "pairs_per_step": 500, "progress": False, "map": "flow"}


def latents(columns=3, count=200):
    """Off the origin, of unlike spreads."""
    z = np.random.default_rng(0).normal(size=(count, columns))
    return (z * np.linspace(0.5, 2, columns) + 0.7).astype(np.float32)


def bent(z1, z2):
    """Distances of a map with a known inverse, from another space than z."""

    def curved(z):
        return torch.cat([z[:, :1] + z[:, 1:2].sin(), z[:, 1:]], dim=1)

    return (curved(z1) - curved(z2)).norm(dim=1)


def fitted(components, columns=3, steps=60, **options):
    z = latents(columns)
    return MetricMap(components, steps=steps, **{**SIZES, **options}).fit(z, bent), z


@pytest.mark.parametrize("columns", [2, 3, 4, 5, 8, 11])
def test_it_starts_at_the_identity_to_the_bit(columns):
    z = torch.from_numpy(latents(columns))
    flow = Flow(columns, columns, 16, 2, seed=0)
    flow.standardise(z)
    assert torch.equal(flow.double().moved(z.double()), z.double())
    whole = flow(z.double())
    assert torch.equal(whole, flow.log_c.exp() * z.double())  # one scalar, and nothing else
    assert float(pdist(whole.detach().numpy()).mean()) == pytest.approx(1, rel=0.2)


def test_every_coordinate_comes_to_move_by_every_other():
    for columns in (2, 3, 5, 9):
        flow = Flow(columns, columns, 16, 1, seed=0).double()
        with torch.no_grad():
            for coupling in flow.couplings.transforms:
                torch.nn.init.normal_(coupling.hyper[-1].weight, generator=torch.manual_seed(1))
        jacobian = flow.jacobian(torch.from_numpy(latents(columns)[:5]).double())
        assert (jacobian != 0).all()


@pytest.mark.parametrize("columns", [2, 3, 5])
def test_inverse_of_transform_is_z(columns):
    found, z = fitted(columns, columns)
    assert np.abs(found.inverse(found.transform(z)) - z).max() < 1e-9 * z.std()
    assert found.inverse(found.transform(z)).dtype == np.float64
    far = 2 * found.transform(z)  # where no particle is
    again = found.flow(torch.from_numpy(found.inverse(far))).detach()
    np.testing.assert_allclose(again, far, atol=1e-9 * np.abs(far).max())


def test_fewer_dimensions_are_principal_axes_of_all():
    found, z = fitted(2)
    points = found.transform(z)
    whole = found.flow.whole()(torch.from_numpy(z).double()).detach().numpy()
    np.testing.assert_allclose(points, whole[:, :2])
    variances = whole.var(axis=0)
    np.testing.assert_allclose(np.cov(whole.T), np.diag(np.diag(np.cov(whole.T))), atol=1e-6)
    np.testing.assert_allclose(found.variance_shares_, variances / variances.sum(), rtol=1e-5)
    assert (np.diff(variances) < 0).all()
    # what was not kept is taken as its mean: z' is met again, z is not
    back = found.inverse(points)
    np.testing.assert_allclose(found.transform(back), points, atol=1e-5 * np.abs(points).max())
    assert np.abs(back - z).max() > 0.01


def test_all_dimensions_keep_the_axes_of_z():
    """A distance that is that of z already, times a factor, moves nothing but c."""
    z = latents()
    found = MetricMap(3, steps=60, **SIZES).fit(z, 2.5 * squareform(pdist(z)))
    assert found.flow.c == pytest.approx(2.5, rel=0.02)
    moved = found.transform(z) / found.flow.c - z
    # what 60 steps of noise do to a map that was right from the start; a shift costs nothing
    assert moved.std(axis=0).max() < 0.05 * z.std()
    assert found.variance_shares_.sum() == pytest.approx(1)


def test_a_bent_distance_is_learned():
    found, z = fitted(3, steps=400, width=64, depth=2, pairs_per_step=2000)
    first, second = np.triu_indices(len(z), 1)
    target = bent(torch.from_numpy(z[first]), torch.from_numpy(z[second])).numpy()
    points = found.transform(z)
    stress = fidelity_of(points, squareform(target))["stress1_unscaled"]
    assert stress < 0.02 < fidelity_of(z, squareform(target))["stress1"]


@pytest.mark.parametrize("components", [2, 3])
def test_jacobian_is_that_of_finite_differences(components):
    found, z = fitted(components)
    step, rows = 1e-5, z.astype(np.float64)
    columns = []
    with torch.no_grad():
        for axis in np.eye(3):
            ahead, behind = (torch.from_numpy(rows + sign * step * axis) for sign in (1, -1))
            columns.append((found.flow(ahead) - found.flow(behind)) / (2 * step))
    expected = torch.stack(columns, dim=-1).numpy()
    found_jacobian = found.jacobian(z)
    assert (found_jacobian.shape, found_jacobian.dtype) == (expected.shape, np.float32)
    np.testing.assert_allclose(found_jacobian, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("components", [2, 3])
def test_saved_flow_gives_the_same_bits(tmp_path, components):
    found, z = fitted(components)
    found.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f_xi.safetensors", "f_xi.yaml"]
    loaded = MetricMap.load(tmp_path, "cpu")
    points = found.transform(z)
    assert np.array_equal(loaded.transform(z), points)
    assert np.array_equal(loaded.inverse(points), found.inverse(points))
    assert np.array_equal(loaded.variance_shares_, found.variance_shares_)


def test_same_seed_same_bits_and_global_state_untouched():
    state = torch.random.get_rng_state()
    first, z = fitted(3, steps=10)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.rand(3)
    assert np.array_equal(fitted(3, steps=10)[0].transform(z), first.transform(z))
    assert not np.array_equal(fitted(3, steps=10, seed=1)[0].transform(z), first.transform(z))


def test_unlike_arguments_are_refused():
    z = latents()
    for components, rows in ((4, z), (1, z[:, :1])):
        with pytest.raises(ArgumentError, match="--map mlp"):
            MetricMap(components, steps=1, **SIZES).fit(rows, bent)
    with pytest.raises(ArgumentError, match="map must be mlp or flow"):
        MetricMap(map="spline").fit(z, bent)
    with pytest.raises(ArgumentError, match="--map flow"):
        MetricMap(steps=1, width=8, progress=False).fit(z, bent).inverse(z[:, :2])
    found, _ = fitted(3, steps=1)
    for points in (z[:, :2], z[0], np.full((2, 3), np.nan)):
        with pytest.raises(ArgumentError):
            found.inverse(points)
    with pytest.raises(MetricError, match="not fitted"):
        MetricMap(map="flow").inverse(z)


def test_without_zuko_the_error_says_what_to_type(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)  # as Python marks what can't be imported
    with pytest.raises(MissingExtraError, match=r"pip install 'cryodrgn_metric\[flow\]'"):
        require_flow(3, 3)


def test_zuko_is_imported_by_a_flow_only():
    for path in Path(flow_module.__file__).parent.rglob("*.py"):
        for node in ast.parse(path.read_text()).body:  # at module level
            if isinstance(node, ast.Import | ast.ImportFrom):
                assert "zuko" not in ast.unparse(node), path
