"""What a reader does with the page, for tests: choosing, pointing, dragging, touching.

selenium is imported where it is used: plain pytest reads this file and does without it.
"""

import io
import time

import numpy as np
from browser import wait_for
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from scipy.spatial import KDTree


def settle(driver):
    """Until two frames have been painted: plotly draws points in the next one."""
    driver.execute_async_script(
        "const done = arguments[0]; requestAnimationFrame(() => requestAnimationFrame(done))"
    )
    time.sleep(0.3)


def choose(driver, name, value):
    """Choose the option of this text, as a reader does."""
    from selenium.webdriver.support.ui import Select

    Select(driver.find_element("id", name)).select_by_visible_text(value)
    settle(driver)


def points(driver):
    """Coordinates of what plotly was given, (n, 2), and where they are in the window, (n, 2)."""
    data, pixels = driver.execute_script(
        """
        const plot = document.getElementById("scatter-plot");
        plot.scrollIntoView();
        const [trace, layout] = [plot.data[0], plot._fullLayout];
        const box = plot.getBoundingClientRect();
        const across = (x) => box.left + layout.xaxis._offset + layout.xaxis.d2p(x);
        const down = (y) => box.top + layout.yaxis._offset + layout.yaxis.d2p(y);
        const rows = Array.from(trace.x, (x, i) => [x, trace.y[i]]);
        return [rows, rows.map(([x, y]) => [across(x), down(y)])];
        """
    )
    return np.array(data), np.array(pixels)


def loneliest(pixels):
    """The point farthest from its neighbours: nothing else is under the mouse there."""
    return int(KDTree(pixels).query(pixels, 2)[0][:, 1].argmax())


def mouse(driver):
    from selenium.webdriver.common.actions.action_builder import ActionBuilder

    return ActionBuilder(driver, duration=100)


def hover_text(driver, pixel):
    actions = mouse(driver)
    actions.pointer_action.move_to_location(*(int(round(p)) for p in pixel + [3, 3]))
    actions.pointer_action.move_to_location(*(int(round(p)) for p in pixel))
    actions.perform()
    wait_for(driver, "document.querySelector('.hoverlayer .hovertext') !== null", 10)
    lines = driver.find_elements("css selector", ".hoverlayer .hovertext .nums tspan")
    return [line.text for line in lines]


def screenshot(driver):
    return imread(io.BytesIO(driver.find_element("id", "scatter-plot").screenshot_as_png))[..., :3]


def coloured_pixels(image, color):
    """How many pixels lie on the way from white to a colour, half-way or nearer."""
    ink, target = 1 - image, 1 - np.array(to_rgb(color))
    strength = (ink @ target) / (target @ target)
    off = np.linalg.norm(ink - strength[..., None] * target, axis=-1)
    return int(((strength > 0.5) & (off < 0.04)).sum())


def drag(driver, corners):
    actions = mouse(driver)
    actions.pointer_action.move_to_location(*map(int, corners[0])).pointer_down()
    for corner in corners[1:]:
        actions.pointer_action.move_to_location(*map(int, corner))
    actions.pointer_action.pointer_up()
    actions.perform()
    wait_for(driver, "!document.getElementById('selection-clear').disabled", 10)


def downloaded(driver):
    path = driver.downloads / "selected_particles.txt"
    path.unlink(missing_ok=True)
    driver.find_element("id", "selection-download").click()
    for _ in range(100):
        if path.exists():
            return path
        time.sleep(0.1)
    raise AssertionError("nothing was downloaded")


def swiped(driver):
    """How far the page scrolls when a finger goes up by 160 pixels within the scatter."""

    def touch(kind, *places):
        points = [{"x": 200, "y": y} for y in places]
        driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    before = driver.execute_script("return scrollY")
    touch("touchStart", 350)
    for y in range(340, 180, -10):
        touch("touchMove", y)
    touch("touchEnd")
    settle(driver)
    return driver.execute_script("return scrollY") - before
