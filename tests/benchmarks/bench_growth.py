"""How each stage grows: distances with the square of L at a flat cost per pair, the rest linearly.

Up to --landmarks 2000 at box 64: 2 million pairs, which take most of its 50 minutes.
"""

import time
from statistics import median

import numpy as np

from benchmarks.bench_transform import latents
from benchmarks.record import Figure
from benchmarks.volumes import SavedVolumes, calibrated, features_of
from cryodrgn_metric.clusters import cluster_kmeans
from cryodrgn_metric.config import ClusterConfig
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.metric_map import MetricMap

BOX = 64
LANDMARKS = (100, 200, 500, 1000, 2000)
ROUNDS = 5
PARTICLES = (10_000, 30_000, 100_000, 300_000, 1_000_000)
EXPANDED = (100, 200, 500)  # of 2000 volumes

FLAT = 1.2  # the cost of a pair at the largest L, of that at the smallest
LINEAR = 1.1  # the slope of a linear stage in the log-log plot, at most
QUADRATIC = 2.1


def test_growth(benchmark, record, quick, tmp_path):
    sizes, rounds = ((12, 24, 48), 1) if quick else (LANDMARKS, ROUNDS)
    particles = PARTICLES[:2] if quick else PARTICLES
    volumes = SavedVolumes.make(tmp_path, BOX, max(sizes))
    distance = calibrated(volumes)
    features = features_of(volumes, distance)
    pairs = _distances(benchmark, distance, features, sizes, rounds)
    linear = _expansion(volumes, distance, sizes if quick else EXPANDED)
    linear |= _learning(sizes) | _particles(particles)
    figures = _figures(pairs, linear, rounds)
    settings = {"box": BOX, "lmax": distance.lmax, "L": f"{min(sizes)} to {max(sizes)}"}
    settings["N"] = f"{min(particles)} to {max(particles)}"
    assert not record("growth", "growth", figures, settings, {"distances, of L": pairs} | linear)


def _seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def _line(sizes, function, rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Median seconds of function(size) for every size."""
    seconds = [median(_seconds(function, size) for _ in range(rounds)) for size in sizes]
    return {"size": list(sizes), "seconds": seconds}


def _distances(benchmark, distance, features, sizes, rounds: int) -> dict[str, list[float]]:
    """The smallest is pytest-benchmark's."""

    def measure(size: int) -> None:
        distance.pairwise(features[..., :size])

    smallest, *others = sizes
    benchmark.pedantic(measure, (smallest,), rounds=rounds)
    line = _line(others, measure, rounds)
    return {
        "size": [smallest, *line["size"]],
        "seconds": [benchmark.stats.stats.median, *line["seconds"]],
    }


def _expansion(volumes: SavedVolumes, distance, sizes) -> dict[str, dict[str, list[float]]]:
    def expand(size: int) -> None:
        features_of(SavedVolumes(volumes.path, BOX, size), distance)

    return {"expansion, of L": _line(sizes, expand)}


def _learning(sizes) -> dict[str, dict[str, list[float]]]:
    """h_psi takes as many steps whatever L is, of all pairs among a batch."""
    z = latents(max(sizes))
    apart = np.linalg.norm(z[:, None] - z, axis=-1)

    def fit(size: int) -> None:
        DistanceNet(progress=False).fit(z[:size], apart[:size, :size])

    return {"h_psi, of L": _line(sizes, fit)}


def _particles(sizes) -> dict[str, dict[str, list[float]]]:
    """What sees every particle: f_xi, z' and the clusters of it."""
    z = latents(max(sizes))

    def fitted(size: int) -> MetricMap:
        map_of = MetricMap(progress=False)
        return map_of.fit(z[:size], lambda a, b: (a - b).norm(dim=1))

    metric_map = fitted(min(sizes))
    z_metric = metric_map.transform(z)
    return {
        "f_xi, of N": _line(sizes, fitted),
        "transform, of N": _line(sizes, lambda size: metric_map.transform(z[:size])),
        "clusters, of N": _line(
            sizes, lambda size: cluster_kmeans(z_metric[:size], ClusterConfig(), 0)
        ),
    }


def _figures(
    distances: dict[str, list[float]], linear: dict[str, dict], rounds: int
) -> list[Figure]:
    first, last = (_cost_of_a_pair(distances, place) for place in (0, -1))
    flat = Figure(
        f"a pair at L = {distances['size'][-1]}",
        1e3 * last,
        "ms",
        target=FLAT,
        direction="at most",
        of_ratio=True,
        reference=f"a pair at L = {distances['size'][0]}",
        reference_value=1e3 * first,
        rounds=rounds,
    )
    slope = Figure(
        "distances, of L", _slope(distances), "", QUADRATIC, "at most", note="slope", rounds=rounds
    )
    slopes = [
        Figure(name, _slope(line), "", LINEAR, "at most", note="slope", rounds=ROUNDS)
        for name, line in linear.items()
    ]
    return [flat, slope, *slopes]


def _cost_of_a_pair(line: dict[str, list[float]], place: int) -> float:
    size = line["size"][place]
    return line["seconds"][place] / (size * (size - 1) / 2)


def _slope(line: dict[str, list[float]]) -> float:
    """Of the plot, over the larger half of the sizes, where what is constant hides little."""
    first = min(len(line["size"]) // 2, len(line["size"]) - 2)
    logarithms = np.log(line["size"][first:]), np.log(line["seconds"][first:])
    return float(np.polyfit(*logarithms, 1)[0])
