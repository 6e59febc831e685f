"""A latent space of a cryoDRGN model in which distance is the rotation-free distance of volumes.

Names are loaded when they are first used (PEP 562): importing this package imports neither torch
nor numpy, because every `cryodrgn` command imports it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryodrgn_metric.atomic_model import AtomicModel, read_model
    from cryodrgn_metric.dimension import intrinsic_dimension
    from cryodrgn_metric.dimension_estimate import DimensionEstimate
    from cryodrgn_metric.distance_ensemble import DistanceEnsemble
    from cryodrgn_metric.distance_net import DistanceNet
    from cryodrgn_metric.distances.api import (
        align,
        pairwise_distances,
        rigid_distances,
        rotate,
        transport_distances,
    )
    from cryodrgn_metric.distances.atoms import atom_distances
    from cryodrgn_metric.distances.base import Alignment, PairwiseDistances
    from cryodrgn_metric.errors import (
        ArgumentError,
        FolderBusyError,
        MetricError,
        MissingExtraError,
        OutputError,
        UnsafeFileError,
        VolumeError,
        WorkdirError,
    )
    from cryodrgn_metric.metric_map import MetricMap
    from cryodrgn_metric.model_placement import ModelFits, fit_models
    from cryodrgn_metric.workdir import Workdir, open_workdir

__all__ = [
    "Alignment",
    "ArgumentError",
    "AtomicModel",
    "DimensionEstimate",
    "DistanceEnsemble",
    "DistanceNet",
    "FolderBusyError",
    "MetricError",
    "MetricMap",
    "MissingExtraError",
    "ModelFits",
    "OutputError",
    "PairwiseDistances",
    "UnsafeFileError",
    "VolumeError",
    "Workdir",
    "WorkdirError",
    "__version__",
    "align",
    "atom_distances",
    "fit_models",
    "intrinsic_dimension",
    "open_workdir",
    "pairwise_distances",
    "read_model",
    "rigid_distances",
    "rotate",
    "transport_distances",
]

__version__ = "0.1.0"

_NAMES_BY_MODULE = {
    "atomic_model": ("AtomicModel", "read_model"),
    "dimension": ("intrinsic_dimension",),
    "dimension_estimate": ("DimensionEstimate",),
    "distance_ensemble": ("DistanceEnsemble",),
    "distance_net": ("DistanceNet",),
    "distances.api": (
        "align",
        "pairwise_distances",
        "rigid_distances",
        "rotate",
        "transport_distances",
    ),
    "distances.atoms": ("atom_distances",),
    "distances.base": ("Alignment", "PairwiseDistances"),
    "errors": (
        "ArgumentError",
        "FolderBusyError",
        "MetricError",
        "MissingExtraError",
        "OutputError",
        "UnsafeFileError",
        "VolumeError",
        "WorkdirError",
    ),
    "metric_map": ("MetricMap",),
    "model_placement": ("ModelFits", "fit_models"),
    "workdir": ("Workdir", "open_workdir"),
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names}


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = value  # the next look-up doesn't come here
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
