"""The page of `vqcodec view` in a real browser: a picture is dropped, the sliders are moved, and the screen is looked at."""

from __future__ import annotations

import base64
import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

pytest.importorskip("flask", reason="needs the extra view")
pytest.importorskip("selenium", reason="needs selenium, of the extra dev")

from selenium import webdriver
from selenium.common.exceptions import TimeoutException
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.support import GOLDEN, noise
from tests.test_view import viewing
from vqcodec import codec, image
from vqcodec.model import Model

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="there is no Chromium with its chromedriver on this machine")
DROP = """
const bytes = Uint8Array.from(atob(arguments[0]), (letter) => letter.charCodeAt(0)), carried = new DataTransfer();
carried.items.add(new File([bytes], arguments[1]));
for (const kind of ["dragover", "drop"])
  document.body.dispatchEvent(new DragEvent(kind, { dataTransfer: carried, bubbles: true, cancelable: true }));
"""
SLIDE = """
const slider = document.getElementById(arguments[0]);
slider.value = arguments[1];
slider.dispatchEvent(new Event("input"));
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900", "--force-color-profile=srgb"):
        options.add_argument(argument)
    with webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER)) as found:
        yield found


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with viewing() as found:
        yield found


def drop(browser: Any, data: bytes, name: str, taken: bool = True) -> None:
    """Drops a file on the page, and waits until its picture is the one that is shown, where it is `taken`."""
    browser.execute_script(DROP, base64.b64encode(data).decode(), name)
    if taken:
        wait(browser, f"document.getElementById('name').textContent.startsWith('{name}')")


def wait(browser: Any, script: str) -> Any:
    try:
        return WebDriverWait(browser, 60).until(lambda _: browser.execute_script(f"return {script}"))
    except TimeoutException as error:
        log = [entry["message"] for entry in browser.get_log("browser")]
        raise AssertionError(
            f"{script} did not come true; the page says: {browser.find_element(By.TAG_NAME, 'body').text}; log: {log}"
        ) from error


def rows(browser: Any) -> list[list[str]]:
    """The table of levels once it is full."""
    wait(
        browser, "[...document.querySelectorAll('#levels td')].every((cell) => cell.textContent) && document.getElementById('busy').hidden"
    )
    return [[cell.text for cell in row.find_elements(By.TAG_NAME, "td")] for row in browser.find_elements(By.CSS_SELECTOR, "#levels tr")]


def screen(browser: Any) -> np.ndarray:
    """What the frame with the picture looks like, RGB."""
    with Pillow.open(io.BytesIO(browser.find_element(By.ID, "frame").screenshot_as_png)) as shot:
        return np.array(shot.convert("RGB")).astype(int)


def test_drop_slide_and_wipe(browser: Any, address: str, model: Model) -> None:
    browser.get(address)
    assert browser.find_element(By.ID, "hint").is_displayed()
    original = np.full((64, 96, 3), (200, 30, 60), np.uint8)
    drop(browser, image.write(original), "flat.png")
    before = rows(browser)
    data = codec.compress(original, 50, model)
    assert before[2][2] == f"{len(data):,}"
    assert browser.find_element(By.ID, "name").text.startswith("flat.png 96 \N{MULTIPLICATION SIGN} 64")
    restored = codec.decompress(data, model).reshape(-1, 3).mean(0)
    assert np.abs(restored - original[0, 0]).max() > 40  # the untrained model's pixels cannot be mistaken for the original's

    browser.execute_script(SLIDE, "wipe", 99)
    assert np.abs(np.median(screen(browser)[:, :600], (0, 1)) - original[0, 0]).max() <= 2
    browser.execute_script(SLIDE, "wipe", 1)
    assert np.abs(screen(browser)[:, 100:].reshape(-1, 3).mean(0) - restored).max() < 12

    browser.execute_script(SLIDE, "quality", 90)
    wait(browser, f"document.querySelector('#levels tr:last-child td:nth-child(3)').textContent !== '{before[2][2]}'")
    assert rows(browser)[2][2] == f"{len(codec.compress(original, 90, model)):,}"
    for row, label in zip(browser.find_elements(By.CSS_SELECTOR, "#levels input"), ("top", "top + middle", "all levels"), strict=True):
        row.click()
        wait(browser, f"document.getElementById('right').textContent === '{label}'")
    severe = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []


def test_a_bad_file_is_said_and_the_picture_stays(browser: Any, address: str) -> None:
    browser.get(address)
    drop(browser, image.write(noise(20, 20)), "good.png")
    rows(browser)
    drop(browser, b"nothing", "bad.png", taken=False)
    said = wait(browser, "!document.getElementById('error').hidden && document.getElementById('error').textContent")
    assert "bad.png" in said
    assert browser.find_element(By.ID, "name").text.startswith("good.png")


def test_a_compressed_file_has_no_quality_to_choose(browser: Any, address: str) -> None:
    browser.get(address)
    drop(browser, (GOLDEN / "photo-q60.vq").read_bytes(), "photo.vq")
    assert [row[4] for row in rows(browser)] == ["\N{EN DASH}"] * 3
    quality = browser.find_element(By.ID, "quality")
    assert (quality.get_attribute("value"), quality.is_enabled()) == ("60", False)
    assert not browser.find_element(By.ID, "line").is_displayed()
    browser.find_elements(By.CSS_SELECTOR, "#levels input")[0].click()
    wait(browser, "document.getElementById('right').textContent === 'top'")
    assert browser.find_element(By.ID, "line").is_displayed()


def test_a_wild_slider_ends_at_its_last_place(browser: Any, address: str, tmp_path: Path, model: Model) -> None:
    browser.get(address)
    pixels = noise(64, 64)
    drop(browser, image.write(pixels), "a.png")
    rows(browser)
    for quality in (10, 95, 20, 80, 33):
        browser.execute_script(SLIDE, "quality", quality)
    expected = f"{len(codec.compress(pixels, 33, model)):,}"
    wait(browser, f"document.querySelector('#levels tr:last-child td:nth-child(3)').textContent === '{expected}'")
    assert rows(browser)[2][2] == expected
    assert browser.find_element(By.ID, "save").get_attribute("href").endswith("quality=33")


def test_what_was_dropped_last_is_what_is_shown(browser: Any, address: str) -> None:
    """The page opens with the session's first picture; one that is dropped meanwhile is not replaced by it, nor by a slower one."""
    browser.get(address)
    drop(browser, image.write(noise(20, 30)), "first.png")
    browser.get("about:blank")
    browser.execute_cdp_cmd("Page.enable", {})
    late = "const held = fetch; fetch = async (path, ...rest) => { const found = await held(path, ...rest); "
    late += "if (/^pictures\\/\\d+$|slow/.test(path)) await new Promise((done) => setTimeout(done, 1500)); return found; };"
    script = browser.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": late})
    try:
        browser.get(address)
        drop(browser, image.write(noise(30, 20)), "second.png")
        browser.execute_async_script("setTimeout(arguments[0], 2500)")
        assert browser.find_element(By.ID, "name").text.startswith("second.png")
        drop(browser, image.write(noise(30, 20)), "slow.png", taken=False)
        drop(browser, image.write(noise(30, 20)), "third.png")
        browser.execute_async_script("setTimeout(arguments[0], 2500)")
        assert browser.find_element(By.ID, "name").text.startswith("third.png")
        browser.get(address)
        drop(browser, b"nothing", "bad.png", taken=False)  # whose turn it was goes back to the first picture
        wait(browser, "!document.getElementById('error').hidden && document.getElementById('name').textContent")
    finally:
        browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", script)
