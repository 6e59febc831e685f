"""cryoDRGN's networks out of a workdir: built by its own code, filled from a checkpoint.

Checkpoints are read by `safe_files/`. This is the only file that imports cryoDRGN's models.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from cryodrgn_metric.errors import WorkdirError, brief
from cryodrgn_metric.host_models import HostModel, Hypervolume, PositionalModel
from cryodrgn_metric.runlog import logging_kept
from cryodrgn_metric.safe_files.checkpoints import load_checkpoint
from cryodrgn_metric.workdir import Workdir

__all__ = ["load_host_model"]

LARGEST_EXTENT = 1e6  # cryoDRGN's are 0.5, or half the box; its lattice is float32
# The positional encodings of cryoDRGN 4.3.
ENCODINGS = (
    "geom_ft",
    "geom_full",
    "geom_lowf",
    "geom_nohighf",
    "linear_lowf",
    "gaussian",
    "none",
)
WITH_ENCODER = ("train_vae", "abinit_het_old")


def load_host_model(workdir: Workdir, as_trained: bool = False) -> HostModel:
    """The network of a workdir; its checkpoint is read without executing anything.

    Arguments:
        workdir: from `open_workdir`.
        as_trained: for DRGN-AI, see `Hypervolume`; other kinds are the same either way.

    Raises:
        WorkdirError: the checkpoint doesn't fit config.yaml, or cryoDRGN cannot evaluate such a
            model itself.
        UnsafeFileError: the checkpoint would execute code.
    """
    if workdir.domain == "hartley" and workdir.config["model_args"].get("pe_type") == "none":
        raise WorkdirError(
            f"{workdir.config_path}: --pe-type none with --domain hartley is a model that "
            "cryoDRGN itself cannot evaluate at a latent; train with --domain fourier."
        )
    checkpoint = load_checkpoint(workdir.weights_path)
    described: dict[str, Any] = {
        "box_size": workdir.box_size,
        "latent_dim": workdir.latents.shape[1],
        "extent": _extent(workdir),
        "domain": workdir.domain,
    }
    if workdir.kind != "abinit":
        return PositionalModel(network=_load_positional(workdir, checkpoint), **described)
    network = _load_hypervolume(workdir, checkpoint)
    radius = _mask_radius(workdir, checkpoint)
    return Hypervolume(network=network, radius=radius, as_trained=as_trained, **described)


def _extent(workdir: Workdir) -> float:
    extent = workdir.config["lattice_args"].get("extent", 0.5)
    if type(extent) not in (int, float) or not 1 / LARGEST_EXTENT <= extent <= LARGEST_EXTENT:
        raise WorkdirError(
            f"{workdir.config_path}: lattice_args.extent must be positive, at most "
            f"{LARGEST_EXTENT:g}; got {brief(extent)}."
        )
    return float(extent)


def _mask_radius(workdir: Workdir, checkpoint: dict[str, Any]) -> int:
    """The radius of DRGN-AI's output mask, in Fourier voxels; without one, the whole ball."""
    radius = checkpoint.get("output_mask_radius")
    if radius is None:
        return workdir.box_size // 2
    if type(radius) not in (int, float) or not 1 <= radius <= workdir.box_size:
        raise WorkdirError(
            f"{workdir.weights_path}: output_mask_radius must be from 1 to {workdir.box_size}; "
            f"got a {type(radius).__name__} that is not."
        )
    return int(radius)


def _load_positional(workdir: Workdir, checkpoint: dict[str, Any]) -> torch.nn.Module:
    """The decoder of train_vae, train_dec or abinit_het_old; an encoder is left out."""
    state = _checked_state(checkpoint, "model_state_dict", workdir.weights_path)
    if workdir.kind in WITH_ENCODER:
        prefix = "decoder."
        state = {key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)}
    return _filled(workdir, workdir.config_path, state, lambda: _positional(workdir, len(state)))


def _positional(workdir: Workdir, most_layers: int) -> torch.nn.Module:
    """What cryoDRGN's own loaders make of a config, but no encoder and no lattice."""
    with logging_kept():
        from cryodrgn import config as cryodrgn_config
        from cryodrgn import models
    config = cryodrgn_config.update_config_v1(copy.deepcopy(workdir.config))
    args = config["model_args"]
    sizes = ("players", "pdim") if workdir.kind in WITH_ENCODER else ("layers", "dim")
    layers, width = (args[key] for key in sizes)
    # the rest would be noticed when memory is full, or when a volume is decoded
    if not 0 <= layers <= most_layers:
        raise ValueError(f"{layers} layers, but weights of {most_layers}")
    if args["pe_type"] not in ENCODINGS:
        raise ValueError(f"pe_type must be one of {', '.join(ENCODINGS)}; got {args['pe_type']}")
    activation = {"relu": torch.nn.ReLU, "leaky_relu": torch.nn.LeakyReLU}[args["activation"]]
    encoding = args["pe_type"], args["pe_dim"], activation, args["feat_sigma"]
    inputs, size = 3 + args["zdim"], config["lattice_args"]["D"]
    model: torch.nn.Module = models.get_decoder(
        inputs, size, layers, width, args["domain"], *encoding
    )
    return model


def _load_hypervolume(workdir: Workdir, checkpoint: dict[str, Any]) -> torch.nn.Module:
    """The network of DRGN-AI, which its checkpoint describes."""
    given = checkpoint.get("hypervolume_params")
    params = given if isinstance(given, dict) else {}
    expected = {"resolution": workdir.box_size + 1, "z_dim": workdir.latents.shape[1]}
    # types first: to compare or print a tensor may fail, or take long
    found = {key: n if type(n := params.get(key)) is int else None for key in expected}
    if found != expected:
        raise WorkdirError(
            f"{workdir.weights_path} doesn't hold the model that {workdir.config_path} describes:"
            f" expected hypervolume_params with {expected}; got {brief(found)}."
        )
    state = _checked_state(checkpoint, "hypervolume_state_dict", workdir.weights_path)
    build = functools.partial(_hypervolume, params, len(state))
    return _filled(workdir, workdir.weights_path, state, build)


def _hypervolume(params: dict[str, Any], most_layers: int) -> torch.nn.Module:
    with logging_kept():
        from cryodrgn.models_ai import HyperVolume
    # of a tensor, HyperVolume would compute with all that it claims to hold
    if not all(type(value) in (int, float, str, bool, type(None)) for value in params.values()):
        raise TypeError("hypervolume_params must be numbers and words")
    layers = params.get("n_layers")
    if type(layers) is not int or not 0 <= layers <= most_layers:
        raise ValueError(f"{layers} layers, but weights of {most_layers}")
    network: torch.nn.Module = HyperVolume(**params)
    return network


def _filled(
    workdir: Workdir, described_in: Path, state: dict[str, Tensor], build: Callable[[], Any]
) -> torch.nn.Module:
    """The network that `build` makes, with the tensors of a checkpoint for its weights."""
    try:
        with _Unfilled(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of layers without inputs
            network: torch.nn.Module = build()
    except Exception as error:  # cryoDRGN checks nothing: whatever its operations raise
        raise WorkdirError(
            f"{described_in} doesn't describe a model that this cryoDRGN can build: "
            f"{type(error).__name__} {brief(error)}."
        ) from error
    try:
        network.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise WorkdirError(
            f"{workdir.weights_path} doesn't hold the model that {workdir.config_path} describes:"
            f" {brief(error)}"
        ) from error
    return network.requires_grad_(False)


class _Unfilled(TorchFunctionMode):
    """Layers made meanwhile take no memory, whatever sizes a file claims: a checkpoint fills them.

    `torch.device("meta")` would do, but its random numbers import much and slowly.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        options = dict(kwargs or {})
        if func in (torch.empty, torch.randn):
            return torch.empty(*args, **options | {"device": "meta"})
        return func(*args, **options)


def _checked_state(checkpoint: dict[str, Any], key: str, path: Path) -> dict[str, Tensor]:
    state = checkpoint.get(key)
    if not isinstance(state, dict):
        raise WorkdirError(f"{path}: expected {key}; got {type(state).__name__}.")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise WorkdirError(f"{path}: {key} holds a {type(value).__name__}.")
        bytes_needed = value.numel() * value.element_size()
        real = value.is_floating_point() and bytes_needed <= path.stat().st_size
        if not real or not bool(value.isfinite().all()):
            raise WorkdirError(
                f"{path}: {brief(name)} should be finite numbers; training diverged, or the file "
                "was changed. Choose an earlier epoch with --epoch."
            )
    return {name: value.float() for name, value in state.items()}
