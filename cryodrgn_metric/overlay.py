"""The output folder as a workdir of its own, and the files that are guests in the user's.

cryoDRGN's `dashboard`, `filter`, `plot_classes` and notebooks open `WORKDIR/metric_embed.N` as
they open WORKDIR, decode the same z by the same weights, and show z' where they show UMAP,
k-means and volume PCA. `view.py` says what is shown as UMAP, `clusters.py` what as k-means.
"""

from __future__ import annotations

import copy
import logging
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from cryodrgn_metric.artifacts import (
    PICKLE_PROTOCOL,
    atomic_path,
    remove_drafts_of,
    save_link,
    save_pickle,
    save_text,
)
from cryodrgn_metric.errors import OutputError
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.training_inputs import find_input
from cryodrgn_metric.workdir import Workdir

__all__ = ["guest_folder", "is_guest", "remove_guest_drafts", "write_guests", "write_overlay"]

logger = logging.getLogger(__name__)

MOST_IN_LANDSCAPE = 10_000  # points of the 3-D page: the -N of `analyze_landscape_full`
LANDSCAPE_AXES = 3  # that the 3-D page needs
FILES, FOLDERS = ("particles", "ctf", "poses", "ind"), ("datadir",)  # that config.yaml names
GUESTS = ("metric_z.pkl", "metric_labels.pkl", "cryoDRGN_metric_embed.ipynb")
# A second pickle, which cryoDRGN and pickle.load don't read: it tells our files from the user's.
MARK = pickle.dumps("written by cryodrgn_metric", protocol=PICKLE_PROTOCOL)


def write_overlay(
    folder: MetricFolder,
    workdir: Workdir,
    z_metric: np.ndarray,
    view: np.ndarray,
    labels: np.ndarray,
    seed: int = 0,
) -> None:
    """Make the output folder a workdir that stock cryoDRGN opens.

    It gets config.yaml with absolute paths, relative links to z.N.pkl, weights.N.pkl, pose.N.pkl
    and run.log (copies where the file system has no links), analyze.N/umap.pkl, and z' in
    landscape.N/landscape_full/. k-means is written by who computes it. cryoDRGN's tools need a
    numbered epoch, so un-numbered files get umap.pkl, which the report shows, and no overlay.

    Arguments:
        folder: the output folder, which `MetricFolder.require_ours` has accepted.
        workdir: the workdir that is embedded.
        z_metric: (N, d') z'; the 3-D page shows zeros for the axes beyond d'.
        view: (N, 2) what is plotted as UMAP1 and UMAP2, as `view.py` gives it.
        labels: (N,) k-means labels from 0; cryoDRGN's landscape counts from 1.
        seed: of the 10,000 particles that the 3-D page shows, if there are more.

    Raises:
        OutputError: something cannot be written.

    Warns:
        by the log, of every input of config.yaml that is not found.

    Example:
        >>> folder = MetricFolder(workdir.outdir, workdir.epoch)  # doctest: +SKIP
        >>> write_overlay(folder, workdir, z, view_of(z), labels)  # doctest: +SKIP
        >>> open_workdir(folder.path).epoch == workdir.epoch  # doctest: +SKIP
        True
    """
    save_pickle(folder.umap, view.astype(np.float32))
    if workdir.epoch is None:
        return
    _write_config(folder, workdir)
    _write_links(folder, workdir)
    _write_landscape(folder, workdir, z_metric, view, labels, seed)


def guest_folder(workdir: Workdir, folder: MetricFolder) -> Path | None:
    """The user's own analyze.N, if `cryodrgn analyze` has made it and no -o was given.

    Arguments:
        workdir: the workdir that is embedded.
        folder: the output folder.
    """
    usual = os.path.realpath(folder.path) == os.path.realpath(workdir.outdir)
    return _analysis_of(workdir) if usual else None


def write_guests(workdir: Workdir, z_metric: np.ndarray, labels: np.ndarray) -> list[Path]:
    """Put z' and the clusters where the dashboard of the user's own workdir opens its browser.

    That is analyze.N, if `cryodrgn analyze` has made it: metric_z.pkl (N, d') float32, and
    metric_labels.pkl (N,). A file there of the same name that this function did not write stays,
    and is named in the log; a folder that cannot be written to costs a warning, not the run.

    Arguments:
        workdir: the workdir that is embedded.
        z_metric: (N, d') z'.
        labels: (N,) k-means labels from 0.

    Returns:
        the files that were written.
    """
    analysis = _analysis_of(workdir)
    if analysis is None:
        return []
    guests = {"metric_z.pkl": z_metric.astype(np.float32), "metric_labels.pkl": labels}
    return [
        path for name, values in guests.items() if _write_guest(path := analysis / name, values)
    ]


def _analysis_of(workdir: Workdir) -> Path | None:
    # never made by us: it would make the dashboard believe that the epoch was analysed
    analysis = MetricFolder(workdir.path, workdir.epoch).analysis
    return analysis if workdir.epoch is not None and analysis.is_dir() else None


def remove_guest_drafts(workdir: Workdir) -> None:
    """Remove from the user's analyze.N what a killed run had begun to write there.

    Arguments:
        workdir: the workdir that is embedded.
    """
    analysis = _analysis_of(workdir)
    if analysis is not None:
        for name in GUESTS:
            remove_drafts_of(analysis / name)


def is_guest(path: Path) -> bool:
    """Whether a file in the user's analyze.N is one that `write_guests` wrote."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - len(MARK)))
        return file.read() == MARK


def _write_guest(path: Path, values: np.ndarray) -> bool:
    if os.path.lexists(path) and not is_guest(path):
        logger.warning("%s was not made by metric_embed, and stays as it is.", path)
        return False
    try:
        with atomic_path(path) as draft, draft.open("wb") as file:
            pickle.dump(values, file, protocol=PICKLE_PROTOCOL)
            file.write(MARK)
    except OutputError as error:
        logger.warning("%s", error)
        return False
    return True


# -- config.yaml


def _write_config(folder: MetricFolder, workdir: Workdir) -> None:
    config, missing = _with_absolute_paths(workdir)
    for name, written in missing.items():
        logger.warning(
            "%s: the %s of config.yaml, %s, is not there, nor in the workdir or its parent: "
            "cryoDRGN's tools may not open it. Put the file there and type the same again.",
            folder.path,
            name,
            written,
        )
    head = f"# A copy of {os.path.abspath(workdir.config_path)}, with absolute paths.\n"
    # not save_yaml, which would turn the time of the training into a text
    save_text(folder.config, head + yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _with_absolute_paths(workdir: Workdir) -> tuple[dict[str, Any], dict[str, str]]:
    """config.yaml with the paths of what was found; the inputs that were not, as written."""
    config, missing = copy.deepcopy(workdir.config), {}
    sections = [config.get(name) for name in ("dataset_args", "training")]  # DRGN-AI has both
    for options in filter(None, sections):
        for name in FILES + FOLDERS:
            written = options.get(name)
            if not isinstance(written, str) or not written:
                continue  # of --ind, a number: the first so many particles
            is_it = os.path.isdir if name in FOLDERS else os.path.isfile
            found = find_input(written, workdir.path, is_it)
            if found is None:
                missing[name] = written
            else:
                options[name] = os.path.abspath(found)
    return config, missing


# -- links


def _write_links(folder: MetricFolder, workdir: Workdir) -> None:
    copied = []
    for name in folder.links:
        target, link = workdir.path / name, folder.path / name
        if target.is_file():
            if not save_link(link, target):
                copied.append(name)
        elif link.is_symlink():
            link.unlink()  # of an earlier run, to what is gone
    if copied:
        logger.warning("%s has no links: %s were copied.", folder.path, ", ".join(copied))
    _remove_other_epochs(folder)


def _remove_other_epochs(folder: MetricFolder) -> None:
    """Links of an earlier run with another --epoch: cryoDRGN's tools would open the latest."""
    for kind in ("z", "weights", "pose"):
        for path in folder.path.glob(f"{kind}.*.pkl"):
            is_link = path.is_symlink() and os.path.basename(os.readlink(path)) == path.name
            if is_link and path.name not in folder.links:
                path.unlink()


# -- landscape.N/landscape_full


def _write_landscape(
    folder: MetricFolder,
    workdir: Workdir,
    z_metric: np.ndarray,
    view: np.ndarray,
    labels: np.ndarray,
    seed: int,
) -> None:
    count, dimension = z_metric.shape
    shown = np.arange(count)
    if count > MOST_IN_LANDSCAPE:
        random = np.random.default_rng(seed)
        shown = np.sort(random.choice(count, MOST_IN_LANDSCAPE, replace=False))
    axes = np.zeros((count, max(dimension, LANDSCAPE_AXES)), np.float32)
    axes[:, :dimension] = z_metric
    save_pickle(folder.landscape / "ind.sampled.pkl", shown)
    save_pickle(folder.landscape / "z.sampled.pkl", workdir.latents[shown])
    save_pickle(folder.landscape / "vol_pca_all.pkl", axes)
    save_pickle(folder.landscape / "umap_vol_pca.pkl", view.astype(np.float32))
    numbers = labels.astype(np.int32) + 1
    save_pickle(folder.landscape / "full_clustering" / "cluster_labels.pkl", numbers)
