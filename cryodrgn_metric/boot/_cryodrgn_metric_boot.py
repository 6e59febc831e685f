"""Runs at every start of Python: waits for `cryodrgn.command_line` and hands it to our plugin.

Installed at the root of site-packages beside `cryodrgn_metric_plugin.pth` (Python <= 3.17) and
`cryodrgn_metric_plugin.start` (PEP 829, Python >= 3.15), which both call `install()`. Interpreters
that never touch cryoDRGN pay for this file alone, hence it imports nothing but sys.
"""

import sys

TYPE_CHECKING = False  # typing's own would cost an import; type checkers know the name
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.abc import Loader
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["install"]

HOST = "cryodrgn.command_line"


class _HandingOver:
    """The host's own loader, followed by one call of the plugin."""

    def __init__(self, loader: "Loader") -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)

    def create_module(self, spec: "ModuleSpec") -> "ModuleType | None":
        return self._loader.create_module(spec)

    def exec_module(self, module: "ModuleType") -> None:
        # Afterwards nothing about the module shows that it was waited for.
        module.__loader__ = self._loader
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        self._loader.exec_module(module)
        _hand_over(module)


class _Waiter:
    """A meta path finder that knows one name and leaves the finding to the others."""

    def __init__(self) -> None:
        self._searching = False

    def find_spec(
        self,
        fullname: str,
        path: "Sequence[str] | None" = None,
        target: "ModuleType | None" = None,
    ) -> "ModuleSpec | None":
        if fullname != HOST or self._searching:
            return None
        from importlib.util import find_spec

        # All of sys.meta_path is asked, us included: PathFinder alone would miss an editable
        # cryoDRGN, which brings a finder of its own.
        self._searching = True
        try:
            spec = find_spec(fullname)
        finally:
            self._searching = False
        if spec is not None and spec.loader is not None:
            spec.loader = _HandingOver(spec.loader)  # type: ignore[assignment]
        return spec


def _hand_over(host: "ModuleType") -> None:
    """Let the plugin extend the host; whatever goes wrong there is one line, never a failure."""
    try:
        from cryodrgn_metric.plugin import extend

        extend(host)
    except (Exception, SystemExit) as error:
        sys.stderr.write(f"cryodrgn_metric: no subcommand was added to cryodrgn: {error!r}\n")


def install() -> None:
    """Start waiting for the host; calling it again changes nothing."""
    if not any(isinstance(finder, _Waiter) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Waiter())
