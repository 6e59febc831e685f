"""f_xi of a run: from h_psi of all particles, or from measured pairs alone."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import quiet
from running import SMALL, options_of, unchanged
from scipy.spatial.distance import pdist, squareform

from cryodrgn_metric import fidelity
from cryodrgn_metric.landmarks import Landmarks
from cryodrgn_metric.learning import learn_map
from cryodrgn_metric.measurement import Measured
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.options import embed_config
from cryodrgn_metric.run import prepare


class Unused:
    """An h_psi that must not be asked."""

    def predict_matrix(self, z):
        raise AssertionError("h_psi was used")


class Pairs:
    """Delta of a plane that is bent in z, among landmarks."""

    def __init__(self, z):
        self.distances = squareform(pdist(np.column_stack([z[:, 0] ** 3, z[:, 1]])))


def prepared(workdir, outdir, *options):
    typed = options_of(workdir, *SMALL, "-d", 16, "-o", outdir, *options)
    config = embed_config(typed)
    with unchanged(workdir), quiet():
        return prepare(replace(config, metric_map=replace(config.metric_map, steps=40, width=32)))


def measured_of(run, key="one"):
    rows = np.arange(0, 120, 2)
    count = np.arange(len(rows))
    landmarks = Landmarks(rows, is_test=count < 20, is_validation=(count >= 20) & (count < 24))
    z = run.workdir.latents[rows]
    return Measured(landmarks, z, Pairs(z), None, None, key)


@pytest.mark.parametrize("kind", ["mlp", "flow"])
def test_measured_pairs_train_alone_and_particles_give_the_axes(vae_workdir, tmp_path, kind):
    run = prepared(vae_workdir, tmp_path, "--no-amortization", "--map", kind, "--dim", "2")
    measured = measured_of(run)
    with quiet():
        found = learn_map(run, measured, Unused(), None).transform(run.workdir.latents)
    train = measured.landmarks.train
    assert len(train) == 36  # neither test landmarks nor those that would stop h_psi
    delta = measured.pairs.distances[np.ix_(train, train)]
    expected = MetricMap(
        2,
        width=32,
        steps=40,
        map=kind,
        progress=False,
        epsilon=0.1 * fidelity.median_distance(delta),
    ).fit(measured.latents[train], delta, particles=run.workdir.latents)
    assert np.array_equal(found, expected.transform(run.workdir.latents))
    # centred and along the principal axes of all particles, not only of the landmarks
    covariance = np.cov(found.T.astype(float))
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=1e-4 * np.abs(found).max())
    assert abs(covariance[0, 1]) < 1e-4 * covariance[0, 0]


def test_it_is_kept_by_what_it_is_made_from(vae_workdir, tmp_path):
    """Not by h_psi, which it does not see; by the distances, which it does."""
    run = prepared(vae_workdir, tmp_path, "--no-amortization")
    with quiet():
        learn_map(run, measured_of(run), Unused(), None)
        run.trained.clear()  # what follows is another run
        learn_map(run, measured_of(run), Unused(), None)
        assert run.reused == ["f_xi"]
        (tmp_path / "models" / "h_psi.yaml").write_text("of another h_psi")
        learn_map(run, measured_of(run), Unused(), None)
        assert run.reused == ["f_xi", "f_xi"]
        learn_map(run, measured_of(run, key="another"), Unused(), None)
    assert run.reused == ["f_xi", "f_xi"]
