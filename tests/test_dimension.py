"""The dimension of a motion: closed-form ensembles here, fitted decoders in test_decoders.py."""

import importlib.metadata
import json
import sys
from dataclasses import replace

import numpy as np
import pytest
from gaussian_atoms import compact, hinged
from scipy.spatial.distance import pdist, squareform

import cryodrgn_metric as cm
from cryodrgn_metric import dimension_checks
from cryodrgn_metric.artifacts import save_json
from cryodrgn_metric.dimension import FEWEST_LANDMARKS, intrinsic_dimension
from cryodrgn_metric.dimension_estimate import words_about
from cryodrgn_metric.errors import ArgumentError

LANDMARKS = 100


def uniform(dimension, generator, count=LANDMARKS):
    return generator.uniform(-1, 1, (count, dimension))


def saturated(points, reach=0.7):
    """Distances that are concave in the motion, as L2 is: no space of few dimensions has them."""
    return np.sqrt(2 - 2 * np.exp(-(squareform(pdist(points)) ** 2) / (2 * reach**2)))


def on_circle(generator, count=LANDMARKS):
    angle = generator.uniform(0, 2 * np.pi, count)
    return np.column_stack([np.cos(angle), np.sin(angle)])


def atom_distances(molecules, sigma):
    """L2 distances of Gaussian atoms in closed form; molecules (n, atoms, 3)."""
    squares = (molecules**2).sum(-1)
    overlap = np.empty((len(molecules), len(molecules)))
    for i, molecule in enumerate(molecules):
        inner = np.einsum("ak,nbk->nab", molecule, molecules)
        apart = squares[i][None, :, None] + squares[:, None, :] - 2 * inner
        overlap[i] = np.exp(-apart / (4 * sigma**2)).sum((1, 2))
    own = overlap.diagonal()
    squared = own[:, None] + own - 2 * (overlap + overlap.T) / 2
    return np.sqrt(np.maximum(squared, 0)) * (1 - np.eye(len(molecules)))


class TestClosedForms:
    @pytest.mark.parametrize("dimension", [1, 2, 3, 4])
    def test_uniform_points(self, generator, dimension):
        z = uniform(dimension, generator)
        found = intrinsic_dimension(z, squareform(pdist(z)))
        assert found.dimension == found.embedding_dimension == dimension
        assert found.interval == (dimension, dimension)

    @pytest.mark.parametrize("dimension", [1, 2, 3])
    def test_concave_distances(self, generator, dimension):
        """A bent sheet: more dimensions embed it better, but it is none of them."""
        z = uniform(dimension, generator)
        found = intrinsic_dimension(np.tile(z, 3), saturated(z))
        assert found.dimension == found.embedding_dimension == dimension
        low, high = found.interval
        assert low <= dimension <= high

    def test_four_saturated_dimensions_are_more_than_so_few_landmarks_can_tell(self, generator):
        z = uniform(4, generator)
        found = intrinsic_dimension(z, saturated(z))
        low, high = found.interval
        assert low <= 4 <= high and high - low >= 1
        assert any("too few landmarks" in sentence for sentence in found.words)

    @pytest.mark.parametrize("reach", [None, 0.8])
    def test_a_circle_has_one_dimension_and_takes_two(self, generator, reach):
        z = on_circle(generator)
        distances = squareform(pdist(z)) if reach is None else saturated(z, reach)
        found = intrinsic_dimension(z, distances)
        assert (found.dimension, found.embedding_dimension) == (1, 2)
        assert any("closes on itself" in sentence for sentence in found.words)

    def test_a_sphere_has_two_dimensions_and_takes_three(self, generator):
        z = generator.normal(size=(200, 3))
        z /= np.linalg.norm(z, axis=1, keepdims=True)
        found = intrinsic_dimension(z, squareform(pdist(z)))
        assert (found.dimension, found.embedding_dimension) == (2, 3)

    @pytest.mark.parametrize("hinges", [1, 2])
    def test_molecules_of_atoms(self, generator, hinges):
        """Hinges of molecules far apart, so that what each of them does is a motion of its own."""
        angles = generator.uniform(-0.4, 0.4, (LANDMARKS, hinges))
        arms = [compact(12, 8.0, generator) for _ in range(hinges)]
        molecules = np.concatenate(
            [
                np.stack([hinged(arm, 6, angle) + [40 * i, 0, 0] for angle in angles[:, i]])
                for i, arm in enumerate(arms)
            ],
            axis=1,
        )
        found = intrinsic_dimension(np.tile(angles, 2), atom_distances(molecules, sigma=1.5))
        assert found.dimension == found.embedding_dimension == hinges

    def test_noise_below_the_scale_adds_nothing(self, generator):
        """Every volume has an error of its own: all distances are longer by the same square."""
        z = uniform(1, generator, 200)
        distances = saturated(z)
        error = 0.06 * np.median(distances)
        noisy = np.sqrt(distances**2 + 2 * error**2 * (1 - np.eye(len(z))))
        found = intrinsic_dimension(np.tile(z, 4), noisy, error=error)
        assert (found.dimension, found.interval) == (1, (1, 1))
        assert found.scale >= 3 * error > min(found.scales)
        assert found.dimension_by_scale[0] > 1  # of noise alone
        assert "depends on the scale" in " ".join(found.words)


class TestNoMotion:
    def test_little_differs(self, generator):
        z = uniform(2, generator)
        distances = squareform(pdist(z))
        norm = np.median(pdist(z)) / 0.04
        found = intrinsic_dimension(z, distances, norm=norm)
        assert (found.dimension, found.interval, found.embedding_dimension) == (0, (0, 0), 0)
        assert found.relative_distance == pytest.approx(0.04)
        assert "not to be interpreted" in found.words[0]
        assert "disagree" in found.words[-1]  # they don't know how little it is

    def test_near_the_limit_both_answers_are_possible(self, generator):
        z = uniform(2, generator)
        for share, dimension in ((0.0501, 2), (0.0499, 0)):
            norm = np.median(pdist(z)) / share
            found = intrinsic_dimension(z, squareform(pdist(z)), norm=norm)
            assert (found.dimension, found.interval) == (dimension, (0, 2))

    def test_nothing_differs(self):
        found = intrinsic_dimension(np.zeros((40, 3)), np.zeros((40, 40)))
        assert (found.dimension, found.interval, found.embedding_dimension) == (0, (0, 0), 0)
        assert found.cross_checks == {}

    def test_what_was_not_given_is_said(self, generator):
        z = uniform(1, generator, 40)
        text = " ".join(intrinsic_dimension(z, squareform(pdist(z))).words)
        assert "assumed that something moves" in text and "free of noise" in text
        text = " ".join(intrinsic_dimension(z, squareform(pdist(z)), norm=1.0, error=0.0).words)
        assert "assumed" not in text


class TestEstimate:
    def test_a_motion_has_no_more_dimensions_than_latents(self, generator):
        z = uniform(3, generator)
        assert intrinsic_dimension(z[:, :2], squareform(pdist(z))).dimension == 2

    def test_the_curve_drops_where_it_says(self, generator):
        z = uniform(2, generator)
        found = cm.intrinsic_dimension(z, saturated(z), dimensions=range(1, 6))
        assert found.dimensions == (1, 2, 3, 4, 5)
        share = np.divide(found.last_variance, found.even_variance)
        assert share[0] == 1 and share[1] > 0.7 and share[2:].max() < 0.3
        assert found.scale in found.scales
        assert len(found.dimension_by_scale) == len(found.scales)

    @pytest.mark.parametrize("loss", ["weighted", "relative"])
    def test_same_seed_same_answer_to_the_bit(self, generator, loss):
        z = uniform(2, generator, 60)
        found = [intrinsic_dimension(z, saturated(z), loss=loss, seed=3) for _ in range(2)]
        assert found[0] == found[1]

    def test_survives_json(self, generator, tmp_path):
        z = uniform(1, generator, 40)
        found = intrinsic_dimension(z, squareform(pdist(z)), norm=1.0)
        save_json(tmp_path / "found.json", found.as_dict())
        saved = json.loads((tmp_path / "found.json").read_text())
        assert set(saved) >= {"dimension", "interval", "dimensions", "last_variance"}
        assert cm.DimensionEstimate.from_dict(saved) == found

    def test_of_many_landmarks_a_sample_is_taken(self, generator):
        z = uniform(1, generator, 600)
        found = intrinsic_dimension(z, squareform(pdist(z)), dimensions=range(1, 4))
        assert found.dimension == 1

    @pytest.mark.parametrize(
        ("count", "options", "message"),
        [
            (FEWEST_LANDMARKS - 1, {}, "at least 30 landmarks; got 29"),
            (30, {"dimensions": [2, 3]}, "1, 2"),
            (30, {"dimensions": range(1, 10)}, "1, 2"),
            (30, {"loss": "none"}, "loss must be one of"),
            (30, {"norm": -1.0}, "norm must be"),
            (30, {"error": np.nan}, "error must be"),
        ],
    )
    def test_refusals(self, generator, count, options, message):
        z = uniform(1, generator, count)
        with pytest.raises(ArgumentError, match=message):
            intrinsic_dimension(z, squareform(pdist(z)), **options)

    @pytest.mark.parametrize("fault", ["shape", "nan", "negative", "asymmetric"])
    def test_distances_that_are_none_are_refused(self, generator, fault):
        z = uniform(1, generator, 30)
        distances = squareform(pdist(z))
        if fault == "shape":
            distances = distances[:-1]
        else:
            distances[0, 1] = {"nan": np.nan, "negative": -1.0, "asymmetric": 9.0}[fault]
        with pytest.raises(ArgumentError, match="expected"):
            intrinsic_dimension(z, distances)


class TestCrossChecks:
    def test_both_agree_on_even_points(self, generator):
        z = uniform(2, generator, 300)
        found = intrinsic_dimension(z, squareform(pdist(z)))
        assert set(found.cross_checks) == {"CorrInt", "MADA"}
        assert all(abs(value - 2) < 0.3 for value in found.cross_checks.values())
        assert found.words[-1].endswith("agree.")

    @pytest.mark.parametrize(
        ("checks", "words"),
        [
            ({"CorrInt": 1.4, "MADA": 0.8}, "CorrInt (1.4) and MADA (0.8) agree."),
            ({"CorrInt": 1.1, "MADA": 2.2}, "MADA (2.2) disagrees, CorrInt (1.1) agrees:"),
            ({"CorrInt": 1.9, "MADA": 2.2}, "CorrInt (1.9) and MADA (2.2) disagree:"),
        ],
    )
    def test_disagreement_is_said(self, generator, checks, words):
        z = uniform(1, generator, 40)
        found = replace(intrinsic_dimension(z, squareform(pdist(z))), cross_checks=checks)
        assert words in words_about(found, error=None)[-1]

    def test_without_the_package_a_line_says_how_to_get_it(self, generator, monkeypatch):
        """As where it is not installed: neither its metadata nor its modules are there."""

        def missing(name):
            raise importlib.metadata.PackageNotFoundError(name)

        monkeypatch.setattr(dimension_checks.metadata, "version", missing)
        monkeypatch.setitem(sys.modules, "skdim.id", None)
        z = uniform(1, generator, 40)
        found = intrinsic_dimension(z, squareform(pdist(z)))
        assert (found.dimension, found.cross_checks) == (1, {})
        assert dimension_checks.INSTALL_LINE in found.words[-1]
