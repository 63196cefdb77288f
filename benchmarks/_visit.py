"""A visit of Chromium to the page of `cm3leon demo`, for its test and for the pictures in docs/.

`CM3LEON_BUNDLE=runs/quickstart/bundle python -m benchmarks._visit` writes docs/demo_generate.png
and docs/demo_boxes.png, of a bundle that was trained on scenes. Debian has Chromium with its driver
as chromium-driver.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cm3leon_jax.decoding.generator import Generator, load

BUNDLE = os.environ.get("CM3LEON_BUNDLE", "runs/quickstart/bundle")
DOCS = Path(__file__).parents[1] / "docs"
PATIENCE = 120  # seconds, for what takes a few where nothing else runs
CHROMIUM, DRIVER = (shutil.which(name) for name in ("chromium", "chromedriver"))


@contextmanager
def serving(generator: Generator) -> Iterator[str]:
    """The address of the page, which a thread serves."""
    from cm3leon_jax.demo.server import bind, make_server

    server = make_server(generator)
    with bind(0) as place:
        run = {"sockets": [place]}
        thread = threading.Thread(target=server.run, kwargs=run, daemon=True)
        thread.start()
        end = time.monotonic() + PATIENCE
        while not server.started and time.monotonic() < end:
            time.sleep(0.05)
        try:
            yield f"http://127.0.0.1:{place.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(PATIENCE)


@contextmanager
def browsing(width: int = 1280, height: int = 800) -> Iterator[Any]:
    """Chromium without a window, that keeps a record of its requests."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--hide-scrollbars"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        yield browser
    finally:
        browser.quit()


def find(browser: Any, css: str, text: str = "") -> list[Any]:
    """What is seen of a kind and has a text in it."""
    script = """return [...document.querySelectorAll(arguments[0])].filter(
        (each) => each.offsetParent && each.innerText.includes(arguments[1]))"""
    return browser.execute_script(script, css, text)


def wait(browser: Any, css: str, text: str = "", count: int = 1) -> list[Any]:
    """The same, once there are so many."""
    end = time.monotonic() + PATIENCE
    while len(found := find(browser, css, text)) != count:
        assert time.monotonic() < end, f"{len(found)} of {css} {text!r}, not {count}"
        time.sleep(0.1)
    return found


def drag(browser: Any, x0: float, y0: float, x1: float, y1: float) -> None:
    """Drags a rectangle over the field of a tab, in shares of its side."""
    from selenium.webdriver.common.action_chains import ActionChains

    (stage,) = find(browser, ".stage")
    side = stage.size["width"]
    chain = ActionChains(browser, duration=50)
    chain.move_to_element_with_offset(stage, int((x0 - 0.5) * side), int((y0 - 0.5) * side))
    chain.click_and_hold().move_by_offset(int((x1 - x0) * side), int((y1 - y0) * side))
    chain.release().perform()


def main() -> None:
    with serving(load(BUNDLE)) as address, browsing() as browser:
        browser.get(address)
        (documents,) = wait(browser, 'input[aria-label="number input for Documents"]')
        documents.clear()
        documents.send_keys("2\t")
        find(browser, "button", "Draw")[0].click()
        wait(browser, "img.drawn", count=4)
        browser.save_screenshot(DOCS / "demo_generate.png")

        find(browser, "button[role=tab]", "Boxes")[0].click()
        wait(browser, ".stage")
        things = {"red circle": (0.1, 0.1, 0.42, 0.42), "blue square": (0.54, 0.54, 0.97, 0.97)}
        for number, (name, corners) in enumerate(things.items(), start=1):
            drag(browser, *corners)
            wait(browser, ".names input", count=number)[-1].send_keys(name)
        (caption,) = find(browser, "label textarea")
        caption.send_keys("a red circle and a blue square on white")
        find(browser, "button", "Draw")[0].click()
        wait(browser, "figure", count=2)
        browser.save_screenshot(DOCS / "demo_boxes.png")


if __name__ == "__main__":
    main()
