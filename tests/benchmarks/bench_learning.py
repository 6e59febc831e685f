"""Training of h_psi and f_xi on the demo, with 500 landmarks and 100,000 latents."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from running import run
from shipped import copied_demo

from benchmarks.counting import count
from benchmarks.record import Figure, Work
from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.fidelity import distance_errors
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.workdir import open_workdir

LANDMARKS = 500
PARTICLES = 100_000
DIMENSION = 3  # the fewest in which the demo's distances fit to 8 %: flattened to 2, they bend
JITTER = 0.01  # of the spread of each column: no two latents are alike


@dataclass(frozen=True)
class Landmarks:
    """What the command has measured on the demo, and latents to learn z' from."""

    latents: np.ndarray  # (L, zdim)
    distances: np.ndarray  # (L, L)
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    particles: np.ndarray  # (N, zdim)

    def held_out(self, predicted: np.ndarray) -> float:
        """Median relative error in percent, over pairs of landmarks that trained nothing."""
        upper = np.triu_indices(len(self.test), 1)
        truth = self.distances[np.ix_(self.test, self.test)][upper]
        return 100 * distance_errors(predicted[upper], truth)["median_relative_error"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory, quick) -> Landmarks:
    """Distances of the demo's landmarks, by the command; its latents, often enough to be N."""
    folder = copied_demo(tmp_path_factory.mktemp("demo"))
    number = 60 if quick else LANDMARKS
    run(folder, "--landmarks", number, "--skip-umap", small=())
    workdir = open_workdir(folder)
    with np.load(MetricFolder.beside(folder, workdir.epoch).distances) as measured:
        held_out = measured["is_test"], measured["is_validation"]
        return Landmarks(
            workdir.latents[measured["landmark_rows"]],
            measured["distances"],
            np.flatnonzero(~held_out[0] & ~held_out[1]),
            np.flatnonzero(held_out[1]),
            np.flatnonzero(held_out[0]),
            _many(workdir.latents, 10_000 if quick else PARTICLES),
        )


def _many(latents: np.ndarray, number: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    drawn = latents[generator.integers(0, len(latents), number)]
    noise = JITTER * latents.std(axis=0) * generator.standard_normal(drawn.shape)
    return (drawn + noise).astype(np.float32)


def test_h_psi(benchmark, record, demo, quick):
    def fit() -> DistanceNet:
        rows = {"train": demo.train, "validation": demo.validation}
        return DistanceNet(progress=False).fit(demo.latents, demo.distances, **rows)

    net = benchmark.pedantic(fit, rounds=1 if quick else 5)
    error = demo.held_out(net.predict_matrix(demo.latents[demo.test]))
    figures = _figures(benchmark, fit, error)
    settings = {"L": len(demo.latents), "epochs": net.max_epochs}
    assert not record("h_psi", "h_psi, on the demo", figures, settings)


def test_f_xi(benchmark, record, demo, quick):
    net = DistanceNet(progress=False).fit(
        demo.latents, demo.distances, demo.train, demo.validation
    )

    def fit(dimension: int = DIMENSION) -> MetricMap:
        return MetricMap(n_components=dimension, progress=False).fit(demo.particles, net)

    def error_of(metric_map: MetricMap) -> float:
        z_metric = metric_map.transform(demo.latents[demo.test])
        return demo.held_out(np.linalg.norm(z_metric[:, None] - z_metric, axis=-1))

    metric_map = benchmark.pedantic(fit, rounds=1 if quick else 5)
    figures = _figures(benchmark, fit, error_of(metric_map))
    flat = Figure(
        "the same error in 2 dimensions",
        error_of(fit(2)),
        "%",
        reference="free points that minimise Eq. 8 on those very pairs",
        reference_value=demo.held_out(_free_points(demo, 2)),
    )
    figures.append(flat)
    settings = {"N": len(demo.particles), "dimension": DIMENSION, "steps": metric_map.steps}
    assert not record("f_xi", "f_xi, on the demo", figures, settings)


def _free_points(demo: Landmarks, dimension: int, steps: int = 1500) -> np.ndarray:
    """Distances among points that are free to minimise Eq. 8 over the test landmarks: a floor."""
    truth = torch.from_numpy(demo.distances[np.ix_(demo.test, demo.test)]).double()
    rows, columns = torch.triu_indices(*truth.shape, offset=1)
    truth = truth[rows, columns]
    typical = float(truth.median())
    found = []
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        start = torch.randn(len(demo.test), dimension, dtype=torch.float64, generator=draw)
        points = (start * typical / 2).requires_grad_()
        optimizer = torch.optim.Adam([points], lr=0.05 * typical)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            apart = (points[rows] - points[columns]).norm(dim=1)
            loss = ((apart - truth) / truth.clamp(min=0.1 * typical)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        found.append((loss.item(), torch.cdist(points, points).detach().numpy()))
    return min(found, key=lambda pair: pair[0])[1]


def _figures(benchmark, fit, error: float) -> list[Figure]:
    stats = benchmark.stats.stats
    work = count(fit)
    return [
        Figure(
            "training",
            stats.median,
            "s",
            target=60,
            direction="at most",
            rounds=stats.rounds,
            work=Work(work.operations, work.bytes, stats.median),
        ),
        Figure(
            "median error on held-out pairs",
            error,
            "%",
            target=8,
            direction="at most",
            note="against measured Delta",
        ),
    ]
