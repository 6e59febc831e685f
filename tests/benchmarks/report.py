"""Render docs/performance.md's tables, and its plot, from docs/performance/*.json.

`PYTHONPATH=tests python -m benchmarks.report`, after records were saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.record import RECORDS, Figure, Record

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "performance.md"
PLOT = DOCS / "images" / "growth.png"

ORDER = ("distances_64", "distances_32", "distances_128", "peers", "expansion", "decoding")
ORDER += ("h_psi", "f_xi", "transform", "command", "growth")

MARKED = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def load_records(folder: Path = RECORDS) -> list[Record]:
    """All committed records, in the order of the table; unknown ones last."""
    records = [Record.load(path) for path in sorted(folder.glob("*.json"))]
    places = {row: place for place, row in enumerate(ORDER)}
    return sorted(records, key=lambda record: places.get(record.row, len(ORDER)))


def render(page: str, records: list[Record]) -> str:
    """The page with everything between its markers made anew."""
    parts = {"figures": figures_table, "bounds": bounds_table, "settings": settings_table}
    parts["machines"] = machines_table

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}{_or_nothing_yet(parts[match[2]](records))}\n{match[3]}"

    return MARKED.sub(replaced, page)


def _or_nothing_yet(lines: list[str]) -> str:
    return "\n".join(lines) if len(lines) > 2 else "Nothing is recorded yet."


# -- tables


def figures_table(records: Iterable[Record]) -> list[str]:
    """What was measured, what was asked, and against what."""
    lines = _head(
        "stage", "figure", "measured", "target", "reference in the same run", "ratio", ""
    )
    for record in records:
        for figure in record.figures:
            lines.append(_row(record.title, *_cells(figure)))
    return lines


def figure_lines(records: Iterable[Record]) -> list[str]:
    """The same for a terminal, a figure a line: the ratio and the verdict last."""
    rows = [(record.title, *_cells(figure)) for record in records for figure in record.figures]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def bounds_table(records: Iterable[Record]) -> list[str]:
    """What was to be done, and how near to the machine's peaks it was done."""
    lines = _head("stage", "figure", "operations", "bytes", "operations/s", "bytes/s", "bound by")
    for record in records:
        for figure in record.figures:
            if figure.work is not None:
                lines.append(_row(record.title, figure.name, *_bounds(figure, record.peaks)))
    return lines


def settings_table(records: Iterable[Record]) -> list[str]:
    """What was chosen or found for each record."""
    lines = _head("stage", "settings", "command")
    for record in records:
        settings = ", ".join(f"{name} {_plain(value)}" for name, value in record.settings.items())
        lines.append(_row(record.title, settings, f"`{record.command}`"))
    return lines


def machines_table(records: Iterable[Record]) -> list[str]:
    """Where each record was made, and what that machine can do."""
    lines = _head("stages", "machine", "float32", "bfloat16", "copy", "versions", "commit, date")
    for record in records:
        machine, peaks = record.machine, record.peaks
        where = f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores"
        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        rates = [f"{_number(peaks[name] / 1e9)} GFLOP/s" for name in ("float32", "bfloat16")]
        copy = f"{_number(peaks['memory'] / 1e9)} GB/s"
        made = f"{machine['commit']}, {machine['date']}"
        lines.append(_row(record.title, where, *rates, copy, versions, made))
    return lines


def _cells(figure: Figure) -> tuple[str, ...]:
    target, reference, ratio = "", "", ""
    if figure.target is not None:
        unit = "x" if figure.of_ratio else figure.unit
        target = f"{figure.direction} {_number(figure.target)} {unit}"
    if figure.reference_value is not None:
        reference = f"{figure.reference}: {_number(figure.reference_value)} {figure.unit}"
        ratio = f"{_number(figure.ratio)}x"
    verdict = {True: "met", False: "MISSED", None: ""}[figure.met]
    note = f" ({figure.note})" if figure.note else ""
    measured = f"{_number(figure.value)} {figure.unit}"
    return figure.name + note, measured, target, reference, ratio, verdict


def _bounds(figure: Figure, peaks: dict[str, float]) -> tuple[str, ...]:
    work = figure.work
    arithmetic, memory = peaks[work.dtype], peaks["memory"]
    rates = work.operations / work.seconds, work.bytes / work.seconds
    bound = work.operations / arithmetic >= work.bytes / memory
    return (
        f"{work.operations:.3g}",
        f"{work.bytes:.3g}",
        f"{_number(rates[0] / 1e9)} G ({100 * rates[0] / arithmetic:.0f} % of peak)",
        f"{_number(rates[1] / 1e9)} G ({100 * rates[1] / memory:.0f} % of a copy's)",
        "arithmetic" if bound else "memory",
    )


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _plain(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _head(*titles: str) -> list[str]:
    return [_row(*titles), "|" + "---|" * len(titles)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


# -- the plot


def draw_growth(record: Record, path: Path = PLOT) -> None:
    """Seconds of each stage against the number of volumes or particles, log-log."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 4.5), layout="constrained")
    axis = canvas.subplots()
    for name, line in record.series.items():
        axis.loglog(line["size"], line["seconds"], "o-", label=name)
    axis.set(xlabel="number of volumes, pairs of them, or latents", ylabel="seconds")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8)
    canvas.savefig(path, dpi=150)


def main() -> None:
    records = load_records()
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8"), records), encoding="utf-8")
    for record in records:
        if record.row == "growth":
            draw_growth(record)


if __name__ == "__main__":
    main()
