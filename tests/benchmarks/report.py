"""Render docs/performance.md's tables, and its plot, from docs/performance/*.json.

`PYTHONPATH=tests python -m benchmarks.report`, after records were saved.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from benchmarks.record import RECORDS, Figure, Record, Work

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "performance.md"
PLOT = DOCS / "images" / "growth.png"

ORDER = (
    "distances_64",
    "distances_32",
    "distances_128",
    "transport_32",
    "peers",
    "exactness",
    "expansion",
    "decoding",
    "h_psi",
    "f_xi",
    "transform",
    "command",
    "growth",
)

# Published peaks, per second: operations without sparsity (float32 outside the tensor cores, as
# torch multiplies unless told otherwise), and bytes.
GPUS = {
    "A100 SXM 80 GB": {"float32": 19.5e12, "bfloat16": 312e12, "memory": 2.04e12},
    "H100 SXM": {"float32": 67e12, "bfloat16": 989e12, "memory": 3.35e12},
}
ON_A_GPU = ("distances_64", "distances_32", "distances_128", "decoding", "transform")

MARKED = re.compile(r"(<!-- begin (\w+) -->\n).*?(<!-- end \2 -->)", re.DOTALL)


def load_records(folder: Path = RECORDS) -> list[Record]:
    """All committed records, in the order of the table; unknown ones last."""
    records = [Record.load(path) for path in sorted(folder.glob("*.json"))]
    places = {row: place for place, row in enumerate(ORDER)}
    return sorted(records, key=lambda record: places.get(record.row, len(ORDER)))


def render(page: str, records: list[Record]) -> str:
    """The page with everything between its markers made anew."""
    parts = {
        "figures": figures_table,
        "settings": settings_table,
        "growth": growth_plot,
        "bounds": bounds_table,
        "machines": machines_table,
        "estimates": estimates_table,
    }

    def replaced(match: re.Match[str]) -> str:
        lines = parts[match[2]](records) or ["Nothing is recorded yet."]
        return "\n".join([match[1].rstrip("\n"), *lines, match[3]])

    return MARKED.sub(replaced, page)


# -- tables


def figures_table(records: list[Record]) -> list[str]:
    """What was measured, what was asked, and against what."""
    titles = ("stage", "figure", "measured", "rounds", "target")
    titles += ("beside, in the same run", "ratio", "")
    rows = [(record.title, *_cells(figure)) for record in records for figure in record.figures]
    return _table(titles, rows)


def figure_lines(records: list[Record]) -> list[str]:
    """The same for a terminal, a figure a line: the ratio and the verdict last."""
    rows = [(record.title, *_cells(figure)) for record in records for figure in record.figures]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def settings_table(records: list[Record]) -> list[str]:
    """What was chosen or found for each record."""
    rows = [
        (
            record.title,
            ", ".join(f"{name} {_plain(value)}" for name, value in record.settings.items()),
            f"`{record.command}`",
            f"{_number(record.seconds / 60)} min",
        )
        for record in records
    ]
    return _table(("stage", "settings", "command", "takes"), rows)


def growth_plot(records: list[Record]) -> list[str]:
    """The plot that `draw_growth` draws, once there is something to draw."""
    if all(record.row != "growth" for record in records):
        return []
    return [f"![Seconds of each stage against its size](images/{PLOT.name})"]


def bounds_table(records: list[Record]) -> list[str]:
    """What was to be done, and how near to the machine's peaks it was done."""
    titles = "stage", "figure", "operations", "bytes", "operations/s", "bytes/s", "bound by"
    rows = [
        (record.title, figure.name, *_bounds(figure, record.peaks))
        for record, figure in _counted(records)
    ]
    return _table(titles, rows)


def estimates_table(records: list[Record]) -> list[str]:
    """Seconds that the counted work would take on a GPU, by its published peaks."""
    columns = [f"{gpu}, {how}" for gpu in GPUS for how in ("at its peak", "as near to it as here")]
    rows = [
        (record.title, figure.name, *_estimates(figure, record.peaks))
        for record, figure in _counted(records)
        if record.row in ON_A_GPU
    ]
    return _table(("stage", "figure", "measured here", *columns), rows)


def machines_table(records: list[Record]) -> list[str]:
    """Where each record was made, and what that machine can do."""
    titles = "stage", "machine", "float32", "bfloat16", "copy", "versions", "commit, date"
    return _table(titles, [(record.title, *_machine(record)) for record in records])


def _counted(records: list[Record]) -> list[tuple[Record, Figure]]:
    return [(record, figure) for record in records for figure in record.figures if figure.work]


def _machine(record: Record) -> tuple[str, ...]:
    machine, peaks = record.machine, record.peaks
    return (
        f"{machine['cpu']}, {machine['threads']} of {machine['cores']} cores",
        f"{_number(peaks['float32'] / 1e9)} GFLOP/s",
        f"{_number(peaks['bfloat16'] / 1e9)} GFLOP/s",
        f"{_number(peaks['memory'] / 1e9)} GB/s",
        ", ".join(f"{name} {version}" for name, version in machine["versions"].items()),
        f"{machine['commit']}, {machine['date']}",
    )


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
    rounds = f"{figure.rounds}"
    return figure.name + note, measured, rounds, target, reference, ratio, verdict


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


def _estimates(figure: Figure, peaks: dict[str, float]) -> list[str]:
    """What is counted without a cache may be done faster than a copy: then it is at its peak."""
    work = figure.work
    share = min(1.0, _least_seconds(work, peaks) / work.seconds)
    cells = [_duration(work.seconds)]
    for gpu in GPUS.values():
        least = _least_seconds(work, gpu)
        cells += [_duration(least), _duration(least / share)]
    return cells


def _least_seconds(work: Work, peaks: dict[str, float]) -> float:
    return max(work.operations / peaks[work.dtype], work.bytes / peaks["memory"])


def _duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{_number(seconds / scale)} {unit}"
    return f"{_number(seconds / 1e-6)} µs"


def _number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _plain(value: object) -> str:
    return _number(value) if isinstance(value, float) else str(value)


def _table(titles: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Lines of markdown; none where there are no rows."""
    lines = [f"| {' | '.join(cells)} |" for cells in (titles, *rows)]
    lines.insert(1, re.sub(r"[^|]+", "---", lines[0]))
    return lines if len(lines) > 2 else []


# -- the plot


def draw_growth(record: Record, path: Path = PLOT) -> None:
    """Seconds of each stage against the number of volumes or particles, log-log."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 4.5), layout="constrained")
    axis = canvas.subplots()
    for name, line in record.series.items():
        axis.loglog(line["size"], line["seconds"], "o-", label=name)
    axis.set(xlabel="volumes L, or latents N", ylabel="seconds")
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
