"""Does this machine decode as all others do? Golden files that come with the package, and the shipped model there and back.

The golden files were made once, with a tiny model; their codes lie beside them. A machine whose processor, BLAS or numpy computed
anything else would show here.
"""

from __future__ import annotations

import platform
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vqcodec import bitstream, codec, container
from vqcodec.codes import Codes
from vqcodec.errors import VQCodecError
from vqcodec.kernel import library
from vqcodec.layers import Product, blas_product, float64_product, int64_product
from vqcodec.model import Model, load_model, model_names
from vqcodec.prior import Prior
from vqcodec.tiles import Image

PRODUCTS: dict[str, Product] = {
    "products in float32": blas_product,
    "products in float64": float64_product,
    "products in int64": int64_product,
}
MOST_STEPS = 1  # by which pixels, which come from floating point, may differ between machines


class Check(NamedTuple):
    """One thing that was checked: what, whether it held, and what was found otherwise."""

    name: str
    holds: bool
    found: str = ""


def golden_folder() -> Path:
    """Where the golden files lie: in the wheel beside the code, in a checkout among the tests."""
    inside = Path(__file__).parent / "golden"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "tests" / "golden" / "v8"


def machine() -> str:
    """What the checks run on, in a line."""
    versions = f"Python {platform.python_version()}, numpy {np.__version__}"
    return f"{platform.system()} {platform.machine()}, {versions}"


def checks() -> Iterator[Check]:
    """Carries out the checks, one after the other. Raises `VQCodecError` where the golden files are missing."""
    folder = golden_folder()
    model = load_model(folder / "model")
    files = [path for path in sorted(folder.glob("*.vq")) if _beside(path, "codes").is_file()]
    if not files:
        raise VQCodecError(f"no golden files in {folder}; install the package again")
    for kind, prior in arithmetics(model.prior):
        for path in files:
            yield _decodes(path, prior, kind)
    for path in files:
        yield _packs(path, model)
        if _beside(path, "image").is_file():
            yield _shows(path, model)
    for name in model_names():
        yield _there_and_back(load_model(name))


def arithmetics(prior: Prior) -> Iterator[tuple[str, Prior]]:
    """The same prior by every arithmetic that there is here, and its name."""
    for kind, product in PRODUCTS.items():
        yield kind, Prior(prior.levels, product)
    if library():
        yield "compiled integers", Prior(prior.levels, compiled=True)


def _decodes(path: Path, prior: Prior, kind: str) -> Check:
    """The file's codes are those beside it."""
    held = container.unpack(path.read_bytes())
    name = f"codes of {path.stem} with {kind}"
    try:
        codes = bitstream.read(prior, held.levels, held.height, held.width, held.quality)
    except VQCodecError as error:
        return Check(name, False, str(error))
    wrong = [level for level, a, b in zip(Codes._fields, codes, _codes(path), strict=True) if not np.array_equal(a, b)]
    return Check(name, not wrong, f"other codes in {', '.join(wrong)}")


def _packs(path: Path, model: Model) -> Check:
    """The codes beside the file give its bytes."""
    held = container.unpack(path.read_bytes())
    data = codec.pack_codes(_codes(path), held.height, held.width, held.quality / 100, model, held.extras)
    return Check(f"bytes of {path.stem}", data == path.read_bytes(), "other bytes")


def _shows(path: Path, model: Model) -> Check:
    """The file's pixels are those beside it, but for a step."""
    with np.load(_beside(path, "image"), allow_pickle=False) as stored:
        steps = int(np.abs(codec.decompress(path.read_bytes(), model).astype(int) - stored["decoded"]).max())
    return Check(f"pixels of {path.stem}", steps <= MOST_STEPS, f"{steps} steps away")


def _there_and_back(model: Model) -> Check:
    """A picture's codes survive a file of the shipped model."""
    picture = _picture()
    codes = model.encode(picture, 50)
    data = codec.pack_codes(codes, picture.shape[0], picture.shape[1], 50, model)
    again = codec.decode_codes(data, model)
    same = all(np.array_equal(a, b) for a, b in zip(codes, again, strict=True))
    return Check(f"the model {model.name} ({model.id.hex()}), there and back", same, "other codes")


def _picture() -> Image:
    """Waves, 96 x 128."""
    rows, columns = np.mgrid[:96, :128]
    waves = [np.sin(rows / (7 + channel)) + np.cos(columns / (9 - channel)) for channel in range(3)]
    return (128 + 60 * np.stack(waves, axis=2)).astype(np.uint8)


def _beside(path: Path, what: str) -> Path:
    return path.with_name(f"{path.stem}.{what}.npz")


def _codes(path: Path) -> Codes:
    with np.load(_beside(path, "codes"), allow_pickle=False) as stored:
        return Codes(stored["top"], stored["middle"], stored["bottom"])
