"""The page people read: a report as one html file that needs no network and no other file."""

from __future__ import annotations

import base64
import re
from numbers import Integral, Real
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jinja2
import matplotlib
import numpy as np
import numpy.typing as npt
from markupsafe import Markup, escape
from matplotlib.colors import to_hex
from plotly.offline import get_plotlyjs

from cryodrgn_metric import __version__
from cryodrgn_metric.artifacts import save_text
from cryodrgn_metric.report.content import Picture, Report, Scatter
from cryodrgn_metric.report.drawing import CSS_PIXELS_PER_INCH, NONE

__all__ = ["page_of", "write_page"]

Array = npt.NDArray[Any]

MOST_CATEGORIES = 60  # beyond, integers become a scale, and text its most frequent and "others"
_PALETTE = [to_hex(color) for color in matplotlib.colormaps["tab20"](range(20))]


def write_page(path: Path, report: Report) -> None:
    """Write `page_of(report)`, atomically.

    Arguments:
        path: Of the html file; the links of its table of files are relative to its folder.
        report: What to show.

    Raises:
        OutputError: It can't be written.
    """
    save_text(path, page_of(report))


def page_of(report: Report) -> str:
    """The html text of a report: the same text for the same report.

    Whatever comes from a name or a number is escaped; text between backticks is set as code.

    Arguments:
        report: What to show.

    Returns:
        One document, with plotly.js (5 MB), style sheet, pictures (PNG) and columns inside.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cryodrgn_metric", "report/templates"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "prose": _prose,
        "cell": _cell,
        "is_number": _is_number,
        "image": _image,
        "link": _link,
    }

    def source(name: str) -> Markup:
        assert environment.loader is not None
        return Markup(environment.loader.get_source(environment, name)[0])

    return environment.get_template("report.html.j2").render(
        report=report,
        verdict=list(zip(report.grades, report.verdict, strict=True)),
        scatter=_scatter(report.scatter),
        style=source("report.css"),
        scripts=[Markup(get_plotlyjs()), source("scatter.js"), source("pictures.js")],
        version=__version__,
    )


# -- text and numbers


def _prose(text: str) -> Markup:
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _cell(value: object) -> Markup:
    """Text as it is, whole numbers in full, others to three significant digits."""
    if not _is_number(value) or isinstance(value, Integral):
        return _prose(str(value))
    number = float(value)  # type: ignore[arg-type]
    if not np.isfinite(number):
        return Markup("–" if np.isnan(number) else str(number).replace("inf", "∞"))
    digits = f"{number:#.3g}"
    large = "e+" in digits and abs(number) < 1e7
    return Markup(f"{float(digits):,.0f}" if large else digits.rstrip("."))


def _link(path: str) -> str:
    return quote(path)


# -- pictures


def _image(picture: Picture) -> dict[str, Any]:
    """What its <img> needs; the alternative text is the caption's first sentence."""
    width, height = picture.figure.get_size_inches()
    return {
        "source": "data:image/png;base64," + base64.b64encode(picture.png).decode(),
        "width": round(width * CSS_PIXELS_PER_INCH),
        "height": round(height * CSS_PIXELS_PER_INCH),
        "alt": re.split(r"(?<=[.!?])\s", picture.caption, maxsplit=1)[0],
    }


# -- the columns of the scatter, for scatter.js


def _scatter(scatter: Scatter) -> dict[str, Any]:
    colors = {"cluster": scatter.clusters, **scatter.colors}
    return {
        "total": scatter.total,
        "count": len(scatter),
        "particles": _encoded(scatter.particles, "<i4"),
        "clusters": _encoded(scatter.clusters, "<i4"),
        "axes": [
            {"name": name, "values": _encoded(column, "<f4")}
            for name, column in scatter.axes.items()
        ],
        "colors": [{"name": name, **_color(column)} for name, column in colors.items()],
    }


def _encoded(column: Array, dtype: str) -> str:
    """Base64 of little-endian numbers, as every browser's typed arrays hold them."""
    return base64.b64encode(np.ascontiguousarray(column, dtype=dtype).tobytes()).decode()


def _color(column: Array) -> dict[str, Any]:
    """A scale of floats; categories with their labels and colours, those of the figures."""
    if column.dtype.kind == "f":
        return {"values": _encoded(column, "<f4"), "categories": None}
    if column.dtype.kind in "iu":
        found, codes = np.unique(column, return_inverse=True)
        if len(found) > MOST_CATEGORIES:
            return {"values": _encoded(column, "<f4"), "categories": None}
        categories = [_integer_category(int(number)) for number in found]
    else:
        labels, codes = _text_categories(column)
        categories = [(label, _PALETTE[i % len(_PALETTE)]) for i, label in enumerate(labels)]
    return {"values": _encoded(codes, "<i2"), "categories": categories}


def _integer_category(number: int) -> tuple[str, str]:
    """cryoDRGN and scikit-learn give -1 to what is in no cluster."""
    return ("none", NONE) if number < 0 else (str(number), _PALETTE[number % len(_PALETTE)])


def _text_categories(column: Array) -> tuple[list[str], Array]:
    text = np.where(column, "yes", "no") if column.dtype.kind == "b" else column.astype(str)
    labels, codes, counts = np.unique(text, return_inverse=True, return_counts=True)
    if len(labels) <= MOST_CATEGORIES:
        return labels.tolist(), codes
    frequent = np.sort(np.argsort(-counts, kind="stable")[: MOST_CATEGORIES - 1])
    rank = np.full(len(labels), len(frequent))
    rank[frequent] = np.arange(len(frequent))
    return [*labels[frequent].tolist(), "others"], rank[codes]
