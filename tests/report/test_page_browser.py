"""The page in a real Chromium: it draws, tells, colours, selects, and fits, large and small."""

import io
import subprocess
import sys

import numpy as np
import pytest
from browser import chromium, console, overflow_in_pixels, requested_urls, wait_for
from matplotlib.image import imread
from page_driving import (
    choose,
    coloured_pixels,
    downloaded,
    drag,
    hover_text,
    loneliest,
    points,
    screenshot,
    settle,
    swiped,
)
from report_example import HOSTILE, example_report

from cryodrgn_metric.report.drawing import NONE
from cryodrgn_metric.report.page import write_page

pytestmark = pytest.mark.browser

SIZES = {"desktop": (1400, 900), "phone": (390, 844)}
COUNTS = [1000, pytest.param(1_000_000, marks=pytest.mark.slow)]
DRAWN = "document.querySelector('#scatter-plot .plotly .main-svg') !== null"


@pytest.fixture(scope="module", params=COUNTS, ids=["thousand", "million"])
def report(request):
    return example_report(request.param)


@pytest.fixture(scope="module")
def address(report, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / HOSTILE.replace("/", "") / "report.html"
    write_page(path, report)
    return path.as_uri()


@pytest.fixture(scope="module", params=SIZES)
def driver(request, tmp_path_factory):
    downloads = tmp_path_factory.mktemp("downloads")
    with chromium(*SIZES[request.param], offline=True, downloads=downloads) as driver:
        driver.downloads = downloads
        yield driver


@pytest.fixture
def page(driver, address):
    """The page, just loaded, the scatter in view; whatever a test does, no error is logged."""
    driver.get(address)
    wait_for(driver, DRAWN)
    driver.execute_script("document.querySelector('#scatter-plot').scrollIntoView()")
    settle(driver)
    yield driver
    assert console(driver) == []


def test_it_asks_for_nothing_and_fits_the_window(page, address):
    requested_urls(page)  # those of earlier pages
    page.get(address)
    wait_for(page, DRAWN)
    urls = [url for url in requested_urls(page) if not url.startswith(("data:", "blob:"))]
    assert set(urls) == {address}
    assert overflow_in_pixels(page) == 0
    page.execute_script("document.querySelectorAll('details').forEach((d) => (d.open = true))")
    for name in ("local stretch", "class <i>", "HDBSCAN"):
        choose(page, "scatter-color", name)
        assert overflow_in_pixels(page) == 0


def test_every_particle_of_the_sample_is_drawn(page, report):
    assert page.execute_script("return document.getElementById('scatter-plot').data[0].type") == (
        "scattergl"
    )
    data, pixels = points(page)
    expected = np.stack([report.scatter.axes["z' 1"], report.scatter.axes["z' 2"]], 1)
    assert (data.astype(np.float32) == expected).all()
    image = screenshot(page)
    for color in ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd"):  # clusters 0, 2, 4, 8
        assert coloured_pixels(image, color) > 30, color


def test_hovering_tells_the_particle_and_its_cluster(page, report):
    _, pixels = points(page)
    row = loneliest(pixels)
    number, cluster = report.scatter.particles[row], report.scatter.clusters[row]
    assert hover_text(page, pixels[row]) == [f"particle {number}", f"cluster {cluster}"]


def test_hovering_tells_the_value_of_the_colour(page, report):
    choose(page, "scatter-color", "class <i>")
    _, pixels = points(page)
    row = loneliest(pixels)
    value = report.scatter.colors["class <i>"][row]
    assert hover_text(page, pixels[row])[2:] == [f"class <i>: {value}"]
    choose(page, "scatter-color", "local stretch")
    value = report.scatter.colors["local stretch"][row]
    assert hover_text(page, points(page)[1][row])[2:] == [f"local stretch: {value:#.3g}"]
    choose(page, "scatter-color", "micrograph")
    value = report.scatter.colors["micrograph"][row]
    assert hover_text(page, points(page)[1][row])[2:] == [f"micrograph: {value}"]


def test_colours_change_with_the_choice(page):
    clusters = screenshot(page)
    assert page.find_element("id", "scatter-legend").is_displayed()
    choose(page, "scatter-color", "local stretch")
    stretch = screenshot(page)
    assert coloured_pixels(clusters, "#ff7f0e") > 30 > coloured_pixels(stretch, "#ff7f0e")
    assert coloured_pixels(stretch, "#440154") > 20  # the dark end of viridis
    assert not page.find_element("id", "scatter-legend").is_displayed()
    titles = page.find_elements("css selector", "#scatter-plot .cbtitle, [class*=cbtitle]")
    assert "local stretch" in [title.text for title in titles]
    choose(page, "scatter-color", "HDBSCAN")
    assert coloured_pixels(screenshot(page), NONE) > 30


def test_axes_change_with_the_choice(page, report):
    choose(page, "scatter-x", "PC2 of z'")
    choose(page, "scatter-y", "z' 3")
    data, _ = points(page)
    expected = np.stack([report.scatter.axes["PC2 of z'"], report.scatter.axes["z' 3"]], 1)
    assert (data.astype(np.float32) == expected).all()
    titles = page.find_elements("css selector", ".xtitle, .ytitle")
    assert {title.text for title in titles} == {"PC2 of z'", "z' 3"}


def pixels_per_unit(driver):
    data, pixels = points(driver)
    return np.ptp(pixels, axis=0) / np.ptp(data, axis=0)


def test_equal_scales_are_a_choice(page):
    choose(page, "scatter-y", "z' 3")
    across, down = pixels_per_unit(page)
    assert across == pytest.approx(down, 1e-3)
    page.find_element("id", "scatter-equal").click()
    settle(page)
    across, down = pixels_per_unit(page)
    assert down > 2 * across  # the third coordinate is noise, blown up to fill the height


def test_a_cluster_can_be_hidden_by_keyboard(page, report):
    boxes = page.find_elements("css selector", "#scatter-legend input")
    assert len(boxes) == 20
    boxes[3].send_keys(" ")
    settle(page)
    assert len(points(page)[0]) == (report.scatter.clusters != 3).sum()
    none = page.find_elements("css selector", "#scatter-legend button")[1]
    none.send_keys("\n")
    settle(page)
    assert len(points(page)[0]) == 0
    boxes[5].send_keys(" ")
    settle(page)
    assert len(points(page)[0]) == (report.scatter.clusters == 5).sum()


def said(driver):
    return driver.find_element("id", "selection-count").text


def test_a_box_selects_particles_whose_numbers_become_a_pickle(page, report):
    choose(page, "scatter-drag", "selects by box")
    _, pixels = points(page)
    middle = np.median(pixels, axis=0)
    low, high = pixels.min(0) - 5, np.array([middle[0], pixels[:, 1].max() + 5])
    drag(page, [low, high])
    edge = int(high[0])
    inside = pixels[:, 0] < edge
    near = np.abs(pixels[:, 0] - edge) < 1
    count = int(said(page).split()[0].replace(",", ""))
    assert abs(count - inside.sum()) <= near.sum() and 0 < count < len(pixels)

    path = downloaded(page)
    numbers = np.loadtxt(path, dtype=int, ndmin=1)
    assert len(numbers) == count and (np.diff(numbers) > 0).all()
    sure = report.scatter.particles[inside & ~near]
    assert set(sure.tolist()) <= set(numbers.tolist())
    assert not set(numbers.tolist()) & set(report.scatter.particles[~inside & ~near].tolist())

    page.execute_script("document.querySelector('details').open = true")
    line = page.find_element("id", "to-pickle").text
    line = line.replace("python", sys.executable, 1)
    subprocess.run(line, shell=True, cwd=path.parent, check=True)
    assert (np.load(path.with_suffix(".pkl"), allow_pickle=True) == numbers).all()


def test_a_lasso_selects_and_the_selection_outlives_another_colour(page, report):
    choose(page, "scatter-drag", "selects by lasso")
    _, pixels = points(page)
    low, high = pixels.min(0) - 4, pixels.max(0) + 4
    middle = (low + high) / 2
    drag(page, [low, (middle[0], low[1]), middle, (middle[0], high[1]), (low[0], high[1]), low])
    before = said(page)
    count = int(before.split()[0].replace(",", ""))
    inside = pixels[:, 0] < middle[0]
    assert abs(count - inside.sum()) <= (np.abs(pixels[:, 0] - middle[0]) < 2).sum() + 1
    choose(page, "scatter-color", "local stretch")
    assert said(page) == before
    script = "return document.getElementById('scatter-plot').data[0].selectedpoints.length"
    assert page.execute_script(script) == count
    page.find_element("id", "selection-clear").click()
    assert said(page) == "No particles selected."


def test_what_is_shown_can_be_selected_without_a_mouse(page, report):
    page.find_elements("css selector", "#scatter-legend button")[1].send_keys("\n")
    page.find_elements("css selector", "#scatter-legend input")[7].send_keys(" ")
    page.find_element("id", "select-shown").send_keys("\n")
    expected = np.sort(report.scatter.particles[report.scatter.clusters == 7])
    assert said(page) == f"{len(expected):,} particles selected."
    assert (np.loadtxt(downloaded(page), dtype=int) == expected).all()


def test_pictures_open_at_full_size(page, report):
    page.execute_script("document.querySelector('.enlarge').scrollIntoView()")
    page.find_element("css selector", ".enlarge").click()
    wait_for(page, "document.querySelector('dialog[open] img').complete")
    sizes = page.execute_script(
        "const i = document.querySelector('dialog img'); return [i.width, i.naturalWidth, i.alt]"
    )
    across = imread(io.BytesIO(report.sections[0].pictures[0].png)).shape[1]
    assert sizes[0] == sizes[1] == across and sizes[2]
    assert overflow_in_pixels(page) == 0
    page.find_element("css selector", "dialog button").click()
    assert not page.find_element("id", "full-size").is_displayed()


def test_pictures_shrink_to_the_window(page):
    script = "return Array.from(document.images, (i) => i.getBoundingClientRect().right)"
    rights = page.execute_script(script)
    assert len(rights) == 4
    assert max(rights) <= page.execute_script("return document.documentElement.clientWidth")


def test_a_window_that_narrows_redraws_the_colour_bar(page):
    choose(page, "scatter-color", "local stretch")
    for width in (1400, 390, 1400):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        settle(page)
        bars = page.find_elements("css selector", "#scatter-plot .colorbar")
        assert len(bars) == 1
        box = bars[0].rect
        assert (box["width"] > box["height"]) == (width == 390)
        assert overflow_in_pixels(page) == 0


def test_a_finger_on_the_scatter_scrolls_the_page_and_a_tap_tells(address, report):
    with chromium(*SIZES["phone"]) as driver:
        driver.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
        driver.get(address)
        wait_for(driver, DRAWN)
        _, pixels = points(driver)
        settle(driver)
        shown = driver.find_element("id", "scatter-drag").get_property("value")
        assert shown == "", "the choice that scrolls the page"
        row = loneliest(pixels)
        place = {"x": int(round(pixels[row, 0])), "y": int(round(pixels[row, 1]))}
        driver.execute_cdp_cmd("Input.synthesizeTapGesture", place)
        wait_for(driver, "document.querySelector('.hoverlayer .hovertext') !== null", 10)
        lines = driver.find_elements("css selector", ".hoverlayer .hovertext .nums tspan")
        assert lines[0].text == f"particle {report.scatter.particles[row]}"
        assert swiped(driver) > 100
        choose(driver, "scatter-drag", "zooms")
        driver.execute_script("document.querySelector('#scatter-plot').scrollIntoView()")
        assert swiped(driver) == 0


def test_without_webgl_fewer_points_are_drawn(driver, address, report):
    """By svg, in a browser that refuses a WebGL context as one without a driver for it does."""
    source = """
        const given = HTMLCanvasElement.prototype.getContext;
        HTMLCanvasElement.prototype.getContext = function (kind, ...rest) {
          return kind.includes("webgl") ? null : given.call(this, kind, ...rest);
        };
    """
    script = driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": source})
    try:
        driver.get(address)
        wait_for(driver, DRAWN)
        driver.execute_script("document.querySelector('#scatter-plot').scrollIntoView()")
        settle(driver)
        drawn = min(len(report.scatter), 4000)
        marks = "document.querySelectorAll('#scatter-plot .points path').length"
        assert driver.execute_script(f"return {marks}") == drawn
        note = driver.find_element("id", "scatter-note").text
        assert f"{drawn:,} of the {len(report.scatter):,} particles are drawn" in note
        _, pixels = points(driver)
        row = loneliest(pixels)
        assert hover_text(driver, pixels[row])[0] == f"particle {report.scatter.particles[row]}"
        assert console(driver) == []
    finally:
        driver.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
