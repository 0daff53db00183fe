"""Sets up an environment in the checkout, compresses a photograph and brings it back.

python3 scripts/demo.py [PICTURE] [QUALITY]
"""

from __future__ import annotations

import sys
from pathlib import Path

import environment

python = environment.make(".venv-demo", "--editable", ".")
picture = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else environment.ROOT / "tests/images/astronaut.png"
quality = sys.argv[2] if len(sys.argv) > 2 else "50"
folder = environment.ROOT / "demo"
folder.mkdir(exist_ok=True)
packed, restored = folder / f"{picture.stem}.vq", folder / f"{picture.stem}.restored.png"
vqcodec = python.parent / "vqcodec"
environment.run(vqcodec, "compress", picture, packed, "-q", quality, "-f")
environment.run(vqcodec, "decompress", packed, restored, "-f")
environment.run(vqcodec, "info", packed)
environment.run(python, "scripts/measure.py", picture, packed, restored)
