"""An audit of the global minimum: 50 random restarts of every pair, and what they find.

`--workdir DIR` audits volumes of a run of yours, too (at box 64, or its own where smaller).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from gaussian_atoms import compact
from scipy.spatial.transform import Rotation
from shipped import DEMO

from benchmarks.record import Figure
from benchmarks.volumes import REACH, ensemble, rendered
from cryodrgn_metric.decoder import Decoder
from cryodrgn_metric.distances.rotation import RotationDistance
from cryodrgn_metric.so3.conventions import spherical_window, windowed
from cryodrgn_metric.so3.expansion import RadialBasis
from cryodrgn_metric.so3.pairs import Pairs
from cryodrgn_metric.so3.refine import Derivatives, climb, residual_squared
from cryodrgn_metric.so3.search import COARSE_LMAX
from cryodrgn_metric.so3.turning import to_planes
from cryodrgn_metric.threads import map_in_threads
from cryodrgn_metric.workdir import open_workdir

RESTARTS = 50
SMALLER = 1e-3  # relative; a restart that finds this much less was missed
MOST_MISSED_IN_PERCENT = 0.1
DECODED = 64  # volumes of a workdir: 2,016 pairs
SYMMETRIC = 19  # volumes of each family at box 64: 171 pairs, 513 in all
PAIRS_AT_ONCE = 20
BOX = 64


def test_no_restart_finds_less(benchmark, record, quick, pytestconfig):
    families = _families(pytestconfig.getoption("--workdir"), 4 if quick else None)
    figures, missed = [], {}

    def audit_all() -> None:
        for name, volumes in families:
            rows, columns, gains = _audited(volumes)
            worse = gains > SMALLER
            missed[name] = [
                f"{row}-{column}: {100 * gain:.2f} %"
                for row, column, gain in zip(
                    rows[worse].tolist(), columns[worse].tolist(), gains[worse], strict=True
                )
            ]
            share = 100 * float(worse.float().mean())
            figures.append(
                Figure(
                    f"{name}: pairs for which a restart finds less",
                    share,
                    "%",
                    MOST_MISSED_IN_PERCENT,
                    "at most",
                    note=f"of {len(rows)}; the most it finds: {100 * float(gains.max()):.1e} %",
                )
            )

    benchmark.pedantic(audit_all, rounds=1)
    settings = {"restarts": RESTARTS, "smaller by": f"more than {100 * SMALLER} %"}
    settings |= {f"missed, {name}": ", ".join(pairs) or "none" for name, pairs in missed.items()}
    assert not record("exactness", "the global minimum", figures, settings)


# -- volumes


def _families(workdir: str | None, count: int | None) -> Iterator[tuple[str, torch.Tensor]]:
    """Windowed volumes by name, made when their turn comes."""
    yield "the demo", _decoded(DEMO, count or DECODED)
    if workdir is not None:
        yield "decoded from --workdir", _decoded(Path(workdir), count or DECODED)
    yield "hinges and a ligand", ensemble(count or SYMMETRIC, BOX)
    yield "C2", _symmetric(2, 0.0, count or SYMMETRIC)
    yield "near C3", _symmetric(3, 0.02, count or SYMMETRIC)


def _decoded(folder: Path, count: int) -> torch.Tensor:
    """Random particles' volumes."""
    workdir = open_workdir(folder)
    decoder = Decoder.from_workdir(workdir, device="cpu")
    rows = np.random.default_rng(3).choice(len(workdir.latents), count, replace=False)
    box = min(BOX, decoder.box_size)
    volumes = torch.cat([*decoder.decode_stream(workdir.latents[rows], box)])
    return windowed(volumes, spherical_window(box))


def _symmetric(order: int, difference: float, count: int) -> torch.Tensor:
    """A ring of copies about z whose hinge moves, turned anyhow; copies differ by `difference`."""
    generator = np.random.default_rng(order)
    unit = 0.5 * compact(80, REACH, generator) + [0.4 * REACH, 0.0, 0.0]
    moving = unit[:, 2] > np.median(unit[:, 2])
    volumes = []
    for state, turn in zip(
        generator.uniform(-15, 15, count), Rotation.random(count, random_state=order), strict=True
    ):
        bent = unit.copy()
        bent[moving] = Rotation.from_euler("x", state, degrees=True).apply(unit[moving])
        ring = [
            Rotation.from_euler("z", 360 * copy / order, degrees=True).apply(
                bent * (1 + difference * copy)
            )
            for copy in range(order)
        ]
        volumes.append(rendered(turn.apply(np.concatenate(ring)), BOX))
    return windowed(torch.stack(volumes), spherical_window(BOX).float())


# -- the audit


def _audited(volumes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows, columns, and by what share of its distance the best restart is nearer."""
    distance = RotationDistance(volumes.shape[-1])
    distance.calibrate(distance.full_features(volumes[:10]))
    features = distance.features(volumes)
    found = distance.pairwise(features)
    basis = RadialBasis.fit(features, 1e-9 * float(features.square().sum(dim=(0, 1)).mean()))
    planes = [to_planes(block) for block in basis.project(features)]
    rows, columns = torch.triu_indices(len(volumes), len(volumes), offset=1)

    def gains(pairs: Pairs) -> torch.Tensor:
        ours = residual_squared(planes, pairs, found.rotations[pairs.rows, pairs.columns]).sqrt()
        return 1 - _best_restart(planes, pairs) / ours

    parts = Pairs(rows, columns).split(PAIRS_AT_ONCE)
    return rows, columns, torch.cat([*map_in_threads(gains, parts, torch.device("cpu"))])


def _best_restart(planes: list[torch.Tensor], pairs: Pairs) -> torch.Tensor:
    """The least distance from RESTARTS random rotations, each marched up the bands."""
    many = pairs.at(torch.arange(len(pairs)).repeat_interleave(RESTARTS))
    seed = int(pairs.rows[0]) * 10_000 + int(pairs.columns[0])
    starts = Rotation.random(len(many), random_state=seed).as_matrix()
    rotations = torch.from_numpy(starts).to(planes[0])
    derivatives = Derivatives(planes, pairs.rows.unique_consecutive().tolist())
    lmax = len(planes) - 1
    for band in sorted({min(COARSE_LMAX, lmax), min(2 * COARSE_LMAX, lmax), lmax}):
        rotations, _ = climb(derivatives, many, rotations, band, 0.01 / (band + 1), steps=12)
    return residual_squared(planes, many, rotations).sqrt().view(-1, RESTARTS).amin(dim=1)
