"""What a study has found, as committed: docs/choosing/TOPIC.json and its figure.

Those files are the only source of the tables in docs/choosing.md.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from cryodrgn_metric.report.drawing import png_of

DOCS = Path(__file__).parents[2] / "docs"
STUDIES = DOCS / "choosing"
PICTURES = DOCS / "images" / "choosing"
INCHES_ACROSS = 6.6  # 990 pixels
_PACKAGES = ("cryodrgn", "torch", "numpy", "scikit-learn")

Cell = str | float | int | None


def save_study(
    topic: str,
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    figure: Figure,
    **facts: Any,
) -> None:
    """Write the table and the figure of one question of docs/choosing.md.

    Arguments:
        topic: Names the files, and the study: `study_TOPIC`.
        columns: With units where there are any.
        rows: One cell a column; None where there is no number.
        figure: Scaled to 6.6 inches, 990 pixels across.
        facts: Seeds, sizes, minutes: what a reader must know to repeat it.
    """
    assert all(len(row) == len(columns) for row in rows), topic
    study = {
        "command": f"PYTHONPATH=tests python -m studies.study_{topic}",
        "columns": list(columns),
        "rows": [list(row) for row in rows],
        "facts": facts,
        "versions": {name: metadata.version(name) for name in _PACKAGES},
        "commit": _commit(),
        "date": date.today().isoformat(),
    }
    STUDIES.mkdir(exist_ok=True)
    PICTURES.mkdir(exist_ok=True)
    (STUDIES / f"{topic}.json").write_text(json.dumps(study, indent=1) + "\n")
    figure.set_size_inches(figure.get_size_inches() * INCHES_ACROSS / figure.get_size_inches()[0])
    (PICTURES / f"{topic}.png").write_bytes(png_of(figure))


def _commit() -> str:
    found = subprocess.run(
        ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()
