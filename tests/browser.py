"""A real headless Chromium; tests that need it carry the marker `browser`.

Debian: `apt-get install chromium chromium-driver`; `pip install selenium` comes with the extra
`test`. Another Chromium is named by the environment variables CHROMIUM and CHROMEDRIVER.
"""

import contextlib
import json
import os
import shutil

import pytest

# WebGL without a graphics card, for plotly's large and 3-D scatters; no sandbox, for containers.
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--hide-scrollbars",
]


@contextlib.contextmanager
def chromium(width=1400, height=900, offline=False, downloads=None):
    """Yield a selenium driver whose page has exactly this size, whatever the window's least is.

    Arguments:
        width, height: of the page in CSS pixels.
        offline: nothing but this machine is reached: any other host name has no address.
        downloads: the folder in which files that the page offers are saved.
    """
    webdriver = pytest.importorskip("selenium.webdriver")
    browser = os.environ.get("CHROMIUM") or shutil.which("chromium")
    driver_path = os.environ.get("CHROMEDRIVER") or shutil.which("chromedriver")
    if not browser or not driver_path:
        pytest.skip("needs chromium and chromedriver (Debian: chromium, chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in [*ARGUMENTS, f"--window-size={width},{height}"]:
        options.add_argument(argument)
    if offline:
        rules = "MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1"
        options.add_argument(f"--host-resolver-rules={rules}")
    if downloads is not None:
        preferences = {"download.default_directory": str(downloads)}
        options.add_experimental_option("prefs", preferences)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(driver_path)
    driver = webdriver.Chrome(options=options, service=service)
    try:
        driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        yield driver
    finally:
        driver.quit()


def console(driver):
    """What pages wrote to the console since the last call, as [(level, message)]."""
    return [(entry["level"], entry["message"]) for entry in driver.get_log("browser")]


def console_errors(driver):
    """The messages among it that are errors: exceptions, and files that could not be had."""
    return [message for level, message in console(driver) if level == "SEVERE"]


def requested_urls(driver):
    """Every address that pages asked for since the last call."""
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [event for event in events if event["method"] == "Network.requestWillBeSent"]
    return [event["params"]["request"]["url"] for event in sent]


def overflow_in_pixels(driver):
    """By how much the page is wider than the window; 0 where nothing needs to be scrolled."""
    script = "const e = document.documentElement; return e.scrollWidth - e.clientWidth"
    return driver.execute_script(script)


def wait_for(driver, script, timeout=30):
    """Wait until a JavaScript expression is true, and give what it is."""
    from selenium.webdriver.support.ui import WebDriverWait

    message = f"never true within {timeout} s: {script}"
    return WebDriverWait(driver, timeout, 0.1).until(
        lambda d: d.execute_script(f"return ({script})"), message
    )


def screenshot(driver, name):
    """Save what the page looks like to the folder $SCREENSHOTS, for a person to look at."""
    if folder := os.environ.get("SCREENSHOTS"):
        driver.save_screenshot(os.path.join(folder, f"{name}.png"))
