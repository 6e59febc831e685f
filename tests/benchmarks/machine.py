"""What this machine is, and what it can do.

Peaks are measured as the package works: several Python threads with one torch thread each.
"""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from cryodrgn_metric.threads import map_in_threads, one_thread

CPU = torch.device("cpu")
GEMM_SIDES = (512, 1024, 2048)
COPIED_FLOATS = 1 << 26  # 256 MB a thread: far beyond any last-level cache
REPEATS = 7


@dataclass(frozen=True)
class Peaks:
    """Measured, with as many threads as torch may use.

    Arguments:
        float32: Operations per second of a float32 matrix product.
        bfloat16: The same in bfloat16; as slow as it is where the CPU lacks it.
        memory: Bytes per second of a copy, read and written counted.
        threads: How many worked at once.
    """

    float32: float
    bfloat16: float
    memory: float
    threads: int


def measure_peaks() -> Peaks:
    return Peaks(
        float32=_gemm_rate(torch.float32),
        bfloat16=_gemm_rate(torch.bfloat16),
        memory=_copy_rate(),
        threads=torch.get_num_threads(),
    )


def _gemm_rate(dtype: torch.dtype) -> float:
    """Of the side that suits this machine best."""
    return max(_rate_of(*_products(side, dtype)) for side in GEMM_SIDES)


def _products(side: int, dtype: torch.dtype):
    count = max(1, (2048 // side) ** 3)
    values = torch.ones(side, side, dtype=dtype)
    product = fastest_product(values, side)

    def work(_):
        for _ in range(count):
            product(values)

    return work, count * 2.0 * side**3


def fastest_product(weight: torch.Tensor, rows: int):
    """x -> x W for x of so many rows: torch's, or oneDNN's on weights in its own order.

    Which is faster is a matter of the processor: torch multiplies float32 by MKL.
    """
    sample = torch.ones(rows, len(weight), dtype=weight.dtype)
    candidates = [lambda values: torch.mm(values, weight)]
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.mT.contiguous(), rows)
        multiply = torch.ops.mkldnn._linear_pointwise
        multiply(sample, packed, None, "none", [], "")
    except (AttributeError, RuntimeError):  # torch or the processor has none
        return candidates[0]
    candidates.append(lambda values: multiply(values, packed, None, "none", [], ""))
    with one_thread():
        return min(candidates, key=lambda product: _best_seconds(product, sample))


def _best_seconds(function, argument) -> float:
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function(argument)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _copy_rate() -> float:
    pairs = [
        (torch.ones(COPIED_FLOATS), torch.zeros(COPIED_FLOATS))
        for _ in range(torch.get_num_threads())
    ]
    return _rate_of(lambda number: pairs[number][1].copy_(pairs[number][0]), 8.0 * COPIED_FLOATS)


def _rate_of(work, amount: float) -> float:
    """Amount per second, all threads together; the best of several, as a peak is meant."""
    threads, seconds = torch.get_num_threads(), []
    for _ in range(REPEATS):
        start = time.perf_counter()
        list(map_in_threads(work, range(threads), CPU))
        seconds.append(time.perf_counter() - start)
    return threads * amount / min(seconds)


def describe() -> dict[str, object]:
    """The machine and the versions: no names of hosts, no paths."""
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {
            name: metadata.version(name) for name in ("cryodrgn", "finufft", "numpy", "torch")
        },
        "date": datetime.date.today().isoformat(),
        "commit": _commit(),
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def _commit() -> str:
    """Of this checkout; a + says that files differed from it."""

    def git(*arguments: str) -> str:
        command = ["git", *arguments]
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
        return found.stdout.strip()

    changed = git("status", "--porcelain", "--untracked-files=no", "--", ":/cryodrgn_metric")
    return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
