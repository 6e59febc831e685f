"""Which distance: what each says of parts that move far, and what all pairs cost.

`PYTHONPATH=tests python -m studies.study_distance`, two minutes on one core.
"""

from __future__ import annotations

import time

import numpy as np
import torch
from benchmarks.volumes import conformations, rendered
from gaussian_atoms import render
from matplotlib.figure import Figure
from moving_parts import bound_ligand, turning_domain
from shipped import DEMO
from triangles import violations

import cryodrgn_metric as cm
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.demo.molecule import MOTION_LEVELS
from cryodrgn_metric.demo.truth import load_truth
from cryodrgn_metric.distances.base import PILOT_COUNT
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.distances.transport import TransportDistance
from cryodrgn_metric.report.drawing import ACCENT, INK, panels
from cryodrgn_metric.so3.conventions import spherical_window
from cryodrgn_metric.workdir import open_workdir
from studies.record import save_study

BOX, SIGMA = 32, 1.3
CONTOUR = 0.1  # of atoms of height 1, where there is no solvent to find it in
DECODED = 150
ALL_PAIRS = 500
SEED = 0

Curve = dict[str, np.ndarray]


def main() -> None:
    """Measure, draw, save."""
    torch.set_num_threads(1)
    curves = {
        "domain turns (degrees)": rendered_curve(turning_domain, np.arange(0, 181, 30)),
        "ligand moves (voxels)": rendered_curve(bound_ligand, np.arange(0, 15, 2)),
        "decoded arm swings (share of all its way)": demo_curve(),
    }
    rows = [
        [moved, *(round(float(values[row]), 4) for values in curve.values())]
        for moved, curve in curves.items()
        for row in range(1, len(curve["by"]))
    ]
    columns = ["what moves", "by", "L2 (share of norm)", "transport (voxels)"]
    save_study("distance", columns, rows, drawn(curves), **cost_of_all_pairs())


def rendered_curve(atoms_at, places) -> Curve:
    """Distances from the first place, of rendered atoms."""
    volumes = np.stack([render(atoms_at(place), BOX, SIGMA) for place in places])
    overlap = cm.pairwise_distances(volumes).distances[0] / np.linalg.norm(volumes[0])
    carried = cm.transport_distances(volumes, contour=CONTOUR).distances[0]
    return {"by": places, "L2": overlap, "transport": carried}


def demo_curve() -> Curve:
    """Median distances of decoded volumes by how far apart their arms truly are.

    All in one state, so that the arm is all that differs, beside the turning of the whole.
    """
    truth = load_truth()
    rows = np.flatnonzero(truth["state"] == 0)
    rows = np.random.default_rng(SEED).choice(rows, DECODED, replace=False)
    workdir = open_workdir(DEMO)
    volumes = Decoder.from_workdir(workdir, device="cpu").decode(workdir.latents[rows])
    upper = np.triu_indices(DECODED, 1)
    swings = truth["motion"][rows].astype(float) / (MOTION_LEVELS - 1)
    apart = np.abs(swings[upper[0]] - swings[upper[1]])
    norm = float(volumes.flatten(1).norm(dim=1).mean())
    measured = {
        "L2": cm.pairwise_distances(volumes).distances.numpy()[upper] / norm,
        "transport": cm.transport_distances(volumes).distances.numpy()[upper],
    }
    by = np.arange(0, 1.0, 0.125)
    near = [np.abs(apart - middle) < 0.03 for middle in by]
    return {"by": by} | {
        name: np.array([np.median(values[here]) for here in near])
        for name, values in measured.items()
    }


def cost_of_all_pairs() -> dict[str, object]:
    """CPU seconds of all pairs of 500 volumes, and how often the triangle inequality fails."""
    volumes = torch.stack([rendered(atoms, BOX) for atoms in conformations(ALL_PAIRS)])
    # 5 % of the highest density: there is no solvent to find a contour in
    transport = TransportDistance(BOX, contour=0.6)
    facts: dict[str, object] = {"volumes": ALL_PAIRS, "box": BOX}
    for name, distance in (("L2", RotationDistance(BOX)), ("transport", transport)):
        prepared = distance.prepare(volumes, spherical_window(BOX))
        distance.calibrate(distance.full_features(prepared[:PILOT_COUNT]))
        begun = time.process_time()
        features = distance.features(prepared)
        expanded = time.process_time()
        found = distance.pairwise(features).distances.double().numpy()
        facts |= {
            f"{name}:_CPU_ms_of_a_volume": round(1e3 * (expanded - begun) / ALL_PAIRS, 1),
            f"{name}:_CPU_seconds_of_all_pairs": round(time.process_time() - expanded, 1),
            f"{name}:_triangle_inequality_violated_by_0.1_percent": violations(found),
        }
    return facts | {"seed": SEED}


def drawn(curves: dict[str, Curve]) -> Figure:
    """Each distance as a share of its last, so that a curve that flattens has saturated."""
    figure, axes = panels(3, width=2.2, height=2.3)
    for axis, (moved, curve) in zip(axes, curves.items(), strict=True):
        for name, color in (("L2", INK), ("transport", ACCENT)):
            share = curve[name] / curve[name][-1]
            axis.plot(curve["by"], share, "o-", ms=3, color=color, label=name)
        title, _, unit = moved.partition(" (")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel(unit.rstrip(")"), fontsize=9)
        axis.set(ylim=(0, 1.08), xlim=(0, None))
        axis.tick_params(labelsize=8)
    axes[0].set_ylabel("share of the last distance", fontsize=9)
    axes[0].legend(frameon=False, loc="lower right", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
