"""Sets up an environment in the checkout, compresses a photograph and brings it back.

python3 scripts/demo.py [PICTURE] [QUALITY]
"""

from __future__ import annotations

import sys
from pathlib import Path

import environment

MEASURE = """
import sys
from pathlib import Path
from vqcodec import image, metrics
picture, packed, restored = map(Path, sys.argv[1:])
original, result = image.read(picture.read_bytes()), image.read(restored.read_bytes())
size, mse = packed.stat().st_size, metrics.mse(original, result)
print(f"{size} bytes, {metrics.bpp(size, *original.shape[:2]):.3f} bpp, MSE {mse:.1f}, PSNR {metrics.psnr(mse):.2f} dB")
"""

python = environment.make(".venv", ".")
picture = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else environment.ROOT / "tests/images/astronaut.png"
quality = sys.argv[2] if len(sys.argv) > 2 else "50"
folder = environment.ROOT / "demo"
folder.mkdir(exist_ok=True)
packed, restored = folder / f"{picture.stem}.vq", folder / f"{picture.stem}.png"
vqcodec = python.parent / "vqcodec"
environment.run(vqcodec, "compress", picture, packed, "-q", quality, "-f")
environment.run(vqcodec, "decompress", packed, restored, "-f")
environment.run(vqcodec, "info", packed)
environment.run(python, "-c", MEASURE, picture, packed, restored)
