"""A running `cryodrgn dashboard`, as a person sees it in Chromium."""

import contextlib
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from browser import chromium, console_errors, requested_urls, screenshot, wait_for
from overlaid import Overlaid

pytestmark = pytest.mark.browser

CRYODRGN = shutil.which("cryodrgn", path=str(Path(sys.executable).parent))
FONTS = "https://fonts.googleapis.com"  # all that the dashboard takes from the network


@contextlib.contextmanager
def dashboard(workdir):
    """`cryodrgn dashboard WORKDIR` on a free port; the address that it answers at."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [CRYODRGN, "dashboard", str(workdir), "--no-browser", "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    address = f"http://127.0.0.1:{port}"
    try:
        wait_until_it_answers(address, server)
        yield address
    finally:
        server.terminate()
        server.wait(20)


def wait_until_it_answers(address, server, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert server.poll() is None, "the dashboard has ended"
        with contextlib.suppress(OSError):
            urllib.request.urlopen(address, timeout=20).read()
            return
        time.sleep(0.5)
    raise TimeoutError(f"nothing answers at {address}")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory, workdir_of):
    """embedded(dimension): a workdir that was trained with --ind, with its overlay."""
    made = {}

    def once(dimension):
        if dimension not in made:
            parent = tmp_path_factory.mktemp(f"dim{dimension}")
            made[dimension] = Overlaid(workdir_of("ind"), parent, dimension)
        return made[dimension]

    return once


@pytest.fixture(scope="module", params=[3, pytest.param(2, marks=pytest.mark.slow)])
def overlay(request, embedded):
    """--dim, the overlay, and where its dashboard answers."""
    made = embedded(request.param)
    with dashboard(made.path) as address:
        yield request.param, made, address


@pytest.fixture(scope="module")
def driver():
    with chromium(1400, 900, offline=True) as browser:
        yield browser


def open_page(driver, address):
    """Open it anew, and forget what the console said before."""
    driver.get(address)
    console_errors(driver)
    driver.get(address)


def errors_but_fonts(driver):
    """Offline, the dashboard's letters are another font's; nothing else may fail."""
    return [message for message in console_errors(driver) if FONTS not in message]


def plotted(driver, graph, trace=0):
    """(N, 2 or 3) coordinates that plotly has drawn."""
    script = """
        const trace = document.getElementById(arguments[0])._fullData[arguments[1]];
        return ["x", "y", "z"].filter((a) => trace[a]).map((a) => Array.from(trace[a]));
    """
    return np.array(driver.execute_script(script, graph, trace)).T


def choose(driver, select, value):
    """Choose an entry of a menu, as a click does."""
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", select)).select_by_value(value)


def wait_until_drawn(driver, graph):
    found = f"document.getElementById('{graph}')"
    overlay = f"document.getElementById('{graph}-rendering-overlay')"
    wait_for(driver, f"{found} && {found}._fullData && {found}._fullData.length > 0")
    shown = "cryo-plot-rendering-overlay--show"
    wait_for(driver, f"!{overlay} || !{overlay}.classList.contains('{shown}')")


def colours(driver, graph):
    """The colour of every drawn point, as text."""
    script = "return document.getElementById(arguments[0])._fullData[0].marker.color"
    return driver.execute_script(script, graph)


def test_the_explorer_shows_z_metric_and_the_clusters(overlay, driver):
    dimension, made, address = overlay
    open_page(driver, f"{address}/explorer")
    wait_until_drawn(driver, "scatter")
    axes = [driver.execute_script(f"return document.getElementById('s{a}').value") for a in "xy"]
    assert axes == ["UMAP1", "UMAP2"]
    np.testing.assert_allclose(plotted(driver, "scatter"), made.view, rtol=1e-6)
    screenshot(driver, f"explorer_dim{dimension}")
    choose(driver, "sc", "labels")
    graph = "document.getElementById('scatter')._fullData"
    wait_for(driver, f"{graph} && {graph}[0] && Array.isArray({graph}[0].marker.color)")
    wait_until_drawn(driver, "scatter")
    screenshot(driver, f"explorer_clusters_dim{dimension}")
    assert one_colour_each(colours(driver, "scatter"), made.labels)
    assert errors_but_fonts(driver) == []


def one_colour_each(colours, labels):
    pairs = {(str(colour), label) for colour, label in zip(colours, labels, strict=True)}
    return len(pairs) == len(set(labels)) == len({colour for colour, _ in pairs})


def test_the_3d_page_shows_z_metric(overlay, driver):
    """With two dimensions it is flat: the page needs three, and the third is zero."""
    dimension, made, address = overlay
    open_page(driver, f"{address}/landscape-full-3d")
    wait_until_drawn(driver, "latent3d")
    shown = plotted(driver, "latent3d")
    np.testing.assert_allclose(shown[:, :dimension], made.z_metric, rtol=1e-6)
    assert not shown[:, dimension:].any()
    choose(driver, "sc", "landscape_vol_cluster")
    graph = "document.getElementById('latent3d')._fullData"
    wait_for(driver, f"{graph} && {graph}[0] && Array.isArray({graph}[0].marker.color)")
    wait_until_drawn(driver, "latent3d")
    screenshot(driver, f"landscape_full_3d_dim{dimension}")
    assert one_colour_each(colours(driver, "latent3d"), made.labels)
    assert errors_but_fonts(driver) == []


def test_the_start_page_offers_them(overlay, driver):
    _, made, address = overlay
    open_page(driver, address)
    links = [a.get_attribute("href") for a in driver.find_elements("css selector", "a[href]")]
    assert {f"{address}/explorer", f"{address}/landscape-full-3d"} <= set(links)
    screenshot(driver, "start_page")
    addresses = [url for url in requested_urls(driver) if not url.startswith(address)]
    assert [url for url in addresses if url.startswith("http") and FONTS not in url] == []
    assert errors_but_fonts(driver) == []


@pytest.mark.slow
def test_guests_load_in_the_covariate_browser(embedded, driver):
    """In the user's own dashboard: the menu of colours, its last entry, and a click on each."""
    made = embedded(3)
    with dashboard(made.workdir) as address:
        open_page(driver, f"{address}/explorer")
        wait_until_drawn(driver, "scatter")
        for guest, column in (("metric_z", "metric_z_0"), ("metric_labels", "metric_labels")):
            choose(driver, "sc", "__load_covariate_pkl__")
            listed = "[...document.querySelectorAll('#covariate-pkl-list li')]"
            entry = f"{listed}.find((li) => li.textContent.includes('{guest}.pkl'))"
            wait_for(driver, entry)
            where = driver.find_element("id", "covariate-pkl-path").text
            assert where == str(made.workdir / "analyze.2")
            screenshot(driver, f"covariate_browser_{guest}")
            driver.execute_script(f"return {entry}").click()
            wait_for(driver, f"document.getElementById('sc').value === '{column}'")
            wait_until_drawn(driver, "scatter")
            time.sleep(1)  # for the eye only: the colours of the picture fade in
            screenshot(driver, f"covariate_{guest}")
        assert errors_but_fonts(driver) == []
        open_page(driver, f"{address}/explorer")  # they are axes once the page is loaded again
        wait_until_drawn(driver, "scatter")
        choose(driver, "sx", "metric_z_0")
        choose(driver, "sy", "metric_z_1")
        trace = "document.getElementById('scatter')._fullData[0]"
        for axis, value in zip("xy", made.z_metric[0], strict=False):
            wait_for(driver, f"Math.abs({trace}.{axis}[0] - {value}) < 1e-6")
        wait_until_drawn(driver, "scatter")
        np.testing.assert_allclose(plotted(driver, "scatter"), made.z_metric[:, :2], rtol=1e-6)
        screenshot(driver, "covariate_axes")
