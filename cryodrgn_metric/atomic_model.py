"""A model of beads: read from a .pdb or .cif file, one bead a residue, or made from a volume."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans

from cryodrgn_metric.artifacts import atomic_path
from cryodrgn_metric.errors import ArgumentError, MissingExtraError, VolumeError, brief

__all__ = [
    "MOST_BEADS",
    "AtomicModel",
    "contour_of",
    "pseudo_atoms",
    "pseudo_residues",
    "read_model",
    "write_models",
]

FloatArray = npt.NDArray[np.float64]

MOST_BEADS = 400  # a fit takes time with their square
FEWEST_BEADS = 8
VOXELS_PER_PSEUDO_ATOM = 8  # two voxels in each direction: what a volume can tell apart
MOST_BYTES = 500_000_000  # of a model file; the largest entries of the PDB have 200 MB
PSEUDO_ATOM = ("X", "UNK")


@dataclass(frozen=True)
class AtomicModel:
    """Beads that stand for the residues of a molecule, or for as much of its density each.

    Arguments:
        positions: x, y, z in Å. (A, 3)
        weights: The density of each, of any unit. (A,)
        residues: Chain, residue name and number that each is written with.
    """

    positions: FloatArray
    weights: FloatArray
    residues: tuple[tuple[str, str, int], ...]

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def radius_in_angstroms(self) -> float:
        """The largest distance of a bead from their centroid."""
        apart = self.positions - self.positions.mean(axis=0)
        return float(np.linalg.norm(apart, axis=1).max())

    def mirrored(self) -> AtomicModel:
        """The other hand, by reversing z as --flip does."""
        return replace(self, positions=self.positions * [1, 1, -1])


def read_model(path: str | os.PathLike[str], most_beads: int = MOST_BEADS) -> AtomicModel:
    """Read the first model of a .pdb or .cif file as beads, by gemmi.

    One bead a residue, at the centroid of its atoms and with their number as its weight;
    hydrogens, waters and all alternative locations but the first are left out. Of more residues
    than `most_beads`, so many that follow each other in a chain share a bead.

    Arguments:
        path: .pdb, .ent, .cif or .mmcif, also .gz.
        most_beads: At most about so many.

    Raises:
        MissingExtraError: gemmi is not installed.
        ArgumentError: The file can't be read, or holds fewer than 8 residues.
    """
    residues = list(_residues(_structure(Path(path))))
    if len(residues) < FEWEST_BEADS:
        raise ArgumentError(
            f"--model {path}: expected a molecule of at least {FEWEST_BEADS} residues; got "
            f"{len(residues)} (waters and hydrogens don't count). Name a .pdb or .cif file of it."
        )
    together = -(-len(residues) // most_beads)
    beads = [
        _Residue(
            chain,
            members[0].name,
            members[0].number,
            np.concatenate([one.atoms for one in members]),
        )
        for chain, group in itertools.groupby(residues, key=lambda one: one.chain)
        for members in _batched(list(group), together)
    ]
    return AtomicModel(
        positions=np.array([one.atoms.mean(axis=0) for one in beads]),
        weights=np.array([float(len(one.atoms)) for one in beads]),
        residues=tuple((one.chain, one.name, one.number) for one in beads),
    )


@dataclass(frozen=True)
class _Residue:
    chain: str
    name: str
    number: int
    atoms: FloatArray


def _batched(members: Sequence[_Residue], count: int) -> Iterator[Sequence[_Residue]]:
    for start in range(0, len(members), count):
        yield members[start : start + count]


def _structure(path: Path) -> Any:
    try:
        import gemmi
    except ImportError as error:
        raise MissingExtraError(
            "--model needs gemmi, which reads .pdb and .cif files. Type "
            "`pip install 'cryodrgn_metric[atoms]'`, or leave --model out: a model is then made "
            "from the volumes."
        ) from error
    try:
        if path.exists() and not path.is_file():  # a pipe would keep us waiting
            raise OSError("it is not a file")
        if path.stat().st_size > MOST_BYTES:
            raise OSError(f"it is larger than {MOST_BYTES / 1e6:.0f} MB")
        structure = gemmi.read_structure(os.fspath(path))
    except (OSError, RuntimeError, ValueError) as error:  # gemmi's, as C++ throws them
        raise ArgumentError(
            f"--model {path} is not a readable .pdb or .cif file: {brief(error)}"
        ) from error
    structure.remove_waters()
    structure.remove_alternative_conformations()
    return structure


def _residues(structure: Any) -> Iterator[_Residue]:
    for chain in structure[0] if len(structure) else ():
        for residue in chain:
            atoms = [atom.pos.tolist() for atom in residue if not _is_hydrogen(atom)]
            positions = np.array(atoms, dtype=np.float64).reshape(-1, 3)
            positions = positions[np.isfinite(positions).all(axis=1)]
            if len(positions):
                yield _Residue(chain.name, residue.name, residue.seqid.num or 0, positions)


def _is_hydrogen(atom: Any) -> bool:
    """By the name, too: files of simulations often lack the elements."""
    return atom.is_hydrogen() or (
        atom.name.lstrip("0123456789").startswith("H") and atom.element.name not in ("Hg", "Ho")
    )


def contour_of(volume: npt.NDArray[Any]) -> float:
    """The density that parts molecule from solvent with the least variance within both (Otsu).

    References:
        | A threshold selection method from gray-level histograms (Otsu, 1979),
          doi:10.1109/TSMC.1979.4310076

    Example:
        >>> 0 < contour_of(np.array([0.0, 0.1, 0.0, 1.0, 0.9])) < 0.9
        True
    """
    counts, edges = np.histogram(volume, bins=256)
    middles = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums[:-1] / below - (sums[-1] - sums[:-1]) / above) ** 2
    return float(edges[1 + int(np.nanargmax(between))])


def pseudo_atoms(
    volume: npt.NDArray[Any],
    apix_in_angstroms: float,
    seed: int = 0,
    most_beads: int = MOST_BEADS,
) -> AtomicModel:
    """Beads that stand for the density of a volume, where no model is at hand.

    The centres of a k-means of the voxels above the contour, weighted by their density: one for
    every eight voxels.

    Arguments:
        volume: (n, n, n) [z, y, x], density of the molecule positive.
        apix_in_angstroms: Size of its voxels.
        seed: Of the k-means.
        most_beads: At most so many.

    Raises:
        VolumeError: Too little of the volume is above the contour.

    References:
        | Self-organizing neural networks bridge the biomolecular resolution gap (Wriggers,
          Milligan, Schulten & McCammon, 1998), doi:10.1006/jmbi.1998.2232
    """
    density = np.asarray(volume, dtype=np.float64)
    contour = contour_of(density)
    inside = np.argwhere(density > contour)
    count = min(most_beads, len(inside) // VOXELS_PER_PSEUDO_ATOM)
    if count < FEWEST_BEADS:
        raise VolumeError(
            f"{len(inside)} voxels of the reference volume stand out, of "
            f"{FEWEST_BEADS * VOXELS_PER_PSEUDO_ATOM} needed to make a model from it. Is it "
            "trained? Compare in finer voxels (-d), or type --distance so3."
        )
    mass = density[tuple(inside.T)] - min(contour, float(np.median(density)))  # of the solvent
    voxels = inside[:, ::-1] - density.shape[0] // 2
    found = KMeans(count, n_init=1, random_state=seed).fit(voxels, sample_weight=mass)
    weights = np.bincount(found.labels_, weights=mass, minlength=count)
    order = np.lexsort(found.cluster_centers_.T)  # along z
    return AtomicModel(
        positions=found.cluster_centers_[order] * apix_in_angstroms,
        weights=weights[order] / weights.mean(),
        residues=pseudo_residues(count),
    )


def pseudo_residues(count: int) -> tuple[tuple[str, str, int], ...]:
    """What pseudo-atoms are written as: residues of an unknown kind, numbered."""
    return tuple((*PSEUDO_ATOM, number) for number in range(1, count + 1))


def write_models(
    path: Path,
    coordinates: FloatArray,
    residues: Sequence[tuple[str, str, int]],
    titles: Sequence[str],
) -> None:
    """Write fitted beads as the models of one .pdb file, one CA atom each.

    In ChimeraX `open FILE` shows them side by side, `open FILE coordsets true` as a movie.

    Arguments:
        path: The .pdb file.
        coordinates: Å from the first voxel of the .mrc files they belong to. (L, A, 3)
        residues: As of `AtomicModel`.
        titles: One remark a model. (L)
    """
    heads = [
        f"ATOM  {number % 100000:5d}  CA  {name[:3]:>3s} {chain[:1]:1s}{residue % 10000:4d}    "
        for number, (chain, name, residue) in enumerate(residues, start=1)
    ]
    with atomic_path(path) as draft, draft.open("w", encoding="ascii", errors="replace") as file:
        for number, (model, title) in enumerate(zip(coordinates, titles, strict=True), start=1):
            file.write(f"REMARK   1 MODEL {number}: {title}\nMODEL     {number:4d}\n")
            for head, (x, y, z) in zip(heads, model, strict=True):
                file.write(f"{head}{x:8.3f}{y:8.3f}{z:8.3f}  1.00  0.00           C\n")
            file.write("ENDMDL\n")
        file.write("END\n")
