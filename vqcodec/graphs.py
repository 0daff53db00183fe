"""What a model's ONNX graphs may say: plain operators on the inputs, and weights from the model's own tensors.

A graph comes with a model that may be a stranger's. This walks its bytes by the fields of ONNX's protocol buffers (onnx.proto; the
package `onnx` itself is not needed) and refuses whatever our export does not write: other fields, operators of other domains,
functions, graphs within graphs, and tensors that name files. Knows nothing of what the graph computes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from vqcodec.errors import InvalidModelError

# Those that the export of training/ writes, and their near kin: arithmetic, convolutions, shapes. None has a graph of its own, runs
# anything but itself, or reads a file.
OPERATORS = frozenset(  # names in a text: a line each would fill two screens
    """
    Abs Add And ArgMax ArgMin AveragePool BatchNormalization Cast CastLike Ceil Clip Concat Constant ConstantOfShape Conv
    ConvTranspose CumSum DepthToSpace Div Einsum Elu Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gelu Gemm
    GlobalAveragePool Greater GreaterOrEqual GroupNormalization HardSigmoid HardSwish Identity InstanceNormalization
    LayerNormalization LeakyRelu Less LessOrEqual Log LogSoftmax MatMul Max MaxPool Mean Min Mish Mod Mul Neg Not OneHot Or PRelu
    Pad Pow Range Reciprocal ReduceL1 ReduceL2 ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum ReduceSumSquare
    Relu Reshape Resize Round ScatterElements ScatterND Selu Shape Sigmoid Sign Size Slice Softmax Softplus SpaceToDepth Split
    Sqrt Squeeze Sub Sum Swish Tanh Tile TopK Transpose Unsqueeze Where
    """.split()  # noqa: SIM905
)
DOMAINS = frozenset(("", "ai.onnx"))
MAX_DEPTH = 10  # of messages in messages: the export's have 7
EXTERNAL = 1  # data_location of a tensor that lies outside the graph
WEIGHT_TYPES: dict[int, type[np.floating[Any]]] = {1: np.float32, 10: np.float16}  # by ONNX's data_type
VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5  # the wire types of protocol buffers that are in use

# The fields of each message by number; "*" marks those that repeat, "kind" those that hold a message of that kind, in brackets.
_TENSOR = "1 dims*, 2 data_type, 4 float_data*, 5 int32_data*, 7 int64_data*, 8 name, 9 raw_data, 10 double_data*, 11 uint64_data*"
_TENSOR += ", 12 doc_string, 16 metadata_props*(entry)"
_FIELDS = {
    "model": "1 ir_version, 2 producer_name, 3 producer_version, 4 domain, 5 model_version, 6 doc_string, 7 graph(graph), "
    "8 opset_import*(opset), 14 metadata_props*(entry)",
    "opset": "1 domain, 2 version",
    "graph": "1 node*(node), 2 name, 5 initializer*(tensor), 10 doc_string, 11 input*(value), 12 output*(value), 13 value_info*(value), "
    "16 metadata_props*(entry)",
    "node": "1 input*, 2 output*, 3 name, 4 op_type, 5 attribute*(attribute), 6 doc_string, 7 domain, 9 metadata_props*(entry)",
    "attribute": "1 name, 2 f, 3 i, 4 s, 5 t(constant), 7 floats*, 8 ints*, 9 strings*, 13 doc_string, 20 type",
    "tensor": _TENSOR + ", 13 external_data*(external), 14 data_location",
    "constant": _TENSOR,
    "external": "1 key, 2 value",
    "entry": "1 key, 2 value",
    "value": "1 name, 2 type(type), 3 doc_string, 4 metadata_props*(entry)",
    "type": "1 tensor_type(array), 6 denotation",
    "array": "1 elem_type, 2 shape(shape)",
    "shape": "1 dim*(dim)",
    "dim": "1 dim_value, 2 dim_param, 3 denotation",
}
_FIELD = re.compile(r"(\d+) (\w+)(\*?)(?:\((\w+)\))?")


class Field(NamedTuple):
    """A field of a message: its name, whether it repeats, and the kind of message that it holds, if any."""

    name: str
    repeats: bool
    kind: str


MESSAGES = {
    kind: {int(found[1]): Field(found[2], bool(found[3]), found[4] or "") for found in _FIELD.finditer(fields)}
    for kind, fields in _FIELDS.items()
}


def check(data: bytes, name: str, weights: frozenset[str], location: str) -> dict[str, type[np.floating[Any]]]:
    """Checks a graph; `weights` are the tensors at hand, and `location` the file that the graph may say they are in.

    Returns the type that the graph wants each of them in. Raises `InvalidModelError` that says what is wrong with the graph `name`.
    """
    try:
        found = Walker(weights, location)
        found.walk(memoryview(data), "model", 0)
        if found.graphs != 1:
            raise ValueError(f"it holds {found.graphs} graphs")
        return found.types
    except (ValueError, IndexError) as error:
        raise InvalidModelError(f"the model's {name} is refused: {error or 'it is cut off'}; export the model again") from error


class Walker:
    """Walks messages and checks those that matter. Raises `ValueError` for what is refused, `IndexError` at a sudden end."""

    def __init__(self, weights: frozenset[str], location: str):
        self.weights, self.location, self.graphs = weights, location, 0
        self.types: dict[str, type[np.floating[Any]]] = {}  # of the weights

    def walk(self, data: memoryview, kind: str, depth: int) -> None:
        """Checks one message and those in it."""
        if depth > MAX_DEPTH:
            raise ValueError("its messages are nested too deeply")
        known, found = MESSAGES[kind], dict[str, Any]()
        for number, value in fields(data):
            field = known.get(number)
            if field is None:
                raise ValueError(f"the field {number} of a message '{kind}' is none that the export writes")
            if field.name in found and not field.repeats:
                raise ValueError(f"the message '{kind}' has its {field.name} twice")
            found[field.name] = value
            if field.kind:
                if not isinstance(value, memoryview):
                    raise ValueError(f"the {field.name} of a message '{kind}' is no message")
                self.walk(value, field.kind, depth + 1)
        if rule := getattr(self, f"check_{kind}", None):
            rule(found)

    def check_graph(self, found: dict[str, Any]) -> None:
        """Counts the graphs: there is one."""
        self.graphs += 1

    def check_opset(self, found: dict[str, Any]) -> None:
        """Operators of ONNX itself."""
        if text(found, "domain") not in DOMAINS:
            raise ValueError(f"it uses operators of '{text(found, 'domain')}'")

    def check_node(self, found: dict[str, Any]) -> None:
        """An operator that is known to do no more than compute."""
        if text(found, "domain") not in DOMAINS:
            raise ValueError(f"it uses an operator of '{text(found, 'domain')}'")
        if text(found, "op_type") not in OPERATORS:
            raise ValueError(f"it uses the operator '{text(found, 'op_type')}'")

    def check_tensor(self, found: dict[str, Any]) -> None:
        """A tensor with its numbers, or one of the model's weights."""
        outside = found.get("data_location", 0) == EXTERNAL
        if outside != ("external_data" in found) or found.get("data_location", 0) not in (0, EXTERNAL):
            raise ValueError(f"it does not say plainly where its tensor '{text(found, 'name')}' is")
        if not outside:
            return
        name, kind = text(found, "name"), found.get("data_type", 0)
        if name not in self.weights:
            raise ValueError(f"its tensor '{name}' is not among the model's weights")
        if kind not in WEIGHT_TYPES:
            raise ValueError(f"its tensor '{name}' is of a type that weights do not have")
        self.types[name] = WEIGHT_TYPES[kind]

    def check_external(self, found: dict[str, Any]) -> None:
        """Where a tensor is: with the others."""
        if (text(found, "key"), text(found, "value")) != ("location", self.location):
            raise ValueError(f"it names the file '{text(found, 'value')}'")


def fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a message: their numbers, and integers or bytes. Raises `ValueError` or `IndexError` where it is malformed."""
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        wire, length = tag & 7, 0
        if wire == VARINT:
            value, at = varint(data, at)
            yield tag >> 3, value
            continue
        if wire == LENGTH:
            length, at = varint(data, at)
        elif wire in (FIXED64, FIXED32):
            length = 8 if wire == FIXED64 else 4
        else:
            raise ValueError("it is no protocol buffer")
        if length > len(data) - at:
            raise ValueError("it is cut off")
        yield tag >> 3, data[at : at + length]
        at += length


def varint(data: memoryview, at: int) -> tuple[int, int]:
    """An integer of seven bits a byte, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("it is no protocol buffer")


def text(found: dict[str, Any], name: str) -> str:
    """A field as text; nothing where it is missing."""
    value = found.get(name, b"")
    if isinstance(value, int):
        raise ValueError(f"its {name} is no text")
    return bytes(value).decode(errors="backslashreplace")
