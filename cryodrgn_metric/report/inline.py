"""Sections of the report in a notebook: the page's own figures, words and tables."""

from __future__ import annotations

from numbers import Integral, Real

from IPython.display import Image, Markdown, display

from cryodrgn_metric.report.content import Section, Table
from cryodrgn_metric.report.drawing import CSS_PIXELS_PER_INCH

__all__ = ["show"]


def show(section: Section, *names: str) -> None:
    """Display a section as report.html does, below the cell that calls this.

    Arguments:
        section: For instance `fidelity_section(results)`.
        names: Of the figures that are wanted; without any, the whole section is shown.

    Raises:
        KeyError: The section has no figure of that name.

    Example:
        >>> show(fidelity_section(results), "shepard")  # doctest: +SKIP
    """
    pictures = {picture.name: picture for picture in section.pictures}
    if not names:
        _say("\n\n".join(section.paragraphs))
    for picture in [pictures[name] for name in names or pictures]:
        width = picture.figure.get_figwidth() * CSS_PIXELS_PER_INCH
        display(Image(picture.png, width=round(width)))
        _say(picture.caption)
    for table in () if names else section.tables:
        _say(_as_markdown(table))


def _say(text: str) -> None:
    display(Markdown(text))


def _as_markdown(table: Table) -> str:
    rows = [[_cell(value) for value in row] for row in table.rows]
    ruler = [
        ":--" if all(isinstance(row[i], str) for row in table.rows) else "--:"
        for i in range(len(table.header))
    ]
    lines = [map(_cell, table.header), ruler, *rows]
    return "\n".join([f"**{table.caption}**", "", *(f"| {' | '.join(line)} |" for line in lines)])


def _cell(value: object) -> str:
    """Text as it is, whole numbers in full, others to three significant digits."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        return f"{float(value):.3g}"
    return str(value).replace("|", r"\|")
