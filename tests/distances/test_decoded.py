"""Delta's laws on volumes that a trained cryoDRGN decoder made, the demo's."""

import numpy as np
import pytest
import torch
from conftest import quiet
from scipy.spatial.transform import Rotation
from shipped import DEMO

import cryodrgn_metric as cm
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.workdir import open_workdir

LANDMARKS = 12


@pytest.fixture(scope="module")
def decoded():
    """Twelve landmarks, and a copy of each: z moved a little, the volume turned at random."""
    generator = np.random.default_rng(0)
    workdir = open_workdir(DEMO)
    with quiet():
        decoder = Decoder.from_workdir(workdir, device="cpu")
    z = workdir.latents[generator.choice(len(workdir.latents), LANDMARKS, replace=False)]
    near = z + 0.02 * z.std(axis=0) * generator.normal(size=z.shape).astype(np.float32)
    rotations = Rotation.random(LANDMARKS, random_state=1).as_matrix()
    return torch.cat([decoder.decode(z), decoder.decode(near, rotations=rotations)]), rotations


def test_triangle_inequality_over_decoded_landmarks_and_turned_copies(decoded):
    volumes, _ = decoded
    d = cm.pairwise_distances(volumes).distances.numpy()
    triples = [(i, j, k) for i in range(len(d)) for j in range(i) for k in range(j)]
    assert len(triples) > 1000
    for i, j, k in triples:
        a, b, c = sorted((d[i, j], d[j, k], d[i, k]))
        assert c - (a + b) <= 1e-3 * c


def test_near_copies_are_near_and_their_rotations_are_found(decoded):
    volumes, rotations = decoded
    found = cm.pairwise_distances(volumes)
    typical = np.median(found.distances[:LANDMARKS, :LANDMARKS])
    for i in range(LANDMARKS):
        assert found.distances[i, LANDMARKS + i] < 0.5 * typical
        turn = Rotation.from_matrix(found.rotations[LANDMARKS + i, i].double().numpy())
        off = turn * Rotation.from_matrix(rotations[i]).inv()
        assert np.degrees(off.magnitude()) < 10
