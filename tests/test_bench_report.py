"""What a bench leaves behind for people: plots, results.json and a page, which a real browser shows and a mouse can use."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("matplotlib", reason="needs the extra bench")

from tests.bench_support import measured, plan
from tests.browser import BROWSER, Browser, browse
from tests.support import ROOT

PLOTS = {"bpp-mse.png", "bpp-psnr.png", "speed.png", "levels.png"}


def test_what_is_written(dataset: Path, tmp_path: Path) -> None:
    rows, failures, told = measured(plan(dataset, json=tmp_path / "results.json", reference=ROOT / "bench" / "reference" / "kodak.csv"))
    assert (failures, told) == ([], [])
    assert {path.name for path in (tmp_path / "out").iterdir()} == PLOTS | {"rows.csv", "index.html"}
    content = json.loads((tmp_path / "results.json").read_text())
    assert [(row["bytes"], row["mse"]) for row in content["rows"]] == [(row.bytes, row.mse) for row in rows]
    assert {rate["anchor"] for rate in content["summary"]["rates"]} >= {"jpeg", "VTM (VVC)"}
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"\$\{?\w+", page)
    assert set(re.findall(r'src="([^":,]{1,40})', page)) == {"data"}  # nothing is loaded from anywhere
    assert not re.search(r"""(?:href|url|@import)\s*[=(]""", page)
    assert page.count('class="pair"') == 2
    assert page.count("<option") == 2 * 2 * 3  # two pictures, two lists, original and two codecs
    assert "more/cup, hot.png" in page
    assert str(tmp_path) not in page + json.dumps(content["head"])


def test_peers_alone_and_a_report_among_the_pictures(dataset: Path) -> None:
    """Without vqcodec there is nothing to compare, but a report; its plots, below the dataset here, are no pictures."""
    asked = plan(dataset, out=dataset / "report", codecs=("jpeg",), settings={"jpeg": (10.0, 40.0)}, model="nothing")
    rows, failures, _ = measured(asked)
    assert measured(replace(asked, resume=True)) == (rows, failures, ["4 rows are there already"])
    assert {row.image for row in rows} == {"cat.png", "more/cup, hot.png"}
    assert {path.name for path in asked.out.iterdir()} == PLOTS - {"levels.png"} | {"rows.csv", "results.json", "index.html"}


@pytest.fixture
def browser(dataset: Path) -> Iterator[Browser]:
    """A browser that shows the page of a bench."""
    if BROWSER is None:
        pytest.skip("there is no Chromium on this machine")
    measured(plan(dataset))
    with browse(BROWSER, dataset.parent / "out" / "index.html") as opened:
        yield opened


def test_a_mouse_drags_the_slider_and_the_lists_change_the_pictures(browser: Browser) -> None:
    """The page as a person uses it: events go through the browser's own hit testing."""
    missing = "[...document.images].filter(image => !image.naturalWidth && !image.closest('.store')).length"
    assert browser.evaluate(missing) == 0
    assert browser.evaluate("document.querySelectorAll('.pair').length") == 2
    pair = "document.querySelector('.pair')"
    assert browser.evaluate(f"{pair}.querySelector('.bar').offsetLeft / {pair}.querySelector('.wipe').offsetWidth") == pytest.approx(
        0.5, abs=0.02
    )
    browser.evaluate(f"{pair}.scrollIntoView({{block: 'center'}})")
    box = browser.evaluate(f"(b => [b.left, b.top, b.width, b.height])({pair}.querySelector('.wipe').getBoundingClientRect())")
    browser.drag((box[0] + box[2] / 2, box[1] + box[3] / 2), (box[0] + box[2] / 5, box[1] + box[3] / 2))
    assert browser.evaluate(f"{pair}.querySelector('.bar').offsetLeft / {pair}.querySelector('.wipe').offsetWidth") == pytest.approx(
        0.2, abs=0.03
    )
    clipped = browser.evaluate(f"getComputedStyle({pair}.querySelector('.over')).clipPath")
    assert 77 <= float(re.findall(r"([\d.]+)%", clipped)[0]) <= 83
    before = browser.evaluate(f"{pair}.querySelector('.over').src")
    browser.evaluate(f"(l => {{ l.value = '0'; l.dispatchEvent(new Event('change')) }})({pair}.querySelector('select'))")
    assert browser.evaluate(f"{pair}.querySelector('.over').src") != before
    assert browser.evaluate(f"{pair}.querySelector('label span').textContent") == "as it came"
    assert re.fullmatch(r"[\d.]+ bpp.*, [\d.]+ dB", browser.evaluate(f"{pair}.querySelectorAll('label span')[1].textContent"))


def test_the_page_never_scrolls_sideways(browser: Browser) -> None:
    for width in (390, 1280):
        browser.resize(width, 900)
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
