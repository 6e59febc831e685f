"""L2, RMSD and dRMSD against the truth: a real enzyme from closed to open, turned at random.

Densities of 25 steps of adenylate kinase's path (tests/data/adk_path.py) at 5 Å, each in an
orientation of its own; models fitted by `fit_models`, from a file of the closed structure and
without one. About a minute.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from open_closed import APIX, BOX, Enzyme, superposed_rmsd
from scipy.spatial.transform import Rotation
from scipy.stats import spearmanr

from cryodrgn_metric import atom_distances, fit_models, pairwise_distances, read_model
from cryodrgn_metric.report.drawing import ACCENT, INK, NONE, panels
from studies.record import save_study

SEED = 0
CLOSED = 0
COLUMNS = [
    "distance",
    "Pearson with true RMSD",
    "Spearman",
    "at a third of the way, of its range (%)",
    "a mere rotation, of its range (%)",
    "correlation of fits (least)",
    "CPU seconds a fit",
]


def main() -> None:
    """Measure, and save docs/choosing/atoms.json and its figure."""
    torch.set_num_threads(1)
    enzyme = Enzyme()
    steps = [*range(len(enzyme)), len(enzyme) // 2]  # the middle twice: nothing but turned
    turns = Rotation.random(len(steps), random_state=SEED).as_matrix()
    volumes = np.stack(
        [enzyme.density(step, turn) for step, turn in zip(steps, turns, strict=True)]
    )
    beads = [enzyme.beads(step) for step in steps]
    truth = np.array([[superposed_rmsd(one, other) for other in beads] for one in beads])
    measured = {"L2": (pairwise_distances(volumes).distances, None, None)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "closed.pdb"
        enzyme.write_pdb(path, CLOSED, Rotation.random(random_state=SEED + 1).as_matrix())
        for name, model in (("model", read_model(path)), ("pseudo-atoms", None)):
            begun = time.process_time()
            fits = fit_models(volumes, APIX, model)
            seconds = (time.process_time() - begun) / len(steps)
            for kind in ("rmsd", "drmsd"):
                found = atom_distances(torch.from_numpy(fits.coordinates), kind).distances
                label = f"{'RMSD' if kind == 'rmsd' else 'dRMSD'}, {name}"
                least = round(float(fits.correlations.min()), 3)
                measured[label] = (found.numpy(), least, round(seconds, 2))
    rows = [
        [name, *_scores(found, truth), least, seconds]
        for name, (found, least, seconds) in measured.items()
    ]
    save_study(
        "atoms",
        COLUMNS,
        rows,
        _figure(measured, truth),
        seed=SEED,
        box=BOX,
        apix_in_angstroms=APIX,
        volumes=len(steps),
        largest_true_rmsd_in_angstroms=round(float(truth.max()), 2),
        data="MDAnalysisTests 2.11.0, adk_dims.dcd, every 4th frame",
        timing="one thread of a shared machine; search of all rotations and placing included",
    )


def _scores(found: np.ndarray, truth: np.ndarray) -> list[float]:
    upper = np.triu_indices(len(truth), 1)
    third = int(np.abs(truth[CLOSED] / truth[CLOSED].max() - 1 / 3).argmin())
    middle = len(truth) - 1
    return [
        round(float(np.corrcoef(found[upper], truth[upper])[0, 1]), 4),
        round(float(spearmanr(found[upper], truth[upper]).statistic), 4),
        round(100 * float(found[CLOSED, third] / found[CLOSED].max()), 1),
        round(100 * float(found[middle, middle // 2] / found.max()), 1),
    ]


def _figure(measured: dict, truth: np.ndarray):
    figure, (left, right) = panels(2, height=4.2)
    upper, along = np.triu_indices(len(truth), 1), np.argsort(truth[CLOSED])
    reach = float(truth.max())
    colors = {"L2": NONE, "RMSD, model": INK, "RMSD, pseudo-atoms": ACCENT}
    for name, color in colors.items():
        found = measured[name][0]
        share = found[CLOSED, along] / found[CLOSED].max()
        left.plot(truth[CLOSED, along], share, "o-", ms=3, lw=1, color=color, label=name)
        if name != "L2":
            right.plot(truth[upper], found[upper], "o", ms=2, color=color, label=name)
    for axis, top in ((left, 1.0), (right, reach)):
        axis.plot([0, reach], [0, top], color="black", lw=0.8, ls=":")
        axis.set(xlabel="true RMSD (Å)", xlim=(0, None), ylim=(0, None))
        axis.legend(frameon=False, loc="lower right", fontsize=8)
    left.set(ylabel="distance to closed / its largest")
    left.set_title("From closed to open", fontsize=10)
    right.set(ylabel="RMSD of fitted models (Å)")
    right.set_title("All pairs", fontsize=10)
    return figure


if __name__ == "__main__":
    main()
