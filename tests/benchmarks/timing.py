"""Time ours and its references in turns, so that whatever disturbs the machine meets all alike."""

from __future__ import annotations

import time
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Timing:
    """Seconds of every round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    @property
    def rounds(self) -> int:
        return len(self.seconds)


def in_turns(benchmark, ours, rounds: int = 5, warm_up: bool = True, **references):
    """Time `ours` by pytest-benchmark, and each reference once before every round of it.

    Arguments:
        benchmark: pytest-benchmark's fixture.
        ours: Called without arguments.
        rounds: How often.
        warm_up: Call everything once before; tables and caches are built then.
        references: Called without arguments.

    Returns:
        `Timing` by name, ours under "ours".
    """
    seconds: dict[str, list[float]] = {name: [] for name in references}

    def time_references() -> None:
        for name, reference in references.items():
            start = time.perf_counter()
            reference()
            seconds[name].append(time.perf_counter() - start)

    if warm_up:
        for function in (*references.values(), ours):
            function()
    benchmark.pedantic(ours, setup=time_references, rounds=rounds, iterations=1)
    timings = {name: Timing(tuple(found)) for name, found in seconds.items()}
    return timings | {"ours": Timing(tuple(benchmark.stats.stats.data))}
