"""Which loss, where motions are so large that L2 saturates? A domain that turns by 180 degrees.

Delta is the package's own, of volumes of Gaussian atoms; the truth is the angle. The latents are
a bent image of the angle and of a number that changes nothing. Some three minutes.
"""

from __future__ import annotations

import numpy as np
import torch
from gaussian_atoms import compact, hinged, render
from scipy.stats import spearmanr

from cryodrgn_metric import pairwise_distances
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.fidelity import fidelity_of
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.report.drawing import ACCENT, INK, panels
from studies.record import save_study

SEEDS = (0, 1, 2)
LANDMARKS, TEST, PARTICLES = 240, 80, 4000
BOX, SIGMA, REACH = 24, 1.2, 9.0  # voxels
ATOMS, MOVING = 60, 25
NEAR_IN_DEGREES = 30
DIMENSIONS = (1, 2)
LOSSES = {"stress": "raw stress", "relative": "Eq. 8", "weighted": "Eq. 9"}
COLUMNS = (
    "d'",
    "loss",
    "error of the shortest quarter of Delta (%)",
    "of the longest quarter (%)",
    "stress-1",
    f"Spearman with the angle, pairs within {NEAR_IN_DEGREES} degrees",
    "all pairs",
)


def main() -> None:
    """Measure, learn by every loss, compare with the angle."""
    angle, z = _particles()
    measured = pairwise_distances(_volumes(angle[:LANDMARKS]).numpy(), device="cpu").distances
    test, train = np.arange(TEST), np.arange(TEST, LANDMARKS)
    truth = measured[:TEST, :TEST].astype(np.float64)
    apart = np.abs(angle[:TEST, None] - angle[:TEST])
    nets = [_learned(z[:LANDMARKS], measured, train, seed) for seed in SEEDS]
    rows, shown = [], {}
    for dimension in DIMENSIONS:
        for loss, name in LOSSES.items():
            scores = []
            for seed, net in zip(SEEDS, nets, strict=True):
                found = MetricMap(dimension, loss=loss, progress=False, seed=seed, device="cpu")
                points = found.fit(z, net).transform(z[test])
                scores.append(_scores(points, truth, apart))
                shown[dimension, name] = points
            rows.append([dimension, name, *np.median(scores, axis=0).tolist()])
            print(rows[-1], flush=True)
    figure = _figure(truth, apart, shown)
    facts = {"seeds": SEEDS, "landmarks": LANDMARKS, "test": TEST, "particles": PARTICLES}
    save_study("loss", COLUMNS, rows, figure, **facts, box=BOX, atoms=ATOMS, turning=MOVING)


def _learned(z: np.ndarray, measured: np.ndarray, train: np.ndarray, seed: int) -> DistanceNet:
    return DistanceNet(progress=False, seed=seed, device="cpu").fit(z, measured, train=train)


def _particles() -> tuple[np.ndarray, np.ndarray]:
    """Angles in degrees, (N,), and latents that know them, (N, 3)."""
    generator = np.random.default_rng(0)
    share, other = generator.uniform(size=(2, PARTICLES))
    bend = 2.5 * share
    z = np.column_stack([bend * np.cos(bend), other * (1 + share), bend * np.sin(bend) + other**2])
    return 180 * share, ((z - z.mean(axis=0)) / z.std(axis=0)).astype(np.float32)


def _volumes(angles: np.ndarray) -> torch.Tensor:
    atoms = compact(ATOMS, REACH, np.random.default_rng(1))
    atoms = atoms[np.argsort(atoms[:, 0])]  # the domain is one end
    states = [hinged(atoms, MOVING, angle) for angle in np.deg2rad(angles)]
    return torch.from_numpy(np.stack([render(state, BOX, SIGMA) for state in states])).float()


def _scores(points: np.ndarray, truth: np.ndarray, apart: np.ndarray) -> list[float]:
    upper = np.triu_indices(len(truth), 1)
    d = np.linalg.norm(points[:, None] - points[None], axis=-1)[upper]
    delta, degrees = truth[upper], apart[upper]
    relative = 100 * np.abs(d - delta) / delta
    low, high = np.percentile(delta, [25, 75])
    near = degrees < NEAR_IN_DEGREES
    return [
        float(np.median(relative[delta <= low])),
        float(np.median(relative[delta >= high])),
        fidelity_of(points, truth)["stress1"],
        float(spearmanr(d[near], degrees[near]).statistic),
        float(spearmanr(d, degrees).statistic),
    ]


def _figure(truth: np.ndarray, apart: np.ndarray, shown: dict) -> object:
    figure, (left, middle, right) = panels(3, width=3.1, height=2.9)
    upper = np.triu_indices(len(truth), 1)
    delta, degrees = truth[upper], apart[upper]
    edges = np.linspace(0, 170, 18)
    middles = (edges[1:] + edges[:-1]) / 2
    left.plot(degrees, delta, ".", ms=2, color=INK, alpha=0.4)
    left.set(xlabel="true angle (degrees)", ylabel="measured Δ", ylim=(0, None))
    for axis, dimension in ((middle, 1), (right, 2)):
        for name, color in zip(LOSSES.values(), ("grey", INK, ACCENT), strict=True):
            points = shown[dimension, name]
            d = np.linalg.norm(points[:, None] - points[None], axis=-1)[upper]
            binned = [
                np.median((d / delta)[(degrees >= low) & (degrees < high)])
                for low, high in zip(edges[:-1], edges[1:], strict=True)
            ]
            axis.plot(middles, binned, color=color, label=name)
        axis.axhline(1, color="lightgrey", lw=0.8, zorder=0)
        axis.set(xlabel="true angle (degrees)", title=f"d' = {dimension}")
    middle.set_ylabel("distance in z' / Δ")
    left.legend(handles=right.get_lines()[:3], frameon=False, loc="lower right", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
