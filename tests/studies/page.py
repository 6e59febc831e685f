"""Render docs/choosing.md's tables from docs/choosing/*.json.

`PYTHONPATH=tests python -m studies.page`, after a study has run.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from studies.record import DOCS, STUDIES

PAGE = DOCS / "choosing.md"
MARKED = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)

Study = dict[str, Any]


def load_studies(folder: Path = STUDIES) -> dict[str, Study]:
    """All committed studies, by topic."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}


def render(page: str, studies: dict[str, Study]) -> str:
    """The page with everything between its markers made anew."""

    def replaced(match: re.Match[str]) -> str:
        return "\n".join([match[1].rstrip("\n"), *_lines(studies[match[2]]), match[3]])

    return MARKED.sub(replaced, page)


def _lines(study: Study) -> list[str]:
    """The table of a study, and how to make it again."""
    ruler = [
        "---" if any(isinstance(row[i], str) for row in study["rows"]) else "---:"
        for i in range(len(study["columns"]))
    ]
    rows = [study["columns"], ruler, *([_cell(value) for value in row] for row in study["rows"])]
    facts = ", ".join(
        f"{name.replace('_', ' ')} {_plain(value)}"
        for name, value in study["facts"].items()
        if not isinstance(value, dict)  # those are in the file
    )
    made = f"`{study['command']}`, commit {study['commit']}, {study['date']}; {facts}"
    return [*(f"| {' | '.join(row)} |" for row in rows), "", f"{made}."]


def _cell(value: object) -> str:
    """Text and whole numbers as they are, others to three significant digits."""
    if value is None:
        return "–"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _plain(value: object) -> str:
    return ", ".join(map(_cell, value)) if isinstance(value, list) else _cell(value)


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), load_studies()), encoding="utf-8")
