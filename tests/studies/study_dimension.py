"""How many dimensions does the motion have? Ours beside a stress curve and scikit-dimension.

On fitted decoders whose motion is known (tests/fitted_decoders.py), on the demo, and on any
workdir that metric_embed has embedded: `--workdir WORKDIR`. Some minutes on one core; the demo's
distances are measured first.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import fitted_decoders
import numpy as np
from shipped import DEMO

from cryodrgn_metric import command
from cryodrgn_metric.dimension import intrinsic_dimension
from cryodrgn_metric.embedded_landmarks import EmbeddedLandmarks
from cryodrgn_metric.free_points import classical_points, fitted_points, pair_weights
from cryodrgn_metric.local_volume import count_at_scale
from cryodrgn_metric.metric_map import MetricMap
from cryodrgn_metric.report.drawing import ACCENT, INK, NONE, panels
from cryodrgn_metric.workdir import open_workdir
from studies.record import save_study

DIMENSIONS = tuple(range(1, 9))
GOOD_STRESS = 0.05  # Kruskal's word for it (1964)
TITLES = {
    "hinge": "one hinge",
    "two_hinges": "two hinges",
    "circle": "a domain that turns all round",
    "rigid": "nothing but turns",
}
COLUMNS = (
    "ensemble",
    "truth",
    "ours",
    "ours, to embed it",
    "Eq. 5, first d' with a stress below 0.05",
    "CorrInt",
    "MADA",
    "ours, through a map of z",
)


@dataclass(frozen=True)
class Ensemble:
    """Landmarks, and what is known of them."""

    title: str
    truth: str
    z: np.ndarray
    distances: np.ndarray
    norm: float
    error: float


def fixtures():
    """The fitted decoders."""
    for case, (dimension, _) in fitted_decoders.CASES.items():
        kept = fitted_decoders.measured(case)
        yield Ensemble(TITLES[case], str(dimension), kept.z, kept.distances, kept.norm, kept.error)


def embedded(title, truth, workdir, landmarks=150):
    """A workdir, after metric_embed has measured it."""
    parser = argparse.ArgumentParser()
    command.add_args(parser)
    with tempfile.TemporaryDirectory() as out:
        options = ["-d", "32", "--landmarks", str(landmarks), "-o", out, "--threads", "1"]
        skip = ["--skip-report", "--skip-vol", "--skip-umap"]
        command.main(parser.parse_args([str(workdir), *options, *skip]))
        with np.load(Path(out, "distances.npz")) as found:
            rows, distances = found["landmark_rows"], found["distances"].astype(np.float64)
        with np.load(Path(out, "held_out.npz")) as found:
            missed = np.abs(found["predicted"] - found["measured"])
        norm = json.loads(Path(out, "fidelity.json").read_text())["rms_volume_norm"]
    error = float(np.median(missed[np.triu_indices(len(missed), 1)]))
    z = open_workdir(str(workdir), -1).latents[rows]
    return Ensemble(title, truth, z, distances, norm, error)


def stress_curve(distances):
    """Eq. 5 over free points, by its root mean square, for each d'."""
    weights = pair_weights(distances, "relative", floor=1e-3)
    start, found = classical_points(distances, DIMENSIONS[-1]), []
    for dimension in reversed(DIMENSIONS):
        start, stress = fitted_points(start[:, :dimension], distances, weights)
        found.append(stress)
    return found[::-1]


def through_a_map(ensemble, count, dimensions=DIMENSIONS[:4]):
    """The answer where z' is a small network of z instead of free points, under Eq. 9 as well."""
    points = tuple(
        MetricMap(dimension, loss="weighted", steps=300, progress=False, device="cpu")
        .fit_transform(ensemble.z, ensemble.distances)
        .astype(np.float64)
        for dimension in dimensions
    )
    sheet = EmbeddedLandmarks(ensemble.distances, points, points, "weighted", len(dimensions))
    return sheet.dimension_at(count)


def first_good(stresses):
    """The first d' whose stress is good, in words where none is."""
    good = [d for d, stress in zip(DIMENSIONS, stresses, strict=True) if stress <= GOOD_STRESS]
    return str(good[0]) if good else f"more than {DIMENSIONS[-1]}"


def row_of(ensemble):
    """One line of the table, the estimate and the stress curve."""
    found = intrinsic_dimension(
        ensemble.z, ensemble.distances, norm=ensemble.norm, error=ensemble.error
    )
    stresses = stress_curve(ensemble.distances)
    low, high = found.interval
    between = "" if low == high else f" ({low} to {high})"
    count = count_at_scale(ensemble.distances, found.scale)
    mapped = "0" if found.dimension == 0 else str(through_a_map(ensemble, count))
    row = [
        ensemble.title,
        ensemble.truth,
        f"{found.dimension}{between}",
        found.embedding_dimension,
        first_good(stresses),
        round(found.cross_checks["CorrInt"], 2),
        round(found.cross_checks["MADA"], 2),
        mapped,
    ]
    print(*row, sep=" | ", flush=True)
    for sentence in found.words:
        print("   ", sentence)
    return row, found, stresses


def draw(ensembles, results):
    """Where the volume drops (left); where the stress does not (right)."""
    figure, (left, right) = panels(2, height=5.2)
    colors = iter((INK, ACCENT, "#3f8f6b", NONE, "#8a6fb0", "#b08a2e", "#555555"))
    left.axhline(0.5, color="black", lw=1, ls="--")
    right.axhline(GOOD_STRESS, color="black", lw=1, ls="--")
    markers = "osD^vPX*"
    for marker, ensemble, (_, found, stresses) in zip(markers, ensembles, results, strict=False):
        share = np.divide(found.last_variance, found.even_variance)
        label = f"{ensemble.title}: {found.dimension}"
        options = {"marker": marker, "ms": 5, "lw": 1, "color": next(colors)}
        left.plot(DIMENSIONS, share, label=label, **options)
        right.plot(DIMENSIONS, stresses, **options)
    left.set(xlabel="d'", ylabel="filled of the last direction", ylim=(0, None))
    right.set(xlabel="d'", ylabel="stress of Eq. 5", ylim=(0, None))
    left.set_title("ours: the last d' above the line", fontsize=9)
    right.set_title("stress: the first d' below the line", fontsize=9)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workdir", type=Path, help="A real one, for one more line")
    args = parser.parse_args()
    started = time.process_time()
    ensembles = [*fixtures()]
    ensembles.append(embedded("the demo: a swing, and a part that comes off", "1, 2 states", DEMO))
    if args.workdir:
        ensembles.append(embedded(args.workdir.parent.name, "unknown", args.workdir))
    results = [row_of(ensemble) for ensemble in ensembles]
    save_study(
        "dimension",
        COLUMNS,
        [row for row, _, _ in results],
        draw(ensembles, results),
        seed=0,
        landmarks=[len(ensemble.distances) for ensemble in ensembles],
        words={
            e.title: list(found.words) for e, (_, found, _) in zip(ensembles, results, strict=True)
        },
        cpu_seconds=round(time.process_time() - started),
    )


if __name__ == "__main__":
    main()
