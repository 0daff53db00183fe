"""A model folder: configuration, transform and prior, and the identity that files carry.

A folder holds `model.json` (configuration and card), the graphs `encode_top.onnx`, `encode_middle.onnx`, `encode_bottom.onnx`,
`improve.onnx`, `improve_middle.onnx` and `decode.onnx` (without weights), `transform.safetensors` (their weights and the quantisers', once,
in eight bits with scales, or in half precision) and `prior.safetensors` (integers). Of the other layouts, which are read, the fifth has no
`improve_middle.onnx`, in the fourth the codebooks are in half precision too, and in the third all weights are. In the second, which plain
transforms still have, there is no `improve.onnx` either, and in the first a single `encode.onnx` has the quantisers in it.
The id of a model is the beginning of the SHA-256 over its configuration and those files but the card.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Mapping
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_safetensors

from vqcodec import graphs, limits
from vqcodec.adaptation import unpacked
from vqcodec.codes import Codes
from vqcodec.config import ADAPTED_STRIDE, DEFAULT_EFFORT, LEVELS, QUALITY_STEPS, ModelConfig, TransformConfig
from vqcodec.container import MODEL_ID_BYTES
from vqcodec.errors import ImageError, InvalidModelError, ModelNotFoundError, first_line
from vqcodec.prior import Prior
from vqcodec.search import Search, wanted_threads
from vqcodec.sessions import Later, refuse_as_memory
from vqcodec.tiles import Image
from vqcodec.transform import PATHS, TRIALS, Transform

CARD = "model.json"
ENCODE, DECODE, WEIGHTS, PRIOR = "encode.onnx", "decode.onnx", "transform.safetensors", "prior.safetensors"
ENCODERS = tuple(f"encode_{level}.onnx" for level in LEVELS)
IMPROVE, IMPROVE_MIDDLE = "improve.onnx", "improve_middle.onnx"
IMPROVERS = {"wanted": IMPROVE, "wanted_middle": IMPROVE_MIDDLE}  # by what they give
LAYOUTS = {  # runtime files by the card's format
    1: (DECODE, ENCODE, PRIOR, WEIGHTS),
    2: (DECODE, *ENCODERS, PRIOR, WEIGHTS),
    3: (DECODE, *ENCODERS, IMPROVE, PRIOR, WEIGHTS),
    4: (DECODE, *ENCODERS, IMPROVE, PRIOR, WEIGHTS),  # with weights in eight bits
    5: (DECODE, *ENCODERS, IMPROVE, PRIOR, WEIGHTS),  # with codebooks in eight bits
    6: (DECODE, *ENCODERS, IMPROVE, IMPROVE_MIDDLE, PRIOR, WEIGHTS),
}
SCALE = ".scale"  # after the name of weights in eight bits: what they are multiplied with
LIMITS = {CARD: limits.MAX_CARD, PRIOR: limits.MAX_WEIGHTS, WEIGHTS: limits.MAX_WEIGHTS}
LIMITS |= dict.fromkeys((ENCODE, DECODE, *ENCODERS, IMPROVE, IMPROVE_MIDDLE), limits.MAX_GRAPH)


def quality_steps(quality: float) -> int:
    """Quality 0..100 in hundredths; raises `ValueError` outside."""
    if not 0 <= quality <= 100:
        raise ValueError(f"quality {quality} lies outside 0..100")
    return round(quality * QUALITY_STEPS / 100)


class Model:
    """One trained model; `files` are the bytes of its runtime files by name.

    Its parts open when they are first used: decoding codes never touches the transform.
    """

    def __init__(self, name: str, config: ModelConfig, card: dict[str, Any], files: dict[str, bytes]):
        self.name, self.config, self.card = name, config, card
        self.files = files
        self.id = model_id(config, files)

    @cached_property
    def prior(self) -> Prior:
        """The integer prior; raises `InvalidModelError` where it breaks the exactness bound."""
        return Prior.from_tensors(self._tensors(PRIOR), self.config)

    @cached_property
    def transform(self) -> Transform:
        """The transform, whose graphs are opened when they are used; raises `InvalidModelError` where that fails."""
        return open_transform(self.config.transform, self.files, self._tensors(WEIGHTS))

    def encode(self, image: Image, quality: float, effort: int = DEFAULT_EFFORT) -> Codes:
        """Chooses the codes of an image uint8 (H, W, 3) at quality 0..100, searching with an effort of 0..9.

        From effort 7 on they count on what `adapt` gives for them.
        Raises `ImageError` for another type or shape and `ValueError` for another quality or effort.
        """
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
            raise ImageError(f"an image must be uint8 (H, W, 3), this is {image.dtype} {image.shape}; convert it first")
        if not 0 <= effort < len(PATHS):
            raise ValueError(f"effort {effort} lies outside 0..{len(PATHS) - 1}")
        return self.transform.encode(image, quality_steps(quality), effort, self.prior if any(TRIALS[effort]) else None)

    def adapt(self, image: Image, codes: Codes, quality: float) -> bytes:
        """What adapts the decoder to an image uint8 (H, W, 3), whose codes at quality 0..100 these are; nothing where it is not worth it.

        It is for `decode`. Most of the time goes to decoding the picture once.
        """
        return self.transform.adapt(image, codes, quality_steps(quality))

    def decode(self, codes: Codes, height: int, width: int, quality: float, levels: int = 3, adaptation: bytes = b"") -> Image:
        """Reconstructs the image uint8 (height, width, 3) from its codes; `levels` 1 or 2 leaves out the finer ones.

        `adaptation` is what `adapt` gave, and counts where all levels do. Raises `DamagedError` where it cannot be.
        """
        coordinates = unpacked(adaptation if levels == len(LEVELS) else b"", height, width, self.config.transform.adaptations)
        return self.transform.decode(codes, height, width, quality_steps(quality), levels, coordinates)

    def _tensors(self, name: str) -> dict[str, Any]:
        try:
            return load_safetensors(self.files[name])
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise InvalidModelError(f"the model's {name} cannot be read: {error}; copy or export the model again") from error


def open_transform(config: TransformConfig, files: Mapping[str, bytes], weights: Mapping[str, NDArray[Any]]) -> Transform:
    """The transform of graphs among `files` and weights, as they are in a folder; graphs are opened, and looked at, when they are used.

    Raises `InvalidModelError` for weights in eight bits that have no scales.
    """
    split, weights = ENCODE not in files, restored(weights)
    encoders = [Later(partial(_session, name, files, weights)) for name in (ENCODERS if split else (ENCODE,))]

    @lru_cache(maxsize=1)
    def searches() -> list[Search]:
        widths = config.widths[::-1]  # of the context: that of the decoder's state
        return [Search.from_tensors(weights, f"quantizers.{i}", level, widths[i]) for i, level in enumerate(config.levels)]

    decoder = Later(partial(_session, DECODE, files, weights))
    improvers = {output: Later(partial(_session, name, files, weights)) for output, name in IMPROVERS.items() if name in files}
    return Transform(config, encoders, searches if split else None, decoder, improvers, _basis(config, weights))


def _basis(config: TransformConfig, weights: Mapping[str, NDArray[Any]]) -> NDArray[np.float32] | None:
    """What the last layer can be adapted by (K, F + 1, E), if it can; raises `InvalidModelError` where it is missing."""
    count, outputs, features = config.adaptations, 3 * ADAPTED_STRIDE**2, config.widths[0]
    if not count:
        return None
    found = [weights.get(f"decoder.adapt.{part}") for part in ("weight", "bias")]
    shapes = (count * outputs, features, 1, 1), (count * outputs,)
    if any(tensor is None or tensor.shape != shape for tensor, shape in zip(found, shapes, strict=True)):
        raise InvalidModelError(f"the model's decoder.adapt does not have {count} x {outputs} outputs; export the model again")
    weight, bias = (np.asarray(tensor, np.float32).reshape(count, outputs, -1) for tensor in found)
    return np.ascontiguousarray(np.concatenate([weight, bias], 2).transpose(0, 2, 1))


def scaled_axes(name: str) -> int:
    """How many leading axes of weights in eight bits the scales have: those of codebooks (S, K, D) two, all others one."""
    return 2 if name.endswith(".codebooks") else 1


@np.errstate(all="ignore")  # a spoilt model's numbers may be none
def restored(stored: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Weights as they count: those in eight bits times their scales, in float32, and those in half precision as they are.

    There is a scale for each output (O,) of weights (O, ...), and for each vector (S, K) of codebooks (S, K, D).

    Raises `InvalidModelError` for another type, and where a scale is missing or does not fit.
    """
    weights = {name: tensor for name, tensor in stored.items() if not name.endswith(SCALE)}
    for name, tensor in weights.items():
        if tensor.dtype == np.float16:
            continue
        if tensor.dtype != np.int8:
            raise InvalidModelError(f"the model's {name} is {tensor.dtype} instead of float16 or int8; export the model again")
        scale = stored.get(name + SCALE)
        axes = scaled_axes(name)
        if tensor.ndim < axes or scale is None or scale.dtype != np.float32 or scale.shape != tensor.shape[:axes]:
            found = "missing" if scale is None else f"{scale.dtype} {scale.shape}"
            raise InvalidModelError(f"the scale of the model's {name} is {found} instead of float32, one an output; export the model again")
        weights[name] = tensor * scale.reshape(*scale.shape, *[1] * (tensor.ndim - axes))
    return weights


def _session(name: str, files: Mapping[str, bytes], weights: Mapping[str, NDArray[Any]]) -> Any:
    """Opens a graph, whose bytes are among `files`; raises `InvalidModelError`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    options.add_session_config_entry("session.load_model_format", "ONNX")  # what was checked, and not what else the bytes may be
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # between graphs the search wants the processors
    options.enable_mem_pattern = False  # it keeps a plan and its memory for every shape of tile: 250 MB more, and no faster
    options.intra_op_num_threads = wanted_threads()  # 0: all; the workers of a batch share them
    types = graphs.check(files[name], name, frozenset(weights), WEIGHTS)
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(weights[key], kind)) for key, kind in types.items()]
    try:
        options.add_external_initializers(list(types), values)
        # without the fallback, which prints to standard output and tries the same again
        session = onnxruntime.InferenceSession(files[name], options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # ONNX Runtime has no exception class of its own
        refuse_as_memory(error)
        raise InvalidModelError(f"the model's {name} cannot be opened: {first_line(error)}; export the model again") from error
    session.weights = values  # it reads them where they are, so they must live as long
    return session


def model_id(config: ModelConfig, files: dict[str, bytes]) -> bytes:
    """The first `MODEL_ID_BYTES` of the SHA-256 over the configuration and the runtime files in order of name."""
    digest = hashlib.sha256(json.dumps(config.to_json(), sort_keys=True, separators=(",", ":")).encode())
    for name in sorted(files):
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
        stamps = tuple(sorted((path.name, _stamp(path)) for path in folder.iterdir() if path.name in LIMITS))
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"the model '{text}' cannot be opened: {error}; copy or export it again") from error
    return _load(folder.resolve(), stamps)


def model_names() -> list[str]:
    """Names of the models that come with the package."""
    return sorted(path.parent.name for path in models_folder().glob(f"*/{CARD}"))


def _stamp(path: Path) -> int:
    """When a file was changed; refuses what is no file, or larger than a model's can be."""
    found, limit = path.stat(), LIMITS[path.name]
    if not stat.S_ISREG(found.st_mode) or found.st_size > limit:
        raise OSError(f"{path.name} is no file of at most {limit} bytes")
    return found.st_mtime_ns


@lru_cache(maxsize=4)
def _load(folder: Path, stamps: tuple[tuple[str, int], ...]) -> Model:
    """Reads a folder; `stamps`, its files' times, keep an older reading from being served after an export."""
    try:
        card = json.loads((folder / CARD).read_text(encoding="utf-8"))
        layout = card.get("format") if isinstance(card, dict) else None
        if not isinstance(layout, int) or layout not in LAYOUTS:
            raise InvalidModelError(f"{folder / CARD} is not of the formats {min(LAYOUTS)} to {max(LAYOUTS)}; export the model again")
        files = {name: (folder / name).read_bytes() for name in LAYOUTS[layout]}
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidModelError(f"the model in {folder} is incomplete: {error}") from error
    return Model(str(card.get("name", folder.name)), ModelConfig.from_json(card.get("config")), card, files)
