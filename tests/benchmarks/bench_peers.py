"""All-pairs distances at 64^3 beside other programs: seconds a pair, and how near they come.

Everybody gets the same windowed, band-limited volumes and all threads; every rotation found is
scored by the same judge (`scoring`). Ours is timed right before each peer, so that whatever else
the machine does meets both, expansion and calibration included. Python 3.11 or later:
torch-fit-in-map asks for it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median

import numpy as np
import pytest
import torch
from gaussian_atoms import compact, overlap, render
from scipy.spatial.transform import Rotation

import cryodrgn_metric as cm
from benchmarks import peers, scoring
from benchmarks.record import Figure
from benchmarks.volumes import ensemble, molecule, rendered
from cryodrgn_metric.so3.conventions import spherical_window, windowed

BOX = 64
CLOSER = 1e-4  # relative: float32 tells no nearer pair of descriptions of one minimum apart
LOST_IN_DEGREES = 10
ENDS_IN_DEGREES = (10, 20, 40)


@dataclass(frozen=True)
class Peer:
    """One program, and how many times fewer seconds a pair ours must take.

    Arguments:
        name: As tables show it.
        timed: As `align` in `peers`.
        target: At least this ratio of seconds a pair.
        share: How much of the whole search `timed` does; its seconds are extrapolated.
        scored: What finds the rotations that are scored; None: `timed` does.
        scored_pairs: How many of the last pairs are scored; None: all that are timed.
        note: What a reader must know beside its seconds.
    """

    name: str
    timed: Callable
    target: float
    share: float = 1.0
    scored: Callable | None = None
    scored_pairs: int | None = None
    note: str = ""

    @property
    def align(self):
        return self.scored or self.timed


PEERS = [
    Peer("ASPIRE align_BO", peers.aspire, 3000, note="works at box 32"),
    Peer("torch-fit-in-map", peers.torch_fit_in_map, 1000, note="30 degrees, 5 starts"),
    Peer(
        "trilinear search, grid_SO3(3)",
        peers.trilinear_sample,
        100_000,
        share=peers.TIMED / peers.GRID,
        scored=peers.trilinear_grid,
        scored_pairs=2,
        note=f"timed on {peers.TIMED} of {peers.GRID} rotations; all are scored, at box 32",
    ),
]


@dataclass(frozen=True)
class Beside:
    """What one peer and ours did in turns.

    Arguments:
        seconds: Of the peer, per pair.
        busy: CPU seconds of the peer per second.
        ours: Seconds a pair, sustained over all pairs.
        ours_busy: CPU seconds of ours per second.
        pairs: Which volumes were scored.
        beyond: Distance at the peer's rotation over that at ours, less 1, per scored pair.
        degrees: Between the two rotations.
    """

    seconds: list[float]
    busy: float
    ours: float
    ours_busy: float
    pairs: list[tuple[int, int]]
    beyond: list[float]
    degrees: list[float]

    @property
    def closer(self):
        """Pairs in which the peer found a smaller distance than ours: bugs of ours."""
        scored = zip(self.pairs, self.beyond, strict=True)
        return {pair: beyond for pair, beyond in scored if beyond < -CLOSER}


@pytest.fixture(scope="module")
def volumes(quick):
    """Small changes, then one molecule ever further open and closed; all turned at random."""
    small = ensemble(20 if quick else 244, BOX)
    return _band_limited(torch.cat([small, _opposite_ends()])).numpy()


@pytest.fixture(scope="module")
def pairs(volumes, quick):
    """Which the peers get: five of small changes, one of each open and closed."""
    last = len(volumes)
    chosen = [(first, first + 1) for first in (0, 2, 4, 6, *range(last - 8, last, 2))]
    return chosen[-2:] if quick else chosen


def _opposite_ends():
    """Pairs of volumes with the first hinge turned by -angle and by +angle."""
    turns = Rotation.random(2 * len(ENDS_IN_DEGREES), random_state=12)
    angles = [end for angle in ENDS_IN_DEGREES for end in (-angle, angle)]
    drawn = [
        rendered(turn.apply(molecule(np.array([angle, 0, 0]))), BOX)
        for turn, angle in zip(turns, angles, strict=True)
    ]
    return windowed(torch.stack(drawn), spherical_window(BOX))


def _band_limited(volumes):
    """Cut to the Fourier ball |k| <= n/2 - 1, in which our distance compares volumes."""
    axis = torch.fft.fftfreq(BOX, 1 / BOX)
    squared = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2
    inside = squared <= (BOX / 2 - 1) ** 2
    spectra = torch.fft.fftn(volumes, dim=(-3, -2, -1)) * inside
    return torch.fft.ifftn(spectra, dim=(-3, -2, -1)).real.contiguous()


@pytest.fixture(scope="module")
def results():
    """`Beside` by the peer's name."""
    return {}


# -- first of all: who is asked, and who judges, turns the same way


@cache
def lopsided():
    """Atoms without any symmetry, and the same turned by their coordinates, at box 32."""
    atoms = compact(40, 10.0, np.random.default_rng(0))
    turn = Rotation.random(random_state=3).as_matrix()
    return atoms, atoms @ turn.T, turn


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_the_adapter_speaks_our_convention(peer):
    atoms, turned, turn = lopsided()
    first, second = (render(a, 32, 1.3).astype(np.float32) for a in (turned, atoms))
    found = peer.align(first, second)
    assert np.linalg.det(found) == pytest.approx(1, abs=1e-3)
    assert scoring.angle_between(found, turn) < LOST_IN_DEGREES


def test_the_judge_agrees_with_the_closed_form():
    atoms, turned, turn = lopsided()
    other = Rotation.from_euler("zyx", [20, 30, 40], degrees=True).as_matrix()
    first, second = render(turned, 32, 1.3), render(atoms, 32, 1.3)
    squared = 2 * overlap(atoms, atoms, 1.3) - 2 * overlap(turned, atoms @ other.T, 1.3)
    assert scoring.distance(first, second, other) == pytest.approx(np.sqrt(squared), rel=1e-4)
    assert scoring.distance(first, second, turn) < 1e-4 * np.sqrt(squared)


# -- then one after the other, each beside ours


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.name)
def test_peer(peer, benchmark, volumes, pairs, results):
    seconds, ours_busy, rotations = _all_pairs(volumes)
    found, busy = _timed(peer, benchmark, volumes, pairs)
    scored = pairs if peer.scored_pairs is None else pairs[-peer.scored_pairs :]
    if peer.scored is not None:
        found = [peer.scored(volumes[i], volumes[j]) for i, j in scored]
    mine = [rotations[pair].astype(float) for pair in scored]
    results[peer.name] = Beside(
        seconds=[second / peer.share for second in benchmark.stats.stats.data],
        busy=busy,
        ours=seconds,
        ours_busy=ours_busy,
        pairs=scored,
        beyond=[
            scoring.distance(volumes[i], volumes[j], theirs)
            / scoring.distance(volumes[i], volumes[j], own)
            - 1
            for (i, j), theirs, own in zip(scored, found, mine, strict=True)
        ],
        degrees=[scoring.angle_between(*both) for both in zip(found, mine, strict=True)],
    )


def _all_pairs(volumes):
    """Ours, of all pairs: seconds a pair, CPU seconds per second, rotations."""
    start, busy = time.perf_counter(), time.process_time()
    rotations = cm.pairwise_distances(volumes, window=None).rotations
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return seconds / (len(volumes) * (len(volumes) - 1) / 2), busy / seconds, rotations


def _timed(peer, benchmark, volumes, pairs):
    """The peer's rotation of every pair, a round each, and its CPU seconds per second.

    The check of its adapter has loaded its libraries.
    """
    waiting, found = iter(pairs), []

    def align(first, second):
        found.append(peer.timed(first, second))

    def next_pair():
        i, j = next(waiting)
        return (volumes[i], volumes[j]), {}

    start = time.process_time()
    benchmark.pedantic(align, setup=next_pair, rounds=len(pairs), iterations=1)
    return found, (time.process_time() - start) / sum(benchmark.stats.stats.data)


def test_ours_is_faster_and_nobody_comes_closer(record, volumes, pairs, results):
    assert list(results) == [peer.name for peer in PEERS], "run the whole file"
    figures = [figure for peer in PEERS for figure in _figures(peer, results[peer.name])]
    settings = {"box": BOX, "volumes": len(volumes), "pairs of each peer": len(pairs)}
    series = {name: vars(result) for name, result in results.items()}
    missed = record("peers", f"all pairs at {BOX}^3", figures, settings, series)
    closer = {name: result.closer for name, result in results.items() if result.closer}
    assert not closer, "a peer found a smaller distance than ours"
    assert not missed


def _figures(peer, result):
    """Seconds against ours, and how far beyond our distances its rotations end."""
    count = len(result.pairs)
    lost = sum(degrees > LOST_IN_DEGREES for degrees in result.degrees)
    how = f"{result.busy:.2f} cores busy"
    return [
        Figure(
            f"{peer.name}: seconds a pair",
            median(result.seconds),
            "s",
            target=peer.target,
            of_ratio=True,
            reference=f"ours, {result.ours_busy:.2f} cores busy",
            reference_value=result.ours,
            rounds=len(result.seconds),
            note=f"{how}; {peer.note}",
        ),
        Figure(
            f"{peer.name}: distance beyond ours, median",
            100 * median(result.beyond),
            "%",
            rounds=count,
            note=f"{lost} of {count} pairs lost",
        ),
        Figure(
            f"{peer.name}: distance beyond ours, least",
            100 * min(result.beyond),
            "%",
            target=-100 * CLOSER,
            rounds=count,
        ),
    ]
