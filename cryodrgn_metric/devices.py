"""Where torch computes: the device that was asked for, if it is there."""

from __future__ import annotations

import torch

from cryodrgn_metric.errors import ArgumentError

__all__ = ["pick_device"]


def pick_device(device: str | torch.device | None) -> torch.device:
    """The device asked for; by default CUDA where present, else the CPU.

    Arguments:
        device: As torch names it, "cpu" or "cuda:1"; None chooses.

    Raises:
        ArgumentError: There is no such device, or this torch cannot use it.

    Example:
        >>> pick_device("cpu")
        device(type='cpu')
    """
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except Exception as error:  # torch raises AssertionError, RuntimeError and others for it
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArgumentError(
            f"--device {device} cannot be used: {reason} Type --device cpu, or leave it out."
        ) from error
    return chosen
