"""Is h_psi needed? Steps, volumes and seconds to the same held-out stress with and without it.

`PYTHONPATH=tests python -m studies.study_amortization --workdir ribosome=FOLDER`; ten minutes.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cryodrgn_metric.distance_net import DistanceNet
from cryodrgn_metric.fidelity import fidelity_of
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.report.drawing import ACCENT, INK, panels
from studies.measured import SEED, Case, cases_of
from studies.record import Cell, save_study

DIMENSION = 2
COUNTS = (40, 80, 160, 288)  # training landmarks
EPOCHS = (5, 15, 50, 150)  # of h_psi, of ten steps each
STEPS = (100, 300, 1000, 2000)  # of f_xi, the last as the command's
REACHED = 1.03  # of the held-out stress with h_psi, all landmarks and the default steps
STEPS_PER_EPOCH = 10
COLUMNS = (
    "workdir",
    "h_psi",
    "held-out stress-1, all volumes",
    "stress-1 to reach",
    "volumes",
    "pairs",
    "decoding and comparing them (s)",
    "steps, all volumes",
    "training (CPU s)",
)


@dataclass(frozen=True)
class Trial:
    """One training: what it was given, and the held-out stress-1 (a = 1) that came out."""

    volumes: int
    steps: int
    seconds: float
    stress: float


def main() -> None:
    """Both ways for every number of landmarks, and of steps."""
    cases = cases_of(None, __doc__)
    found = {
        (case.name, amortized): _trials(case, amortized)
        for case in cases
        for amortized in (True, False)
    }
    rows = [row for case in cases for row in _rows(case, found)]
    facts = {"seed": SEED, "dimension": DIMENSION, "workdirs": [case.name for case in cases]}
    save_study("amortization", COLUMNS, rows, _figure(cases, found), **facts)


def _trials(case: Case, amortized: bool) -> list[Trial]:
    order = np.random.default_rng(SEED).permutation(case.train)
    most = min(max(COUNTS), len(order))
    tried = []
    for count in _counts(case):
        chosen = order[:count]
        whole = count == most
        if amortized:
            for epochs in EPOCHS if whole else EPOCHS[-1:]:
                net = _learned(case, chosen, epochs)
                for steps in STEPS if whole else STEPS[-1:]:
                    tried.append(_trial(case, chosen, net, steps))
        else:
            for steps in (*STEPS, 4000) if whole else STEPS:
                tried.append(_trial(case, chosen, None, steps))
    for one in tried:
        print(case.name, "with" if amortized else "without", one, flush=True)
    return tried


def _counts(case: Case) -> list[int]:
    return sorted({min(count, len(case.train)) for count in COUNTS})


@dataclass(frozen=True)
class Learned:
    """h_psi, its optimisation steps, and its seconds."""

    net: DistanceNet
    steps: int
    seconds: float


def _learned(case: Case, chosen: np.ndarray, epochs: int) -> Learned:
    begun = time.process_time()
    net = DistanceNet(max_epochs=epochs, progress=False, seed=SEED, device="cpu")
    net.fit(case.z[case.rows], case.distances, train=chosen)  # a tenth of which stops it
    steps = STEPS_PER_EPOCH * len(net.history_["epoch"])
    return Learned(net, steps, time.process_time() - begun)


def _trial(case: Case, chosen: np.ndarray, learned: Learned | None, steps: int) -> Trial:
    z = case.z[case.rows]
    metric_map = MetricMap(DIMENSION, steps=steps, progress=False, seed=SEED, device="cpu")
    begun = time.process_time()
    if learned is not None:
        metric_map.fit(case.z, learned.net)
    else:
        metric_map.fit(z[chosen], case.among(chosen), particles=case.z)
    spent = time.process_time() - begun
    if learned is not None:
        steps, spent = steps + learned.steps, spent + learned.seconds
    points = metric_map.transform(z[case.test])
    stress = fidelity_of(points, case.among(case.test))["stress1_unscaled"]
    return Trial(len(chosen), steps, spent, stress)


def _rows(case: Case, found: dict[tuple[str, bool], list[Trial]]) -> list[list[Cell]]:
    most = _counts(case)[-1]
    usual = found[case.name, True][-1].stress  # all landmarks, all epochs, all steps
    wanted = REACHED * usual
    rows: list[list[Cell]] = []
    for amortized, name in ((True, "yes"), (False, "no")):
        trials = found[case.name, amortized]
        whole = [one for one in trials if one.volumes == most]
        reached = [one for one in trials if one.stress <= wanted]
        row: list[Cell] = [case.name, name, min(one.stress for one in whole), wanted]
        if not reached:
            rows.append([*row, None, None, None, None, None])
            continue
        volumes = min(one.volumes for one in reached)
        quickest = min((o for o in whole if o.stress <= wanted), key=lambda o: o.steps)
        pairs = volumes * (volumes - 1) // 2
        share = volumes / len(case.rows)
        cost = case.seconds["volumes"] * share + case.seconds["distances"] * share**2
        rows.append([*row, volumes, pairs, cost, quickest.steps, quickest.seconds])
    return rows


def _figure(cases: list[Case], found: dict[tuple[str, bool], list[Trial]]) -> object:
    figure, axes = panels(len(cases), rows=2, width=2.9, height=2.4)
    for number, case in enumerate(cases):
        upper, lower = axes[number], axes[number + len(cases)]
        for amortized, color in ((True, INK), (False, ACCENT)):
            trials = found[case.name, amortized]
            label = "with h_ψ" if amortized else "without"
            most = _counts(case)[-1]
            best = {
                n: min(one.stress for one in trials if one.volumes == n) for n in _counts(case)
            }
            pairs = [n * (n - 1) / 2 for n in best]
            upper.semilogx(pairs, list(best.values()), "o-", color=color, label=label)
            whole = [one for one in trials if one.volumes == most]
            lower.semilogx([o.steps for o in whole], [o.stress for o in whole], "o", color=color)
        upper.set(title=case.name, xlabel="measured pairs")
        lower.set(xlabel=f"steps, {most * (most - 1) // 2:,} pairs")
    for axis in (axes[0], axes[len(cases)]):
        axis.set_ylabel("held-out stress-1")
    axes[len(cases) - 1].legend(frameon=False)
    return figure


if __name__ == "__main__":
    main()
