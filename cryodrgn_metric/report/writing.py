"""Put the report on disk: figures, page, notebook; from saved results alone."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.artifacts import atomic_path, remove_files
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.report.content import Report
from cryodrgn_metric.report.gallery import report_of
from cryodrgn_metric.report.notebook import write_notebook
from cryodrgn_metric.report.page import write_page
from cryodrgn_metric.report.results import Results

__all__ = ["remove_report", "write_report"]

logger = logging.getLogger(__name__)

# The figures of paths are named by their paths, those of other sections by what they show.
_OURS = re.compile(
    r"(pc\d+|straight\d+|path_\d+_\d+)_(volumes|differences|steps)|"
    r"comparison_(shepard|distances|maps)|z_metric_(kmeans|hdbscan|pca|umap)|shepard|fidelity|"
    r"intrinsic_dimension|h_psi|error_bars|contrast|reach|learning_curves|landmark_rounds|"
    r"raw_distance|rotation_angles|pose_drift|far_in_z|near_in_z|density|negative_log_density|"
    r"stretch|paths|representatives"
)


def write_report(
    results: Results,
    other: Results | None = None,
    covariates: dict[str, npt.NDArray[np.generic]] | None = None,
    guest: Path | None = None,
    threads: int | None = None,
) -> None:
    """Write figures, report.html and the notebook of a finished run.

    Arguments:
        results: Of the run.
        other: A second one to compare with.
        covariates: Further columns, (N,) each, to colour the scatter by.
        guest: The user's analyze.N, into which the notebook is written, too.
        threads: For the notebook; None: as many as its libraries like.

    Raises:
        OutputError: The folder cannot be written.
    """
    folder = results.folder
    report = report_of(results, covariates, other)
    _write_figures(folder, report)
    write_page(folder.page, report)
    logger.info("Report: %s", folder.page)
    write_notebook(
        folder, results.workdir.path, results.cluster_count, also_into=guest, threads=threads
    )
    for judgement in report.verdict:
        logger.info("%s", judgement)


def _write_figures(folder: MetricFolder, report: Report) -> None:
    pictures = [picture for section in report.sections for picture in section.pictures]
    for picture in pictures:
        with atomic_path(folder.figure(picture.name)) as draft:
            draft.write_bytes(picture.png)
    _remove_figures(folder, kept={folder.figure(picture.name) for picture in pictures})


def _remove_figures(folder: MetricFolder, kept: set[Path]) -> None:
    drawn = {path for path in folder.figures.glob("*.png") if _OURS.fullmatch(path.stem)}
    remove_files(drawn - kept)


def remove_report(folder: MetricFolder) -> None:
    """Remove the report of an earlier run, whose z' is no longer there.

    The notebook stays: somebody may have gone on from it.

    Arguments:
        folder: The output folder.
    """
    remove_files([folder.page])
    _remove_figures(folder, kept=set())
