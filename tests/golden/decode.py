"""Decodes the golden files on another processor: `python tests/golden/decode.py`.

Prints for each product a digest of all codes, and one of the frequencies that the files are written with.

Needs numpy, Pillow, safetensors and threadpoolctl alone: no ONNX Runtime, for no pixel is computed, and without constriction, which
has no wheels for every machine, the range decoder of `tests/range_decoder.py` takes its place. Exits with 1 where codes are other than
those beside the files.
"""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the checkout that this script lies in, installed or not

from tests.range_decoder import RangeDecoder  # noqa: E402

if "--plain" in sys.argv or find_spec("constriction") is None:
    stream = SimpleNamespace(queue=SimpleNamespace(RangeDecoder=RangeDecoder), model=SimpleNamespace(Categorical=lambda perfect: None))
    coder: Any = SimpleNamespace(stream=stream, __name__="the plain range decoder")
    sys.modules["constriction"] = coder

import constriction  # noqa: E402
import numpy as np  # noqa: E402

from vqcodec import bitstream, container  # noqa: E402
from vqcodec.model import load_model  # noqa: E402
from vqcodec.scan import scan_known, symbols_of  # noqa: E402
from vqcodec.selftest import arithmetics, machine  # noqa: E402


def main() -> int:
    """Returns the exit code."""
    folders, wrong = sorted(HERE.glob("v*/")), 0
    priors = {folder: load_model(folder / "model").prior for folder in folders}
    print(f"{machine()}, {constriction.__name__}")
    kinds = [kind for kind, _ in arithmetics(next(iter(priors.values())))]
    for index, kind in enumerate(kinds):
        digest, written, files = hashlib.sha256(), hashlib.sha256(), sorted(HERE.glob("v*/*.vq"))
        for path in files:
            held, exact = container.unpack(path.read_bytes()), list(arithmetics(priors[path.parent]))[index][1]
            codes = bitstream.read(exact, held.levels, held.height, held.width, held.quality)
            with np.load(path.with_name(f"{path.stem}.codes.npz"), allow_pickle=False) as stored:
                wrong += not all(np.array_equal(stored[name], code_map) for name, code_map in codes._asdict().items())
            for code_map in codes:
                digest.update(code_map.astype("<u2").tobytes())
            context = None
            for level, code_map in enumerate(codes):
                context = exact.context(level, held.quality, codes[level - 1] if level else None, context)
                scan_known(
                    exact,
                    level,
                    context,
                    symbols_of(code_map),
                    lambda *arrays, into=written: into.update(arrays[2].astype("<u4").tobytes()),
                )
        print(f"{kind}: {len(files)} files, codes {digest.hexdigest()[:32]}, frequencies {written.hexdigest()[:32]}")
    print(f"{wrong} files have other codes")
    return 1 if wrong or not files else 0


if __name__ == "__main__":
    sys.exit(main())
