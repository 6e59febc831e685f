"""Peak memory of a function, in a process of its own: `peak_memory_of("bench_x:work", ...)`."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

from cryodrgn_metric.runlog import peak_memory_in_bytes

TESTS = Path(__file__).parents[1]


def peak_memory_of(function: str, *arguments: object) -> int:
    """Bytes resident at most while a function of this folder runs, with all that it imports.

    Arguments:
        function: "module:name"; it takes its arguments as text.
    """
    path = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "benchmarks.memory", function, *map(str, arguments)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def main(function: str, *arguments: str) -> None:
    module, _, name = function.partition(":")
    getattr(importlib.import_module(f"benchmarks.{module}"), name)(*arguments)
    print(peak_memory_in_bytes())


if __name__ == "__main__":
    main(*sys.argv[1:])
