"""The frozen descriptions of a model that are saved beside its weights.

Everything that the codec must know to run a model is here, and nothing about how it was trained. A key that
these dataclasses do not know is an error: a file from a newer version must not be half understood.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any, cast

from vqcodec.errors import InvalidModelError

LEVELS = ("top", "middle", "bottom")
LEVEL_STRIDES = (32, 16, 8)  # pixels per code along each side
ALIGNMENT = 32  # pixels: images are padded to a multiple of the top level's stride
QUALITY_STEPS = 10_000  # quality 0..100 is stored in hundredths
DEFAULT_EFFORT = 3  # of the search for codes, 0..9
LAMBDA_UNIT = 100.0  # the Lagrangian at which latents have gain 1
ADAPTED_STRIDE = 4  # pixels a side for each position of the decoder's last layer
LAMBDA_LEAST, LAMBDA_MOST = 1e-6, 1e9
MAX_STAGES = 32
MAX_CODEBOOK_SIZE = 4096
MIN_RATE_WEIGHT = 0.01


@dataclass(frozen=True)
class LevelConfig:
    """One level's quantiser: `stages` residual codebooks of `codebook_size` vectors of `dim` numbers; without stages it holds nothing.

    `rate_weight` is what a bit of this level counts in the search for its codes: less than 1 where a better code also helps the finer
    levels, which are searched afterwards.
    """

    stages: int
    codebook_size: int
    dim: int
    rate_weight: float = 1.0


@dataclass(frozen=True)
class TransformConfig:
    """The VQ-VAE-2 transform: network shape and the range of its quality knob.

    `widths` are channels at 1/4, 1/8, 1/16 and 1/32 of each side; the depths count residual blocks there.
    Quality 0..1 maps to the Lagrangian `lambda_min * (lambda_max / lambda_min) ** quality` (bits per pixel
    per unit of MSE on [0, 1]); per-channel scales are interpolated between `anchors` equally spaced qualities.
    A file may adapt the decoder's last layer by `adaptations` numbers for each block (adaptation.py).
    """

    widths: tuple[int, ...]
    encoder_depths: tuple[int, ...]
    decoder_depths: tuple[int, ...]
    levels: tuple[LevelConfig, ...]
    lambda_min: float
    lambda_max: float
    anchors: int
    adaptations: int = 0

    def lagrangian(self, quality: float) -> float:
        """That of a quality in [0, 1]."""
        return float(self.lambda_min * (self.lambda_max / self.lambda_min) ** quality)


@dataclass(frozen=True)
class PriorConfig:
    """The integer PixelCNN: channels, masked blocks of the trunk and blocks of the coarser levels' context.

    `head_channels` are those of the hidden layer before the logits; 0 stands for as many as all else has.
    """

    channels: int
    trunk_blocks: tuple[int, ...]
    context_blocks: tuple[int, ...]
    quality_anchors: int
    head_channels: int = 0

    @property
    def hidden_channels(self) -> int:
        """Channels of the heads' hidden layers."""
        return self.head_channels or self.channels


@dataclass(frozen=True)
class ModelConfig:
    """What `model.json` holds under the key `config`."""

    transform: TransformConfig
    prior: PriorConfig

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts, lists and numbers. What has its default is left out: older models, and their ids, know of none."""
        data = asdict(self)
        if not self.prior.head_channels:
            del data["prior"]["head_channels"]
        if not self.transform.adaptations:
            del data["transform"]["adaptations"]
        for level in data["transform"]["levels"]:
            if level["rate_weight"] == 1:
                del level["rate_weight"]
        return data

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
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            raise InvalidModelError(f"the model's configuration is wrong: {error}") from error
        return config


def _checked(kind: type, data: object) -> dict[str, Any]:
    """Returns `data` as a dict with the fields of the dataclass `kind`, and no others; those that have a default may be missing."""
    if not isinstance(data, Mapping):
        raise TypeError(f"{kind.__name__} must be an object")
    given, known = set(cast(Mapping[str, Any], data)), {field.name: field.default is MISSING for field in fields(kind)}
    wrong = given - set(known) | {name for name, needed in known.items() if needed and name not in given}
    if wrong:
        raise KeyError(f"{kind.__name__} has unknown or missing keys: {sorted(wrong)}")
    return dict(cast(Mapping[str, Any], data))


def _check_ranges(config: ModelConfig) -> None:
    transform, prior = config.transform, config.prior
    if len(transform.levels) != len(LEVELS):
        raise ValueError(f"{len(transform.levels)} levels instead of {len(LEVELS)}")
    for level in transform.levels:
        _check_integers("stages", (level.stages,), 0, MAX_STAGES)
        _check_integers("codebook_size", (level.codebook_size,), 2, MAX_CODEBOOK_SIZE)
        _check_integers("dim", (level.dim,), 1, 256)
        if type(level.rate_weight) not in (int, float) or not MIN_RATE_WEIGHT <= level.rate_weight <= 1 / MIN_RATE_WEIGHT:
            raise ValueError(f"rate_weight must be a number in {MIN_RATE_WEIGHT}..{1 / MIN_RATE_WEIGHT}, not {level.rate_weight}")
    for name, low in (("widths", 1), ("encoder_depths", 0), ("decoder_depths", 0)):
        _check_integers(name, getattr(transform, name), low, 4096, count=len(LEVELS) + 1)
    _check_integers("adaptations", (transform.adaptations,), 0, 64)
    _check_integers("anchors", (transform.anchors, prior.quality_anchors), 2, 64)
    if not all(type(value) in (int, float) for value in (transform.lambda_min, transform.lambda_max)):
        raise TypeError("lambda_min and lambda_max must be numbers")
    if not LAMBDA_LEAST <= float(transform.lambda_min) < float(transform.lambda_max) <= LAMBDA_MOST:
        raise ValueError(f"lambda_min and lambda_max must lie in {LAMBDA_LEAST:g}..{LAMBDA_MOST:g}, in this order")
    _check_integers("channels", (prior.channels,), 1, 512)
    _check_integers("head_channels", (prior.head_channels,), 0, 512)
    _check_integers("trunk_blocks", prior.trunk_blocks, 0, 64, count=len(LEVELS))
    _check_integers("context_blocks", prior.context_blocks, 0, 64, count=len(LEVELS) - 1)


def _check_integers(name: str, values: tuple[int, ...], low: int, high: int, count: int | None = None) -> None:
    if count is not None and len(values) != count:
        raise ValueError(f"{name} has {len(values)} entries instead of {count}")
    if not all(type(value) is int and low <= value <= high for value in values):
        raise ValueError(f"{name} must be integers in {low}..{high}, not {values}")
