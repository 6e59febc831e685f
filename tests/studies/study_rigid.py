"""Does taking out translations matter? Delta over rotations and over rigid motions.

    PYTHONPATH=tests python -m studies.study_rigid [--workdir WORKDIR]

Known motions: 12 states of a hinged molecule of Gaussian atoms at 32^3, turned at random and moved
by a known share of the box; what is left of Delta, and how well the translation is found. Real
volumes: of the workdir that ships with the demo, or of another; every pair compared, a sample of
pairs audited by joint refinement from 50 random motions. Some minutes.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from itertools import combinations
from math import pi
from pathlib import Path

import numpy as np
import torch
from gaussian_atoms import compact, hinged, render
from scipy.spatial.transform import Rotation
from shipped import DEMO

from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.distances.rigid import RigidDistance
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.report.drawing import ACCENT, INK, NONE, panels
from cryodrgn_metric.se3.motions import MOST_TRANSLATION
from cryodrgn_metric.so3.conventions import edge_of, spherical_window, windowed
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.threads import one_thread
from cryodrgn_metric.workdir import open_workdir
from studies.record import save_study

BOX, SIGMA = 32, 1.3
SHARES = (0.0, 0.02, 0.04, 0.06, 0.08, 0.1)
STATES = 12
STARTS, AUDITED, REAL = 50, 200, 40
MISSED = 1e-3


@dataclass(frozen=True)
class Compared:
    """All pairs of some volumes, both ways, and what it took."""

    alone: PairwiseDistances
    rigid: PairwiseDistances
    distance: RigidDistance
    features: torch.Tensor
    cpu_seconds_a_pair: float


def prepared(volumes: torch.Tensor) -> torch.Tensor:
    window = spherical_window(volumes.shape[-1])
    return windowed(volumes, window, edge_of(window))


def compared(volumes: torch.Tensor) -> Compared:
    distance = RigidDistance(volumes.shape[-1])
    distance.calibrate(distance.full_features(volumes[:10]))
    alone = RotationDistance(volumes.shape[-1])
    alone.recall(distance.calibration[:2])
    features = distance.features(volumes)
    start = time.process_time()
    rigid = distance.pairwise(features)
    pairs = len(volumes) * (len(volumes) - 1) / 2
    seconds = (time.process_time() - start) / pairs
    found = alone.pairwise(alone.features(volumes)), rigid
    return Compared(*(one.numpy() for one in found), distance, features, seconds)


def molecules(reach: float) -> list[np.ndarray]:
    atoms = compact(40, reach, np.random.default_rng(0))
    return [hinged(atoms, 14, angle) for angle in np.linspace(0, 1.0, STATES)]


def moved(states: list[np.ndarray], share: float) -> tuple[np.ndarray, np.ndarray]:
    """Every state turned at random and moved by this share of the box; and by how much."""
    turns = Rotation.random(STATES, random_state=1).as_matrix()
    along = np.random.default_rng(2).normal(size=(STATES, 3))
    moves = share * BOX * along / np.linalg.norm(along, axis=1, keepdims=True)
    atoms = [a @ turn.T + move for a, turn, move in zip(states, turns, moves, strict=True)]
    return np.stack([render(one, BOX, SIGMA) for one in atoms]), moves


def known_motions(reach: float) -> list[list[float]]:
    """What is left of Delta between a state and its moved copy, for each share of the box."""
    states, window = molecules(reach), spherical_window(BOX)
    still = torch.from_numpy(moved(states, 0.0)[0]).float()
    among = compared(prepared(still))
    norm = float(among.distance.norms(among.features).median())
    typical = float(np.median(among.rigid.distances[np.triu_indices(STATES, 1)])) / norm
    rows = []
    for share in SHARES:
        volumes, moves = moved(states, share)
        both = torch.cat([still, torch.from_numpy(volumes).float()])
        alone, rigid, translations = copies(prepared(both))
        _, of_mean, _ = copies(windowed(both, window))
        error = float(np.median(np.linalg.norm(translations - moves, axis=1)))
        left = [float(np.median(one)) / norm for one in (alone, rigid, of_mean)]
        rows.append([100 * share, *left, typical, error])
    return rows


def copies(volumes: torch.Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each state and its copy: Delta over rotations and rigid motions, and the translation."""
    distance = RigidDistance(BOX)
    distance.calibrate(distance.full_features(volumes[:10]))
    alone = RotationDistance(BOX)
    alone.recall(distance.calibration[:2])
    state = torch.arange(STATES)
    found = distance.search(distance.features(volumes)).compare(Pairs(state + STATES, state))
    turned = alone.pairwise(alone.features(volumes)).distances[state, state + STATES]
    return turned.numpy(), found.distances.numpy(), found.translations.numpy()


def real_volumes(path: Path | None) -> torch.Tensor:
    if path is None:
        return decoded(DEMO)
    return decoded(path)


def decoded(path: Path) -> torch.Tensor:
    workdir = open_workdir(path, -1)
    decoder = Decoder.from_workdir(workdir, "cpu", torch.float32, as_trained=True)
    count = len(workdir.latents)
    rows = np.sort(np.random.default_rng(0).choice(count, min(REAL, count), replace=False))
    box = min(BOX, workdir.box_size)
    return prepared(decoder.decode(workdir.latents[rows], box))


def audit(found: Compared) -> dict[str, float]:
    """Joint refinement from random motions: how often it ends nearer than the search."""
    search = found.distance.search(found.features).search
    generator = np.random.default_rng(3)
    rows, columns = np.triu_indices(len(found.rigid.distances), 1)
    chosen = np.sort(generator.choice(len(rows), min(AUDITED, len(rows)), replace=False))
    shares = []
    for pair in chosen:
        turns = Rotation.random(STARTS, random_state=int(pair)).as_matrix()
        moves = generator.normal(size=(STARTS, 3))
        moves *= generator.uniform(size=(STARTS, 1)) ** (1 / 3) / np.linalg.norm(
            moves, axis=1, keepdims=True
        )
        starts = (
            torch.from_numpy(turns).float(),
            torch.from_numpy(moves * 2 * pi * MOST_TRANSLATION).float(),
        )
        of_column = torch.full((STARTS,), int(columns[pair]))
        distances, *_ = search.refined(int(rows[pair]), of_column, *starts)
        here = found.rigid.distances[rows[pair], columns[pair]]
        shares.append((here - float(distances.min())) / here)
    shares = np.array(shares)
    return {
        "audited pairs": len(shares),
        "missed by the search": int((shares > MISSED).sum()),
        "missed by 50 random starts": int((shares < -MISSED).sum()),
        "largest miss": float(shares.max()),
    }


def triangles(found: Compared) -> dict[str, float]:
    """How often a side is longer than the two others, and how many pairs are at the bound."""
    d, box = found.rigid.distances, found.distance.box
    violated = worst = 0.0
    triples = list(combinations(range(len(d)), 3))
    for triple in triples:
        i, j, k = triple
        one, two, three = sorted((d[i, j], d[j, k], d[i, k]))
        excess = float(three / (one + two) - 1)
        violated += excess > MISSED
        worst = max(worst, excess)
    lengths = np.linalg.norm(found.rigid.translations[np.triu_indices(len(d), 1)], axis=1)
    at_bound = float((lengths > 0.999 * MOST_TRANSLATION * box).mean())
    return {
        "triples": len(triples),
        "triangles violated": int(violated),
        "largest excess": worst,
        "pairs at the bound": at_bound,
    }


def drawn(small: np.ndarray, large: np.ndarray, found: Compared):
    figure, (left, right) = panels(2, "Taking translations out of Δ as well")
    for rows, style, name in ((small, "-", "small map"), (large, "--", "fills the window")):
        left.plot(rows[:, 0], rows[:, 1], style, color=INK, label=f"so3, {name}")
        left.plot(rows[:, 0], rows[:, 2], style, color=ACCENT, label=f"se3, {name}")
    left.axhline(float(small[0, 4]), color=NONE, lw=1, label="two states of the small map")
    left.set(xlabel="translation (% of the box)", ylabel="Δ / |V|", ylim=(-0.02, 1.7))
    left.legend(frameon=False, fontsize=8, ncols=1, loc="upper left")
    left.set_title("one state and its moved copy", fontsize=10)
    upper = np.triu_indices(len(found.alone.distances), 1)
    alone, rigid = found.alone.distances[upper], found.rigid.distances[upper]
    right.scatter(alone, rigid, s=6, color=INK, alpha=0.5, linewidths=0)
    top = float(alone.max()) * 1.05
    right.plot([0, top], [0, top], color=ACCENT, lw=1)
    right.set(xlabel="Δ, --rigid so3", ylabel="Δ, --rigid se3", xlim=(0, top), ylim=(0, top))
    right.set_title("real volumes, one point a pair", fontsize=10)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", type=Path, help="default: the one that ships with the demo")
    args = parser.parse_args()
    with one_thread():
        small, large = known_motions(9.0), known_motions(14.5)
        found = compared(real_volumes(args.workdir))
        audited = audit(found)
    rows = [["within 0.56 of the box's half", *row] for row in small]
    rows += [["up to the window's edge", *row] for row in large]
    upper = np.triu_indices(len(found.alone.distances), 1)
    save_study(
        "rigid",
        [
            "map",
            "translation (% of the box)",
            "Delta so3 / |V|",
            "Delta se3 / |V|",
            "Delta se3 / |V|, mean taken away instead of the level at the edge",
            "Delta se3 between states / |V|",
            "error of t (voxels)",
        ],
        rows,
        drawn(np.array(small), np.array(large), found),
        box=found.distance.box,
        states=STATES,
        real_volumes=len(found.alone.distances),
        workdir="the demo's" if args.workdir is None else "another",
        lmax=[int(one) for one in found.distance.calibration[[0, 2]]],
        cpu_milliseconds_a_pair=round(1e3 * found.cpu_seconds_a_pair, 1),
        median_so3=float(np.median(found.alone.distances[upper])),
        median_se3=float(np.median(found.rigid.distances[upper])),
        audit=audited,
        axioms=triangles(found),
    )


if __name__ == "__main__":
    main()
