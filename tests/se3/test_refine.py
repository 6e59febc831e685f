"""Derivatives against finite differences, and where a climb ends."""

from math import pi

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, hinged, render
from scipy.spatial.transform import Rotation

from cryodrgn_metric.se3.points import BallPoints
from cryodrgn_metric.se3.refine import Climb, MovedVolumes, RigidDerivatives, Sphere
from cryodrgn_metric.so3.expansion import RadialBasis, ShellExpansion
from cryodrgn_metric.so3.rotations import matrix_from_rotation_vector
from cryodrgn_metric.so3.turning import to_planes

BOX, LMAX, SIGMA = 16, 12, 1.4
MOVE = np.array([0.6, -0.5, 0.3])
TURN = Rotation.from_rotvec([0.2, -0.3, 0.25]).as_matrix()


@pytest.fixture(scope="module")
def derivatives():
    """Volume 0 stays; volume 1 is another state of it, moved by TURN and MOVE."""
    atoms = compact(20, 4.0, np.random.default_rng(1))
    other = hinged(atoms, 7, 0.4) @ TURN.T + MOVE
    volumes = np.stack([render(one, BOX, SIGMA) for one in (atoms, other)])
    expand = ShellExpansion(BOX, LMAX, dtype=torch.float64)
    features = expand(torch.from_numpy(volumes))
    basis = RadialBasis.fit(features, 0.0)
    frequencies = torch.from_numpy(expand.frequencies)
    points = BallPoints(basis.directions, frequencies, torch.float64, torch.device("cpu"))
    planes = [to_planes(block) for block in basis.project(features)]
    return RigidDerivatives([block[..., :1] for block in planes], MovedVolumes(planes, points))


def correlations(derivatives, steps):
    """C at T_v exp(w) of one motion, for steps (count, 6)."""
    start = torch.from_numpy(Rotation.random(random_state=4).as_matrix())
    shift = torch.tensor([0.1, 0.2, -0.15], dtype=torch.float64)
    turns = matrix_from_rotation_vector(steps[:, :3])
    rotations, shifts = turns @ start, (turns @ shift) + steps[:, 3:]
    return derivatives.at(torch.ones(len(steps), dtype=torch.long), rotations, shifts)


def test_gradient_and_hessian_are_those_of_finite_differences(derivatives):
    size, eye = 1e-3, torch.eye(6, dtype=torch.float64)
    here = correlations(derivatives, torch.zeros(1, 6, dtype=torch.float64))
    plus, minus = (correlations(derivatives, sign * size * eye)[0] for sign in (1, -1))
    gradient, hessian = here[1][0], here[2][0]
    scale = float(hessian.abs().max())
    torch.testing.assert_close((plus - minus) / (2 * size), gradient, rtol=0, atol=1e-4 * scale)
    both = torch.stack([eye[i] + eye[j] for i in range(6) for j in range(6)]) * size
    mixed = correlations(derivatives, both)[0] + correlations(derivatives, -both)[0]
    mixed = (mixed - 2 * here[0]).view(6, 6) / size**2  # H_ii + H_jj + 2 H_ij
    own = (plus + minus - 2 * here[0]) / size**2
    expected = (mixed - own[:, None] - own) / 2
    torch.testing.assert_close(expected, hessian, rtol=0, atol=1e-4 * scale)


def climbed(derivatives, radius):
    sphere = Sphere(radius, torch.zeros(3).double(), torch.zeros(1, 3).double())
    columns = torch.ones(1, dtype=torch.long)
    climb = Climb(derivatives, sphere, columns, torch.eye(3).double()[None])
    climb.run(torch.zeros(1, 3).double(), 1e-5, 40)
    return climb, sphere.translations(climb.rotations, climb.shifts)[0]


def test_a_climb_ends_where_the_gradient_vanishes(derivatives):
    climb, translation = climbed(derivatives, 10.0)
    at = torch.ones(1, dtype=torch.long), climb.rotations, climb.shifts
    value, gradient, hessian = derivatives.at(*at)
    assert float(gradient.norm()) < 1e-6 * float(hessian.abs().max())
    assert float(torch.linalg.eigvalsh(hessian[0]).max()) < 0
    # R^T and -R^T t, but for the hinge between them
    back = -TURN.T @ MOVE * (2 * pi / BOX)
    assert float((translation - torch.from_numpy(back)).norm()) < 0.15


def test_at_the_bound_the_gradient_points_outwards(derivatives):
    """The constrained optimum: nothing is left of the gradient but what leads beyond the bound."""
    free = climbed(derivatives, 10.0)
    radius = 0.5 * float(free[1].norm())
    climb, translation = climbed(derivatives, radius)
    assert float(translation.norm()) == pytest.approx(radius, rel=1e-6)
    assert float(climb.values) < float(free[0].values)
    _, gradient, hessian = derivatives.at(
        torch.ones(1, dtype=torch.long), climb.rotations, climb.shifts
    )
    outward = translation / translation.norm()
    normal = torch.cat([torch.linalg.cross(translation, outward), outward])
    left = gradient[0] - normal * (normal @ gradient[0]) / normal.square().sum()
    assert float(normal @ gradient[0]) > 0
    assert float(left.norm()) < 2e-3 * float(hessian.abs().max())
