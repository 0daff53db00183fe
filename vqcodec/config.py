"""The frozen descriptions of a model that are saved beside its weights.

Everything that the codec must know to run a model is here, and nothing about how it was trained. A key that
these dataclasses do not know is an error: a file from a newer version must not be half understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, cast

from vqcodec.errors import InvalidModelError

LEVELS = ("top", "middle", "bottom")
LEVEL_STRIDES = (32, 16, 8)  # pixels per code along each side
ALIGNMENT = 32  # pixels: images are padded to a multiple of the top level's stride
QUALITY_STEPS = 10_000  # quality 0..100 is stored in hundredths
MAX_STAGES = 16
MAX_CODEBOOK_SIZE = 4096


@dataclass(frozen=True)
class LevelConfig:
    """One level's quantiser: `stages` residual codebooks of `codebook_size` vectors of `dim` numbers."""

    stages: int
    codebook_size: int
    dim: int


@dataclass(frozen=True)
class TransformConfig:
    """The VQ-VAE-2 transform: network shape and the range of its quality knob.

    `widths` are channels at 1/4, 1/8, 1/16 and 1/32 of each side; the depths count residual blocks there.
    Quality 0..1 maps to the Lagrangian `lambda_min * (lambda_max / lambda_min) ** quality` (bits per pixel
    per unit of MSE on [0, 1]); per-channel scales are interpolated between `anchors` equally spaced qualities.
    """

    widths: tuple[int, ...]
    encoder_depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    levels: tuple[LevelConfig, ...]
    lambda_min: float
    lambda_max: float
    anchors: int


@dataclass(frozen=True)
class PriorConfig:
    """The integer PixelCNN: channels, masked blocks of the trunk and blocks of the coarser levels' context."""

    channels: int
    trunk_blocks: tuple[int, ...]
    context_blocks: tuple[int, ...]
    quality_anchors: int


@dataclass(frozen=True)
class ModelConfig:
    """What `model.json` holds under the key `config`."""

    transform: TransformConfig
    prior: PriorConfig

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts, lists and numbers."""
        return asdict(self)

    @staticmethod
    def from_json(data: object) -> ModelConfig:
        """Builds a config from parsed JSON; raises `InvalidModelError` for a missing, unknown or wrong key."""
        try:
            top = _checked(ModelConfig, data)
            transform = _checked(TransformConfig, top["transform"])
            levels = tuple(LevelConfig(**_checked(LevelConfig, level)) for level in transform["levels"])
            for key in ("widths", "encoder_depths", "decoder_depths"):
                transform[key] = tuple(transform[key])
            prior = _checked(PriorConfig, top["prior"])
            for key in ("trunk_blocks", "context_blocks"):
                prior[key] = tuple(prior[key])
            config = ModelConfig(TransformConfig(**{**transform, "levels": levels}), PriorConfig(**prior))
            _check_ranges(config)
        except (TypeError, KeyError, ValueError) as error:
            raise InvalidModelError(f"the model's configuration is wrong: {error}") from error
        return config


def _checked(kind: type, data: object) -> dict[str, Any]:
    """Returns `data` as a dict with exactly the fields of the dataclass `kind`."""
    if not isinstance(data, Mapping):
        raise TypeError(f"{kind.__name__} must be an object")
    given, known = set(cast(Mapping[str, Any], data)), {field.name for field in fields(kind)}
    if given != known:
        raise KeyError(f"{kind.__name__} has unknown or missing keys: {sorted(given ^ known)}")
    return dict(cast(Mapping[str, Any], data))


def _check_ranges(config: ModelConfig) -> None:
    transform, prior = config.transform, config.prior
    if len(transform.levels) != len(LEVELS):
        raise ValueError(f"{len(transform.levels)} levels instead of {len(LEVELS)}")
    for level in transform.levels:
        if not (1 <= level.stages <= MAX_STAGES and 2 <= level.codebook_size <= MAX_CODEBOOK_SIZE):
            raise ValueError(f"stages or codebook size out of range: {level}")
    if len(prior.trunk_blocks) != len(LEVELS) or len(prior.context_blocks) != len(LEVELS) - 1:
        raise ValueError("the prior needs three trunk depths and two context depths")
    if not (1 <= prior.channels <= 512 and 2 <= prior.quality_anchors <= 64):
        raise ValueError("the prior's channels or quality anchors are out of range")
    if not all(0 <= depth <= 64 for depth in prior.trunk_blocks + prior.context_blocks):
        raise ValueError("the prior's depths are out of range")
