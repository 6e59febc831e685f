"""`cryodrgn_metric demo OUT`: the real command on a shipped workdir, beside the known truth."""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import asdict, dataclass
from importlib import import_module, resources
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from cryodrgn_metric.artifacts import save_json, save_text
from cryodrgn_metric.demo import molecule, score, simulate, train, truth
from cryodrgn_metric.errors import ArgumentError
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.reference_spaces import reference_spaces
from cryodrgn_metric.workdir import load_latents, open_workdir

__all__ = ["OPTIONS", "DemoScores", "report", "run_demo", "score_embedding"]

OPTIONS = ("--landmarks", "400", "--dim", "2")
_MARKER = ".cryodrgn_metric_demo"
_SHIPPED = "data/workdir"
_TITLES = {
    "z": "z",
    "pca": "PCA",
    "umap": "UMAP",
    "exact_delta": "exact Delta",
    "z_metric": "z'",
}

Array = NDArray[np.float64]


@dataclass(frozen=True)
class DemoScores:
    """What the demo measures; every dictionary is by the name of the space."""

    spearman: dict[str, float]  # with the true distance, over pairs of test landmarks
    nuisance_share: dict[str, float]  # over all particles
    state_auc: dict[str, float]  # over all particles
    dimensions: dict[str, int]
    particles: int
    test_landmarks: int
    seconds: float


def run_demo(outdir: str, train: bool = False) -> None:
    """Embed the demo's workdir in OUT/workdir and compare with the truth.

    Arguments:
        outdir: OUT, a new or empty directory, or one that an earlier demo made
        train: simulate the particles and train cryoDRGN anew instead of copying the result

    Raises:
        ArgumentError: OUT holds something that is not a demo's.
    """
    started = time.monotonic()
    out = _claim(Path(outdir))
    workdir = out / "workdir"
    _train_anew(workdir) if train else _copy_shipped(workdir)
    _embed(workdir)
    folder = MetricFolder.beside(workdir, open_workdir(str(workdir), -1).epoch)
    scores = score_embedding(workdir, folder, started)
    save_json(out / "demo.json", asdict(scores))
    _draw(out / "demo.png", workdir, folder)
    print(report(scores, out, folder))


def score_embedding(workdir: Path, folder: MetricFolder, started: float = 0.0) -> DemoScores:
    """Read what the command wrote and compare it with the truth.

    Arguments:
        workdir: the demo's workdir
        folder: its metric_embed.N
        started: time.monotonic() at the start of the demo
    """
    facts = truth.load_truth()
    z = open_workdir(str(workdir), _epoch(folder)).latents
    z_metric = load_latents(folder.z_metric)
    with np.load(folder.distances) as measured:
        test = measured["is_test"].astype(bool)
        rows, delta = measured["landmark_rows"][test], measured["distances"][test][:, test]
    true = truth.true_distances(rows[:, None], rows[None, :])
    spaces = reference_spaces(z, rows, z_metric.shape[1], seed=0) | {"z_metric": z_metric[rows]}
    upper = np.triu_indices(len(rows), 1)
    spearman = {name: score.embedding_spearman(found, true) for name, found in spaces.items()}
    spearman["exact_delta"] = score.spearman(delta[upper], true[upper])
    everything = {"z": z, "z_metric": z_metric}
    motion, state = facts["motion"], facts["state"]
    return DemoScores(
        spearman={name: spearman[name] for name in _TITLES if name in spearman},
        nuisance_share={
            name: score.nuisance_share(found, motion, state) for name, found in everything.items()
        },
        state_auc={name: score.state_auc(found, state) for name, found in everything.items()},
        dimensions={name: found.shape[1] for name, found in spaces.items()},
        particles=len(z),
        test_landmarks=len(rows),
        seconds=time.monotonic() - started,
    )


def report(scores: DemoScores, out: Path, folder: MetricFolder) -> str:
    """The table that the demo prints, and where to look next."""
    turn = np.ptp(simulate.NUISANCE_RANGE_IN_DEGREES) / np.sqrt(12)
    pairs = scores.test_landmarks * (scores.test_landmarks - 1) // 2
    gain = scores.nuisance_share["z"] / scores.nuisance_share["z_metric"]
    dimensions: dict[str, float] = dict(scores.dimensions)
    lines = [
        "",
        f"{scores.particles} particles of a molecule whose arm swings, whose part comes off, and",
        f"which also turns by an angle its poses don't know ({turn:.0f} degrees std).",
        "",
        _line("", dict.fromkeys(_TITLES, 0.0), titles=True),
        _line("dimensions", dimensions, digits=0),
        _line("Spearman with the true distance", scores.spearman),
        _line("nuisance share (0 is perfect)", scores.nuisance_share),
        _line("AUC of the part being there", scores.state_auc),
        "",
        f"Spearman: {pairs} pairs of the {scores.test_landmarks} test landmarks, which trained"
        " nothing.",
        "exact Delta is measured on decoded volumes: what this cryoDRGN run learned bounds it.",
        f"The share of variance that is not structure fell {gain:.0f}-fold from z to z'.",
        "",
        f"Finished in {scores.seconds:.0f} s. Look next at:",
        f"  {out / 'demo.png'}   z' and the PCA of z, coloured by the truth",
        f"  {out / 'demo.json'}  these numbers",
        f"  {folder.path}   everything that metric_embed wrote",
    ]
    return "\n".join(lines)


def _epoch(folder: MetricFolder) -> int:
    return -1 if folder.epoch is None else folder.epoch


def _line(name: str, values: dict[str, float], digits: int = 3, titles: bool = False) -> str:
    cells = [
        title if titles else f"{values[space]:.{digits}f}" if space in values else "-"
        for space, title in _TITLES.items()
    ]
    return f"{name:<34}" + "".join(f"{cell:>13}" for cell in cells)


def _claim(out: Path) -> Path:
    """Make OUT, or accept it if it is empty or a demo's."""
    if out.exists() and not out.is_dir():
        raise ArgumentError(f"demo needs a directory to write to; {out} is a file.")
    if out.is_dir() and any(out.iterdir()) and not (out / _MARKER).exists():
        raise ArgumentError(
            f"{out} is not empty and was not made by a demo, so nothing is written there."
            f" Name a new directory, such as {out / 'demo_out'}."
        )
    save_text(out / _MARKER, "Made by `cryodrgn_metric demo`, which may write here again.\n")
    return out


def _copy_shipped(workdir: Path) -> None:
    with resources.as_file(resources.files("cryodrgn_metric.demo") / _SHIPPED) as shipped:
        shutil.copytree(shipped, workdir, dirs_exist_ok=True)


def _train_anew(workdir: Path) -> None:
    workdir.mkdir(parents=True, exist_ok=True)
    simulate.simulate(workdir)
    train.train(workdir)


def _embed(workdir: Path) -> None:
    """Run the real command, loaded by its name and called as cryoDRGN calls its commands."""
    command = import_module("cryodrgn_metric.command")
    parser = argparse.ArgumentParser()
    command.add_args(parser)
    print(f"$ cryodrgn metric_embed {' '.join([str(workdir), *OPTIONS])}", flush=True)
    command.main(parser.parse_args([str(workdir), *OPTIONS]))


def _draw(path: Path, workdir: Path, folder: MetricFolder) -> None:
    """z' above, the PCA of z below; coloured by motion, state and nuisance angle."""
    facts = truth.load_truth()
    z = open_workdir(str(workdir), _epoch(folder)).latents
    rows = {"z'": load_latents(folder.z_metric), "PCA of z": PCA(2).fit_transform(z)}
    angle = np.array([molecule.arm_angle_in_degrees(m) for m in range(molecule.MOTION_LEVELS)])
    colours = {
        "arm's angle (degrees)": (angle[facts["motion"].astype(int)], "viridis"),
        "part: 0 missing, 1 there": (facts["state"].astype(float), "coolwarm"),
        "nuisance angle (degrees)": (facts["nuisance"].astype(float), "plasma"),
    }
    figure = Figure(figsize=(14, 8.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), len(colours))
    for line, (space, points) in zip(axes, rows.items(), strict=True):
        for axis, (title, (values, colour_map)) in zip(line, colours.items(), strict=True):
            _scatter(axis, points, values, colour_map, title, space)
    figure.suptitle("Above, the learned space z'; below, the latent space z that it came from")
    figure.savefig(path, dpi=150)


def _scatter(
    axis: Axes, points: Array, values: Array, colour_map: str, title: str, space: str
) -> None:
    y = points[:, 1] if points.shape[1] > 1 else np.zeros(len(points))
    drawn = axis.scatter(points[:, 0], y, c=values, cmap=colour_map, s=4, linewidths=0)
    axis.figure.colorbar(drawn, ax=axis, label=title)
    axis.set(title=f"{space}, by {title}", xlabel=f"{space} 1", ylabel=f"{space} 2")
    axis.set_aspect("equal", "datalim")
