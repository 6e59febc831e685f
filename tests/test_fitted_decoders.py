"""Decoders whose motion is known: what they were fitted to, and the dimension that is found."""

import json

import fitted_decoders
import numpy as np
import pytest
from fitted_decoders import CASES, DATA, EPOCH
from running import run

from cryodrgn_metric.dimension import intrinsic_dimension
from cryodrgn_metric.safe_files.pickles import load_pickle
from cryodrgn_metric.workdir import open_workdir

EXPLAINED = 0.996  # of the volumes' variance, that of turns and motion together


@pytest.mark.parametrize("case", CASES)
class TestFixtures:
    def test_is_a_small_workdir_of_what_the_script_draws(self, case):
        workdir = open_workdir(str(DATA / case), -1)
        assert (workdir.kind, workdir.epoch, workdir.box_size) == ("train_dec", EPOCH, 24)
        drawn = fitted_decoders.truth(case)
        np.testing.assert_allclose(workdir.latents, drawn.latents, rtol=1e-5, atol=1e-6)
        assert sum(path.stat().st_size for path in (DATA / case).iterdir()) < 1_000_000

    def test_explains_the_volumes(self, case):
        assert fitted_decoders.explained(case, DATA / case, count=4) > EXPLAINED

    def test_the_turn_is_in_z(self, case):
        """A regression finds it there: in the warp's inverse, nothing is left out."""
        drawn = fitted_decoders.truth(case)
        z = drawn.latents.astype(np.float64)
        terms = np.column_stack([np.ones(len(z)), z, z**2, z**3])
        for angle in drawn.turns.T[drawn.turns.any(axis=0)]:
            fitted = terms @ np.linalg.lstsq(terms, angle, rcond=None)[0]
            assert np.corrcoef(fitted, angle)[0, 1] > 0.8

    def test_the_dimension_is_found(self, case):
        dimension, embedding = CASES[case]
        kept = fitted_decoders.measured(case)
        found = intrinsic_dimension(kept.z, kept.distances, norm=kept.norm, error=kept.error)
        assert (found.dimension, found.embedding_dimension) == (dimension, embedding)
        low, high = found.interval
        assert low == dimension <= high <= dimension + 2  # of the noise that decoders have
        text = " ".join(found.words)
        assert ("closes on itself" in text) == (case == "circle")
        assert ("not to be interpreted" in text) == (case == "rigid")

    @pytest.mark.slow
    def test_the_command_finds_it_too(self, case, tmp_path):
        """The four through all of `cryodrgn metric_embed --dim auto`, with 150 landmarks."""
        dimension, embedding = CASES[case]
        run(DATA / case, "--dim", "auto", "--landmarks", "150", "--skip-vol", "-o", tmp_path)
        found = json.loads((tmp_path / "intrinsic_dimension.json").read_text())
        assert (found["dimension"], found["embedding_dimension"]) == (dimension, embedding)
        width = load_pickle(tmp_path / "z_metric.pkl").shape[1]
        assert width == max(1, embedding)


def test_dim_auto_through_the_whole_command(tmp_path):
    """The smallest of them: one dimension, of which z' is a line; fewer landmarks are unsure."""
    run(DATA / "hinge", "--dim", "auto", "--skip-vol", "-o", tmp_path)
    found = json.loads((tmp_path / "intrinsic_dimension.json").read_text())
    assert found["dimension"] == found["embedding_dimension"] == 1
    assert load_pickle(tmp_path / "z_metric.pkl").shape[1] == 1


def test_too_few_landmarks_are_no_estimate_but_a_run(vae_workdir, tmp_path):
    run(vae_workdir, "--landmarks", "20", "-o", tmp_path)
    found = json.loads((tmp_path / "intrinsic_dimension.json").read_text())
    assert found == {"dimension": None, "words": ["20 landmarks are too few: 30 are needed."]}


def test_dim_auto_needs_landmarks(vae_workdir, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(vae_workdir, "--landmarks", "20", "--dim", "auto", "-o", tmp_path)
    assert stopped.value.code == 2
    assert "--dim auto needs at least 30 landmarks; there are 20" in capsys.readouterr().err
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_a_decoder_fitted_again_explains_as_much(tmp_path):
    """The script makes what is in tests/data, on whatever machine: two minutes of one core."""
    share = fitted_decoders.fit("hinge", tmp_path / "hinge")
    kept = fitted_decoders.explained("hinge", DATA / "hinge")
    assert 1 - share < 1.5 * (1 - kept)
