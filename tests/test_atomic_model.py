"""Models of beads: what is read of a file, what is refused, what is made from a volume."""

import gzip
import sys

import gemmi
import numpy as np
import pytest
from gaussian_atoms import compact, render
from open_closed import Enzyme
from scipy.spatial.transform import Rotation

from cryodrgn_metric import ArgumentError, MissingExtraError, VolumeError, read_model
from cryodrgn_metric.atomic_model import contour_of, pseudo_atoms, pseudo_residues, write_models


@pytest.fixture(scope="module")
def enzyme():
    return Enzyme()


@pytest.fixture
def pdb(enzyme, tmp_path):
    enzyme.write_pdb(tmp_path / "closed.pdb", 0)
    return tmp_path / "closed.pdb"


class TestReading:
    def test_one_bead_a_residue_at_its_centroid(self, enzyme, pdb):
        model = read_model(pdb)
        np.testing.assert_allclose(model.positions, enzyme.beads(0), atol=2e-3)
        np.testing.assert_array_equal(model.weights, np.bincount(enzyme.numbers)[1:])
        assert model.residues[0] == ("A", "MET", 1) and len(model) == 214

    @pytest.mark.parametrize("name", ["closed.cif", "closed.pdb.gz", "closed.cif.gz"])
    def test_other_formats_are_the_same_model(self, pdb, tmp_path, name):
        path = tmp_path / name
        text = pdb.read_text()
        if "cif" in name:
            text = gemmi.read_structure(str(pdb)).make_mmcif_document().as_string()
        opener = gzip.open if name.endswith("gz") else open
        with opener(path, "wt") as file:
            file.write(text)
        found, expected = read_model(path), read_model(pdb)
        np.testing.assert_allclose(found.positions, expected.positions, atol=2e-3)
        np.testing.assert_array_equal(found.weights, expected.weights)

    def test_hydrogens_waters_other_locations_and_other_models_do_not_count(self, pdb, tmp_path):
        structure = gemmi.read_structure(str(pdb))
        chain = structure[0][0]
        for atom, name in ((chain[0][0].clone(), "H1"), (chain[0][0].clone(), "1HB")):
            atom.name, atom.element = name, gemmi.Element("X")  # as simulations leave it
            atom.pos += gemmi.Position(9, 9, 9)
            chain[0].add_atom(atom)
        second = chain[1][0].clone()
        chain[1][0].altloc, second.altloc = "A", "B"
        second.pos += gemmi.Position(9, 9, 9)
        chain[1].add_atom(second)
        water = gemmi.Residue()
        water.name, water.seqid = "HOH", gemmi.SeqId("900")
        water.add_atom(chain[0][0].clone())
        chain.add_residue(water)
        again = structure[0].clone()
        again.num = 2
        structure.add_model(again)
        structure.write_pdb(str(tmp_path / "more.pdb"))
        found, expected = read_model(tmp_path / "more.pdb"), read_model(pdb)
        np.testing.assert_allclose(found.positions, expected.positions, atol=2e-3)
        np.testing.assert_array_equal(found.weights, expected.weights)

    def test_residues_share_beads_where_they_are_many(self, enzyme, pdb):
        model = read_model(pdb, most_beads=100)
        assert len(model) == 72 and model.weights.sum() == len(enzyme.numbers)
        first = enzyme.steps[0][enzyme.numbers <= 3].mean(axis=0)
        np.testing.assert_allclose(model.positions[0], first, atol=2e-3)

    def test_a_trace_of_calpha_atoms_is_a_model(self, pdb, tmp_path):
        lines = [line for line in pdb.read_text().splitlines() if line[12:16] == " CA "]
        (tmp_path / "trace.pdb").write_text("\n".join([*lines, "END", ""]))
        model = read_model(tmp_path / "trace.pdb")
        assert len(model) == 214 and (model.weights == 1).all()

    def test_mirrored_is_the_other_hand(self, pdb):
        model = read_model(pdb)
        np.testing.assert_array_equal(model.mirrored().positions[:, 2], -model.positions[:, 2])


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "content"),
        [
            ("missing.pdb", None),
            ("binary.pdb", bytes(range(256)) * 20),
            ("map.cif", b"data_x\nloop_\n_atom_site.id\n_atom"),
            ("gzip.pdb.gz", b"not compressed"),
            ("empty.pdb", b""),
            ("words.cif", b"hello"),
            ("short.pdb", b"ATOM      1  CA  GLY A   1       0.000   0.000   0.000\nEND\n"),
            ("odd.xyz", b"3\n\nC 0 0 0\n"),
        ],
    )
    def test_what_is_no_model_is_named(self, tmp_path, name, content):
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(ArgumentError, match="--model") as refusal:
            read_model(path)
        assert str(path) in str(refusal.value)

    def test_a_folder_and_a_huge_file_are_refused(self, tmp_path, pdb, monkeypatch):
        with pytest.raises(ArgumentError, match="it is not a file"):
            read_model(tmp_path)
        monkeypatch.setattr("cryodrgn_metric.atomic_model.MOST_BYTES", 1000)
        with pytest.raises(ArgumentError, match="it is larger than"):
            read_model(pdb)

    def test_without_gemmi_the_line_to_type_is_told(self, pdb, monkeypatch):
        monkeypatch.setitem(sys.modules, "gemmi", None)
        with pytest.raises(MissingExtraError, match=r"pip install 'cryodrgn_metric\[atoms\]'"):
            read_model(pdb)


class TestPseudoAtoms:
    def test_the_contour_parts_two_levels(self, generator):
        solvent, protein = generator.normal(0, 1, 9000), generator.normal(10, 1, 1000)
        assert 2 < contour_of(np.concatenate([solvent, protein])) < 8

    def test_they_stand_where_the_density_is(self, enzyme):
        volume = enzyme.density(12)
        model = pseudo_atoms(volume, 2.5)
        atoms = enzyme.steps[12]
        nearest = np.linalg.norm(model.positions[:, None] - atoms, axis=-1).min(axis=1)
        assert len(model) > 100 and np.median(nearest) < 2 and nearest.max() < 5
        np.testing.assert_allclose(
            model.weights @ model.positions / model.weights.sum(), atoms.mean(0), atol=1
        )

    def test_same_seed_same_beads_and_no_more_than_asked_for(self, enzyme):
        volume = enzyme.density(12)
        first, second = (pseudo_atoms(volume, 2.5, seed=3, most_beads=50) for _ in range(2))
        assert len(first) == 50
        np.testing.assert_array_equal(first.positions, second.positions)

    def test_too_little_density_is_refused(self, generator):
        with pytest.raises(VolumeError, match="finer voxels"):
            pseudo_atoms(render(compact(2, 1, generator), 16, 0.8), 4.0)


def test_written_models_are_read_back(enzyme, tmp_path):
    """By gemmi: one model a landmark, each atom where it was."""
    steps = np.array([enzyme.beads(step) for step in (0, 12, 24)]) + 60
    path = tmp_path / "models_fitted.pdb"
    write_models(path, steps, pseudo_residues(214), ["ü", "PARTICLE 7", "C"])
    structure = gemmi.read_structure(str(path))
    assert len(structure) == 3
    for model, step in zip(structure, steps, strict=True):
        found = np.array([site.atom.pos.tolist() for site in model.all()])
        np.testing.assert_allclose(found, step, atol=6e-4)


def test_radius_is_that_of_the_farthest_bead(pdb):
    model = read_model(pdb)
    turned = Rotation.random(random_state=0).apply(model.positions)
    assert model.radius_in_angstroms == pytest.approx(
        np.linalg.norm(turned - turned.mean(0), axis=1).max()
    )
