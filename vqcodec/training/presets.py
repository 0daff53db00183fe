"""The trainings that `vqcodec train --preset` names."""

from __future__ import annotations

from dataclasses import dataclass

from vqcodec.config import LevelConfig, ModelConfig, PriorConfig, TransformConfig


@dataclass(frozen=True)
class Preset:
    """A model's shape and how it is trained.

    `crop` is in pixels, and also the smallest image side that is used. A `plain` training has no rate term and codebooks that are
    moving averages, at one rate whatever the quality: van den Oord et al. 2017, Razavi et al. 2019.
    """

    config: ModelConfig
    crop: int = 192
    plain: bool = False
    learning_rate: float = 1e-3


def _papers(levels: tuple[LevelConfig, ...]) -> ModelConfig:
    """The papers' quantisers in our network, so that the comparison is one of the recipe."""
    transform = TransformConfig((64, 96, 128, 160), (3, 6, 4, 2), (4, 8, 5, 2), levels, lambda_min=24.0, lambda_max=2400.0, anchors=2)
    return ModelConfig(transform, PriorConfig(96, (3, 4, 5), (3, 3), quality_anchors=2))


PAPERS_RATE = 3e-4  # Razavi et al. 2019; at 1e-3 the moving averages do not keep up with the latents, and training diverges (bench/LOG.md)

PRESETS = {
    "default": Preset(
        ModelConfig(
            TransformConfig(
                widths=(64, 96, 128, 160),
                encoder_depths=(5, 9, 7, 4),
                decoder_depths=(6, 12, 8, 3),
                levels=(LevelConfig(2, 512, 16, 0.35), LevelConfig(3, 512, 24, 0.85), LevelConfig(22, 512, 96)),
                lambda_min=24.0,
                lambda_max=3000.0,
                anchors=5,
                adaptations=32,
            ),
            PriorConfig(channels=96, trunk_blocks=(3, 4, 7), context_blocks=(3, 6), quality_anchors=9, head_channels=176),
        )
    ),
    "vqvae2": Preset(_papers((LevelConfig(1, 512, 64),) * 3), plain=True, learning_rate=PAPERS_RATE),
    "vqvae": Preset(
        _papers((LevelConfig(0, 512, 64), LevelConfig(0, 512, 64), LevelConfig(1, 512, 64))), plain=True, learning_rate=PAPERS_RATE
    ),
    "tiny": Preset(  # for tests and for trying a data set out
        ModelConfig(
            TransformConfig(
                widths=(12, 16, 16, 16),
                encoder_depths=(1, 1, 1, 1),
                decoder_depths=(1, 1, 1, 1),
                levels=(LevelConfig(1, 32, 4), LevelConfig(2, 32, 4), LevelConfig(2, 64, 4)),
                lambda_min=24.0,
                lambda_max=1600.0,
                anchors=3,
                adaptations=4,
            ),
            PriorConfig(channels=16, trunk_blocks=(1, 1, 1), context_blocks=(1, 1), quality_anchors=3),
        ),
        crop=96,
    ),
}
