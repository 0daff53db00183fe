"""Pixels to codes and back: the exported transform in ONNX Runtime, tile by tile.

Shapes: images uint8 `(H, W, 3)`, codes `(S, h, w)` per level. The graphs take whole aligned images or tiles, and what they take and
give has names. One for each level's encoding: image (1, H, W, 3) uint8, quality (1,), the coarser levels' codes int32 (S, h, w) and what
the graphs before it gave -> among others latents (h * w, D) and context (h * w, C), in which search.py finds the level's codes.
`decode.onnx`: all codes, quality and keep (3,) -> image (1, H, W, 3) uint8; where the last layer can be adapted (adaptation.py) also
coordinates (K, R, C) -> features (H * W / 16, F). `improve.onnx`: image, quality, coordinates, the bottom codes and the state from above ->
wanted (h * w, D), where the bottom latents should go for the picture's error (training/improve.py); `improve_middle.onnx`: also the
middle's -> wanted_middle, where those should.

In models of the first layout (model.py) one graph encodes, search and all: image, quality and paths (P,) -> all codes. It keeps P
paths, whatever the values.

A large image goes through in tiles with a halo, so that memory is bounded and inner tiles see what the whole image would have
shown them: all of the receptive field, or the part of it that has a say (`MAX_HALO`). Only improvements (`IMPROVEMENTS`) see farther, each
time by the decoder's reach there and back, and ever more faintly, and trials (`TRIALS`), which take other codes of nearly equal cost; with
these the decoder is adapted meanwhile, to each tile alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vqcodec.adaptation import Moments, Systems, adapted, errors_of, finest_side, packed, scale_of, unpacked
from vqcodec.codes import CodeMap, Codes, check_codes, map_sizes
from vqcodec.config import ADAPTED_STRIDE, ALIGNMENT, DEFAULT_EFFORT, LEVEL_STRIDES, LEVELS, QUALITY_STEPS, TransformConfig
from vqcodec.errors import InvalidModelError
from vqcodec.prior import Prior
from vqcodec.search import Floats, Search
from vqcodec.sessions import Later, run
from vqcodec.tiles import Image, Span, aligned, inner, kept, pad, tiles
from vqcodec.trials import BOTTOM, MIDDLE, Trials

PATHS = (1, 2, 6, 12, 20, 12, 16, 24, 24, 24)  # kept by the search for codes, by effort
PASSING_PATHS = 4  # at the bottom before its latents move for the first time or twice in a row: of these codes only the gradient is wanted
# What part of the way to those wanted the bottom latents go each time before they are searched again, by effort. Long steps first, which
# alone would lead astray, and then ever shorter ones (bench/LOG.md).
IMPROVEMENTS: tuple[tuple[float, ...], ...]
IMPROVEMENTS = (*((),) * 5, (0.3,), *((0.45, 0.25),) * 3, (0.55, 0.3, 0.17))
# How often alternatives of some positions are tried (trials.py), by effort: middle codes after half of the improvements, bottom codes last,
# both in turns before which, but for the middle's first one, the level's latents go a part of the way to those wanted.
TRIALS: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]
TRIALS = (*(((), ()),) * 7, ((), (4,)), ((4, 4), (6,)), ((8, 8, 8), (9, 9, 9)))
MIDDLE_TURN, TURN = 0.4, 0.2  # these parts of the way; the middle's at quality 0, and none at 100, where it would lead astray
TRIED_PATHS = 8  # of those that the search kept, the cheapest ones: the alternatives

# that go through the graphs in one piece, halos and all: about 0.5 GB of activations, 0.7 with improvements
ENCODE_PIXELS, DECODE_PIXELS = 2 << 20, 3 << 20
IMPROVED_SHARE = 1 / 2  # of these pixels where improvements follow, which take twice the memory
MOMENTS_PIXELS = 3 << 19  # the same where what the last layer takes is kept too
MAX_HALO = 160  # pixels: what lies farther away changed at most 1 code in 80,000, of photographs in tiles of 320 (bench/LOG.md)


def halos(config: TransformConfig) -> tuple[int, int]:
    """Pixels beyond a tile that can change its codes, and its pixels: bounds on the receptive fields, aligned, up to `MAX_HALO`.

    Each block's 3x3 convolution reaches one position of its own scale, and the down-sampling convolutions, which do not
    overlap, at most one position of the coarsest scale. Codes also depend on the decoder's state at 1/32 and 1/16.
    """
    strides = (4, 8, 16, 32)
    encoder = sum(stride * depth for stride, depth in zip(strides, config.encoder_depths, strict=True))
    decoder = [stride * depth for stride, depth in zip(strides, config.decoder_depths, strict=True)]
    reach = encoder + decoder[2] + decoder[3] + ALIGNMENT, sum(decoder) + strides[0] + ALIGNMENT
    return min(MAX_HALO, aligned(reach[0])), min(MAX_HALO, aligned(reach[1]))


class Transform:
    """The graphs of one model: sessions of ONNX Runtime, each opened when it is first used, or a little before.

    `encoders` are one for each level, and `searches` gives their quantisers; without, a single one gives the codes of all levels.
    `improvers` are known by what they give, `wanted` or `wanted_middle`: without them latents stay as they are, and without a `basis`
    (K, F + 1, E) the last layer does.
    """

    def __init__(
        self,
        config: TransformConfig,
        encoders: Sequence[Later],
        searches: Callable[[], Sequence[Search]] | None,
        decoder: Later,
        improvers: Mapping[str, Later],
        basis: Floats | None = None,
    ):
        self.config, self.encoders, self.searches, self.decoder = config, encoders, searches, decoder
        self.improvers, self.basis = improvers, basis
        self.encode_halo, self.decode_halo = halos(config)

    def begin_encoding(self) -> None:
        """Starts opening what encoding needs at any effort."""
        for encoder in self.encoders:
            encoder.begin()

    def encode(self, image: Image, quality: int, effort: int = DEFAULT_EFFORT, prior: Prior | None = None) -> Codes:
        """Image uint8 (H, W, 3), quality in hundredths, effort 0..9 -> codes. Without its prior a model has no trials (`TRIALS`)."""
        height, width = image.shape[:2]
        maps = [np.empty((level.stages, *size), np.int32) for level, size in zip(self.config.levels, map_sizes(height, width), strict=True)]
        limit = int(ENCODE_PIXELS * IMPROVED_SHARE) if self._improvements(effort) else ENCODE_PIXELS
        for rows, columns, last in tiles(aligned(height), aligned(width), self.encode_halo, limit):
            if self.basis is not None:  # the decoder follows, and would take as much memory again
                last = last or (rows.inner_stop >= height and columns.inner_stop >= width)
            tile = pad(image[rows.start : rows.stop, columns.start : columns.stop])  # only at the image's end there is need
            known = {"image": tile[None], "quality": _quality(quality)}
            known["coordinates"] = np.zeros((self.config.adaptations, *(side // ALIGNMENT for side in tile.shape[:2])), np.float32)
            if self.searches:
                origin, size = (rows.start, columns.start), (height - rows.start, width - columns.start)
                trials = Trials(self, prior, quality, tile, origin, size) if prior else None
                found = self._search(known, rows, columns, effort, last, trials)
            else:
                known["paths"] = np.zeros(PATHS[effort], np.float32)
                found = list(run(self.encoders[0](), known, last).values())
            self._check_codes(found, *tile.shape[:2])
            for code_map, part, stride in zip(maps, found, LEVEL_STRIDES, strict=True):
                code_map[:, inner(rows, stride), inner(columns, stride)] = part[:, kept(rows, stride), kept(columns, stride)]
        return Codes(*maps)

    def _search(self, known: dict[str, Any], rows: Span, columns: Span, effort: int, last: bool, trials: Trials | None) -> list[CodeMap]:
        """The codes of a tile, whose image and quality are `known`.

        At the bottom the halo is searched only where improvements or trials follow, which depend on it.
        """
        improvements, (of_middle, of_bottom) = self._improvements(effort), self._trials(effort) if trials else ((), ())
        further = bool(improvements or of_middle or of_bottom)
        sparing = last or further  # else the encoders would keep their memory while the improver takes as much again
        begun, found = known, [np.empty(0, np.int32)] * len(LEVELS)
        for level, name in enumerate(LEVELS):
            begun, known = known, self.encoded(level, known, sparing)
            inside = None if further or level != BOTTOM else (kept(rows, LEVEL_STRIDES[level]), kept(columns, LEVEL_STRIDES[level]))
            paths = PASSING_PATHS if improvements and level == BOTTOM else PATHS[effort]
            found[level] = self.ranked(level, known, paths, TRIED_PATHS if level == MIDDLE and of_middle else 1, inside)
            known[name] = found[level][0]
        original, half = known["latents"], (len(improvements) + 1) // 2
        self._improve(known, improvements[:half], effort, trials)
        if trials and of_middle:
            known = self._tried_middle(trials, begun, known, original, found[MIDDLE], effort)
        self._improve(known, improvements[half:], effort, trials)
        for rounds in of_bottom:
            assert trials
            if improvements:
                self._move(known, TURN, trials)
            known[LEVELS[BOTTOM]] = trials.bottom(known, self.ranked(BOTTOM, known, PATHS[effort], TRIED_PATHS), rounds)
        return [known[name] for name in LEVELS]

    @np.errstate(all="ignore")  # a spoilt model's numbers may be none
    def _tried_middle(
        self,
        trials: Trials,
        begun: dict[str, Any],
        known: dict[str, Any],
        original: Floats,
        alternatives: NDArray[np.int32],
        effort: int,
    ) -> dict[str, Any]:
        """What is `known` of a tile with better middle codes, and with the bottom's latents and codes that follow from them.

        `begun` is what was known before the bottom's encoder, which gave the latents `original`, and `alternatives` are the middle codes
        that the search kept, the best ones too: where those were left, they may come back in a later turn.
        """
        begun |= {"coordinates": known["coordinates"]}
        moved = known["latents"] - original
        step = MIDDLE_TURN * (1 - trials.quality / QUALITY_STEPS)
        for turn, rounds in enumerate(self._trials(effort)[0]):
            if turn and step > 0 and "wanted_middle" in self.improvers:  # older models go on with the same alternatives
                begun |= {"latents": self._moved(begun["latents"], "wanted_middle", known, step)}
                alternatives = self.ranked(MIDDLE, begun, PATHS[effort], TRIED_PATHS)
            known = trials.middle(begun, alternatives, moved, rounds)
            begun |= {LEVELS[MIDDLE]: known[LEVELS[MIDDLE]]}
            known[LEVELS[BOTTOM]] = self.ranked(BOTTOM, known, PATHS[effort])[0]
        return known

    def encoded(self, level: int, known: dict[str, Any], last: bool = False) -> dict[str, Any]:
        """What is `known`, and what a level's encoder gives, latents and their context among it."""
        return known | run(self.encoders[level](), known, last)

    def ranked(
        self, level: int, known: dict[str, Any], paths: int, count: int = 1, inside: tuple[slice, slice] | None = None
    ) -> NDArray[np.int32]:
        """The codes (R, S, h, w) of the `count` cheapest paths of a level, whose latents and context are `known`.

        They are those of a tile, or `inside` a part of it: there are zeros around it.
        """
        assert self.searches is not None
        stride, search = LEVEL_STRIDES[level], self.searches()[level]
        size = [length // stride for length in known["image"].shape[1:3]]
        inside = inside or (slice(None), slice(None))
        try:
            latents, context = (known[key].reshape(*size, -1)[inside] for key in ("latents", "context"))
            codes = search.ranked(latents.reshape(-1, latents.shape[2]), context.reshape(-1, context.shape[2]), paths, count)
        except (KeyError, ValueError, AttributeError) as error:
            raise InvalidModelError(f"the model's encoder does not fit its quantisers: {error}; export the model again") from error
        found = np.zeros((count, self.config.levels[level].stages, *size), np.int32)
        found[:, :, inside[0], inside[1]] = codes.reshape(count, -1, *latents.shape[:2])
        return found

    def distances(self, level: int, latents: Any, codes: NDArray[np.int32]) -> Floats:
        """The squared distances of a level's latents (n, D) from what codes (R, S, h, w) say, in bits, as its search counts them.

        Gives (R, h, w).
        """
        assert self.searches is not None
        count, size = codes.shape[2] * codes.shape[3], self.config.levels[level].dim
        flat = codes.reshape(*codes.shape[:2], count)
        return self.searches()[level].distances(latents.reshape(count, size), flat).reshape(len(codes), *codes.shape[2:])

    def _improvements(self, effort: int) -> tuple[float, ...]:
        """How far the bottom latents of a tile go each time that they are improved."""
        return IMPROVEMENTS[effort] if self.improvers and self.config.levels[-1].stages else ()

    def _trials(self, effort: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """How many rounds of trials the middle and the bottom have in each of their turns."""
        alone = not self._improvements(effort)  # then the alternatives would be the same in every turn
        of_middle, of_bottom = (
            tuple(rounds for rounds in ((sum(turns),) if alone else turns) if rounds and self.config.levels[level].stages)
            for level, turns in zip((MIDDLE, BOTTOM), TRIALS[effort], strict=True)
        )
        return of_middle, of_bottom

    def _improve(self, known: dict[str, Any], steps: Sequence[float], effort: int, trials: Trials | None) -> None:
        """Moves the bottom latents that are `known`, each time by a step, and finds the bottom codes again."""
        for left, step in enumerate(steps, 1 - len(steps)):
            self._move(known, step, trials)
            known[LEVELS[BOTTOM]] = self.ranked(BOTTOM, known, PASSING_PATHS if left else PATHS[effort])[0]

    def _move(self, known: dict[str, Any], step: float, trials: Trials | None) -> None:
        """Moves the bottom latents that are `known` by a part of the way to those wanted.

        With trials the decoder is adapted to the codes before, nearly as it will be at the end: what that mends no code need mend.
        """
        if trials:
            image = trials.tile[: trials.size[0], : trials.size[1]]
            height, width = image.shape[:2]
            adaptation = self.adapt(image, Codes(*(known[name] for name in LEVELS)), trials.quality)
            known["coordinates"] = unpacked(adaptation, height, width, self.config.adaptations)
        known["latents"] = self._moved(known["latents"], "wanted", known, step)

    @np.errstate(all="ignore")  # a spoilt model's numbers may be none
    def _moved(self, latents: Floats, name: str, known: dict[str, Any], step: float) -> Floats:
        """Latents (n, D) by `step` of the way nearer to those that an improver gives under its `name` for what is `known`.

        It gives its memory back at once, which others take as much of.
        """
        scale = np.float32(scale_of(self.config, float(known["quality"][0])))
        wanted = run(self.improvers[name](), known | {"coordinates": scale * known["coordinates"]}, True, (name,)).get(name)
        if not isinstance(wanted, np.ndarray) or wanted.shape != latents.shape or not wanted.dtype == latents.dtype == np.float32:
            raise InvalidModelError(f"the model's improver gives no latents '{name}' of the size of its encoder's; export the model again")
        return latents + np.float32(step) * (wanted - latents)

    def decode(self, codes: Codes, height: int, width: int, quality: int, levels: int = 3, coordinates: Floats | None = None) -> Image:
        """Codes -> image uint8 (H, W, 3), of the `levels` coarsest levels alone (the others count as zero).

        `coordinates` (K, R, C) adapt the last layer, in blocks of 32 pixels a side.
        """
        image = np.empty((height, width, 3), np.uint8)
        parts = tiles(aligned(height), aligned(width), self.decode_halo, DECODE_PIXELS)
        for rows, columns, found in self._decoded(parts, codes, quality, levels, coordinates):
            tile = _picture(found.get("image"), rows.stop - rows.start, columns.stop - columns.start)
            shown = tile[kept(rows, 1), kept(columns, 1)][: height - rows.inner_start, : width - columns.inner_start]
            image[inner(rows, 1), inner(columns, 1)] = shown
        return image

    @np.errstate(all="ignore")  # a spoilt model's numbers may be none
    def adapt(self, image: Image, codes: Codes, quality: int) -> bytes:
        """What adapts the last layer to an image uint8 (H, W, 3), of these codes (adaptation.py); nothing where that is not worth it."""
        if self.basis is None:
            return b""
        share = quality / QUALITY_STEPS
        scaled = self.basis * np.float32(scale_of(self.config, share))
        side = finest_side(*image.shape[:2])
        size = [-(-length >> side) for length in image.shape[:2]]
        systems = Systems(*(np.zeros((*size, *[len(scaled)] * axes), np.float32) for axes in (2, 1)))
        for rows, columns, moments in self.moments(image, codes, quality, side):
            found = moments.systems(scaled)
            systems.matrices[rows, columns], systems.right[rows, columns] = found.matrices, found.right
        return packed(adapted(systems, side, self.config.lagrangian(share)))

    def moments(self, image: Image, codes: Codes, quality: int, side: int) -> Iterator[tuple[slice, slice, Moments]]:
        """What the last layer takes and what it leaves of an image uint8 (H, W, 3), whose codes these are, tile by tile.

        Gives which blocks of 2^`side` pixels a side these are, and their moments (adaptation.py); of positions that are not whole there
        is nothing.
        """
        height, width = image.shape[:2]
        parts = tiles(aligned(height), aligned(width), self.decode_halo, MOMENTS_PIXELS, 1 << side)
        for rows, columns, found in self._decoded(parts, codes, quality, features=True):
            size = rows.stop - rows.start, columns.stop - columns.start
            features = _features(found.get("features"), size[0] // ADAPTED_STRIDE, size[1] // ADAPTED_STRIDE, self.config.widths[0])
            features = features[kept(rows, ADAPTED_STRIDE), kept(columns, ADAPTED_STRIDE)]
            whole = [
                max(0, min(span.inner_stop, length) - span.inner_start) // ADAPTED_STRIDE * ADAPTED_STRIDE
                for span, length in ((rows, height), (columns, width))
            ]
            features = features[: whole[0] // ADAPTED_STRIDE, : whole[1] // ADAPTED_STRIDE]
            original = image[rows.inner_start : rows.inner_start + whole[0], columns.inner_start : columns.inner_start + whole[1]]
            decoded = _picture(found.get("image"), *size)[kept(rows, 1), kept(columns, 1)][: whole[0], : whole[1]]
            moments = Moments.of(features, errors_of(original, decoded), (1 << side) // ADAPTED_STRIDE)
            top, left = rows.inner_start >> side, columns.inner_start >> side
            yield slice(top, top + len(moments.errors)), slice(left, left + moments.errors.shape[1]), moments

    def _decoded(
        self,
        parts: Iterable[tuple[Span, Span, bool]],
        codes: Codes,
        quality: int,
        levels: int = len(LEVELS),
        coordinates: Floats | None = None,
        features: bool = False,
    ) -> Iterator[tuple[Span, Span, dict[str, Any]]]:
        """Each tile's rows and columns, and what the decoder gives of it: the image, and what the last layer takes where that is wanted."""
        if coordinates is None:
            coordinates = np.zeros((self.config.adaptations, *codes.top.shape[1:]), np.float32)
        scale = np.float32(scale_of(self.config, quality / QUALITY_STEPS))
        always = {"quality": _quality(quality), "keep": (np.arange(len(LEVELS)) < levels).astype(np.float32)}
        outputs = ("image", "features")[: 1 + features]
        for rows, columns, last in parts:
            inputs: dict[str, Any] = dict(always)
            for name, code_map, stride in zip(Codes._fields, codes, LEVEL_STRIDES, strict=True):
                inputs[name] = _crop(code_map, rows, columns, stride)
            inputs["coordinates"] = scale * _crop(coordinates, rows, columns, ALIGNMENT)
            yield rows, columns, run(self.decoder(), inputs, last or features, outputs)

    def _check_codes(self, found: list[Any], height: int, width: int) -> None:
        """Refuses what is no code maps of a tile of this size."""
        try:
            for code_map, level, size in zip(found, self.config.levels, map_sizes(height, width), strict=True):
                check_codes(code_map, level, size)
        except (ValueError, AttributeError) as error:  # an output that is no array
            raise InvalidModelError(f"the model's encoder does not fit its configuration: {error}; export the model again") from error


def _picture(found: Any, height: int, width: int) -> Image:
    """The image (height, width, 3) that a graph gave."""
    if not isinstance(found, np.ndarray) or found.dtype != np.uint8 or found.shape != (1, height, width, 3):
        raise InvalidModelError("the model's decode.onnx gives no image of the size of its codes; export the model again")
    return found[0]


def _features(found: Any, height: int, width: int, count: int) -> Floats:
    """The features (height, width, count) that a graph gave."""
    if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.shape != (height * width, count):
        raise InvalidModelError("the model's decode.onnx gives no features of the size of its codes; export the model again")
    return found.reshape(height, width, count)


def _quality(quality: int) -> NDArray[np.float32]:
    return np.array([quality / QUALITY_STEPS], np.float32)


def _crop(values: Any, rows: Span, columns: Span, stride: int) -> Any:
    return np.ascontiguousarray(values[:, rows.start // stride : rows.stop // stride, columns.start // stride : columns.stop // stride])
