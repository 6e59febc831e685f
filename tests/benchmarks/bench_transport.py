"""All pairs of 500 volumes at box 32 by optimal transport: pairs a second, triangles."""

import time

import numpy as np
import torch
from triangles import violations

from benchmarks.record import Figure
from benchmarks.volumes import conformations, rendered
from cryodrgn_metric.distances.base import PILOT_COUNT
from cryodrgn_metric.distances.streaming import VOLUMES_PER_BATCH
from cryodrgn_metric.distances.transport import TransportDistance
from cryodrgn_metric.so3.conventions import spherical_window
from cryodrgn_metric.threads import map_in_threads

VOLUMES, BOX, ROUNDS = 500, 32, 5
CONTOUR = 0.6  # of density that reaches 12; there is no solvent to find it in
PROMISED = 124_750 / 300  # pairs a second, volumes included


def test_all_pairs_by_transport(benchmark, record, quick):
    count = 12 if quick else VOLUMES
    volumes = torch.stack([rendered(atoms, BOX) for atoms in conformations(count)])
    distance, window = TransportDistance(BOX, contour=CONTOUR), spherical_window(BOX)
    pilots = distance.prepare(volumes[:PILOT_COUNT], window)
    distance.calibrate(distance.full_features(pilots))
    expansion, pairs = [], []

    def features_of(batch):
        return distance.features(distance.prepare(batch, window))

    def measure():
        start = time.perf_counter()
        batches = volumes.split(VOLUMES_PER_BATCH)
        features = torch.cat([*map_in_threads(features_of, batches, volumes.device)], dim=-1)
        middle = time.perf_counter()
        found = distance.pairwise(features)
        expansion.append(middle - start)
        pairs.append(time.perf_counter() - middle)
        return found.distances.double().numpy()

    distances = benchmark.pedantic(measure, rounds=1 if quick else ROUNDS)
    number = count * (count - 1) // 2
    speed = number / float(np.median(np.add(expansion, pairs)))
    per_volume = 1e3 * float(np.median(expansion)) / count
    bad = Figure("triangles violated by > 0.1 %", violations(distances), "", 0, "at most")
    figures = [
        Figure(f"{count} volumes, included", speed, "pairs/s", PROMISED, rounds=len(pairs)),
        Figure("one volume, as threads share them", per_volume, "ms", rounds=len(pairs)),
        bad,
    ]
    settings = {"box": BOX, "lmax": distance.lmax, "L": count}
    assert not record("transport_32", f"all pairs by transport at {BOX}^3", figures, settings)
