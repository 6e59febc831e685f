"""Expansion of one volume at 64^3, beside the NUFFT alone on the same points."""

import math
from functools import partial

import finufft
import numpy as np
import pytest
import torch

from benchmarks.counting import count
from benchmarks.record import Figure, Work
from benchmarks.timing import in_turns
from benchmarks.volumes import ensemble
from cryodrgn_metric.so3.expansion import ShellExpansion, full_band_limit

BOX = 64


@pytest.fixture
def points(monkeypatch):
    """The points and the precision that the expansion hands to finufft, as it does so."""
    seen = {}
    transform = finufft.nufft3d2

    def watched(*arguments, **options):
        seen["points"], seen["eps"] = arguments[:3], options["eps"]
        return transform(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(finufft, "nufft3d2", watched)
        ShellExpansion(BOX, full_band_limit(BOX))(torch.zeros(1, BOX, BOX, BOX))
    return seen


def test_expansion_of_one_volume(benchmark, record, quick, points):
    volume = ensemble(1, BOX)
    expand = ShellExpansion(BOX, full_band_limit(BOX))
    nufft = partial(
        finufft.nufft3d2,
        *points["points"],
        volume[0].numpy().astype(np.complex64),
        eps=points["eps"],
        isign=-1,
        modeord=0,
        nthreads=torch.get_num_threads(),
    )
    timings = in_turns(benchmark, lambda: expand(volume), rounds=5 if quick else 25, nufft=nufft)
    ours, floor = timings["ours"], timings["nufft"]
    inner = count(lambda: expand(volume))
    outer = _nufft_work(len(points["points"][0]), points["eps"])
    figure = Figure(
        "one volume",
        1e3 * ours.median,
        "ms",
        target=50,
        direction="at most",
        rounds=ours.rounds,
        work=Work(inner.operations + outer[0], inner.bytes + outer[1], ours.median),
        note="NUFFT counted by formula",
    )
    ratio = Figure(
        "beside its floor",
        1e3 * ours.median,
        "ms",
        target=1.5,
        direction="at most",
        of_ratio=True,
        reference="finufft alone, same points and eps",
        reference_value=1e3 * floor.median,
        rounds=floor.rounds,
    )
    settings = {"box": BOX, "lmax": expand.lmax, "points": len(points["points"][0])}
    title = f"expansion of one volume at {BOX}^3"
    assert not record("expansion", title, [figure, ratio], settings)


def _nufft_work(points: int, eps: float) -> tuple[float, float]:
    """Operations and bytes of a type-2 NUFFT of BOX^3 by its textbook: a grid twice as fine.

    An FFT of 5 n log2 n, then a product of three kernels of w points each for every sample.
    """
    fine, width = (2 * BOX) ** 3, math.ceil(-math.log10(eps)) + 1
    operations = 5 * fine * math.log2(fine) + points * 4.0 * width**3
    moved = 8.0 * (BOX**3 + 2 * 3 * fine + points * width**3)
    return operations, moved
