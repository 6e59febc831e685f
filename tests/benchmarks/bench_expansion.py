"""Expansion of one volume at 64^3, beside the NUFFT alone on the same points."""

import math
from functools import partial

import finufft
import numpy as np

from benchmarks.counting import count
from benchmarks.record import Figure, Work
from benchmarks.timing import in_turns
from benchmarks.volumes import SavedVolumes, calibrated
from cryodrgn_metric.so3.expansion import ShellExpansion

BOX = 64
VOLUMES = 20  # among which lmax is found


def test_expansion_of_one_volume(benchmark, record, quick, tmp_path, monkeypatch):
    volumes = SavedVolumes.make(tmp_path, BOX, VOLUMES)
    lmax = calibrated(volumes).lmax
    volume, expand = volumes.read(0, 1), ShellExpansion(BOX, lmax)
    points, options = _asked_of_finufft(monkeypatch, lambda: expand(volume))
    density = volume[0].numpy().astype(np.complex64)
    nufft = partial(finufft.nufft3d2, *points, density, **options)
    timings = in_turns(benchmark, lambda: expand(volume), rounds=5 if quick else 25, nufft=nufft)
    ours, floor = timings["ours"], timings["nufft"]
    rest, (operations, moved) = count(lambda: expand(volume)), _nufft_work(len(points[0]), options)
    work = Work(rest.operations + operations, rest.bytes + moved, ours.median)
    figures = [
        Figure(
            "one volume",
            1e3 * ours.median,
            "ms",
            target=50,
            direction="at most",
            rounds=ours.rounds,
            work=work,
            note="the NUFFT's work by formula",
        ),
        Figure(
            "beside its floor",
            1e3 * ours.median,
            "ms",
            target=1.5,
            direction="at most",
            of_ratio=True,
            reference="finufft alone, same points and options",
            reference_value=1e3 * floor.median,
            rounds=floor.rounds,
        ),
    ]
    settings = {"box": BOX, "lmax": lmax, "points": len(points[0])}
    settings |= {name: options[name] for name in ("eps", "upsampfac")}
    assert not record("expansion", f"expansion at {BOX}^3", figures, settings)


def _asked_of_finufft(monkeypatch, expand):
    """The points and the options that the expansion hands to finufft."""
    seen = []
    transform = finufft.nufft3d2

    def watched(*arguments, **options):
        seen.append((arguments[:3], options))
        return transform(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(finufft, "nufft3d2", watched)
        expand()
    (asked,) = seen
    return asked


def _nufft_work(points: int, options: dict[str, float]) -> tuple[float, float]:
    """Operations and bytes of a type-2 NUFFT of BOX^3 by its textbook.

    An FFT of 5 n log2 n of the finer grid in three passes, then for every point a sum over w^3 of
    it; the width w of finufft's kernel is as Barnett et al. 2019, arXiv:1808.06736, give it.
    """
    finer, eps = options["upsampfac"], options["eps"]
    fine = (finer * BOX) ** 3
    width = math.ceil(-math.log(eps) / (math.pi * math.sqrt(1 - 1 / finer)))
    operations = 5 * fine * math.log2(fine) + points * 4.0 * width**3
    moved = 8.0 * (BOX**3 + 2 * 3 * fine + points * width**3)
    return operations, moved
