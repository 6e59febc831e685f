"""The report of many particles: bounded in seconds and megabytes, and honest about its sample.

The bounds are some four times what one core takes (docs/report.md): they catch what grows with N
and must not, not a slow day of the machine.
"""

import json
import re
import time

import pytest
from benchmarks.workdirs import with_particles
from browser import chromium, console_errors, overflow_in_pixels, screenshot, wait_for
from conftest import quiet
from page_driving import hover_text, loneliest, points
from running import FEW, run
from shipped import DEMO

from cryodrgn_metric.artifacts import remove_files
from cryodrgn_metric.metric_folder import MetricFolder
from cryodrgn_metric.reporting import ReportConfig, report
from cryodrgn_metric.workdir import open_workdir

PARTICLES = 300_000
DRAWN = 20_000  # by the interactive scatter
MEGABYTE = 1e6

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The demo's particles fifty times over, embedded in three dimensions by the real command."""
    folder = tmp_path_factory.mktemp("scale") / "00_dec"
    epoch = open_workdir(DEMO).epoch
    with_particles(DEMO, folder, PARTICLES, epoch)
    run(folder, "--dim", 3, small=FEW)
    return folder


@pytest.fixture
def folder(workdir):
    opened = open_workdir(str(workdir))
    return MetricFolder(opened.outdir, opened.epoch)


def test_every_stage_stays_usable(folder):
    fidelity = json.loads(folder.fidelity.read_text())
    seconds = fidelity["timings_in_seconds"]
    limits = {"transform": 10, "clusters": 20, "local geometry": 60, "overlay": 10, "report": 120}
    assert {name for name, limit in limits.items() if seconds[name] > limit} == set()
    assert fidelity["peak_memory_in_bytes"] < 4e9


def test_page_and_notebook_do_not_grow_with_the_particles(folder):
    assert folder.page.stat().st_size < 20 * MEGABYTE
    assert folder.notebook.stat().st_size < 15 * MEGABYTE
    assert sum(path.stat().st_size for path in folder.figures.iterdir()) < 12 * MEGABYTE
    outputs = [
        output
        for cell in json.loads(folder.notebook.read_text())["cells"]
        for output in cell.get("outputs", ())
    ]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not any(output["output_type"] == "error" for output in outputs)


def test_page_and_notebook_say_that_they_show_a_sample(folder):
    page = re.sub(r"\s+", " ", folder.page.read_text())
    assert "20,000 of 300,000 particles drawn at random" in page
    assert "A random sample of 50,000 of the 300,000 particles in z" in page
    assert "Every particle in z" not in page
    for text in (page, folder.notebook.read_text()):
        assert "Of the 300,000 particles, figures with one point a particle show 50,000" in text


def test_the_report_is_made_again_in_seconds(workdir, folder):
    remove_files([folder.page])
    began = time.perf_counter()
    with quiet():
        report(ReportConfig(str(workdir)))
    assert time.perf_counter() - began < 120
    assert folder.page.is_file()


@pytest.mark.browser
def test_the_page_of_many_particles_opens_and_answers(folder):
    with chromium(offline=True) as driver:
        began = time.perf_counter()
        driver.get(folder.page.as_uri())
        wait_for(driver, "!!document.querySelector('#scatter-plot').data")
        assert time.perf_counter() - began < 30
        assert not console_errors(driver) and overflow_in_pixels(driver) <= 0
        shown, pixels = points(driver)
        assert len(shown) == DRAWN
        text = hover_text(driver, pixels[loneliest(pixels)])
        assert int(re.search(r"particle (\d+)", " ".join(text))[1]) < PARTICLES
        heap = driver.execute_script("return performance.memory.usedJSHeapSize")
        assert heap < 300 * MEGABYTE
        screenshot(driver, "report_of_many")
