"""The whole report: results in, verdict, sections, scatter and files out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cryodrgn_metric.report.clusters_section import clusters_section
from cryodrgn_metric.report.comparison_section import comparison_section
from cryodrgn_metric.report.content import FileEntry, Report, Scatter
from cryodrgn_metric.report.dimension_section import dimension_section
from cryodrgn_metric.report.fidelity_section import fidelity_section
from cryodrgn_metric.report.landscape_section import landscape_section
from cryodrgn_metric.report.motion_section import motion_section
from cryodrgn_metric.report.results import Results
from cryodrgn_metric.report.rotation_section import rotation_section
from cryodrgn_metric.report.scatter import scatter_of
from cryodrgn_metric.report.verdict import judge

__all__ = ["report_of"]

Columns = dict[str, npt.NDArray[np.generic]]

_PURPOSES = {
    "z_metric.pkl": "z' of every particle, (N, d') float32: `cryodrgn graph_traversal`, numpy",
    "z_metric.csv": "the same as text",
    "z_metric_umap.pkl": "UMAP of z', (N, 2)",
    "distances.npz": "measured distances and rotations among the landmarks",
    "fidelity.json": "the numbers of the first section",
    "intrinsic_dimension.json": "how many dimensions the motion has",
    "report.json": "the other numbers of this page",
    "held_out.npz": "the test landmarks in every space",
    "models_fitted.npz": "beads fitted to every landmark, in Å, and how well they fit",
    "models_fitted.pdb": "those that fit, superposed: one model a landmark, for ChimeraX",
    "particles.npz": "stretch, density, uncertainty, error bar and reach of every particle",
    "striking_pairs.npz": "the pairs that z misjudges most, with projections",
    "metric_embed.yaml": "every parameter, version, and the hashes of the inputs",
    "metric_embed.log": "what the run said",
    "models": "h_ψ and f_ξ, for `cryodrgn_metric transform`",
    "cryoDRGN_metric_embed.ipynb": "the notebook, to go on from",
    "figures": "all figures of this page as PNG",
    "config.yaml": "makes this folder a workdir: `cryodrgn dashboard`, `cryodrgn filter`, ...",
}


def report_of(
    results: Results, covariates: Columns | None = None, other: Results | None = None
) -> Report:
    """Draw and judge everything.

    Arguments:
        results: Of a finished run.
        covariates: Further columns, (N,) each, to colour the scatter by.
        other: A second run to compare with.
    """
    judgements = judge(results)
    sections = [
        fidelity_section(results),
        rotation_section(results),
        dimension_section(results),
        landscape_section(results),
        motion_section(results),
        clusters_section(results),
    ]
    if other is not None:
        sections.append(comparison_section(results, other))
    return Report(
        title=f"{results.workdir.path.name}, {_epoch(results)}",
        verdict=[judgement.sentence for judgement in judgements],
        grades=[judgement.grade for judgement in judgements],
        facts=_facts(results),
        sections=sections,
        scatter=_scatter(results, covariates or {}),
        files=_files(results),
    )


def _epoch(results: Results) -> str:
    epoch = results.workdir.epoch
    return "last epoch" if epoch is None else f"epoch {epoch}"


def _facts(results: Results) -> dict[str, str]:
    parameters, config = results.parameters, results.parameters["config"]
    box, apix = parameters["box"], parameters["apix_in_angstroms"]
    return {
        "particles": f"{len(results.labels):,}",
        "landmarks": f"{len(results.landmarks['landmark_rows'])}, of which "
        f"{results.fidelity['test_landmarks']} held out",
        "dimensions": _dimensions(results),
        "volumes compared": f"box {box}, {apix:.3g} Å per voxel",
        "distance": _distance(parameters, config["distances"]),
        "version": f"cryodrgn_metric {parameters['version']}",
    }


def _distance(parameters: dict[str, Any], config: dict[str, Any]) -> str:
    name = config["distance"]
    if name == "atoms":
        name = f"atoms ({config['atom_distance']})"
    contour = parameters.get("contour")
    above = "" if contour is None else f", of density above {contour:.3g}"
    return f"{name}, lmax {parameters['lmax']}{above}"


def _dimensions(results: Results) -> str:
    found = results.intrinsic["dimension"]
    of_motion = "" if found is None else f", {found} of the motion"
    return f"{results.workdir.latents.shape[1]} of z, {results.dimension} of z'{of_motion}"


def _scatter(results: Results, covariates: Columns) -> Scatter:
    z, z_metric = results.workdir.latents, results.z_metric
    axes: Columns = {f"z' {i + 1}": column for i, column in enumerate(z_metric.T)}
    if results.dimension > 1:
        axes |= {f"PC{i + 1} of z'": column for i, column in enumerate(results.components[0].T)}
    if results.umap is not None:
        axes |= {f"UMAP{i + 1} of z'": column for i, column in enumerate(results.umap.T)}
    axes |= {f"z {i + 1}": column for i, column in enumerate(z.T)}
    colors: Columns = {
        "HDBSCAN cluster": results.densest,
        "local stretch": results.particles["stretch"],
        "density correction": results.particles["density_correction"],
        "distance to the nearest landmark": results.particles["landmark_distance"],
    }
    if "uncertainty" in results.particles:
        colors["uncertainty of z'"] = results.particles["uncertainty"]
    if "relative_error" in results.particles:
        colors["relative error bar of h_ψ"] = results.particles["relative_error"]
    colors |= {f"z {i + 1}": column for i, column in enumerate(z.T)}
    covariates = {
        f"{name} (covariate)" if name in colors or name == "cluster" else name: column
        for name, column in covariates.items()
    }
    return scatter_of(
        results.workdir.particle_indices,
        results.labels,
        axes,
        colors | covariates,
        seed=results.seed,
    )


def _files(results: Results) -> list[FileEntry]:
    folder = results.folder
    found = [FileEntry(name, purpose) for name, purpose in _PURPOSES.items()]
    kmeans = folder.kmeans(results.cluster_count)
    found.append(FileEntry(_relative(kmeans, folder.path), "clusters, volumes, particles' files"))
    densest = _relative(folder.hdbscan_labels, folder.path)
    found.append(FileEntry(densest, "clusters by density, -1 where there is none"))
    view = "what cryoDRGN's tools plot as UMAP1 and UMAP2"
    found.append(FileEntry(_relative(folder.umap, folder.path), view))
    landscape = "z' on the dashboard's 3-D page"
    found.append(FileEntry(_relative(folder.landscape, folder.path), landscape))
    for path in results.paths:
        found.append(FileEntry(_relative(path.folder.path, folder.path), f"path: {path.title}"))
    to_come = {folder.parameters, folder.notebook, folder.figures}  # of a run that is ending

    def is_there(entry: FileEntry) -> bool:
        path = folder.path / entry.path
        return path in to_come or path.exists()

    return list(filter(is_there, found))


def _relative(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()
