"""The page as text: its structure, what it says of hostile names, and that it stands alone."""

import base64
import json
import re
import time
from html.parser import HTMLParser
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from matplotlib.image import imread
from report_example import CLUSTERS, HOSTILE, example_report

from cryodrgn_metric.errors import OutputError
from cryodrgn_metric.report.content import Report, Scatter, Section, Table
from cryodrgn_metric.report.page import page_of, write_page

VOID = {"meta", "link", "img", "br", "input"}


class Reader(HTMLParser):
    """Every element with its attributes and own text, and whether all were closed in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.elements, self.open = [], []
        self.feed(text)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        element = {"tag": tag, "text": "", **dict(attrs)}
        self.elements.append(element)
        if tag not in VOID:
            self.open.append(element)

    def handle_endtag(self, tag):
        assert self.open.pop()["tag"] == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        for element in self.open:
            element["text"] += data

    def all(self, tag, **attributes):
        wanted = {"class": attributes.pop("class_", None), **attributes}
        wanted = {name: value for name, value in wanted.items() if value is not None}
        return [
            e
            for e in self.elements
            if e["tag"] == tag and all(e.get(k) == v for k, v in wanted.items())
        ]

    def texts(self, tag, **attributes):
        return [" ".join(element["text"].split()) for element in self.all(tag, **attributes)]


@pytest.fixture(scope="module")
def text():
    return page_of(example_report(1000))


@pytest.fixture(scope="module")
def page(text):
    return Reader(text)


def scatter_data(page):
    (script,) = page.all("script", id="scatter-data")
    return json.loads(script["text"])


def column(text, dtype):
    return np.frombuffer(base64.b64decode(text), dtype)


def test_the_verdict_comes_first_then_contents_scatter_sections_files(page):
    assert page.texts("h1") == [f"{HOSTILE}/00_vae128, epoch 49"]
    assert page.texts("title") == page.texts("h1")
    assert page.texts("h2") == [
        "Verdict",
        "Particle by particle",
        "Can z' be trusted?",
        "Where rotation was hiding",
        "Landscape",
        "Files",
    ]
    order = [e["id"] for e in page.elements if e["tag"] == "section"]
    assert order == ["verdict", "scatter", "fidelity", "rotation", "landscape", "files"]


def test_every_sentence_has_its_grade_as_a_word(page):
    found = [(e["class"], e["text"]) for e in page.all("strong")]
    assert found == [("grade good", "good"), ("grade fair", "fair"), ("grade poor", "poor")]
    verdict = page.texts("ul", class_="verdict")[0]
    assert verdict.startswith("good z' can be trusted") and "poor 41 % of the particles" in verdict


def test_a_grade_is_missing():
    broken = example_report(10)
    object.__setattr__(broken, "grades", ["good"])
    with pytest.raises(ValueError, match="longer"):
        page_of(broken)


def test_links_within_the_page_arrive(page):
    ids = [e["id"] for e in page.elements if "id" in e]
    assert len(ids) == len(set(ids))
    targets = [e["href"][1:] for e in page.all("a") if e["href"].startswith("#")]
    assert targets == ["scatter", "fidelity", "rotation", "landscape", "files"]
    labels = [e["aria-labelledby"] for e in page.elements if "aria-labelledby" in e]
    assert set(targets) | set(labels) <= set(ids)


def test_nothing_is_loaded_from_outside(page, text):
    for element in page.elements:
        assert not {"srcset", "background", "action", "data"} & set(element), element["tag"]
        for address in (element.get("src"), element.get("href")):
            if address is not None and element["tag"] != "a":
                assert address.startswith("data:"), address[:80]
    assert not page.all("iframe") and not page.all("base")
    for style in [e["text"] for e in page.all("style")] + [e.get("style") for e in page.elements]:
        assert not re.search(r"url\(|@import", style or "")
    policy = page.all("meta", **{"http-equiv": "Content-Security-Policy"})[0]["content"]
    assert "default-src 'none'" in policy and "http" not in policy


def test_files_are_linked_relative_to_the_page(page):
    links = [e for e in page.all("a") if not e["href"].startswith("#")]
    for link in links:
        parts = urlsplit(link["href"])
        assert not parts.scheme and not parts.netloc and not parts.query and not parts.fragment
        assert unquote(parts.path) == link["text"]
    assert [e["text"] for e in links][:2] == ["z_metric.pkl", "analyze.49/kmeans20/vol_001.mrc"]
    assert f"figures/{HOSTILE} #1?.png" in [e["text"] for e in links]


def test_hostile_names_show_literally(page):
    assert not page.all("b") and not page.all("i")
    shown = page.texts("dd") + page.texts("caption") + page.texts("figcaption")
    assert sum(HOSTILE in text for text in shown) == 1 + 1 + 4
    assert f"Workdir {HOSTILE}; a < b." in page.texts("p")
    assert page.texts("code")[-2:] == ["a < b", "cryodrgn graph_traversal"]
    names = [c["name"] for c in scatter_data(page)["colors"]]
    assert names[-1] == "class <i>" and "class <i>" in page.texts("option")


def test_data_cannot_end_their_script(page):
    category = scatter_data(page)["colors"][-1]["categories"]
    assert [name for name, _ in category] == ["closed </script>", "open & <b>wide</b>"]
    assert len(page.all("script")) == 4


def test_every_picture_has_a_caption_an_alternative_and_its_size(page):
    images = page.all("img")
    assert len(images) == len(page.all("figure")) == len(page.all("figcaption")) == 4
    for image in images:
        assert image["alt"] == "Distances in four spaces against Δ."
        assert image["loading"] == "lazy"
    assert all(e["aria-label"] for e in page.all("button", class_="enlarge"))


def test_pictures_are_wide_enough_and_no_wider(page, tmp_path):
    for image in page.all("img"):
        file = tmp_path / "picture.png"
        file.write_bytes(base64.b64decode(image["src"].removeprefix("data:image/png;base64,")))
        height, width = imread(file).shape[:2]
        assert 600 < width <= 1800
        assert width / height == pytest.approx(int(image["width"]) / int(image["height"]), 0.01)


def test_controls_have_names(page):
    for element in page.all("select") + page.all("input"):
        label = next(e for e in page.all("label") if element["id"] in labelled(page, e))
        assert label["text"].strip()
    assert all(" ".join(e["text"].split()) or e["aria-label"] for e in page.all("button"))


def labelled(page, label):
    """The ids of the controls that stand between this label and the next."""
    start = page.elements.index(label)
    names = []
    for element in page.elements[start + 1 :]:
        if element["tag"] in ("label", "div"):
            break
        names.append(element.get("id"))
    return names


def test_numbers_have_three_digits_and_counts_all(page):
    cells = page.texts("td", class_="number")
    assert cells[:5] == ["0.612", "0.400", "0.123", "10", "0.700"]
    assert "12,300" in cells and "1.23e-06" in cells and "1234567" in cells and "–" in cells


def test_columns_arrive_bit_by_bit(page):
    scatter, data = example_report(1000).scatter, scatter_data(page)
    assert data["count"] == data["total"] == 1000
    assert (column(data["particles"], "<i4") == scatter.particles).all()
    assert (column(data["clusters"], "<i4") == scatter.clusters).all()
    assert [axis["name"] for axis in data["axes"]] == list(scatter.axes)
    for axis in data["axes"]:
        assert (column(axis["values"], "<f4") == scatter.axes[axis["name"]]).all()


def colors_of(**colors):
    scatter = Scatter(np.arange(300), np.zeros(300, int), {"x": np.zeros(300)}, colors, 300)
    page = Reader(page_of(Report("t", [], [], {}, [], scatter)))
    return {color["name"]: color for color in scatter_data(page)["colors"]}


def test_integers_and_text_are_categories_floats_a_scale():
    rows = np.arange(300)
    colors = colors_of(
        none=rows % 4 - 1, flag=rows > 9, text=np.array(["b", "a"])[rows % 2], scale=rows / 7.0
    )
    assert [name for name, _ in colors["none"]["categories"]] == ["none", "0", "1", "2"]
    assert (column(colors["none"]["values"], "<i2") == rows % 4).all()
    assert [name for name, _ in colors["flag"]["categories"]] == ["no", "yes"]
    assert [name for name, _ in colors["text"]["categories"]] == ["a", "b"]
    assert (column(colors["text"]["values"], "<i2") == (rows + 1) % 2).all()
    assert colors["scale"]["categories"] is None
    assert (column(colors["scale"]["values"], "<f4") == (rows / 7).astype("f4")).all()
    # a cluster has the colour that the figures give it
    assert [tint for _, tint in colors["none"]["categories"]][1:3] == ["#1f77b4", "#aec7e8"]


def test_very_many_categories():
    rows = np.arange(300)
    text = np.where(rows < 150, "common", np.char.add("rare ", rows.astype(str)))
    colors = colors_of(micrograph=rows, text=text)
    assert colors["micrograph"]["categories"] is None
    names = [name for name, _ in colors["text"]["categories"]]
    assert len(names) == 60 and names[-1] == "others" and "common" in names
    codes = column(colors["text"]["values"], "<i2")
    assert all(names[code] in (name, "others") for code, name in zip(codes, text, strict=True))


def test_a_report_without_pictures_tables_and_files():
    scatter = Scatter(np.arange(3), np.zeros(3, int), {"x": np.zeros(3)}, {}, 3)
    section = Section("empty", "Empty", [], tables=[Table("nothing", ["a"], [])])
    page = Reader(page_of(Report("t", [], [], {}, [section], scatter)))
    assert page.texts("h2") == ["Verdict", "Particle by particle", "Empty"]


def test_the_same_report_gives_the_same_bytes(text):
    assert page_of(example_report(1000)) == text


def test_a_million_particles_are_sampled_small_and_fast(tmp_path):
    report = example_report(1_000_000)
    path = tmp_path / HOSTILE.replace("/", "") / "report.html"
    start = time.process_time()
    write_page(path, report)
    assert time.process_time() - start < 5
    assert path.stat().st_size < 12e6
    page = Reader(path.read_text("utf-8"))
    said = next(e["text"] for e in page.all("p", id="scatter-count"))
    assert "20,000 of 1,000,000 particles drawn at random" in " ".join(said.split())
    clusters = column(scatter_data(page)["clusters"], "<i4")
    assert len(clusters) == 20_000 and len(set(clusters.tolist())) == CLUSTERS


def test_a_page_that_cannot_be_written_leaves_the_old_one(tmp_path):
    path = tmp_path / "report.html"
    path.mkdir()
    with pytest.raises(OutputError, match="report.html cannot be written"):
        write_page(path, example_report(10))
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
