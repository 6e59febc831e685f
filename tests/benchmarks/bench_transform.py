"""z' of a million latents by MetricMap.transform: seconds, and peak memory."""

import numpy as np

from benchmarks.counting import count
from benchmarks.memory import peak_memory_of
from benchmarks.record import Figure, Work
from cryodrgn_metric.metric_map import MetricMap

COLUMNS = 8  # of z
COUNTED = 100_000


def latents(number: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((number, COLUMNS), dtype=np.float32)


def fitted() -> MetricMap:
    """A map of the default size; its time doesn't depend on what it has learned."""
    z = latents(1000)
    return MetricMap(steps=5, progress=False).fit(z, lambda a, b: (a - b).norm(dim=1))


def transform(number: str) -> None:
    """What is timed, once; for `peak_memory_of`."""
    fitted().transform(latents(int(number)))


def test_a_million_latents(benchmark, record, quick):
    number = 100_000 if quick else 1_000_000
    z, metric_map = latents(number), fitted()
    benchmark.pedantic(metric_map.transform, (z,), rounds=5, warmup_rounds=1)
    seconds = benchmark.stats.stats.median
    part = count(lambda: metric_map.transform(z[:COUNTED])).times(number / COUNTED)
    work = Work(part.operations, part.bytes, seconds)
    peak = peak_memory_of("bench_transform:transform", number)
    figures = [
        Figure("z' of all", seconds, "s", 20, "at most", rounds=5, work=work),
        Figure("peak memory", peak / 1e9, "GB", 2, "at most"),
    ]
    settings = {"N": number, "zdim": COLUMNS, "width": metric_map.width, "depth": metric_map.depth}
    assert not record("transform", f"transform of {number:,} latents", figures, settings)
