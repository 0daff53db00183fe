"""Draws how the codec works, with the real codes and bytes of a photograph: docs/pictures/how-it-works.svg.

python3 scripts/diagram.py

Needs an environment with vqcodec. The picture names its model; after a change of the model it is drawn anew.
"""

from __future__ import annotations

import base64
import colorsys
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image as Pillow

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from vqcodec import codec, container  # noqa: E402 - those of this checkout, installed or not
from vqcodec.config import LEVELS  # noqa: E402
from vqcodec.model import load_model  # noqa: E402

OUT = ROOT / "docs" / "pictures" / "how-it-works.svg"
PHOTOGRAPH = ROOT / "tests" / "images" / "astronaut.png"
QUALITY = 60
WIDTH, HEIGHT = 1180, 640
LARGE, MAP, SMALL = 200, 120, 170  # pixels a side: photograph, code map, reconstruction
COLOURS = {"top": "#8a5cd0", "middle": "#2f7fd1", "bottom": "#1b9a72", "adapt": "#c97a2b"}
STYLE = """
text { font: 15px system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; fill: #1c1c1e; }
.soft { fill: #6b6b70; font-size: 13px; } .bold { font-weight: 600; } .white { fill: #fff; font-weight: 600; }
.box { fill: #f6eef1; stroke: #c4204f; stroke-width: 1.5; } .way { fill: none; stroke: #8a8a90; stroke-width: 2; marker-end: url(#head); }
"""


def draw() -> str:
    """The whole picture as SVG."""
    with Pillow.open(PHOTOGRAPH) as photograph:
        pixels = np.array(photograph.convert("RGB"))
    model = load_model("default")
    data = codec.compress(pixels, QUALITY, model)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="How vqcodec works">',
        f"<metadata>model {model.id.hex()}</metadata><style>{STYLE}</style>",
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#8a8a90"/></marker></defs>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" rx="12" fill="#fff"/>',
        *compression(pixels, data),
        *file_bar(data, pixels),
        *decompression(data),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def compression(pixels: np.ndarray, data: bytes) -> list[str]:
    """The upper row: photograph, encoder, code maps, entropy coder."""
    codes = codec.decode_codes(data)
    parts = [
        text(24, 34, "compress", "bold"),
        picture(pixels, 24, 52, LARGE),
        text(24, 272, f"{pixels.shape[1]} x {pixels.shape[0]} pixels", "soft"),
        way(f"M{24 + LARGE + 8} 152h44"),
        *box(284, 112, 120, 80, "encoder", "VQ-VAE-2"),
        way("M412 152h44"),
    ]
    for place, (name, code_map) in enumerate(zip(LEVELS, codes, strict=True)):
        x = 468 + place * (MAP + 22)
        stages, height, width = code_map.shape
        parts += [mosaic(code_map[0], x, 92, MAP), frame(x, 92, MAP, COLOURS[name]), text(x, 82, name, "bold")]
        parts.append(text(x, 92 + MAP + 20, f"{stages} x {height} x {width} codes", "soft"))
    return [
        *parts,
        way("M890 152h44"),
        *box(944, 112, 200, 80, "range coder", "with the integer PixelCNN"),
        way("M974 200v92"),
    ]


def file_bar(data: bytes, pixels: np.ndarray) -> list[str]:
    """The row in the middle: the file, its sections as wide as they have bytes."""
    held = container.unpack(data)
    left, right, top, height = 24, 1004, 300, 44
    share = (right - left) / len(data)
    edge = left + share * container.HEADER_BYTES
    bpp = 8 * len(data) / (pixels.shape[0] * pixels.shape[1])
    parts = [f'<rect x="{left}" y="{top}" width="{edge - left:.1f}" height="{height}" fill="#55555a"/>']
    for section in held.sections:
        wide = section.size * share
        parts.append(f'<rect x="{edge:.1f}" y="{top}" width="{wide:.1f}" height="{height}" fill="{COLOURS[section.name]}"/>')
        words = f"{section.size:,}" if wide < 150 else f"{section.name}: {section.size:,} bytes"
        if wide > 30:
            parts.append(f'<text class="white" x="{edge + wide / 2:.1f}" y="{top + 28}" text-anchor="middle">{words}</text>')
        edge += wide
    parts.append(text(right + 14, top + 20, "the .vq file", "bold"))
    return [*parts, text(right + 14, top + 39, f"{len(data):,} bytes, {bpp:.2f} bpp", "soft")]


def decompression(data: bytes) -> list[str]:
    """The lower row: the same PixelCNN, the decoder, and what each beginning of the file shows."""
    parts = [
        text(24, 396, "decompress", "bold"),
        way("M160 352v76"),
        *box(24, 436, 190, 80, "range decoder", "with the same PixelCNN"),
        way("M222 476h44"),
        *box(274, 436, 120, 80, "decoder", "VQ-VAE-2"),
        way("M402 476h44"),
    ]
    sizes = [section.size for section in container.unpack(data).sections]
    for levels, name in enumerate(LEVELS, 1):
        x = 468 + (levels - 1) * (SMALL + 40)
        seen = f"{container.HEADER_BYTES + sum(sizes[:levels]):,} bytes"
        words = ("the top level alone", "top and middle", "all three levels")[levels - 1]
        parts += [picture(codec.decompress(data, levels=levels), x, 400, SMALL), frame(x, 400, SMALL, COLOURS[name])]
        parts += [text(x, 400 + SMALL + 22, words, "bold"), text(x, 400 + SMALL + 42, f"the first {seen}", "soft")]
    return parts


def mosaic(code_map: np.ndarray, x: int, y: int, side: int) -> str:
    """A map of codes (h, w), a colour for each code."""
    wheel = [colorsys.hls_to_rgb(code * 0.618 % 1, 0.35 + 0.4 * (code * 0.414 % 1), 0.55) for code in range(int(code_map.max()) + 1)]
    return picture((np.array(wheel)[code_map] * 255).astype(np.uint8), x, y, side, 'style="image-rendering: pixelated"')


def picture(pixels: np.ndarray, x: int, y: int, side: int, more: str = "") -> str:
    """An image, embedded; photographs at twice the size at which they are shown."""
    image, buffer = Pillow.fromarray(pixels), io.BytesIO()
    if more:
        image.save(buffer, kind := "png", optimize=True)
    else:
        image.resize((2 * side, 2 * side), Pillow.Resampling.LANCZOS).save(buffer, kind := "jpeg", quality=85)
    source = f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return f'<image x="{x}" y="{y}" width="{side}" height="{side}" href="{source}" {more}/>'


def box(x: int, y: int, width: int, height: int, title: str, below: str) -> list[str]:
    middle = f'x="{x + width / 2:g}" text-anchor="middle"'
    return [
        f'<rect class="box" x="{x}" y="{y}" width="{width}" height="{height}" rx="10"/>',
        f'<text class="bold" {middle} y="{y + height / 2 - 3:g}">{title}</text>',
        f'<text class="soft" {middle} y="{y + height / 2 + 18:g}">{below}</text>',
    ]


def frame(x: int, y: int, side: int, colour: str) -> str:
    return f'<rect x="{x}" y="{y}" width="{side}" height="{side}" fill="none" stroke="{colour}" stroke-width="3"/>'


def text(x: float, y: float, words: str, kind: str) -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{words}</text>'


def way(path: str) -> str:
    return f'<path class="way" d="{path}"/>'


if __name__ == "__main__":
    OUT.write_text(draw(), encoding="utf-8")
