"""`cryodrgn_metric report`: the report again from what is saved, perhaps with more in it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryodrgn_metric import artifacts
from cryodrgn_metric.config import EmbedConfig
from cryodrgn_metric.errors import ArgumentError, MetricError, WorkdirError
from cryodrgn_metric.folder_lock import locked
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.overlay import guest_folder
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.report.writing import write_report
from cryodrgn_metric.runlog import logged
from cryodrgn_metric.safe_files.pickles import load_pickle
from cryodrgn_metric.safe_files.yaml_files import load_yaml
from cryodrgn_metric.workdir import Workdir, open_workdir

__all__ = ["ReportConfig", "report"]

Columns = dict[str, npt.NDArray[np.generic]]


@dataclass(frozen=True)
class ReportConfig:
    """What `cryodrgn_metric report` was asked to do.

    Arguments:
        workdir: The workdir that was embedded.
        epoch: Of it, as for `cryodrgn metric_embed`.
        outdir: Where -o put the results; None: metric_embed.N in the workdir.
        other: The output folder of a second run, to compare with.
        covariates: Pickles of (N,) or (N, k) arrays to colour the scatter by.
        paths: Pairs of k-means labels between which paths are added.
        device: Where added paths are decoded.
    """

    workdir: str
    epoch: int = -1
    outdir: str | None = None
    other: str | None = None
    covariates: tuple[str, ...] = ()
    paths: tuple[tuple[int, int], ...] = ()
    device: str | None = None


def report(config: ReportConfig) -> Path:
    """Write figures, report.html and the notebook again; nothing is measured but added paths.

    Arguments:
        config: What was asked for.

    Returns:
        report.html.

    Raises:
        MetricError: There is no finished run, or an option is refused.

    Example:
        >>> report(ReportConfig("00_vae128", epoch=49)).name  # doctest: +SKIP
        'report.html'
    """
    with logged():
        workdir = open_workdir(config.workdir, config.epoch)
        folder = MetricFolder(Path(config.outdir or workdir.outdir), workdir.epoch)
        results = _finished(workdir, folder)
        other = None if config.other is None else _other_run(Path(config.other))
        covariates = _covariates(config.covariates, len(results.labels))
        with locked(folder.lock):
            artifacts.remove_drafts(folder.path)
            if config.paths:
                _add_paths(config, results)
                results = Results.load(workdir, folder)
            write_report(results, other, covariates, guest_folder(workdir, folder))
    return folder.page


def _add_paths(config: ReportConfig, results: Results) -> None:
    """Decode and write the volumes on them, as the run itself would have."""
    # these import torch, which no other part of a report needs
    from cryodrgn_metric.motion import add_path
    from cryodrgn_metric.run import prepare
    from cryodrgn_metric.threads import limited_to

    saved = EmbedConfig.from_saved(results.parameters["config"])
    run = prepare(
        replace(
            saved,
            workdir=str(results.workdir.path),
            epoch=config.epoch,
            outdir=str(results.folder.path),
            device=config.device,
        )
    )
    saved_digests = {
        name: results.parameters["sha256"].get(path.name, "") for name, path in run.inputs.items()
    }
    if run.digests != saved_digests:
        raise MetricError(
            f"The files of {results.workdir.path} are not those that {results.folder.path} was "
            "made from: a path would not fit. Run metric_embed again."
        )
    summaries = {path["name"]: path for path in results.summary["paths"]}
    for first, second in config.paths:
        with limited_to(saved.threads):
            found = add_path(run, first, second)
        if found is not None:
            summaries[found.name] = vars(found)
        summary = {**results.summary, "paths": list(summaries.values())}
        artifacts.save_json(results.folder.summary, summary)


def _finished(workdir: Workdir, folder: MetricFolder) -> Results:
    if not folder.parameters.is_file():
        raise MetricError(
            f"{folder.path} holds no finished run. Type `cryodrgn metric_embed {workdir.path}` "
            "first, with --epoch and -o as here."
        )
    folder.require_ours(workdir.path)
    return Results.load(workdir, folder)


def _other_run(path: Path) -> Results:
    """Results of a run by its output folder alone; its workdir is named there, or around it."""
    parameters = MetricFolder(path, None).parameters
    if not parameters.is_file():
        raise ArgumentError(
            f"--compare {path} holds no finished run: expected a metric_embed.N folder with "
            f"{parameters.name}."
        )
    saved = load_yaml(parameters)
    epoch = saved.get("epoch")
    named = saved.get("config", {}).get("workdir")
    for candidate in (named, path.parent, path):
        try:
            workdir = open_workdir(str(candidate), -1 if epoch is None else epoch)
        except WorkdirError:
            continue
        return Results.load(workdir, MetricFolder(path, epoch))
    raise ArgumentError(
        f"--compare {path}: its workdir is neither at {named} nor around the folder."
    )


def _covariates(paths: tuple[str, ...], count: int) -> Columns:
    """One column or several of each file, by its name."""
    found: Columns = {}
    for path in map(Path, paths):
        values = load_pickle(path)
        if isinstance(values, list):
            values = np.asarray(values)
        if (
            not isinstance(values, np.ndarray)
            or values.ndim not in (1, 2)
            or len(values) != count
            or values.dtype.kind not in "fiubU"
        ):
            came = getattr(values, "shape", type(values).__name__)
            raise ArgumentError(
                f"--covariate {path}: expected an array of numbers or words, ({count},) or "
                f"({count}, k), one row for each row of z; got {came}."
            )
        if values.ndim == 1:
            found[path.stem] = values
        else:
            found |= {f"{path.stem} {i + 1}": column for i, column in enumerate(values.T)}
    return found
