"""The report of a real run in real Chromium: the very file that the command has written."""

import re
import shutil

import numpy as np
import pytest
from browser import (
    chromium,
    console_errors,
    overflow_in_pixels,
    requested_urls,
    screenshot,
    wait_for,
)
from conftest import PARTICLES
from page_driving import choose, hover_text, loneliest, points
from running import FEW, run

from cryodrgn_metric.metric_folder import MetricFolder

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def folder(tmp_path_factory, vae_workdir):
    workdir = tmp_path_factory.mktemp("browser") / "work dir ü"
    shutil.copytree(vae_workdir, workdir)
    run(workdir, "--epoch", "2", small=FEW)
    return MetricFolder.beside(workdir, 2)


@pytest.mark.parametrize(("width", "height"), [(1400, 1000), (390, 844)])
def test_the_report_of_a_run_opens_and_answers(folder, width, height):
    with chromium(width, height, offline=True) as driver:
        address = folder.page.as_uri()
        driver.get(address)
        wait_for(driver, "!!document.querySelector('#scatter-plot').data")
        assert not console_errors(driver) and overflow_in_pixels(driver) <= 0
        assert {url for url in requested_urls(driver) if not url.startswith("data:")} == {address}
        shown, _ = points(driver)
        assert len(shown) == PARTICLES
        z_metric = np.loadtxt(folder.z_metric_csv, delimiter=",", skiprows=1)
        np.testing.assert_allclose(np.sort(shown, axis=0), np.sort(z_metric, axis=0), rtol=1e-5)
        for color in ("cluster", "local stretch", "z 1"):
            choose(driver, "scatter-color", color)
        _, pixels = points(driver)
        text = " ".join(hover_text(driver, pixels[loneliest(pixels)]))
        assert re.search(r"particle \d+", text) and "cluster" in text
        pictures = driver.execute_script(
            "return Array.from(document.images, image => {"
            " image.loading = 'eager'; return image.alt.length > 0; })"
        )
        assert len(pictures) > 20 and all(pictures)
        wait_for(
            driver, "Array.from(document.images).every(i => i.complete && i.naturalWidth > 0)"
        )
        assert overflow_in_pixels(driver) <= 0 and not console_errors(driver)
        screenshot(driver, f"report_of_a_run_{width}")
