"""From rows to averages, BD-rates, plots: figures that are known beforehand."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("bjontegaard", reason="needs the extra bench")

from tests.support import ROOT
from vqcodec.bench.plots import draw_all
from vqcodec.bench.rows import Row
from vqcodec.bench.summary import bd_rate, read_reference, summarise, write_json
from vqcodec.errors import BenchError

CURVE = [(0.1, 26.0), (0.2, 28.5), (0.4, 31.0), (0.8, 34.0)]  # (bpp, PSNR)


def row(codec: str, setting: float, image: str, bpp: float, mse: float) -> Row:
    psnr = 10 * math.log10(255**2 / mse)
    return Row(codec, setting, image, 1000, 500, round(bpp * 62500), bpp, mse, psnr, 0.9, 0.25, 0.125, 0.5, 0.375)


@pytest.mark.parametrize("factor", [0.8, 1.0, 1.5])
def test_bd_rate_of_a_scaled_curve_is_the_scale(factor: float) -> None:
    found = bd_rate("peer", CURVE, [(factor * bpp, psnr) for bpp, psnr in CURVE])
    assert found.percent == pytest.approx(100 * (factor - 1), abs=1e-9)
    assert (found.anchor, found.low, found.high, found.remark) == ("peer", 26.0, 34.0, "")


def test_bd_rate_takes_the_overlap_only() -> None:
    """The test curve is half as long, and where the curves overlap it spends half the bits."""
    found = bd_rate("peer", CURVE, [(0.1, 28.5), (0.2, 31.0), (0.4, 34.0), (0.7, 40.0)])
    assert (found.low, found.high) == (28.5, 34.0)
    assert found.percent == pytest.approx(-50, abs=3)


@pytest.mark.parametrize(
    ("test", "remark"),
    [
        ([(0.1, 36.0), (0.2, 38.0)], "no overlap"),
        ([(0.1, 34.0), (0.2, 38.0)], "no overlap"),
        ([(0.1, 30.0)], "vqcodec has fewer than two points"),
        ([(0.1, 30.0), (0.2, 29.0), (0.3, 33.0)], "the curve of vqcodec does not rise everywhere"),
        ([(0.1, 30.0), (0.2, math.inf)], "the curve of vqcodec does not rise everywhere"),
    ],
)
def test_no_bd_rate_says_why(test: list[tuple[float, float]], remark: str) -> None:
    found = bd_rate("peer", CURVE, test)
    assert (found.percent, found.low, found.high, found.remark) == (None, None, None, remark)


def test_both_averages_of_psnr() -> None:
    summary = summarise([row("jpeg", 5, "a.png", 0.1, 10.0), row("jpeg", 5, "b.png", 0.3, 1000.0)])
    (point,) = summary.points
    assert (point.bpp, point.mse) == (pytest.approx(0.2), 505.0)
    assert point.psnr_mean == pytest.approx(28.131, abs=1e-3)
    assert point.psnr_of_mean_mse == pytest.approx(21.098, abs=1e-3)
    assert (point.encode_s_per_megapixel, point.decode_s_per_megapixel) == (0.5, 0.25)
    assert (point.encode_cpu_s_per_megapixel, point.decode_cpu_s_per_megapixel) == (1.0, 0.75)


def test_a_picture_that_one_codec_lacks_counts_nowhere() -> None:
    rows = [row("jpeg", 5, "a.png", 0.1, 10.0), row("jpeg", 5, "b.png", 0.3, 1000.0), row("webp", 1, "a.png", 0.2, 20.0)]
    summary = summarise(rows)
    assert (summary.images, summary.left_out) == (("a.png",), ("b.png",))
    assert [point.mse for point in summary.points] == [10.0, 20.0]


def test_published_points_enter_the_bd_rates() -> None:
    reference = read_reference(ROOT / "bench" / "reference" / "kodak.csv")
    learned, classical = {"mbt2018", "cheng2020", "ELIC"}, {"VTM (VVC)", "HM (HEVC)", "BPG 4:4:4", "AV1", "VVenC medium, 4:2:0"}
    assert {point.codec for point in reference} == learned | classical
    assert all(point.source for point in reference)
    vtm = [point for point in reference if point.codec == "VTM (VVC)"]
    ours = [row("vqcodec", index, "a.png", 2 * point.bpp, 255**2 / 10 ** (point.psnr / 10)) for index, point in enumerate(vtm)]
    rates = {rate.anchor: rate for rate in summarise(ours, reference).rates}
    assert rates["VTM (VVC)"].percent == pytest.approx(100, abs=1e-6)
    assert len(rates) == 8


@pytest.mark.parametrize("text", ["", "codec,bpp\na,1\n", "codec,bpp,psnr,ms_ssim,source\na,high,1,,b\n"])
def test_a_table_that_holds_no_points_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(BenchError, match="no table of published points"):
        read_reference(path)


def test_json_has_no_infinities(tmp_path: Path) -> None:
    rows = [replace(row("jpeg", 5, "a.png", 0.1, 10.0), mse=0.0, psnr=math.inf)]
    write_json(tmp_path / "new" / "a.json", {"commit": None}, rows, summarise(rows), ["b.png is damaged"])
    content = json.loads((tmp_path / "new" / "a.json").read_text(), parse_constant=pytest.fail)
    assert content["rows"][0]["psnr"] is None
    assert (content["head"], content["failures"]) == ({"commit": None}, ["b.png is damaged"])


def test_plots_are_pictures() -> None:
    ours = [replace(row("vqcodec", q, "a.png", 0.1 + q / 100, 90.0 - q), top_bytes=1, middle_bytes=2, bottom_bytes=3) for q in (0, 50)]
    plots = draw_all(summarise([*ours, row("jpeg", 5, "a.png", 0.2, 99.0)]))
    assert set(plots) == {"bpp-mse.png", "bpp-psnr.png", "bpp-msssim.png", "speed.png", "levels.png"}
    assert all(png.startswith(b"\x89PNG") for png in plots.values())
    plain = replace(row("jpeg", 5, "a.png", 0.2, 99.0), encode_cpu_s=None)
    assert not {"levels.png", "speed.png"} & set(draw_all(summarise([plain])))
