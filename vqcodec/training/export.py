"""Torch models to a model folder: two ONNX graphs, their weights once in half precision, the integer prior, the card.

The graphs hold no weights: large initialisers become external ones, named alike in both graphs, and `transform.safetensors` holds
them once, as float16. They are made float32 again and joined with the graphs when the model is opened.
"""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import TensorProto, numpy_helper
from onnxscript import optimizer
from safetensors.numpy import save_file
from torch import Tensor, nn

from vqcodec.config import ALIGNMENT, LEVEL_STRIDES, LEVELS, ModelConfig
from vqcodec.errors import TrainingError
from vqcodec.model import CARD, CARD_FORMAT, DECODE, ENCODE, PRIOR, SHARED, WEIGHTS
from vqcodec.prior import Prior
from vqcodec.training.pixelcnn import PixelCNN
from vqcodec.training.vqvae import VQVAE
from vqcodec.transform import PATHS, Transform

OPSET = 18
MAX_PATHS = max(PATHS)
SMALL = 16  # elements: initialisers up to here (shapes, axes) stay in the graph


class EncodeGraph(nn.Module):
    """image uint8 (1, H, W, 3), quality (1,), paths (P,) -> codes int32 (S, h, w) per level.

    Only the length of `paths` counts: the number that the search for codes keeps.
    """

    def __init__(self, transform: VQVAE):
        super().__init__()
        self.transform = transform

    def forward(self, image: Tensor, quality: Tensor, paths: Tensor) -> tuple[Tensor, ...]:
        pixels = image.permute(0, 3, 1, 2).float() / 255
        return tuple(codes[0].int() for codes in self.transform.encode(pixels, quality, paths.shape[0]))


class DecodeGraph(nn.Module):
    """codes int32 (S, h, w) per level, quality (1,), keep (3,) -> image uint8 (1, H, W, 3)."""

    def __init__(self, transform: VQVAE):
        super().__init__()
        self.transform = transform

    def forward(self, top: Tensor, middle: Tensor, bottom: Tensor, quality: Tensor, keep: Tensor) -> Tensor:
        image = self.transform.decode([top[None].long(), middle[None].long(), bottom[None].long()], quality, keep)
        return (image * 255 + 0.5).floor().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def export_model(transform: VQVAE, prior: PixelCNN, folder: Path, name: str, card: dict[str, Any]) -> None:
    """Writes the model folder, replacing runtime files that are there; `card` is what else `model.json` should say."""
    transform = transform.float().cpu().eval().to(memory_format=torch.contiguous_format)
    folder.mkdir(parents=True, exist_ok=True)
    graphs = {ENCODE: encode_graph(transform), DECODE: decode_graph(transform)}
    weights = externalise(graphs)
    integers = prior.export()
    Prior.from_tensors(integers, prior.config)  # refuses what the codec would refuse
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        made = Path(temporary)
        for file, graph in graphs.items():
            (made / file).write_bytes(graph.SerializeToString())
        save_file(weights, made / WEIGHTS)
        save_file(integers, made / PRIOR)
        config: ModelConfig = prior.config
        text = json.dumps({"format": CARD_FORMAT, "name": name, "config": config.to_json(), **card}, indent=2)
        (made / CARD).write_text(text + "\n", encoding="utf-8")
        for path in made.iterdir():
            path.chmod(0o644)
            path.replace(folder / path.name)


def runtime_transform(transform: VQVAE) -> Transform:
    """The transform, which must be on the processor, as the runtime has it, but with weights in full precision."""

    def opened(graph: onnx.ModelProto) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.enable_mem_pattern = False  # pictures come in many sizes
        return onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])

    exported = copy.deepcopy(transform).float().to(memory_format=torch.contiguous_format)
    return Transform(transform.config, lambda: opened(encode_graph(exported)), lambda: opened(decode_graph(exported)))


def encode_graph(transform: VQVAE) -> onnx.ModelProto:
    """The encoder as ONNX with dynamic height and width."""
    side = 4 * ALIGNMENT
    example = (torch.zeros(1, side, side + ALIGNMENT, 3, dtype=torch.uint8), torch.zeros(1), torch.zeros(3))
    rows, columns = torch.export.Dim("rows", min=2, max=4096), torch.export.Dim("columns", min=2, max=4096)
    paths = {0: torch.export.Dim("paths", min=1, max=MAX_PATHS)}
    shapes = {"image": {1: ALIGNMENT * rows, 2: ALIGNMENT * columns}, "quality": None, "paths": paths}
    return _export(EncodeGraph(transform), example, shapes, list(LEVELS))


def decode_graph(transform: VQVAE) -> onnx.ModelProto:
    """The decoder as ONNX with dynamic height and width."""
    rows, columns = torch.export.Dim("rows", min=2, max=4096), torch.export.Dim("columns", min=2, max=4096)
    factors = [ALIGNMENT // stride for stride in LEVEL_STRIDES]
    codes = [torch.zeros(lv.stages, 4 * f, 5 * f, dtype=torch.int32) for lv, f in zip(transform.config.levels, factors, strict=True)]
    shapes: dict[str, Any] = {name: {1: f * rows, 2: f * columns} for name, f in zip(LEVELS, factors, strict=True)}
    return _export(DecodeGraph(transform), (*codes, torch.zeros(1), torch.ones(3)), {**shapes, "quality": None, "keep": None}, ["image"])


def _export(module: nn.Module, example: tuple[Tensor, ...], shapes: dict[str, Any], outputs: list[str]) -> onnx.ModelProto:
    program = torch.onnx.export(
        module.eval(), example, dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, output_names=outputs, optimize=False, verbose=False
    )
    assert program is not None
    # half the nodes, so half the time to open; folding stops short of the weights, which both graphs share
    return optimizer.optimize(program.model_proto, input_size_limit=SMALL, output_size_limit=SMALL)


def externalise(graphs: dict[str, onnx.ModelProto]) -> dict[str, np.ndarray[Any, Any]]:
    """Moves the float initialisers of both graphs out, leaving external references, and returns them as float16.

    The returned weights are named by who needs them: `encode.`, `decode.` or `shared.`.
    """
    names = {file: {tensor.name for tensor in graph.graph.initializer} for file, graph in graphs.items()}
    weights: dict[str, np.ndarray[Any, Any]] = {}
    for file, model in graphs.items():
        others = set[str]().union(*(found for other, found in names.items() if other != file))
        kept: list[TensorProto] = []
        renamed: dict[str, str] = {}
        for tensor in model.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype != np.float32 or values.size <= SMALL:
                kept.append(tensor)
                continue
            name = f"{SHARED if tensor.name in others else Path(file).stem}.{tensor.name}"
            stored = np.ascontiguousarray(values.astype(np.float16))
            if not np.isfinite(stored).all() or not np.array_equal(weights.get(name, stored), stored):
                raise TrainingError(f"the weights of {tensor.name} cannot be exported: not finite, or unlike in the two graphs")
            weights[name] = stored
            reference = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=values.shape, data_location=TensorProto.EXTERNAL)
            reference.external_data.add(key="location", value=WEIGHTS)
            kept.append(reference)
            renamed[tensor.name] = name
        _replace(model.graph.initializer, kept)
        _replace(model.graph.value_info, [])
        for node in model.graph.node:
            _replace(node.input, [renamed.get(name, name) for name in node.input])
            _replace(node.metadata_props, [])  # the exporter's notes name files of the machine
            node.doc_string = ""
    return weights


def _replace(field: Any, values: list[Any]) -> None:
    """Sets a repeated protobuf field."""
    copies = list(values)
    del field[:]
    field.extend(copies)
