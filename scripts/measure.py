"""Prints bytes, bpp, MSE and PSNR of a picture's compressed and restored files; demo.py runs it."""

import sys
from pathlib import Path

from vqcodec import image, metrics

picture, packed, restored = map(Path, sys.argv[1:])
original, result = image.read(picture.read_bytes()), image.read(restored.read_bytes())
size, mse = packed.stat().st_size, metrics.mse(original, result)
print(f"{size} bytes, {metrics.bpp(size, *original.shape[:2]):.3f} bpp, MSE {mse:.1f}, PSNR {metrics.psnr(mse):.2f} dB")
