"""How good is f_xi beside points placed freely, which no map binds (SMACOF, Eq. 5, Eq. 9)?

`PYTHONPATH=tests python -m studies.study_reference --workdir ribosome=FOLDER`; some ten minutes.
Each map is trained with three seeds; what is told is the median of their stresses.
"""

from __future__ import annotations

import numpy as np

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.fidelity import fidelity_of
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.reference_maps import free_points
from cryodrgn_metric.report.drawing import ACCENT, INK, panels
from studies.measured import LANDMARKS, SEED, Case, cases_of
from studies.record import Cell, save_study

DIMENSIONS = (1, 2, 3)
SEEDS = (SEED, SEED + 1, SEED + 2)  # of f_xi
LOSSES = {"stress": "raw stress", "relative": "Eq. 8", "weighted": "Eq. 9"}
COLUMNS = (
    "workdir",
    "d'",
    "loss",
    "stress-1, training",
    "SMACOF",
    "free points, same loss",
    "ratio to SMACOF",
    "ratio to same loss",
    "Sammon's stress, over that of Sammon's points",
    "stress-1, held out",
    "free points, held out",
    "error e of h_psi",
    "of sqrt(free^2 + e^2)",
)


def main() -> None:
    """Every loss at every dimension of every workdir."""
    rows: list[list[Cell]] = []
    cases = cases_of(None, __doc__)
    for case in cases:
        net = case.distance_net()
        truth = case.among(case.test)
        predicted = net.predict_matrix(case.z[case.rows[case.test]]).astype(np.float64)
        error = float(np.linalg.norm(predicted - truth) / np.linalg.norm(truth))
        for dimension in DIMENSIONS:
            for loss in LOSSES:
                rows.append(_row(case, net, dimension, loss, error))
                print(rows[-1], flush=True)
    facts = {"seeds": [*SEEDS], "landmarks": LANDMARKS, "workdirs": [case.name for case in cases]}
    save_study("reference", COLUMNS, rows, _figure(cases, rows), **facts)


def _row(case: Case, net: DistanceNet, dimension: int, loss: str, error: float) -> list[Cell]:
    maps = [
        MetricMap(dimension, loss=loss, progress=False, seed=seed, device="cpu").fit(case.z, net)
        for seed in SEEDS
    ]

    def mapped(rows: np.ndarray, measure: str = "stress1") -> float:
        truth, z = case.among(rows), case.z[case.rows[rows]]
        return float(np.median([fidelity_of(f.transform(z), truth)[measure] for f in maps]))

    def placed(rows: np.ndarray, weighting: str, measure: str = "stress1") -> float:
        truth = case.among(rows)
        return fidelity_of(free_points(truth, dimension, weighting), truth)[measure]

    train, test = mapped(case.train), mapped(case.test)
    smacof, same = placed(case.train, "stress"), placed(case.train, loss)
    free = placed(case.test, loss)
    limit = float(np.hypot(free, error))
    sammon = mapped(case.train, "sammon") / placed(case.train, "sammon", "sammon")
    ratios = [train / smacof, train / same, sammon, test, free, error, test / limit]
    return [case.name, dimension, LOSSES[loss], train, smacof, same, *ratios]


def _figure(cases: list[Case], rows: list[list[Cell]]) -> object:
    figure, axes = panels(len(cases), width=2.9, height=2.9)
    for axis, case in zip(axes, cases, strict=True):
        for name, color in zip(LOSSES.values(), ("grey", INK, ACCENT), strict=True):
            mine = [row for row in rows if row[0] == case.name and row[2] == name]
            axis.plot([r[1] for r in mine], [r[7] for r in mine], "o-", color=color, label=name)
        axis.axhline(1.15, color="lightgrey", lw=0.8, zorder=0)
        axis.set(title=case.name, xlabel="d'", ylim=(0.95, 1.9), xticks=DIMENSIONS)
    axes[0].set_ylabel("stress-1 / that of free points", fontsize=9)
    axes[-1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
