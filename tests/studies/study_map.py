"""Which map: a perceptron, or a flow that can be inverted? Stress, condition, round trip, time.

`PYTHONPATH=tests python -m studies.study_map --workdir ribosome=FOLDER`; some five minutes.
"""

from __future__ import annotations

import time

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.fidelity import fidelity_of
from cryodrgn_metric.invertibility import invertibility_of
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.reference_maps import free_points
from cryodrgn_metric.report.drawing import ACCENT, INK, panels
from studies.measured import LANDMARKS, SEED, Case, cases_of
from studies.record import Cell, save_study

COLUMNS = (
    "workdir",
    "d'",
    "map",
    "held-out stress-1",
    "of free points",
    "training (CPU s)",
    "moved from z (0 to 1)",
    "condition number, median",
    "95 %",
    "round trip (of std z)",
    "variance not kept (%)",
)


def main() -> None:
    """Train both maps at every dimension of every workdir."""
    rows: list[list[Cell]] = []
    cases = cases_of(None, __doc__)
    for case in cases:
        net = case.distance_net()
        for dimension in range(1, case.z.shape[1] + 1):
            for kind in ("mlp", "flow"):
                rows.append(_row(case, net, dimension, kind))
                print(rows[-1], flush=True)
    facts = {"seed": SEED, "landmarks": LANDMARKS, "workdirs": [case.name for case in cases]}
    save_study("map", COLUMNS, rows, _figure(cases, rows), **facts)


def _row(case: Case, net: DistanceNet, dimension: int, kind: str) -> list[Cell]:
    begun = time.process_time()
    found = MetricMap(dimension, map=kind, progress=False, seed=SEED, device="cpu")
    found.fit(case.z, net)
    spent = time.process_time() - begun
    truth = case.among(case.test)
    points = found.transform(case.z[case.rows[case.test]])
    stress = fidelity_of(points, truth)["stress1"]
    free = fidelity_of(free_points(truth, dimension, "relative"), truth)["stress1"]
    row: list[Cell] = [case.name, dimension, kind, stress, free, spent]
    if kind == "mlp":
        return [*row, None, None, None, None, None]
    numbers = invertibility_of(found, case.z)
    return [
        *row,
        numbers.moved,
        numbers.condition_median,
        numbers.condition_95,
        numbers.round_trip,
        100 * numbers.variance_left_out,
    ]


def _figure(cases: list[Case], rows: list[list[Cell]]) -> object:
    figure, axes = panels(len(cases), width=2.9, height=2.8)
    for axis, case in zip(axes, cases, strict=True):
        for kind, color in (("mlp", INK), ("flow", ACCENT)):
            mine = [row for row in rows if row[0] == case.name and row[2] == kind]
            axis.plot([r[1] for r in mine], [r[3] for r in mine], "o-", color=color, label=kind)
        axis.plot(
            [r[1] for r in mine], [r[4] for r in mine], ":", color="grey", label="free points"
        )
        axis.set(title=case.name, xlabel="d'", ylim=(0, None))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].set_ylabel("held-out stress-1")
    axes[-1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
