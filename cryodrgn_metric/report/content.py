"""What a report is made of, whoever shows it: verdict, sections, scatter, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy.typing as npt
from matplotlib.figure import Figure

from cryodrgn_metric.report.drawing import png_of

__all__ = ["FileEntry", "Picture", "Report", "Scatter", "Section", "Table", "shown"]

Column = npt.NDArray[Any]


def shown(value: float | None, style: str = ".3f", unit: str = "") -> str:
    """A number as text; "undefined" for one that is none, as of volumes that are all alike.

    Arguments:
        value: As from fidelity.json or report.json, where null stands for NaN.
        style: Of format(); "%" counts in percent.
        unit: Put behind a number.
    """
    if value is None or value != value:
        return "undefined"
    text = (
        format(100 * value, style[:-1] + "f") + " %"
        if style.endswith("%")
        else format(value, style)
    )
    return text + unit


@dataclass(frozen=True)
class Picture:
    """One figure with what a newcomer needs to read it.

    Arguments:
        name: Of its file, figures/NAME.png.
        figure: Drawn, not saved yet.
        caption: Two sentences: what is shown, and what to look for.
    """

    name: str
    figure: Figure
    caption: str

    @cached_property
    def png(self) -> bytes:
        """The figure as PNG, drawn once for the file and the page."""
        return png_of(self.figure)


@dataclass(frozen=True)
class Table:
    """Rows of text and numbers under a caption.

    Arguments:
        caption: What the rows are.
        header: Names of the columns, with units.
        rows: As many cells as the header has; strings are shown as they are, numbers to three
            significant digits.
    """

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str | int | float]]


@dataclass(frozen=True)
class Section:
    """One part of the report.

    Arguments:
        anchor: Its name in links: "fidelity".
        title: Its heading.
        paragraphs: What it says before its pictures.
    """

    anchor: str
    title: str
    paragraphs: Sequence[str]
    pictures: Sequence[Picture] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True)
class Scatter:
    """What the interactive scatter shows of each particle; all columns have one length.

    Arguments:
        particles: Numbers in the original stack, (n,) int.
        clusters: k-means labels, (n,) int.
        axes: Name to coordinates, (n,) float each; the reader picks two of them: "z' 1", "PC1 of
            z'", "UMAP1 of z'".
        colors: Name to values, (n,): integers and text are categories, floats a scale.
        total: N; more than n where the particles are a random sample.
    """

    particles: Column
    clusters: Column
    axes: dict[str, Column]
    colors: dict[str, Column]
    total: int

    def __len__(self) -> int:
        return len(self.particles)


@dataclass(frozen=True)
class FileEntry:
    """A file of the run, for the table of files.

    Arguments:
        path: Relative to the output folder, which is where the page lies.
        purpose: What it holds, and which tool reads it.
    """

    path: str
    purpose: str


@dataclass(frozen=True)
class Report:
    """All that the page shows, in its order.

    Arguments:
        title: Workdir and epoch.
        verdict: Three plain sentences.
        grades: "good", "fair" or "poor", one for each sentence.
        facts: Name to value, a short list under the title: particles, landmarks, d'.
        sections: In the order they are shown.
        scatter: The interactive view of z'.
        files: The table of files.
    """

    title: str
    verdict: Sequence[str]
    grades: Sequence[str]
    facts: dict[str, str]
    sections: Sequence[Section]
    scatter: Scatter
    files: Sequence[FileEntry] = field(default_factory=list)
