"""Torch models to a model folder: ONNX graphs, the weights once in few bits, the integer prior, the card.

The graphs hold no weights: their large initialisers become external ones under the names that the torch model has for them, and
`transform.safetensors` holds all of its parameters once: most as int8 with a scale for each output (of codebooks for each vector), the
others as float16. They are made float32 again when the model is opened.
"""

from __future__ import annotations

import copy
import json
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxscript import optimizer
from safetensors.numpy import save
from torch import Tensor, nn

from vqcodec.config import ALIGNMENT, LEVEL_STRIDES, LEVELS, ModelConfig
from vqcodec.errors import TrainingError
from vqcodec.model import CARD, DECODE, ENCODERS, IMPROVE, IMPROVE_MIDDLE, LAYOUTS, PRIOR, SCALE, WEIGHTS, restored, scaled_axes
from vqcodec.prior import Prior
from vqcodec.training.improve import wanted_bottom, wanted_middle
from vqcodec.training.pixelcnn import PixelCNN
from vqcodec.training.vqvae import VQVAE, Found, flat

OPSET = 18
# Weights in eight bits: those of the deep layers and of the quantisers, where that costs nothing that shows (bench/LOG.md). What stands
# next to the pixels has sixteen.
IN_EIGHT_BITS = (".blocks.", ".up.", ".from_sum.", ".hidden.", ".logits.", ".codebooks", ".adapt.")
SMALL = 16  # elements: initialisers up to here (shapes, axes) stay in the graph


class ExportedTransform(NamedTuple):
    """A transform as a folder holds it: the graphs by the names of their files, and the weights."""

    graphs: dict[str, bytes]
    weights: dict[str, NDArray[Any]]


class EncodeGraph(nn.Module):
    """What is needed to find one level's codes: its `latents` (n, D) and their `context` (n, C), and what the graphs after it need."""

    def __init__(self, transform: VQVAE):
        super().__init__()
        self.transform = transform

    def quantised(self, level: int, found: Found, state: Tensor, quality: Tensor) -> tuple[Tensor, Tensor]:
        """What a level's quantiser gets."""
        latents, context = self.transform.before_search(level, found, state, quality)
        return flat(latents), flat(context)


class EncodeTop(EncodeGraph):
    """image uint8 (1, H, W, 3), quality (1,) -> latents, context, and the encoder's middle, bottom and direct features."""

    outputs = ("latents", "context", "middle_features", "bottom_features", "direct")

    def forward(self, image: Tensor, quality: Tensor) -> tuple[Tensor, ...]:
        top, middle, bottom = self.transform.encoder(_unit(image), self.transform.anchors(quality))
        state = self.transform.decoder.start.expand_as(top.features)
        return (*self.quantised(0, top, state, quality), middle.features, *bottom)


class EncodeMiddle(EncodeGraph):
    """top int32 (S, h, w), middle_features, quality (1,) -> latents, context, and the decoder's state."""

    outputs = ("latents", "context", "state")

    def forward(self, top: Tensor, middle_features: Tensor, quality: Tensor) -> tuple[Tensor, ...]:
        batch, _, height, width = middle_features.shape
        state = self.transform.decoder.start.expand(batch, -1, height // 2, width // 2)
        state = self.transform.refined(0, top[None].long(), state, quality)
        return (*self.quantised(1, Found(middle_features), state, quality), state)


class EncodeBottom(EncodeGraph):
    """middle int32 (S, h, w), state, bottom_features, direct, quality (1,) -> latents, context, and the decoder's state."""

    outputs = ("latents", "context", "bottom_state")

    def forward(self, middle: Tensor, state: Tensor, bottom_features: Tensor, direct: Tensor, quality: Tensor) -> tuple[Tensor, ...]:
        state = self.transform.refined(1, middle[None].long(), state, quality)
        return (*self.quantised(2, Found(bottom_features, direct), state, quality), state)


class Improve(EncodeGraph):
    """image, bottom int32 (S, h, w), bottom_state, quality (1,) -> where the bottom latents (n, D) should go (improve.py).

    Where the decoder's last layer can be adapted, there are also the coordinates (K, R, C) that do it.
    """

    outputs = ("wanted",)

    def forward(self, image: Tensor, bottom: Tensor, bottom_state: Tensor, quality: Tensor, coordinates: Tensor | None = None) -> Tensor:
        return flat(wanted_bottom(self.transform, _unit(image), bottom[None].long(), bottom_state, quality, coordinates))


class ImproveMiddle(EncodeGraph):
    """The same with middle int32 (S, h, w) and state: where the middle latents should go."""

    outputs = ("wanted_middle",)

    def forward(
        self,
        image: Tensor,
        middle: Tensor,
        bottom: Tensor,
        state: Tensor,
        bottom_state: Tensor,
        quality: Tensor,
        coordinates: Tensor | None = None,
    ) -> Tensor:
        codes, states = (middle[None].long(), bottom[None].long()), (state, bottom_state)
        return flat(wanted_middle(self.transform, _unit(image), codes, states, quality, coordinates))


class DecodeGraph(nn.Module):
    """codes int32 (S, h, w) per level, quality (1,), keep (3,) -> image uint8 (1, H, W, 3)."""

    outputs: tuple[str, ...] = ("image",)

    def __init__(self, transform: VQVAE):
        super().__init__()
        self.transform = transform

    def forward(self, top: Tensor, middle: Tensor, bottom: Tensor, quality: Tensor, keep: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return _pixels(self.transform.decode([top[None].long(), middle[None].long(), bottom[None].long()], quality, keep))


class AdaptedDecodeGraph(DecodeGraph):
    """The same with coordinates (K, R, C) that adapt the last layer, in blocks of 32 pixels a side.

    What that layer takes (n, F) is another output.
    """

    outputs = ("image", "features")

    def forward(  # type: ignore[override]
        self, top: Tensor, middle: Tensor, bottom: Tensor, quality: Tensor, keep: Tensor, coordinates: Tensor
    ) -> tuple[Tensor, Tensor]:
        features, latents = self.transform.features([top[None].long(), middle[None].long(), bottom[None].long()], quality, keep)
        return _pixels(self.transform.decoder.finish(features, latents, coordinates)), flat(features)


def _unit(image: Tensor) -> Tensor:
    """Images uint8 (B, H, W, 3) as (B, 3, H, W) on [0, 1]."""
    return image.permute(0, 3, 1, 2).float() / 255


def _pixels(image: Tensor) -> Tensor:
    """Images (B, 3, H, W) on [0, 1] as uint8 (B, H, W, 3)."""
    return (image * 255 + 0.5).floor().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def export_model(transform: ExportedTransform, prior: PixelCNN, folder: Path, name: str, card: dict[str, Any]) -> None:
    """Writes the model folder, replacing what is there of a model; `card` is what else `model.json` should say.

    While files are replaced there is no `model.json`: what an interruption leaves is no model, instead of parts of two.
    """
    folder.mkdir(parents=True, exist_ok=True)
    integers = prior.export()
    Prior.from_tensors(integers, prior.config)  # refuses what the codec would refuse
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary)
        for file, graph in transform.graphs.items():
            (made / file).write_bytes(graph)
        (made / WEIGHTS).write_bytes(save(transform.weights))
        (made / PRIOR).write_bytes(save(integers))
        config: ModelConfig = prior.config
        layout = max(number for number, names in LAYOUTS.items() if {*names} == {*transform.graphs, WEIGHTS, PRIOR})
        text = json.dumps({"format": layout, "name": name, "config": config.to_json(), **card}, indent=2)
        (made / CARD).write_text(text + "\n", encoding="utf-8")
        (folder / CARD).unlink(missing_ok=True)
        for name in {name for names in LAYOUTS.values() for name in names} - {*LAYOUTS[layout]}:
            (folder / name).unlink(missing_ok=True)
        for path in sorted(made.iterdir(), key=lambda path: path.name == CARD):
            path.chmod(0o644)
            path.replace(folder / path.name)


def export_transform(transform: VQVAE) -> ExportedTransform:
    """Makes the graphs, which takes seconds, and the weights in few bits; those of a plain transform all in sixteen.

    Raises `TrainingError` for weights that they cannot hold.
    """
    transform = copy.deepcopy(transform).float().cpu().eval().to(memory_format=torch.contiguous_format)
    weights = round_weights(transform)
    values = {name: parameter.detach().numpy() for name, parameter in transform.named_parameters()}
    models = encode_graphs(transform) | {DECODE: decode_graph(transform)}
    for model in models.values():
        externalise(model, values)
    return ExportedTransform({file: model.SerializeToString() for file, model in models.items()}, weights)


def with_basis(exported: ExportedTransform, basis: NDArray[np.float64]) -> ExportedTransform:
    """The same with this basis (K, F + 1, E) for adapting the last layer; the graphs hold no weights, so they stay."""
    weight = torch.from_numpy(basis[:, :-1].transpose(0, 2, 1).reshape(-1, basis.shape[1] - 1, 1, 1).copy()).float()
    bias = torch.from_numpy(basis[:, -1].reshape(-1)).float()
    added = in_eight_bits("decoder.adapt.weight", weight) | in_sixteen_bits("decoder.adapt.bias", bias)
    return ExportedTransform(exported.graphs, exported.weights | added)


@torch.no_grad()
def round_weights(transform: VQVAE) -> dict[str, NDArray[Any]]:
    """The parameters as they are stored; those of `transform`, in float32, become what is read from that."""
    weights: dict[str, NDArray[Any]] = {}
    for name, parameter in transform.named_parameters():
        if transform.plain and ".logits." in name:
            parameter.zero_()  # all codes as likely, so that the search takes the nearest
        fine = transform.plain or parameter.dim() < 2 or not any(part in name for part in IN_EIGHT_BITS)
        stored = in_sixteen_bits(name, parameter) if fine else in_eight_bits(name, parameter)
        parameter.copy_(torch.from_numpy(restored(stored)[name]))
        weights |= stored
    return weights


def in_sixteen_bits(name: str, parameter: Tensor) -> dict[str, NDArray[Any]]:
    """A parameter as float16 under its name; raises `TrainingError` where its numbers are too large, or none."""
    stored = np.ascontiguousarray(parameter.half().numpy())
    if not np.isfinite(stored).all():
        raise TrainingError(f"the weights of {name} cannot be exported: they are not finite in half precision")
    return {name: stored}


def in_eight_bits(name: str, parameter: Tensor) -> dict[str, NDArray[Any]]:
    """A parameter (O, ...) as int8, and its scale (O,) in float32; raises `TrainingError` for numbers that are none.

    Codebooks (S, K, D) get a scale (S, K) for each vector: frequent codes are short, and one scale for all would be coarse for them.
    """
    axes = scaled_axes(name)
    largest = parameter.flatten(axes).abs().amax(axes)
    if not largest.isfinite().all():
        raise TrainingError(f"the weights of {name} cannot be exported: they are not finite")
    scale = torch.where(largest > 0, largest / 127, 1.0)
    stored = (parameter / scale.view(*scale.shape, *[1] * (parameter.dim() - axes))).round().to(torch.int8)
    return {name: np.ascontiguousarray(stored.numpy()), name + SCALE: scale.numpy()}


def encode_graphs(transform: VQVAE) -> dict[str, onnx.ModelProto]:
    """The encoder's graphs, with dynamic height and width. Of a plain one without the improvers, whose latents have no scale to go by."""
    config = transform.config
    rows, columns = torch.export.Dim("rows", min=2, max=4096), torch.export.Dim("columns", min=2, max=4096)
    factors = [ALIGNMENT // stride for stride in LEVEL_STRIDES]
    sides = [(4 * factor, 5 * factor) for factor in factors]
    _, middle, bottom = ({2: factor * rows, 3: factor * columns} for factor in factors)
    codes = [
        (torch.zeros(lv.stages, *side, dtype=torch.int32), {1: f * rows, 2: f * columns})
        for lv, side, f in zip(config.levels, sides, factors, strict=True)
    ]
    image, whole = torch.zeros(1, 4 * ALIGNMENT, 5 * ALIGNMENT, 3, dtype=torch.uint8), {1: ALIGNMENT * rows, 2: ALIGNMENT * columns}
    middle_features, bottom_features = torch.zeros(1, config.widths[2], *sides[1]), torch.zeros(1, config.widths[1], *sides[2])
    state, direct = torch.zeros(1, config.widths[2], *sides[1]), torch.zeros(1, config.levels[2].dim, *sides[2])
    quality = (torch.zeros(1), None)
    adapting = {"coordinates": (torch.zeros(config.adaptations, 4, 5), {1: rows, 2: columns})} if config.adaptations else {}
    inputs: list[tuple[EncodeGraph, dict[str, tuple[Tensor, Any]]]] = [
        (EncodeTop(transform), {"image": (image, whole), "quality": quality}),
        (EncodeMiddle(transform), {"top": codes[0], "middle_features": (middle_features, middle), "quality": quality}),
        (
            EncodeBottom(transform),
            {
                "middle": codes[1],
                "state": (state, middle),
                "bottom_features": (bottom_features, bottom),
                "direct": (direct, bottom),
                "quality": quality,
            },
        ),
        (
            Improve(transform),
            {
                "image": (image, whole),
                "bottom": codes[2],
                "bottom_state": (torch.zeros_like(bottom_features), bottom),
                "quality": quality,
                **adapting,
            },
        ),
        (
            ImproveMiddle(transform),
            {
                "image": (image, whole),
                "middle": codes[1],
                "bottom": codes[2],
                "state": (state, middle),
                "bottom_state": (torch.zeros_like(bottom_features), bottom),
                "quality": quality,
                **adapting,
            },
        ),
    ]
    if transform.plain:
        inputs = inputs[: len(ENCODERS)]
    return {
        file: _export(module, tuple(x for x, _ in given.values()), {name: dims for name, (_, dims) in given.items()}, list(module.outputs))
        for file, (module, given) in zip((*ENCODERS, IMPROVE, IMPROVE_MIDDLE), inputs, strict=not transform.plain)
    }


def decode_graph(transform: VQVAE) -> onnx.ModelProto:
    """The decoder as ONNX with dynamic height and width."""
    rows, columns = torch.export.Dim("rows", min=2, max=4096), torch.export.Dim("columns", min=2, max=4096)
    factors = [ALIGNMENT // stride for stride in LEVEL_STRIDES]
    codes = [torch.zeros(lv.stages, 4 * f, 5 * f, dtype=torch.int32) for lv, f in zip(transform.config.levels, factors, strict=True)]
    shapes: dict[str, Any] = {name: {1: f * rows, 2: f * columns} for name, f in zip(LEVELS, factors, strict=True)}
    given, shapes = (*codes, torch.zeros(1), torch.ones(3)), shapes | {"quality": None, "keep": None}
    if not transform.config.adaptations:
        return _export(DecodeGraph(transform), given, shapes, list(DecodeGraph.outputs))
    given, shapes = (*given, torch.zeros(transform.config.adaptations, 4, 5)), shapes | {"coordinates": shapes[LEVELS[0]]}
    return _export(AdaptedDecodeGraph(transform), given, shapes, list(AdaptedDecodeGraph.outputs))


def _export(module: nn.Module, example: tuple[Tensor, ...], shapes: dict[str, Any], outputs: list[str]) -> onnx.ModelProto:
    module.eval()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "# The axis name", UserWarning)  # several inputs have the same sides: one name for each will do
        program = torch.onnx.export(
            module, example, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, output_names=outputs, optimize=False, verbose=False
        )
    assert program is not None
    # half the nodes, so half the time to open; folding stops short of the weights, which the graphs share
    return optimizer.optimize(program.model_proto, input_size_limit=SMALL, output_size_limit=SMALL)


def externalise(model: onnx.ModelProto, weights: Mapping[str, NDArray[Any]]) -> None:
    """Turns the graph's float initialisers into references to `weights`, and removes what else it need not say."""
    kept: list[TensorProto] = []
    renamed: dict[str, str] = {}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        if values.dtype != np.float32 or values.size <= SMALL:
            kept.append(tensor)
            continue
        name = tensor.name.removeprefix("transform.")
        assert np.array_equal(weights[name], values), name
        reference = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape, data_location=TensorProto.EXTERNAL)
        reference.external_data.add(key="location", value=WEIGHTS)
        kept.append(reference)
        renamed[tensor.name] = name
    _replace(model.graph.initializer, kept)
    _replace(model.graph.value_info, [])
    _replace(model.graph.metadata_props, [])  # names of the weights once more
    for value in (*model.graph.input, *model.graph.output):
        _replace(value.metadata_props, [])
    for node in model.graph.node:
        _replace(node.input, [renamed.get(name, name) for name in node.input])
        _replace(node.metadata_props, [])  # the exporter's notes name files of the machine
        node.doc_string = ""


def _replace(field: Any, values: list[Any]) -> None:
    """Sets a repeated protobuf field."""
    copies = list(values)
    del field[:]
    field.extend(copies)
