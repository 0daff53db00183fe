"""Model folders are data: a graph that would do more than compute is refused before ONNX Runtime sees it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")  # the codec itself never needs it
from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from tests.support import DEFAULT_MODEL, GOLDEN, GOLDENS, noise, run_python  # noqa: E402
from vqcodec import graphs, limits, sessions  # noqa: E402
from vqcodec.errors import InvalidModelError, VQCodecError  # noqa: E402
from vqcodec.model import CARD, DECODE, ENCODE, ENCODERS, IMPROVE, IMPROVE_MIDDLE, LAYOUTS, PRIOR, WEIGHTS, load_model  # noqa: E402

SPLIT = GOLDENS[-1] / "model"  # the layout that is written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SPLIT, tmp_path / "copy"))


def change(folder: Path, name: str, action: Callable[[Any], object]) -> None:
    """Changes a graph by the means of the package onnx."""
    model = onnx.load(folder / name, load_external_data=False)
    action(model)
    (folder / name).write_bytes(model.SerializeToString())


def sub_graph(model: Any) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["quality"], ["q"])], "body", [], [])
    model.graph.node.append(helper.make_node("If", ["c"], ["q2"], then_branch=body, else_branch=body))


def hidden_sub_graph(model: Any) -> None:
    """An operator that is allowed, with a graph in an attribute that it does not have."""
    body = helper.make_graph([helper.make_node("Identity", ["quality"], ["q"])], "body", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("body", body))


def function(model: Any) -> None:
    model.functions.append(helper.make_function("here", "f", ["a"], ["b"], [], [helper.make_opsetid("", 18)]))


def other_domain(model: Any) -> None:
    model.graph.node[0].domain = "com.microsoft"


def other_opset(model: Any) -> None:
    model.opset_import.append(helper.make_opsetid("com.example", 1))


def unknown_operator(model: Any) -> None:
    model.graph.node[0].op_type = "Loop"


def outside_file(model: Any) -> None:
    entry = next(tensor for tensor in model.graph.initializer if tensor.external_data).external_data[0]
    entry.value = "../../etc/passwd"


def offset_in_file(model: Any) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.external_data).external_data.add(key="offset", value="4096")


def unknown_weight(model: Any) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.external_data).name = "nothing"


def outside_constant(model: Any) -> None:
    tensor = TensorProto(name="c", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value=WEIGHTS)
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


def location_without_data(model: Any) -> None:
    model.graph.initializer.add(name="c", data_type=1, dims=[1], data_location=TensorProto.EXTERNAL)


def data_without_location(model: Any) -> None:
    model.graph.initializer.add(name="c", data_type=1, dims=[1]).external_data.add(key="location", value=WEIGHTS)


def sparse(model: Any) -> None:
    model.graph.sparse_initializer.add().dims.append(1)


def training(model: Any) -> None:
    model.training_info.add().algorithm.name = "a"


def no_graph(model: Any) -> None:
    model.ClearField("graph")


HOSTILE = {
    sub_graph: "field 6",
    hidden_sub_graph: "field 6",
    function: "field 25",
    other_domain: "com.microsoft",
    other_opset: "com.example",
    unknown_operator: "Loop",
    outside_file: "passwd",
    offset_in_file: "4096",
    unknown_weight: "nothing",
    outside_constant: "field 13",
    location_without_data: "plainly",
    data_without_location: "plainly",
    sparse: "field 15",
    training: "field 20",
    no_graph: "0 graphs",
}


@pytest.mark.parametrize("action", HOSTILE, ids=lambda action: action.__name__)
@pytest.mark.parametrize("name", [*ENCODERS, IMPROVE, IMPROVE_MIDDLE, DECODE])
def test_a_hostile_graph_is_one_error(name: str, action: Callable[[Any], object], folder: Path) -> None:
    change(folder, name, action)
    transform = load_model(folder).transform
    with pytest.raises(InvalidModelError, match=HOSTILE[action]) as caught:
        _ = [part() for part in (*transform.encoders, *transform.improvers.values(), transform.decoder)]
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("model", [pytest.param(DEFAULT_MODEL, marks=pytest.mark.weights), SPLIT], ids=lambda path: path.name)
@pytest.mark.parametrize("name", [*ENCODERS, IMPROVE, IMPROVE_MIDDLE, DECODE])
def test_the_walk_sees_what_the_package_onnx_sees(name: str, model: Path) -> None:
    """Every operator and every tensor of a real graph is visited, so that none can hide."""
    data = (model / name).read_bytes()
    expected = onnx.load(model / name, load_external_data=False)
    seen: dict[str, list[str]] = {"node": [], "tensor": [], "entry": []}

    class Spy(graphs.Walker):
        def check_node(self, found: dict[str, Any]) -> None:
            super().check_node(found)
            seen["node"].append(graphs.text(found, "op_type"))

        def check_tensor(self, found: dict[str, Any]) -> None:
            super().check_tensor(found)
            seen["tensor"].append(graphs.text(found, "name"))

    names = frozenset(tensor.name for tensor in expected.graph.initializer)
    Spy(names, WEIGHTS).walk(memoryview(data), "model", 0)
    assert seen["node"] == [node.op_type for node in expected.graph.node]
    assert seen["tensor"] == [tensor.name for tensor in expected.graph.initializer]
    graphs.check(data, name, names, WEIGHTS)


def test_every_field_has_the_number_that_onnx_gives_it() -> None:
    messages = {
        "model": onnx.ModelProto,
        "opset": onnx.OperatorSetIdProto,
        "graph": onnx.GraphProto,
        "node": onnx.NodeProto,
        "attribute": onnx.AttributeProto,
        "tensor": onnx.TensorProto,
        "constant": onnx.TensorProto,
        "external": onnx.StringStringEntryProto,
        "entry": onnx.StringStringEntryProto,
        "value": onnx.ValueInfoProto,
        "type": onnx.TypeProto,
        "array": onnx.TypeProto.Tensor,
        "shape": onnx.TensorShapeProto,
        "dim": onnx.TensorShapeProto.Dimension,
    }
    assert set(messages) == set(graphs.MESSAGES)
    for kind, fields in graphs.MESSAGES.items():
        for number, field in fields.items():
            known = messages[kind].DESCRIPTOR.fields_by_number[number]
            assert (known.name, known.is_repeated) == (field.name, field.repeats)
            assert (known.message_type is not None) == bool(field.kind)
            if field.kind:
                assert known.message_type is messages[field.kind].DESCRIPTOR


@pytest.mark.parametrize(
    "data", [b"\x3a", b"\x3a\x05ab", b"\x3b", b"\xff" * 20, b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f", b"\x38\x01", b"\x3a\0" * 2]
)
def test_bytes_that_are_no_graph(data: bytes) -> None:
    with pytest.raises(InvalidModelError, match="of a model"):
        graphs.check(data, "graph of a model", frozenset(), WEIGHTS)


def test_every_truncation_of_a_graph_is_refused(folder: Path) -> None:
    data = (folder / DECODE).read_bytes()
    weights = frozenset(load_model(folder)._tensors(WEIGHTS))
    graphs.check(data, DECODE, weights, WEIGHTS)
    start = data.index(b"main_graph")  # a cut between two fields of the model itself leaves a whole message
    for length in [*range(20, 400), *range(400, len(data), 101), *range(len(data) - 8, len(data))]:
        try:
            graphs.check(data[:length], DECODE, weights, WEIGHTS)
        except InvalidModelError:
            continue
        assert length > start


def test_bytes_in_the_runtimes_own_format_are_not_read_as_such(folder: Path) -> None:
    """ONNX Runtime tells its other format by the bytes 4 to 8, which a graph can have in its first text."""
    model = load_model(SPLIT)
    codes = model.encode(noise(40, 40), 50)
    (folder / DECODE).write_bytes(b"\x32\x06abORTM" + (folder / DECODE).read_bytes())
    assert np.array_equal(load_model(folder).decode(codes, 40, 40, 50), model.decode(codes, 40, 40, 50))
    (folder / DECODE).write_bytes(b"\x20\0\0\0ORTM" + bytes(100))
    with pytest.raises(InvalidModelError, match="refused"):
        load_model(folder).decode(codes, 40, 40, 50)


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.INT64])
def test_outputs_of_another_type_are_one_error(kind: int, folder: Path) -> None:
    def cast(model: Any) -> None:
        name = model.graph.output[0].name
        model.graph.node.append(helper.make_node("Cast", [name], ["other"], to=kind))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("other", kind, None))

    for name in (*ENCODERS, DECODE):
        change(folder, name, cast)
    codes, model = load_model(SPLIT).encode(noise(40, 40), 50), load_model(folder)
    with pytest.raises(InvalidModelError, match="encoder"):
        model.encode(noise(40, 40), 50)
    with pytest.raises(InvalidModelError, match=r"decode\.onnx"):
        model.decode(codes, 40, 40, 50)
    for name in ENCODERS:
        shutil.copy(SPLIT / name, folder / name)
    change(folder, IMPROVE, cast)
    if kind != TensorProto.FLOAT:  # which it gives
        with pytest.raises(InvalidModelError, match="improver"):
            load_model(folder).encode(noise(40, 40), 50, effort=6)


@pytest.mark.parametrize("operator", ["Identity", "Cast"])
def test_middle_latents_of_another_shape_or_type_are_one_error(operator: str, folder: Path) -> None:
    def add(model: Any) -> None:
        """What the bottom is to be, or numbers of another type."""
        kind = {"to": TensorProto.DOUBLE} if operator == "Cast" else {}
        node = model.graph.node[-1]
        assert node.output == ["wanted_middle"]
        node.output[0] = "wanted"
        source = "wanted" if operator == "Cast" else "bottom_state"
        model.graph.node.append(helper.make_node(operator, [source], ["wanted_middle"], **kind))
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("wanted_middle", kind.get("to", TensorProto.FLOAT), None))

    change(folder, IMPROVE_MIDDLE, add)
    model = load_model(folder)
    model.encode(noise(40, 40), 50, effort=7)
    model.encode(noise(40, 40), 100, effort=8)
    with pytest.raises(InvalidModelError, match="wanted_middle"):
        model.encode(noise(40, 40), 50, effort=8)


def test_outputs_of_another_shape_or_number_are_one_error(folder: Path) -> None:
    def flatten(model: Any) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), "flat"))
        model.graph.node.append(helper.make_node("Reshape", [model.graph.output[0].name, "flat"], ["other"]))
        kind = model.graph.output[0].type.tensor_type.elem_type
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("other", kind, ["n"]))

    def drop(model: Any) -> None:
        del model.graph.output[0]
        model.graph.output.append(helper.make_tensor_value_info("quality", TensorProto.FLOAT, [1]))

    codes = load_model(SPLIT).encode(noise(40, 40), 50)
    spoilt = (ENCODERS[0], DECODE), ENCODERS[1:], (IMPROVE,), (IMPROVE_MIDDLE,)
    for action, names in [(action, names) for names in spoilt for action in (flatten, drop)]:
        for name in LAYOUTS[6]:
            shutil.copy(SPLIT / name, folder / name)
        for name in names:
            change(folder, name, action)
        model = load_model(folder)
        with pytest.raises(InvalidModelError):
            model.encode(noise(40, 40), 50, effort=9)
        if DECODE in names:
            with pytest.raises(InvalidModelError):
                model.decode(codes, 40, 40, 50)


def test_codes_of_no_codebook_are_one_error(tmp_path: Path) -> None:
    """In the first layout codes come from the graph."""

    def far(model: Any) -> None:
        model.graph.node.append(helper.make_node("Add", ["bottom", "bottom"], ["b2"]))
        model.graph.node.append(helper.make_node("Neg", ["b2"], ["b3"]))
        model.graph.output[2].CopyFrom(helper.make_tensor_value_info("b3", TensorProto.INT32, None))

    folder = Path(shutil.copytree(GOLDEN / "model", tmp_path / "copy"))
    change(folder, ENCODE, far)
    with pytest.raises(InvalidModelError, match="encoder"):
        load_model(folder).encode(noise(40, 40), 50)


def test_a_graph_that_fails_says_nothing_on_stderr(folder: Path) -> None:
    """ONNX Runtime would log the failure itself; the error says it all."""

    def break_reshape(model: Any) -> None:
        model.graph.initializer.append(numpy_helper.from_array(np.array([7, 7]), "odd"))
        model.graph.node.append(helper.make_node("Reshape", ["quality", "odd"], ["q7"]))
        model.graph.output.append(helper.make_tensor_value_info("q7", TensorProto.FLOAT, None))

    change(folder, ENCODERS[0], break_reshape)
    script = f"""
import numpy as np
from vqcodec import VQCodecError, load_model
try:
    load_model({str(folder)!r}).encode(np.zeros((40, 40, 3), np.uint8), 50)
except VQCodecError as error:
    print(error)
"""
    result = run_python("-c", script)
    assert (result.returncode, result.stderr) == (0, b"")
    assert b"graph" in result.stdout


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1, "config": ' * 50_000, '{"format": ' + "9" * 5000 + "}"])
def test_a_card_that_strains_the_parser(text: str, folder: Path) -> None:
    (folder / CARD).write_text(text)
    with pytest.raises(InvalidModelError):
        load_model(folder)


@pytest.mark.parametrize("value", [10**400, "2", True, None, [], {}])
def test_numbers_that_are_none(value: object, folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    card["config"]["transform"]["lambda_max"] = value
    (folder / CARD).write_text(json.dumps(card))
    with pytest.raises(InvalidModelError, match="configuration"):
        load_model(folder)


@pytest.mark.parametrize("name", [CARD, *LAYOUTS[6]])
def test_files_of_a_model_are_bounded(name: str, folder: Path) -> None:
    limit = {CARD: limits.MAX_CARD, PRIOR: limits.MAX_WEIGHTS, WEIGHTS: limits.MAX_WEIGHTS}.get(name, limits.MAX_GRAPH)
    os.truncate(folder / name, limit + 1)  # a hole: it takes no disk
    with pytest.raises(VQCodecError, match=str(limit)):
        load_model(folder)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", LAYOUTS[6])
def test_pipes_and_devices_are_no_files_of_a_model(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(InvalidModelError, match=name):
        load_model(folder)


@pytest.mark.parametrize(
    "says", ["BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer of size 9", "std::bad_alloc"]
)
def test_too_little_memory_is_not_the_model_s_fault(says: str) -> None:
    class Session:
        """One that has too little."""

        def get_inputs(self) -> list[object]:
            return []

        def get_outputs(self) -> list[object]:
            raise RuntimeError(says)

    with pytest.raises(MemoryError):
        sessions.run(Session(), {}, True)
