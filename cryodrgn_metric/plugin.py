"""Adds every entry point of the group `cryodrgn.commands` to cryoDRGN's subcommands.

The start-up hook (boot/) calls `extend` once `cryodrgn.command_line` has run. An entry point names
a module that follows cryoDRGN's own protocol: its docstring is the help, `add_args(parser)`
declares the options, `main(args)` runs. Should cryoDRGN adopt the group, or ship a command of the
same name, this steps aside. An entry point that cannot be used costs one line on stderr and
nothing else.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["GROUP", "extend"]

GROUP = "cryodrgn.commands"  # the entry-point group, and the package its modules are served in
FOLDER = "commands"  # as opposed to commands_utils, which belongs to `cryodrgn_utils`


def extend(host: ModuleType) -> None:
    """Make the host's `_get_commands` see the entry points' modules beside its own list."""
    stock = host._get_commands

    @functools.wraps(stock)
    def _get_commands(cmd_dir: str, cmds: Sequence[str], *args: Any, **kwargs: Any) -> None:
        if os.path.basename(cmd_dir) == FOLDER:
            cmds = [*cmds, *_serve_entry_points(cmds)]
        stock(cmd_dir, cmds, *args, **kwargs)

    vars(host)["_get_commands"] = _get_commands


def _serve_entry_points(stock_names: Sequence[str]) -> list[str]:
    """Put every usable entry point's module where the host will import it; return the names."""
    names: list[str] = []
    for entry_point in sorted(entry_points(group=GROUP), key=lambda found: found.name):
        name = entry_point.name
        if name in stock_names or name in names:
            continue
        try:
            if _serve(entry_point):
                names.append(name)
        except (Exception, SystemExit) as error:
            # An import or an option list gone wrong would take all of cryoDRGN down with it.
            print(f"cryodrgn_metric: skipped the command {name}: {error!r}", file=sys.stderr)
    return names


def _serve(entry_point: EntryPoint) -> bool:
    """Alias the entry point's module to `cryodrgn.commands.<name>`, unless the host has one."""
    place = f"{GROUP}.{entry_point.name}"
    module = sys.modules.get(place)
    if module is None:
        if find_spec(place) is not None:
            return False
        module = entry_point.load()
    elif getattr(module, "__name__", place) == place:
        return False  # the host's own, already imported
    _rehearse(module)
    sys.modules[place] = module
    return True


def _rehearse(module: ModuleType) -> None:
    """Raise here whatever the host's loop would raise on this module."""
    if not callable(module.main):
        raise TypeError(f"{module.__name__}.main is not callable")
    module.add_args(argparse.ArgumentParser())
