"""YAML through its safe loader, however its aliases multiply."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import yaml

from cryodrgn_metric.errors import UnsafeFileError, WorkdirError, brief
from cryodrgn_metric.safe_files.files import bytes_of

__all__ = ["load_yaml"]

LARGEST_YAML = 1 << 20  # bytes; cryoDRGN's config.yaml has a few thousand
MOST_VALUES = 100_000  # in a YAML file with its aliases written out
MOST_DIGITS = 100  # of an integer in it


def load_yaml(path: Path) -> dict[str, Any]:
    """Read a small YAML file of one mapping with `yaml.SafeLoader`, however it is made.

    Arguments:
        path: config.yaml, or a file of our own; 1 MB at most, as YAML is read slowly.

    Raises:
        UnsafeFileError: it asks for a Python object.
        WorkdirError: it cannot be read, is no mapping, or its aliases stand for too much.
    """
    data = bytes_of(path)
    if len(data) > LARGEST_YAML:
        raise WorkdirError(f"{path}: expected at most {LARGEST_YAML} bytes; got {len(data)}.")
    try:
        loader = yaml.SafeLoader(data.decode("utf-8"))
        node = loader.get_single_node()
        if _written_out(node, {}) > MOST_VALUES:
            raise ValueError("its aliases stand for more than it has room for")
        value = loader.construct_document(node) if node else None
    except Exception as error:  # a date of month 13 is a ValueError, a deep list a RecursionError
        if "could not determine a constructor" in str(error):
            raise UnsafeFileError(f"{path} asks for a Python object: {brief(error)}") from error
        raise WorkdirError(f"{path} cannot be read as YAML: {brief(error)}") from error
    if not isinstance(value, dict):
        raise WorkdirError(f"{path}: expected a mapping; got {type(value).__name__}.")
    return value


def _written_out(node: Any, known: dict[int, float]) -> float:
    """How many values a node holds, each alias counted as what it stands for."""
    if str(getattr(node, "tag", "")).endswith(":int") and len(node.value) > MOST_DIGITS:
        return math.inf  # Python reads any hexadecimal number, but cannot print each
    if id(node) not in known:
        known[id(node)] = math.inf  # until it is known: of a node that holds itself
        children = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [child for pair in children for child in (pair if type(pair) is tuple else (pair,))]
        known[id(node)] = 1 + sum(_written_out(child, known) for child in flat)
    return known[id(node)]
