"""The README, the card and the picture say what the committed results say, and that of the model that ships."""

from __future__ import annotations

import copy
import json
import math
import re
import runpy
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image as Pillow

from tests.support import DEFAULT_MODEL, ROOT, run_python
from vqcodec.model import load_model

FIGURES = SimpleNamespace(**runpy.run_path(str(ROOT / "scripts" / "figures.py")))
KODAK = ROOT / "bench" / "results" / "kodak" / "results.json"
THOROUGH = FIGURES.THOROUGH


@pytest.fixture
def results() -> dict[str, Any]:
    """The committed bench of Kodak."""
    found: dict[str, Any] = json.loads(KODAK.read_text(encoding="utf-8"))
    return found


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script reads, in a folder of its own."""
    for path in (ROOT / "scripts" / "figures.py", ROOT / "README.md", KODAK, THOROUGH):
        copied = tmp_path / path.relative_to(ROOT)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied)
    return tmp_path


def test_the_readme_says_what_the_results_say(checkout: Path) -> None:
    assert run_python("scripts/figures.py", "--check", cwd=checkout).returncode == 0
    for path in (KODAK, THOROUGH):
        found = json.loads(path.read_text(encoding="utf-8"))
        next(point for point in found["summary"]["points"] if point["codec"] == "vqcodec")["psnr_mean"] += 0.01
        (checkout / path.relative_to(ROOT)).write_text(json.dumps(found))
        stale = run_python("scripts/figures.py", "--check", cwd=checkout)
        assert (stale.returncode, stale.stdout) == (1, b"")
        assert b"README.md says something else" in stale.stderr
        shutil.copy(path, checkout / path.relative_to(ROOT))


def test_no_rates_or_decibels_of_this_codec_stand_in_the_readme_by_hand() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    by_hand = readme[: readme.index(FIGURES.BEGIN)] + readme[readme.index(FIGURES.END) :]
    assert not re.findall(r"\d ?(?:bpp|dB|%)", by_hand)


@pytest.mark.weights
def test_results_card_and_picture_are_of_the_model_that_ships(results: dict[str, Any]) -> None:
    identity = load_model(DEFAULT_MODEL).id.hex()
    thorough = json.loads(THOROUGH.read_text(encoding="utf-8"))
    assert results["head"]["codecs"]["vqcodec"]["fixed"] == f"model default ({identity})"
    assert thorough["head"]["codecs"]["vqcodec"]["fixed"] == f"model default ({identity}), effort 9"
    assert thorough["summary"]["images"] == results["summary"]["images"]
    with Pillow.open(ROOT / "docs" / "pictures" / "astronaut.png") as picture:
        assert picture.info["model"] == identity
    card = json.loads((DEFAULT_MODEL / "model.json").read_text(encoding="utf-8"))["rate_distortion"]["kodak"]
    measured = {point["setting"]: point for point in results["summary"]["points"] if point["codec"] == "vqcodec"}
    shared = [row for row in card["rows"] if row["quality"] in measured]
    assert len(shared) >= 2
    for row in shared:
        assert row["bpp"] == pytest.approx(measured[row["quality"]]["bpp"], abs=6e-5)
        assert row["psnr_mean"] == pytest.approx(measured[row["quality"]]["psnr_mean"], abs=0.002)
    assert card["pictures"] == len(results["summary"]["images"])


@pytest.mark.weights
def test_a_card_takes_the_results_of_its_own_model_alone(tmp_path: Path, results: dict[str, Any]) -> None:
    folder, table = tmp_path / "model", tmp_path / "results.json"
    shutil.copytree(DEFAULT_MODEL, folder)
    before = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    shutil.copy(KODAK, table)
    command = (ROOT / "bench" / "card.py", table, folder, "--name", "again")
    assert run_python(*command, cwd=tmp_path).returncode == 0
    after = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    rows = after["rate_distortion"].pop("again")["rows"]
    assert after == before
    points = [point for point in results["summary"]["points"] if point["codec"] == "vqcodec"]
    assert [(row["quality"], row["mse"]) for row in rows] == [(point["setting"], round(point["mse"], 2)) for point in points]
    own = results["head"]["codecs"]["vqcodec"]["fixed"]
    for other in ("model default (000000000000)", f"{own}, effort 9"):
        results["head"]["codecs"]["vqcodec"]["fixed"] = other
        table.write_text(json.dumps(results))
        refused = run_python(*command, cwd=tmp_path)
        assert refused.returncode == 2
        assert b"run the bench with its defaults again" in refused.stderr
        assert b"Traceback" not in refused.stderr
    assert json.loads((folder / "model.json").read_text(encoding="utf-8"))["rate_distortion"].keys() == after["rate_distortion"].keys() | {
        "again"
    }


FLAT, FALLING = [(-2.0, 28.0), (0.0, 28.0)], [(-2.0, 30.0), (0.0, 26.0)]  # from 1/4 to 1 bpp


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (FLAT, [(-2.0, 20.0), (0.0, 24.0)], "everywhere (0.25 bpp to 1.00 bpp)"),
        (FLAT, [(-2.0, 30.0), (0.0, 34.0)], "nowhere (0.25 bpp to 1.00 bpp)"),
        (FALLING, FLAT, "0.25 bpp to 0.50 bpp"),
        (FLAT, FALLING, "0.50 bpp to 1.00 bpp"),
        (FLAT, [(-1.0, 20.0), (3.0, 24.0)], "everywhere (0.50 bpp to 1.00 bpp)"),
        (FLAT, [(-2.0, 30.0), (-1.0, 26.0), (0.0, 30.0)], "0.35 bpp to 0.71 bpp"),
        ([(-2.0, 29.0), (-1.0, 25.0), (0.0, 29.0)], FLAT, "0.25 bpp to 0.30 bpp and 0.84 bpp to 1.00 bpp"),
        (FLAT, [(0.0, 30.0), (1.0, 31.0)], "no rate in common"),
    ],
)
def test_where_ours_is_ahead(ours: list[tuple[float, float]], theirs: list[tuple[float, float]], words: str) -> None:
    assert FIGURES.ahead(ours, theirs) == words


def test_the_longer_search_has_a_column_of_its_own(results: dict[str, Any]) -> None:
    """Its BD-rates come from its own results, and where those lack a codec there is none."""
    thorough = copy.deepcopy(results)
    anchors = [rate["anchor"] for rate in results["summary"]["rates"]]
    thorough["summary"]["rates"] = [rate | {"percent": -98.76} for rate in thorough["summary"]["rates"] if rate["anchor"] != anchors[0]]
    cells = [line.split(" | ") for line in FIGURES.block(results, thorough).splitlines() if re.search(r"\d dB \|", line)]
    assert len(cells) == len(anchors)
    assert [row[2] for row in cells] == ["-"] + ["-98.8 %"] * (len(anchors) - 1)
    assert all(row[1] != row[2] for row in cells)


def test_peers_are_read_at_the_same_rate(results: dict[str, Any]) -> None:
    """A peer whose points are our own has our PSNR in every line."""
    changed = copy.deepcopy(results)
    ours = [point for point in changed["summary"]["points"] if point["codec"] == "vqcodec"]
    changed["summary"]["points"] = ours + [point | {"codec": "jpeg"} for point in ours]
    changed["summary"] |= {"rates": [], "reference": []}
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) \| [\d.]+ \| \*\*([\d.]+)\*\* \| ([\d.]+) \|$", FIGURES.block(changed, changed), re.M)
    assert len(rows) == len(ours)
    assert all(row[2] == row[3] for row in rows)
    half = (math.log2(ours[0]["bpp"]) + math.log2(ours[1]["bpp"])) / 2
    assert FIGURES.interpolate(FIGURES.curve(ours), half) == pytest.approx((ours[0]["psnr_mean"] + ours[1]["psnr_mean"]) / 2)
