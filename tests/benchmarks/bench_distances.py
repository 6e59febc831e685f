"""All pairs of 500 volumes at box 64, 32 and 128: pairs a second, accuracy, peak memory."""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.counting import count
from benchmarks.memory import peak_memory_of
from benchmarks.record import Figure, Work
from benchmarks.volumes import SavedVolumes, calibrated, features_of
from cryodrgn_metric.distances.base import PairwiseDistances
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.so3.expansion import ball_radius

VOLUMES = 500
CONVERGED = 33  # volumes whose first 500 pairs are measured again without any limit
COUNTED = 64  # volumes whose pairs are counted

ROUNDS = 5

PROMISED = {64: 1000, 32: 2500, 128: 150}  # pairs a second, by box


@dataclass
class Run:
    """Every round's seconds, and the result of the last."""

    expansion: list[float] = field(default_factory=list)
    pairs: list[float] = field(default_factory=list)
    features: torch.Tensor | None = None
    found: PairwiseDistances | None = None

    def measure(self, volumes: SavedVolumes, distance: RotationDistance) -> None:
        start = time.perf_counter()
        self.features = features_of(volumes, distance)
        middle = time.perf_counter()
        self.found = distance.pairwise(self.features)
        self.expansion.append(middle - start)
        self.pairs.append(time.perf_counter() - middle)


@pytest.mark.parametrize("box", PROMISED)
def test_all_pairs(benchmark, record, quick, box, tmp_path):
    volumes = SavedVolumes.make(tmp_path, box, 12 if quick else VOLUMES)
    distance, run = calibrated(volumes), Run()
    benchmark.pedantic(run.measure, (volumes, distance), rounds=1 if quick else ROUNDS)
    figures = _speed(run, distance, PROMISED[box])
    peak = peak_memory_of("bench_distances:compare_saved", volumes.path, box, volumes.count)
    figures.append(Figure("peak memory", peak / 1e9, "GB", target=4, direction="at most"))
    if box == 64 and not quick:
        figures += _accuracy(volumes, run.found)
    settings = {"box": box, "lmax": distance.lmax, "L": volumes.count}
    assert not record(f"distances_{box}", f"all pairs at {box}^3", figures, settings)


def compare_saved(path: str, box: str, number: str) -> None:
    """All that is timed, once; for `peak_memory_of`."""
    volumes = SavedVolumes(Path(path), int(box), int(number))
    Run().measure(volumes, calibrated(volumes))


def _speed(run: Run, distance: RotationDistance, promised: float) -> list[Figure]:
    volumes, rounds = run.features.shape[-1], len(run.pairs)
    sustained = Figure(
        f"{volumes} volumes, expansion included",
        _pairs(volumes) / float(np.median(np.add(run.expansion, run.pairs))),
        "pairs/s",
        target=promised,
        rounds=rounds,
    )
    part = run.features[..., :COUNTED]
    each = count(lambda: distance.pairwise(part)).times(1 / _pairs(part.shape[-1]))
    seconds = float(np.median(run.pairs)) / _pairs(volumes)
    work = Work(each.operations, each.bytes, seconds)
    alone = Figure("one pair, expansion left out", 1e3 * seconds, "ms", rounds=rounds, work=work)
    return [sustained, alone]


def _pairs(volumes: int) -> int:
    return volumes * (volumes - 1) // 2


def _accuracy(volumes: SavedVolumes, found: PairwiseDistances) -> list[Figure]:
    """Of the distances that were just timed, against every degree and every radial direction."""
    limit = math.ceil(math.pi * ball_radius(volumes.box))
    everything = RotationDistance(volumes.box, lmax=limit)
    features = everything.features(volumes.read(0, CONVERGED))
    exact = everything.pairwise(features).distances
    rows, columns = (index[:500] for index in np.triu_indices(CONVERGED, 1))
    errors = 100 * (found.distances[rows, columns] / exact[rows, columns] - 1).abs().numpy()
    against = f"of 500 pairs, against lmax {limit} and full rank"
    return [
        Figure("median error", float(np.median(errors)), "%", 0.5, "at most", note=against),
        Figure("99th percentile", float(np.quantile(errors, 0.99)), "%", 2, "at most"),
    ]
