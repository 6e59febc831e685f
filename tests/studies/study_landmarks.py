"""How many landmarks are enough, and does it matter how they are drawn? Error against L.

    PYTHONPATH=tests python -m studies.study_landmarks [--workdir NAME=PATH ...] [--keep FOLDER]

The demo's workdir is always in it. Delta is measured once, for all pairs of a random pool of
particles; every strategy then plays on that pool, with the functions of the real command, as
`cryodrgn metric_embed --ind pool.pkl` would: chosen landmarks, their roles, the nets and their
settings are those of the command. What differs is where errors are counted, on 200 particles of
the pool that are nobody's landmark, so that all runs are compared on the same pairs; and that
Delta is compressed by a basis of the whole pool instead of that run's landmarks, which moves it by
about 1e-3. Some ten minutes of two cores for each workdir, seeds side by side;
--keep keeps what is measured.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from shipped import DEMO

from cryodrgn_metric.acquisition import first_landmarks, more_landmarks, training_sizes
from cryodrgn_metric.config import EmbedConfig, LandmarkConfig
from cryodrgn_metric.distance_ensemble import DistanceEnsemble
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.distances.streaming import calibrate, stream_features
from cryodrgn_metric.fidelity import distance_errors
from cryodrgn_metric.landmarks import Landmarks, choose_landmarks
from cryodrgn_metric.report.drawing import ACCENT, INK, panels
from cryodrgn_metric.run import prepare
from studies.record import save_study

POOL, SCORED = 1400, 200
SIZES = (125, 200, 250, 300, 400, 500)
MOST = SIZES[-1]
STATIC = ("kmeans", "random", "farthest")
LONGER = "kmeans, 3 x as many steps"
MEASURES = ("median_relative_error", "percentile_90_relative_error")
COLORS = {"kmeans": INK, "active": ACCENT, "random": "#7a9e7e", "farthest": "#b08ea2"}
Scores = dict[str, list[tuple[int, int, float, float]]]  # strategy: (L, seed, median, 90 %)


@dataclass(frozen=True)
class Pool:
    """Latents (n, d), all their distances (n, n); the first rows are for scoring alone."""

    z: np.ndarray
    distances: np.ndarray
    scored: int

    @property
    def candidates(self) -> np.ndarray:
        """Rows that may be landmarks."""
        return np.arange(self.scored, len(self.z))

    def train(self, landmarks: Landmarks, seed: int, epochs: int = 150) -> DistanceNet:
        """h_psi, as the command trains it."""
        chosen = landmarks.indices
        return DistanceNet(seed=seed, max_epochs=epochs, device="cpu", progress=False).fit(
            self.z[chosen],
            self.distances[np.ix_(chosen, chosen)],
            train=landmarks.train,
            validation=landmarks.validation,
        )

    def ensemble(self, landmarks: Landmarks, net: DistanceNet) -> DistanceEnsemble:
        """Its error bars, as the command trains them."""
        chosen = landmarks.indices
        return DistanceEnsemble(net=net).fit(
            self.z[chosen],
            self.distances[np.ix_(chosen, chosen)],
            train=landmarks.train,
            validation=landmarks.validation,
        )

    def score(self, net: DistanceNet) -> tuple[float, float]:
        """Median and 90th percentile of the relative error on scored pairs."""
        upper = np.triu_indices(self.scored, 1)
        predicted = net.predict_matrix(self.z[: self.scored])[upper]
        errors = distance_errors(predicted, self.distances[: self.scored, : self.scored][upper])
        return errors[MEASURES[0]], errors[MEASURES[1]]


def measured_pool(workdir: Path, kept: Path, size: int, scored: int) -> Pool:
    """Decode a random pool and compare all of it, unless that was kept."""
    if not kept.is_file():
        run = prepare(EmbedConfig(str(workdir), outdir=str(kept.parent / "nothing")))
        rows = np.random.default_rng(0).permutation(run.pool)[:size]
        latents = run.workdir.latents[rows]
        calibrate(run.stream, latents, run.distance)
        pairs = run.distance.pairwise(stream_features(run.stream, latents, run.distance))
        np.savez(kept, z=latents, D=pairs.distances.numpy(), test=np.arange(scored))
    with np.load(kept) as file:
        return Pool(file["z"].astype(np.float32), file["D"].astype(float), len(file["test"]))


def play(pool: Pool, seed: int) -> Iterator[tuple[str, int, float, float]]:
    """Every strategy with one seed: name, L, errors."""
    for strategy in STATIC:
        for count in SIZES:
            config = LandmarkConfig(count, strategy)
            landmarks = choose_landmarks(pool.z, config, seed, pool.candidates)
            yield strategy, count, *pool.score(pool.train(landmarks, seed))
            if (strategy, count) == ("kmeans", MOST):
                yield LONGER, count, *pool.score(pool.train(landmarks, seed, epochs=450))
    for count in SIZES:
        landmarks = active_landmarks(pool, count, seed)
        yield "active", count, *pool.score(pool.train(landmarks, seed))


def active_landmarks(pool: Pool, count: int, seed: int) -> Landmarks:
    """All rounds of `--landmarks COUNT --sampling active`, whatever the stopping rule says."""
    config = LandmarkConfig(count, "active")
    landmarks = first_landmarks(pool.z, config, seed, pool.candidates)
    fixed = len(landmarks) - len(landmarks.train)
    for following in training_sizes(count - fixed)[1:]:
        ensemble = pool.ensemble(landmarks, pool.train(landmarks, seed))
        wanted = following - len(landmarks.train)
        landmarks = more_landmarks(ensemble, pool.z, landmarks, pool.candidates, wanted, seed)
    return landmarks


def scores_of(pool: Pool, kept: Path, seeds: int) -> Scores:
    """All strategies and seeds, of which finished seeds are kept; a process for each seed."""
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    missing = [seed for seed in range(seeds) if str(seed) not in found]
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as processes:
        played = processes.map(partial(_played, pool), missing)
        for seed, scores_of_seed in zip(missing, played, strict=True):
            found[str(seed)] = scores_of_seed
            kept.write_text(json.dumps(found))
            print(f"{kept.stem}: seed {seed} of {seeds}", flush=True)
    scores: Scores = {}
    for seed in range(seeds):
        for strategy, count, median, percentile_90 in found[str(seed)]:
            scores.setdefault(strategy, []).append((count, seed, median, percentile_90))
    return scores


def _played(pool: Pool, seed: int) -> list[tuple[str, int, float, float]]:
    torch.set_num_threads(1)
    return [*play(pool, seed)]


def curve(scores: Scores, strategy: str, measure: int) -> tuple[list[int], np.ndarray]:
    """L, and median, lowest and highest over seeds of an error. (sizes, 3)"""
    rows = scores[strategy]
    counts = sorted({row[0] for row in rows})
    errors = [[row[2 + measure] for row in rows if row[0] == count] for count in counts]
    return counts, np.array([[np.median(e), min(e), max(e)] for e in errors])


def reached(scores: Scores, strategy: str, measure: int) -> float | None:
    """The L at which a strategy has the error of k-means at 500, between measured L by log L."""
    goal = curve(scores, "kmeans", measure)[1][-1, 0]
    counts, errors = curve(scores, strategy, measure)
    middle = np.minimum.accumulate(errors[:, 0])
    if middle[-1] > goal:
        return None
    last = int(np.argmax(middle <= goal))
    if last == 0:
        return float(counts[0])
    share = np.log(middle[last - 1] / goal) / np.log(middle[last - 1] / middle[last])
    return float(counts[last - 1] * (counts[last] / counts[last - 1]) ** share)


def figure_of(studied: dict[str, Scores]) -> Any:
    """Error against L: one row for each workdir, median and 90th percentile."""
    figure, axes = panels(2, rows=len(studied), height=2.7)
    for row, (name, scores) in enumerate(studied.items()):
        for measure, title in enumerate(("median error", "90th percentile")):
            axis = axes[2 * row + measure]
            for strategy, color in COLORS.items():
                counts, errors = curve(scores, strategy, measure)
                middle, low, high = 100 * errors.T
                axis.plot(counts, middle, "o-", ms=4, color=color, label=strategy)
                axis.fill_between(counts, low, high, color=color, alpha=0.15, lw=0)
            longer = 100 * curve(scores, LONGER, measure)[1][0, 0]
            axis.plot(MOST, longer, "*", ms=10, color=INK, label="kmeans, 3 x the steps")
            axis.set(xscale="log", yscale="log", xlabel="landmarks L", title=f"{name}: {title}")
            axis.set(ylabel="error of h_ψ (%)", xticks=SIZES)
            axis.set_xticklabels(SIZES)
            axis.minorticks_off()
            ticks = axis.get_ylim()
            axis.set_yticks(
                [t for t in (0.3, 0.4, 0.7, 1, 1.4, 2, 3, 5, 7) if ticks[0] < t < ticks[1]]
            )
            axis.yaxis.set_major_formatter("{x:g}")
    lines = axes[0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=5, frameon=False, fontsize=9)
    return figure


def main() -> None:
    """Play, and save table and figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workdir", action="append", default=[], metavar="NAME=PATH")
    parser.add_argument("--keep", type=Path, help="folder of what is measured, to go on from")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", help="play this workdir, and save no study")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep = args.keep or Path(tempfile.mkdtemp())
    keep.mkdir(exist_ok=True)
    given = {"demo": str(DEMO)} | dict(pair.split("=", 1) for pair in args.workdir)
    studied, sizes = {}, {}
    for name, path in given.items():
        if args.only in (None, name):
            pool = measured_pool(Path(path), keep / f"{name}.npz", POOL, SCORED)
            studied[name] = scores_of(pool, keep / f"{name}.json", args.seeds)
            sizes[name] = {"pool": len(pool.z), "scored": pool.scored}
    if args.only:
        return
    rows = [
        [name, strategy, count, *(100 * curve(scores, strategy, m)[1][place] for m in (0, 1))]
        for name, scores in studied.items()
        for strategy in scores
        for place, count in enumerate(curve(scores, strategy, 0)[0])
    ]
    table = [
        [*row[:3], *(round(float(v), 3) for errors in row[3:] for v in errors)] for row in rows
    ]
    columns = ["workdir", "sampling", "L"]
    for measure in ("median error (%)", "90th percentile (%)"):
        columns += [measure, f"{measure}, lowest seed", f"{measure}, highest seed"]
    goals = {
        name: {
            strategy: {m: reached(scores, strategy, i) for i, m in enumerate(MEASURES)}
            for strategy in ("active", "random", "farthest")
        }
        for name, scores in studied.items()
    }
    save_study(
        "landmarks",
        columns,
        table,
        figure_of(studied),
        seeds=args.seeds,
        pools=sizes,
        landmarks_with_the_error_of_kmeans_at_500=goals,
    )


if __name__ == "__main__":
    main()
