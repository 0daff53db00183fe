"""Makes the golden files of one format version from nothing: `python tests/golden/make.py`. Needs the extra "train".

Writes `tests/golden/v8/`: a tiny seeded model (never trained, so its pictures are noise, but its probabilities are far
from flat), pictures compressed with it, their codes, and their reconstructions. From the first release on the folder is
append-only: a change of a format gets a folder of its own. `v1` has a model folder of the first layout, `v2` and `v3` of the second,
`v4` of the third, `v5` of the fourth, `v6` and `v7` of the fifth (vqcodec/model.py), and the priors of `v1` and `v2` code no lengths
(vqcodec/prior.py); before `v7` no file adapts the decoder (vqcodec/adaptation.py). All files are of version 2 (docs/FORMAT.md): those of
older models were written anew from their codes.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image as Pillow

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))  # the checkout that this script lies in, installed or not

from vqcodec import codec  # noqa: E402
from vqcodec.codes import Codes, map_sizes  # noqa: E402
from vqcodec.config import LevelConfig, ModelConfig, PriorConfig, TransformConfig  # noqa: E402
from vqcodec.model import Model, load_model  # noqa: E402
from vqcodec.training.export import export_model, export_transform  # noqa: E402
from vqcodec.training.pixelcnn import PixelCNN  # noqa: E402
from vqcodec.training.vqvae import VQVAE  # noqa: E402

FOLDER = HERE / "v8"
PHOTO = HERE.parent / "images" / "astronaut.png"
SEED = 20
CODEBOOK_SCALE = 0.3  # together these two spread an untrained encoder's latents over most codes of every level
LATENT_SCALES = (40.0, 15.0, 6.0)
BASIS_SCALE = 0.01  # so that what adapts the decoder to a picture is a few steps
CONFIG = ModelConfig(
    TransformConfig(
        widths=(8, 8, 8, 8),
        encoder_depths=(1, 1, 1, 1),
        decoder_depths=(1, 1, 1, 1),
        levels=(LevelConfig(1, 16, 4, 0.5), LevelConfig(2, 16, 4), LevelConfig(3, 32, 4)),
        lambda_min=25.0,
        lambda_max=1600.0,
        anchors=3,
        adaptations=3,
    ),
    PriorConfig(channels=8, trunk_blocks=(1, 1, 1), context_blocks=(1, 1), quality_anchors=3, head_channels=12),
)
# name, height, width, quality; "photo" is a crop of a photograph
PICTURES = [
    ("dot-q50", 1, 1, 50.0),
    ("odd-q0", 17, 33, 0.0),
    ("odd-q37.5", 17, 33, 37.5),
    ("wide-q100", 50, 70, 100.0),
    ("tall-q12.34", 97, 40, 12.34),
    ("line-q80", 1, 130, 80.0),
    ("photo-q60", 88, 104, 60.0),
    ("photo-q95", 130, 200, 95.0),
]


def main() -> None:
    shutil.rmtree(FOLDER, ignore_errors=True)
    make_model(FOLDER / "model")
    model = load_model(FOLDER / "model")
    for number, (name, height, width, quality) in enumerate(PICTURES):
        image = photo(height, width) if name.startswith("photo") else smooth(number, height, width)
        make_files(name, image, codec.compress(image, quality, model), model)
    image = np.full((64, 96, 3), 128, np.uint8)
    make_files("random-q50", image, codec.pack_codes(random_codes(64, 96), 64, 96, 50, model), model)


def make_model(folder: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    transform, prior = VQVAE(CONFIG.transform), PixelCNN(CONFIG)
    with torch.no_grad():
        for quantizer, posterior, scale in zip(transform.quantizers, transform.posterior, LATENT_SCALES, strict=True):
            quantizer.codebooks.mul_(CODEBOOK_SCALE)
            posterior.weight.mul_(scale)
            posterior.bias.zero_()
        transform.decoder.adapt.weight.normal_(std=BASIS_SCALE)
        for parameter in prior.parameters():  # also the biases, which start at zero
            parameter.add_(0.2 * torch.randn_like(parameter))
    export_model(export_transform(transform), prior, folder, "golden", {"purpose": "tests; untrained"})


def make_files(name: str, image: NDArray[np.uint8], data: bytes, model: Model) -> None:
    """Writes the file, its codes and its reconstruction."""
    codes = codec.decode_codes(data, model)
    quality = codec.info(data, model)["quality"]
    height, width = image.shape[:2]
    (FOLDER / f"{name}.vq").write_bytes(data)
    np.savez_compressed(FOLDER / f"{name}.codes.npz", quality=np.float64(quality), size=np.array([height, width]), **codes._asdict())
    np.savez_compressed(FOLDER / f"{name}.image.npz", original=image, decoded=codec.decompress(data, model))
    print(f"{name}: {len(data)} bytes, {[len(np.unique(code_map)) for code_map in codes]} different codes")


def random_codes(height: int, width: int) -> Codes:
    """Every code of every codebook with the same probability, what no picture would give; half of the positions end in zeros."""
    rng = np.random.default_rng(SEED)
    maps: list[NDArray[np.int32]] = []
    for level, size in zip(CONFIG.transform.levels, map_sizes(height, width), strict=True):
        lengths = rng.integers(0, 2 * level.stages + 1, size)
        codes = rng.integers(0, level.codebook_size, (level.stages, *size), np.int32)
        maps.append(codes * (np.arange(level.stages)[:, None, None] < lengths).astype(np.int32))
    return Codes(*maps)


def smooth(seed: int, height: int, width: int) -> NDArray[np.uint8]:
    """A few waves a channel, with some noise: something between a photograph and a test chart."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:height, :width]
    image = np.zeros((height, width, 3))
    for channel in range(3):
        for _ in range(4):
            down, across, phase = rng.uniform(-0.25, 0.25), rng.uniform(-0.25, 0.25), rng.uniform(0, 2 * np.pi)
            image[:, :, channel] += np.sin(down * rows + across * columns + phase)
    return np.asarray((128 + 30 * image + rng.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8))


def photo(height: int, width: int) -> NDArray[np.uint8]:
    with Pillow.open(PHOTO) as picture:
        return np.asarray(picture.convert("RGB").crop((180, 60, 180 + width, 60 + height)))


if __name__ == "__main__":
    main()
