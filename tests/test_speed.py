"""bench/speed.py runs and names every part; its yardstick without wavefronts computes the same probabilities."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from tests.support import GOLDEN, ROOT, Array, make_config, random_codes, random_prior, run_python
from vqcodec.codes import map_sizes
from vqcodec.kernel import library
from vqcodec.prior import LENGTH, Prior
from vqcodec.scan import scan, symbols_of

INNER = {"context", "context/products", "scan", "scan/range coder"} | (
    {"scan/kernel"} if library() else {"scan/products", "scan/frequencies"}
)


def test_the_walk_one_by_one_has_the_frequencies_of_the_wavefronts() -> None:
    one_by_one = runpy.run_path(str(ROOT / "bench" / "raster.py"))["scan"]
    rng = np.random.default_rng(5)
    config = make_config(8, (1, 2, 2), (5, 6, 7), 2)
    prior = Prior.from_tensors(random_prior(rng, config), config)
    codes = random_codes(rng, config, 70, 130)
    context: Array | None = None
    for level, size in enumerate(map_sizes(70, 130)):
        context = prior.context(level, 5000, codes[level - 1] if level else None, context)
        assert frequencies(scan, prior, level, context, codes[level], size) == frequencies(
            one_by_one, prior, level, context, codes[level], size
        )


def frequencies(walk, prior: Prior, level: int, context: Array, known: Array, size: tuple[int, int]) -> dict[object, list[float]]:  # type: ignore[no-untyped-def]
    """What `visit` is given for every symbol of every position, of codes (S, H, W)."""
    symbols = symbols_of(known)
    found: dict[object, list[float]] = {}

    def visit(stage: int, rows: Array, columns: Array, freqs: Array) -> Array:
        for row, column, values in zip(rows, columns, freqs, strict=True):
            found[stage, int(row), int(column)] = values.tolist()
        held: Array = symbols[stage, rows, columns]
        return held

    walk(prior, level, context, size, visit)
    assert len(found) == symbols[LENGTH].sum() + symbols[LENGTH].size
    return found


@pytest.mark.skipif(os.name == "nt", reason="the memory of processes is read as POSIX has it")
def test_it_runs_and_names_every_part(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra bench")
    options = ["--sizes", "0.01,0.03", "--threads", "1", "--jobs", "1,2", "--runs", "1", "--clock", "cpu", "--peer-limit", "0.02"]
    done = run_python("bench/speed.py", *options, "--model", GOLDEN / "model", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    content = json.loads((tmp_path / "speed.json").read_text(encoding="utf-8"))
    figures = {(figure["part"], figure["megapixels"]): figure for figure in content["figures"]}
    for size in (0.01, 0.03):
        nested = {f"{way}/{part}" for way in ("write", "read") for part in INNER}
        for part in nested | {"encode", "adapt", "write", "read", "decode", "process: compress", "process: decompress, memory"}:
            assert figures[part, size]["values"][0] > 0, part
        assert (
            figures["write", size]["values"] >= figures["write/scan", size]["values"] >= figures["write/scan/range coder", size]["values"]
        )
    assert ("avif encode", 0.01) in figures
    assert ("avif encode", 0.03) not in figures
    assert figures["process: compress, memory", 0.03]["unit"] == "MiB"
    assert {part for part, size in figures if not size} >= {"position, one by one", "start: python", "start: model opened"}
    text = done.stdout.decode()
    assert text.rstrip() == (tmp_path / "speed.md").read_text(encoding="utf-8").rstrip()
    assert "--jobs 2 / --jobs 1" in text
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_growth_and_ratios_of_known_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra bench")
    monkeypatch.setattr(sys, "path", [str(ROOT / "bench"), *sys.path])
    key, report = SimpleNamespace(**runpy.run_path(str(ROOT / "bench" / "speed.py"))).Key, __import__("speed_report")
    medians = {key("this", "encode", 1, size): 3 * size**1.5 for size in (0.5, 2.0, 8.0)}
    medians |= {key("this", "encode", 2, 8.0): 30.0, key("against", "encode", 1, 8.0): 33.9411255}
    table = report.growth_table(medians)
    assert "| this | encode | 1 | s | 1.06 | 8.49 | 67.9 | 8.49 | 1.50 |" in table
    ratios = report.ratio_table(medians)
    assert "| encode, 8 MP: 2 threads / 1 (this) | 0.442 |" in ratios
    assert "| encode, 8 MP, 1 threads: against / this | 0.5 |" in ratios
