"""A model folder: configuration, transform and prior, and the identity that files carry.

A folder holds `model.json` (configuration and card), `encode.onnx` and `decode.onnx` (graphs without weights),
`transform.safetensors` (their weights, once, in half precision) and `prior.safetensors` (integers).
The id of a model is the beginning of the SHA-256 over its configuration and those four files.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from vqcodec import graphs, limits
from vqcodec.codes import Codes
from vqcodec.config import DEFAULT_EFFORT, QUALITY_STEPS, ModelConfig
from vqcodec.container import MODEL_ID_BYTES
from vqcodec.errors import ImageError, InvalidModelError, ModelNotFoundError, first_line
from vqcodec.prior import Prior
from vqcodec.transform import PATHS, Image, Transform

CARD = "model.json"
ENCODE, DECODE, WEIGHTS, PRIOR = "encode.onnx", "decode.onnx", "transform.safetensors", "prior.safetensors"
RUNTIME_FILES = (DECODE, ENCODE, PRIOR, WEIGHTS)
SHARED = "shared"  # weights are named `shared.`, `encode.` or `decode.` by the graphs that need them
LIMITS = {CARD: limits.MAX_CARD, DECODE: limits.MAX_GRAPH, ENCODE: limits.MAX_GRAPH, PRIOR: limits.MAX_WEIGHTS, WEIGHTS: limits.MAX_WEIGHTS}
CARD_FORMAT = 1  # version of model.json itself


def quality_steps(quality: float) -> int:
    """Quality 0..100 in hundredths; raises `ValueError` outside."""
    if not 0 <= quality <= 100:
        raise ValueError(f"quality {quality} lies outside 0..100")
    return round(quality * QUALITY_STEPS / 100)


class Model:
    """One trained model. Its parts open when they are first used: decoding codes never touches the transform."""

    def __init__(self, name: str, config: ModelConfig, card: dict[str, Any], files: dict[str, bytes]):
        self.name, self.config, self.card = name, config, card
        self._files = files
        self.id = model_id(config, files)

    @cached_property
    def prior(self) -> Prior:
        """The integer prior; raises `InvalidModelError` where it breaks the exactness bound."""
        return Prior.from_tensors(self._tensors(PRIOR), self.config)

    @cached_property
    def transform(self) -> Transform:
        """The transform, whose graphs are opened when they are used; raises `InvalidModelError` where that fails."""
        return Transform(self.config.transform, lambda: self._session(ENCODE), lambda: self._session(DECODE))

    def encode(self, image: Image, quality: float, effort: int = DEFAULT_EFFORT) -> Codes:
        """Chooses the codes of an image uint8 (H, W, 3) at quality 0..100, searching with an effort of 0..9.

        Raises `ImageError` for another type or shape and `ValueError` for another quality or effort.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"an image must be uint8 (H, W, 3), this is {image.dtype} {image.shape}; convert it first")
        if not 0 <= effort < len(PATHS):
            raise ValueError(f"effort {effort} lies outside 0..{len(PATHS) - 1}")
        return self.transform.encode(image, quality_steps(quality), effort)

    def decode(self, codes: Codes, height: int, width: int, quality: float, levels: int = 3) -> Image:
        """Reconstructs the image uint8 (height, width, 3) from its codes; `levels` 1 or 2 leaves out the finer ones."""
        return self.transform.decode(codes, height, width, quality_steps(quality), levels)

    def _tensors(self, name: str) -> dict[str, Any]:
        try:
            return load_safetensors(self._files[name])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InvalidModelError(f"the model's {name} cannot be read: {error}; copy or export the model again") from error

    def _session(self, name: str) -> Any:
        import onnxruntime

        weights = self._tensors(WEIGHTS)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what goes wrong is raised
        options.add_session_config_entry("session.load_model_format", "ONNX")  # what was checked, and not what else the bytes may be
        options.enable_mem_pattern = False  # it keeps a plan and its memory for every shape of tile: 250 MB more, and no faster
        options.intra_op_num_threads = int(os.environ.get("VQCODEC_THREADS", "0"))  # 0: all; the workers of a batch share them
        needed = [key for key in weights if key.split(".", 1)[0] in (SHARED, Path(name).stem)]
        types = graphs.check(self._files[name], name, frozenset(needed), WEIGHTS)
        needed = [key for key in needed if key in types]
        values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weights[key], types[key])) for key in needed]
        try:
            options.add_external_initializers(needed, values)
            # without the fallback, which prints to standard output and tries the same again
            session = onnxruntime.InferenceSession(self._files[name], options, providers=["CPUExecutionProvider"], enable_fallback=0)
        except Exception as error:  # ONNX Runtime has no exception class of its own
            raise InvalidModelError(f"the model's {name} cannot be opened: {first_line(error)}; export the model again") from error
        session.weights = values  # it reads them where they are, so they must live as long
        return session


def model_id(config: ModelConfig, files: dict[str, bytes]) -> bytes:
    """The first `MODEL_ID_BYTES` of the SHA-256 over the configuration and the runtime files in order of name."""
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True, separators=(",", ":")).encode())
    for name in RUNTIME_FILES:
        digest.update(files[name])
    return digest.digest()[:MODEL_ID_BYTES]


def models_folder() -> Path:
    """Where the models that come with the package lie: in the wheel beside the code, in a checkout beside the package."""
    inside = Path(__file__).parent / "models"
    return inside if inside.is_dir() else Path(__file__).parent.parent / "models"


def load_model(name_or_path: str | Path = "default") -> Model:
    """Opens a model by its name among those that come with the package, or by the path of its folder.

    Raises `ModelNotFoundError` or `InvalidModelError`. Opened models are kept: a second call costs nothing.
    """
    text = str(name_or_path)
    try:
        shipped = models_folder() / text
        folder = shipped if text.isidentifier() and (shipped / CARD).is_file() else Path(text)
        if not (folder / CARD).is_file():
            known = ", ".join(model_names()) or "none"
            raise ModelNotFoundError(f"no model '{text}': neither a folder with a {CARD} nor one that comes with the package ({known})")
        stamps = tuple(_stamp(folder / name, limit) for name, limit in LIMITS.items())
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"the model '{text}' cannot be opened: {error}; copy or export it again") from error
    return _load(folder.resolve(), stamps)


def model_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in models_folder().glob(f"*/{CARD}"))


def _stamp(path: Path, limit: int) -> int:
    """When a file was changed; refuses what is no file, or larger than a model's can be."""
    found = path.stat()
    if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
        raise OSError(f"{path.name} is no file of at most {limit} bytes")
    return found.st_mtime_ns


@lru_cache(maxsize=4)
def _load(folder: Path, stamps: tuple[int, ...]) -> Model:
    """Reads a folder; `stamps`, its files' times, keep an older reading from being served after an export."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        files = {name: (folder / name).read_bytes() for name in RUNTIME_FILES}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModelError(f"the model in {folder} is incomplete: {error}") from error
    if not isinstance(card, dict) or card.get("format") != CARD_FORMAT:
        raise InvalidModelError(f"{folder / CARD} is not of the format {CARD_FORMAT}; export the model again")
    return Model(str(card.get("name", folder.name)), ModelConfig.from_json(card.get("config")), card, files)
