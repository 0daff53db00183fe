"""The report that a person looks at: index.html with everything inside it, and the plots as files beside it."""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Iterable
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image as Pillow

from vqcodec import image
from vqcodec.bench.crops import Shown, levels, side_by_side
from vqcodec.bench.peers import OURS, Coder
from vqcodec.bench.plots import draw_all
from vqcodec.bench.summary import BDRate, Point, Summary
from vqcodec.config import LEVELS
from vqcodec.tiles import Image

TEMPLATE = Path(__file__).with_name("report.html")
PICTURES = 3  # shown side by side
WIDEST = 640  # pixels
RATE = 0.2  # bits per pixel: the crops are at the setting of ours that is nearest to it
CAPTIONS = {
    "bpp-psnr.png": "PSNR; gray lines, where there are some, are published figures.",
    "bpp-mse.png": "The same against the mean squared error, both axes logarithmic.",
    "bpp-msssim.png": "Multi-scale structural similarity.",
    "levels.png": "Bytes of vqcodec's three levels at each quality.",
    "speed.png": "Medians at each codec's setting in the middle; the processor's time, which other work on the machine hardly changes.",
}
FACTS = {  # of a codec in the table's head, and what the report calls them
    "library": "library",
    "knob": "setting",
    "fixed": "fixed",
    "commit": "commit",
    "started": "begun",
    "load": "load then",
    "jobs": "processes",
}
CURVES, CHARTS = ("bpp-psnr.png", "bpp-mse.png", "bpp-msssim.png"), ("levels.png", "speed.png")


def write_report(out: Path, head: dict[str, Any], summary: Summary, coders: list[Coder], model: str, pictures: dict[str, Path]) -> None:
    """Writes the plots and index.html below `out`; `pictures` are those to choose the shown ones from."""
    plots = draw_all(summary)
    for name, png in plots.items():
        (out / name).write_bytes(png)
    ours = OURS in summary.codecs
    chosen = spread(list(pictures.items()), PICTURES) if ours else []
    setting = min(summary.curve(OURS), key=lambda point: abs(point.bpp - RATE)).setting if ours else 0.0
    used = [coder for coder in coders if coder.name in summary.codecs]
    wipes, progress = [], []
    for name, path in chosen:
        pixels = image.read(path.read_bytes(), name)
        wipes.append(wipe(name, side_by_side(pixels, used, setting)))
        progress.append(three_levels(name, levels(pixels, model, setting)))
    page = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"vqcodec on {escape(str(head['dataset']))}",
        lead=lead(head, summary),
        curves=figures(plots, CURVES),
        rates=table(("against", "BD-rate", "from", "to"), map(rate_cells, summary.rates)),
        wipes="".join(wipes),
        levels="".join(progress),
        charts=figures(plots, CHARTS),
        count=len(summary.images),
        points=points_table(summary),
        settings=settings_table(head["codecs"]),
        head=table(("", ""), ((text(key), text(words(head[key]))) for key in ("machine", "versions"))),
        sources=sources(summary),
        remarks=remarks(summary),
    )
    (out / "index.html").write_text(page, encoding="utf-8", errors="replace")  # pictures' names may be no UTF-8


def spread(items: list[tuple[str, Path]], count: int) -> list[tuple[str, Path]]:
    """At most `count` of the items, evenly spread: no picture is chosen for how it looks."""
    return [items[index * len(items) // count] for index in range(count)] if len(items) > count else items


def lead(head: dict[str, Any], summary: Summary) -> str:
    """What was measured, in a sentence."""
    codecs = ", ".join(summary.codecs)
    ours = head["codecs"].get(OURS, {}).get("fixed", "no vqcodec")
    return escape(f"{len(summary.images)} pictures through {codecs}; {ours}. Rates are of whole files, distortions on 8-bit RGB.")


def wipe(name: str, shown: list[Shown]) -> str:
    """Two crops over one another with a slider between them, and two lists to choose them from."""
    peers = [index for index, part in enumerate(shown) if index and not part.label.startswith(OURS)]
    best = max(peers, key=lambda index: (shown[index].equal, shown[index].psnr), default=0)
    ours = next(index for index, part in enumerate(shown) if part.label.startswith(OURS))
    store = "".join(
        f'<img src="{inline(image.write(part.crop, ".webp"), "webp")}" alt="{escape(name)}, {part.label}" data-figures="{caption(part)}">'
        for part in shown
    )
    return (
        f'<figure class="pair"><div class="wipe"><img class="under" alt=""><img class="over" alt="">'
        f'<input type="range" min="0" max="100" value="50" step="0.1" aria-label="where they meet"><div class="bar"></div></div>'
        f'<div class="choose">{select(shown, best, "left")}{select(shown, ours, "right")}</div>'
        f'<figcaption>{escape(name)}</figcaption><div class="store">{store}</div></figure>'
    )


def select(shown: list[Shown], chosen: int, side: str) -> str:
    """A list of all crops."""
    options = (f'<option value="{i}"{" selected" if i == chosen else ""}>{escape(part.label)}</option>' for i, part in enumerate(shown))
    return f'<label><select aria-label="{side}">{"".join(options)}</select><span></span></label>'


def caption(part: Shown) -> str:
    """A crop's rate and PSNR."""
    if math.isinf(part.psnr):
        return "as it came"
    return f"{part.bpp:.3f} bpp{'' if part.equal else ' (comes no nearer)'}, {part.psnr:.2f} dB"


def three_levels(name: str, shown: list[Shown]) -> str:
    """The picture after each level."""
    parts = "".join(
        f'<figure><img src="{inline(image.write(reduced(part.crop), ".webp"), "webp")}" alt="{escape(name)}, {part.label}">'
        f"<figcaption>{part.label}: {part.bpp:.3f} bpp, {part.psnr:.2f} dB</figcaption></figure>"
        for part in shown
    )
    return f'<div class="three">{parts}</div>'


def reduced(pixels: Image) -> Image:
    """A picture of at most `WIDEST` pixels a side: three stand beside one another."""
    picture = Pillow.fromarray(pixels)
    picture.thumbnail((WIDEST, WIDEST), Pillow.Resampling.LANCZOS)
    return np.asarray(picture)


def figures(plots: dict[str, bytes], names: Iterable[str]) -> str:
    """Those of the plots that exist, with captions."""
    return "".join(
        f'<figure><img src="{inline(plots[name], "png")}" alt="{CAPTIONS[name]}"><figcaption>{CAPTIONS[name]}</figcaption></figure>'
        for name in names
        if name in plots
    )


def points_table(summary: Summary) -> str:
    """Every codec at every setting."""
    names = (
        "codec",
        "setting",
        "bpp",
        "MSE",
        "mean PSNR",
        "PSNR of mean MSE",
        "MS-SSIM",
        "encode s/MP",
        "decode s/MP",
        "encode CPU s/MP",
        "decode CPU s/MP",
        *(f"{level} bytes" for level in LEVELS),
    )
    rows = [(point, point_cells(point)) for codec in summary.codecs for point in summary.curve(codec)]
    return table(names, [cells for _, cells in rows], ["ours" if point.codec == OURS else "" for point, _ in rows])


def point_cells(point: Point) -> list[str]:
    """A line of the table of points."""
    similarity = "" if point.ms_ssim is None else f"{point.ms_ssim:.4f}"
    times = (point.encode_s_per_megapixel, point.decode_s_per_megapixel, point.encode_cpu_s_per_megapixel, point.decode_cpu_s_per_megapixel)
    shown = [
        f"{point.setting:g}",
        f"{point.bpp:.4f}",
        f"{point.mse:.2f}",
        f"{point.psnr_mean:.3f}",
        f"{point.psnr_of_mean_mse:.3f}",
        similarity,
    ]
    shown += (
        ["" if seconds is None else f"{seconds:.3f}" for seconds in times]
        + [f"{size:.0f}" for size in point.level_bytes]
        + [""] * (len(LEVELS) - len(point.level_bytes))
    )
    return [f"<td>{point.codec}</td>", *(f"<td>{value}</td>" for value in shown)]


def rate_cells(rate: BDRate) -> list[str]:
    """A line of the BD-rate table."""
    if rate.percent is None:
        return [text(rate.anchor), f'<td class="text" colspan="3">{escape(rate.remark)}</td>']
    kind = "good" if rate.percent < 0 else "bad"
    bounds = [f"<td>{bound:.2f} dB</td>" for bound in (rate.low, rate.high)]
    return [text(rate.anchor), f'<td class="{kind}">{rate.percent:+.1f} %</td>', *bounds]


def settings_table(codecs: dict[str, dict[str, Any]]) -> str:
    """What a table's head knows of each codec."""
    rows = ([text(name), *(text("" if facts.get(key) is None else facts[key]) for key in FACTS)] for name, facts in codecs.items())
    return table(("codec", *FACTS.values()), rows, words_only=True)


def sources(summary: Summary) -> str:
    """Where the published curves come from."""
    if not summary.reference:
        return ""
    found = dict.fromkeys((point.codec, point.source) for point in summary.reference)
    warning = "<p>Published curves and the BD-rates against them mean something only where they are of these same pictures.</p>"
    return (
        f'{warning}<div class="scroll">{table(("published curve", "source"), (map(text, pair) for pair in found), words_only=True)}</div>'
    )


def remarks(summary: Summary) -> str:
    """Pictures that count nowhere."""
    left_out = ", ".join(summary.left_out)
    return f"<p>Left out, since not every codec has a row for them at every setting: {escape(left_out)}.</p>" if left_out else ""


def table(names: Iterable[str], rows: Iterable[Iterable[str]], kinds: list[str] | None = None, *, words_only: bool = False) -> str:
    """An HTML table of cells that are HTML already; `words_only` puts the names at the left like the words below them."""
    lines = [f'<tr class="{kinds[index] if kinds else ""}">{"".join(cells)}</tr>' for index, cells in enumerate(rows)]
    head = "".join(f'<th class="{"text" if words_only else ""}">{name}</th>' for name in names)
    return f"<table><tr>{head}</tr>{''.join(lines)}</table>"


def text(content: object) -> str:
    """A cell of words."""
    return f'<td class="text">{escape(str(content))}</td>'


def words(value: object) -> str:
    """A value of the head in words."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {item if item is not None else 'not installed'}" for key, item in value.items())
    return value if isinstance(value, str) else json.dumps(value)


def inline(data: bytes, kind: str) -> str:
    """A picture as a data URL."""
    return f"data:image/{kind};base64,{b64encode(data).decode('ascii')}"
