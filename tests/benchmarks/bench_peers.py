"""All-pairs distances at 64^3 beside other programs: seconds a pair, and how near they come.

Everybody gets the same windowed, band-limited volumes and all threads; every rotation found is
scored by the same judge (`scoring`). Ours is timed right after each peer, so that whatever else
the machine does meets both, expansion and calibration included. Python 3.11 or later:
torch-fit-in-map asks for it.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from statistics import median
from typing import Any

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
CLOSER = 1e-4  # relative: what float32 and the band limit leave between two looks at one minimum
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
        scored_pairs: How many of the last pairs `scored` works on.
        note: What a reader must know beside its seconds.
    """

    name: str
    timed: Callable
    target: float
    share: float = 1.0
    scored: Callable | None = None
    scored_pairs: int = 0
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
class Timed:
    """Rotations, and what they took.

    Arguments:
        seconds: A pair; one number for each measurement.
        busy: CPU seconds per second: how many cores were used.
        rotations: Of all pairs of volumes, or by pair.
    """

    seconds: list[float]
    busy: float
    rotations: Any


@dataclass(frozen=True)
class Judged:
    """How far beyond ours a peer's rotations end.

    Arguments:
        pairs: Of volumes, those that were scored.
        beyond: Distance at the peer's rotation over that at ours, less 1.
        degrees: Between the two rotations.
    """

    pairs: list[tuple[int, int]]
    beyond: list[float]
    degrees: list[float]

    @property
    def closer(self):
        """Pairs in which the peer found a smaller distance than ours: bugs of ours."""
        scored = zip(self.pairs, self.beyond, strict=True)
        return {pair: beyond for pair, beyond in scored if beyond < -CLOSER}

    @property
    def lost(self):
        return sum(degrees > LOST_IN_DEGREES for degrees in self.degrees)


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


def test_all_pairs_beside_other_programs(benchmark, record, volumes, pairs):
    waiting, theirs, ours = iter(PEERS), [], []

    def next_peer():
        theirs.append(_timed_peer(next(waiting), volumes, pairs))

    def all_pairs():
        ours.append(_timed_all_pairs(volumes))

    benchmark.pedantic(all_pairs, setup=next_peer, rounds=len(PEERS), iterations=1)
    judged = [_judged(*both, volumes) for both in zip(theirs, ours, strict=True)]
    results = list(zip(PEERS, theirs, ours, judged, strict=True))
    missed = record(
        "peers",
        f"all pairs at {BOX}^3",
        [figure for result in results for figure in _figures(*result)],
        {"box": BOX, "volumes": len(volumes), "pairs of each peer": len(pairs)},
        {
            peer.name: vars(scored) | {"seconds": timed.seconds}
            for peer, timed, _, scored in results
        },
    )
    closer = {peer.name: scored.closer for peer, _, _, scored in results if scored.closer}
    assert not closer, "a peer found a smaller distance than ours"
    assert not missed


def _timed_all_pairs(volumes):
    start, busy = time.perf_counter(), time.process_time()
    rotations = cm.pairwise_distances(volumes, window=None).rotations.astype(float)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    return Timed([2 * seconds / (len(volumes) * (len(volumes) - 1))], busy / seconds, rotations)


def _timed_peer(peer, volumes, pairs):
    """Pair by pair. The check of the adapter has loaded the peer's libraries."""
    seconds, rotations, busy = [], {}, time.process_time()
    for i, j in pairs:
        start = time.perf_counter()
        rotations[i, j] = peer.timed(volumes[i], volumes[j])
        seconds.append(time.perf_counter() - start)
    busy = (time.process_time() - busy) / sum(seconds)
    if peer.scored is not None:
        last = pairs[-peer.scored_pairs :]
        rotations = {(i, j): peer.scored(volumes[i], volumes[j]) for i, j in last}
    return Timed([second / peer.share for second in seconds], busy, rotations)


def _judged(theirs, ours, volumes):
    beyond, degrees = [], []
    for (i, j), rotation in theirs.rotations.items():
        both = (rotation, ours.rotations[i, j])
        reached, least = (scoring.distance(volumes[i], volumes[j], turn) for turn in both)
        beyond.append(reached / least - 1)
        degrees.append(scoring.angle_between(*both))
    return Judged(list(theirs.rotations), beyond, degrees)


def _figures(peer, theirs, ours, judged):
    """Seconds against ours, and how far beyond our distances the peer's rotations end."""
    scored = len(judged.pairs)
    return [
        Figure(
            f"{peer.name}: seconds a pair",
            median(theirs.seconds),
            "s",
            target=peer.target,
            of_ratio=True,
            reference=f"ours, {ours.busy:.2f} cores busy",
            reference_value=median(ours.seconds),
            rounds=len(theirs.seconds),
            note=f"{theirs.busy:.2f} cores busy; {peer.note}",
        ),
        Figure(
            f"{peer.name}: distance beyond ours, median",
            100 * median(judged.beyond),
            "%",
            rounds=scored,
            note=f"{judged.lost} of {scored} pairs lost",
        ),
        Figure(
            f"{peer.name}: distance beyond ours, least",
            100 * min(judged.beyond),
            "%",
            target=-100 * CLOSER,
            rounds=scored,
        ),
    ]
