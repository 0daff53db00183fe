"""Model folders: opened by path, identified by their content, and refused by name when anything is wrong."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.support import GOLDEN, GOLDENS, noise
from vqcodec.errors import ImageError, InvalidModelError, ModelError, ModelNotFoundError, first_line
from vqcodec.model import (
    CARD,
    DECODE,
    ENCODE,
    ENCODERS,
    IMPROVE,
    IMPROVE_MIDDLE,
    LAYOUTS,
    PRIOR,
    SCALE,
    WEIGHTS,
    Model,
    load_model,
    restored,
)

FIRST = (GOLDENS[0], *GOLDENS[2:6], GOLDENS[7])  # of each layout
BY_LAYOUT = [(golden, name) for golden, layout in zip(FIRST, LAYOUTS.values(), strict=True) for name in layout]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A copy of the golden model to spoil; opened models are kept by path, so each test gets its own."""
    return copied(GOLDEN, tmp_path)


def copied(golden: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(golden / "model", tmp_path / "copy"))


def change_card(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    card = json.loads((folder / CARD).read_text())
    change(card)
    (folder / CARD).write_text(json.dumps(card))


def test_copy_is_the_same_model(folder: Path, model: Model) -> None:
    copy = load_model(folder)
    assert copy.id == model.id
    assert len(copy.id) == 6
    assert load_model(str(folder)) is copy  # opened once


def test_missing_folder(tmp_path: Path) -> None:
    for name in (tmp_path / "nowhere", tmp_path, "no_such_model", ""):
        with pytest.raises(ModelNotFoundError):
            load_model(name)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '"text"', '{"format": 99}', '{"format": 1}', '{"format": 1, "config": []}', "\xff"])
def test_wrong_card(folder: Path, text: str) -> None:
    (folder / CARD).write_text(text, encoding="latin-1")
    with pytest.raises(InvalidModelError):
        load_model(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(surplus=1),
        lambda config: config.pop("prior"),
        lambda config: config["prior"].update(surplus=1),
        lambda config: config["prior"].pop("channels"),
        lambda config: config["prior"].update(channels=0),
        lambda config: config["prior"].update(channels="8"),
        lambda config: config["prior"].update(trunk_blocks=[1, 1]),
        lambda config: config["prior"].update(context_blocks=7),
        lambda config: config["transform"].update(surplus=1),
        lambda config: config["transform"]["levels"].pop(),
        lambda config: config["transform"]["levels"][0].update(stages=33),
        lambda config: config["transform"]["levels"][2].update(codebook_size=1),
        lambda config: config["transform"]["levels"][1].update(surplus=1),
        lambda config: config["transform"]["levels"][1].pop("dim"),
        lambda config: config["transform"]["levels"][0].update(rate_weight=0),
        lambda config: config["transform"]["levels"][0].update(rate_weight=float("nan")),
        lambda config: config["transform"]["levels"][0].update(rate_weight="1"),
    ],
)
def test_wrong_configuration(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    change_card(folder, lambda card: change(card["config"]))
    with pytest.raises(InvalidModelError, match="configuration"):
        load_model(folder)


@pytest.mark.parametrize(("golden", "name"), BY_LAYOUT)
def test_missing_file(golden: Path, name: str, tmp_path: Path) -> None:
    folder = copied(golden, tmp_path)
    (folder / name).unlink()
    with pytest.raises(InvalidModelError, match=name):
        load_model(folder)


@pytest.mark.parametrize(("golden", "name"), BY_LAYOUT)
def test_id_changes_with_every_runtime_file(golden: Path, name: str, tmp_path: Path) -> None:
    folder = copied(golden, tmp_path)
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    (folder / name).write_bytes(data)
    assert load_model(folder).id != load_model(golden / "model").id


def test_id_changes_with_the_configuration_and_not_with_the_rest_of_the_card(tmp_path: Path, model: Model) -> None:
    for name, change, equal in (
        ("note", lambda card: card.update(note="a remark"), True),
        ("config", lambda card: card["config"]["transform"].update(lambda_max=1601.0), False),
        ("rate weight", lambda card: card["config"]["transform"]["levels"][0].update(rate_weight=0.5), False),
        ("what it is without", lambda card: card["config"]["transform"]["levels"][0].update(rate_weight=1.0), True),
    ):
        folder = Path(shutil.copytree(GOLDEN / "model", tmp_path / name))
        change_card(folder, change)
        assert (load_model(folder).id == model.id) is equal


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"\xff" * len(data)])
@pytest.mark.parametrize(("golden", "name"), BY_LAYOUT)
def test_damaged_file(golden: Path, name: str, damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    folder = copied(golden, tmp_path)
    path = folder / name
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ModelError, match=name):
        use(load_model(folder), name)


def use(model: Model, name: str) -> object:
    """Opens the part that needs a file: parts open when they are first used."""
    transform = model.transform
    if name == PRIOR:
        return model.prior
    return [graph() for graph in (*transform.encoders, transform.decoder, *transform.improvers.values())], transform.searches


@pytest.mark.parametrize("golden", GOLDENS)
@pytest.mark.parametrize("name", [PRIOR, WEIGHTS])
def test_missing_tensor(golden: Path, name: str, tmp_path: Path) -> None:
    folder = copied(golden, tmp_path)
    tensors = load_file(folder / name)
    tensors.pop(max(tensors))
    save_file(tensors, folder / name)
    with pytest.raises(InvalidModelError):
        load_model(folder).encode(noise(40, 40), 50) if name == WEIGHTS else load_model(folder).prior


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda tensors, name: tensors.pop(name + SCALE), "missing"),
        (lambda tensors, name: tensors.update({name + SCALE: tensors[name + SCALE][1:]}), "one an output"),
        (lambda tensors, name: tensors.update({name + SCALE: tensors[name + SCALE].astype(np.float16)}), "float16"),
        (lambda tensors, name: tensors.update({name + SCALE: np.array(1, np.float32)}), "one an output"),
        (lambda tensors, name: tensors.update({name + SCALE: np.ones((*tensors[name].shape, 1), np.float32)}), "one an output"),
        (lambda tensors, name: tensors.update({name: tensors[name].astype(np.float32)}), "float32"),
        (lambda tensors, name: tensors.update({name: tensors[name].astype(np.int16)}), "int16"),
        (lambda tensors, name: tensors.update({name: np.array(1, np.int8)}), "one an output"),
    ],
)
def test_weights_in_eight_bits_have_a_scale_for_each_output(
    change: Callable[[dict[str, Any], str], object], said: str, tmp_path: Path
) -> None:
    folder = copied(GOLDENS[-1], tmp_path)
    tensors = load_file(folder / WEIGHTS)
    change(tensors, "decoder.blocks.0.0.spatial.weight")
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(InvalidModelError, match=said):
        load_model(folder).encode(noise(40, 40), 50)


def test_weights_in_eight_bits_are_multiplied_by_their_scale() -> None:
    stored = {"a": np.array([[-127, 1], [2, 0]], np.int8), f"a{SCALE}": np.array([0.5, 3], np.float32), "b": np.ones(2, np.float16)}
    weights = restored(stored)
    assert weights.keys() == {"a", "b"}
    assert weights["a"].dtype == np.float32
    assert weights["a"].tolist() == [[-63.5, 0.5], [6, 0]]
    assert weights["b"] is stored["b"]
    books = np.arange(12, dtype=np.int8).reshape(2, 3, 2)  # with a scale for each vector
    scales = np.array([[1, 2, 3], [4, 5, 6]], np.float32)
    assert np.array_equal(restored({"a.codebooks": books, f"a.codebooks{SCALE}": scales})["a.codebooks"], books * scales[:, :, None])


@pytest.mark.parametrize(("golden", "first"), [(GOLDENS[0], ENCODE), *((GOLDENS[-1], name) for name in ENCODERS)])
def test_swapped_graphs(golden: Path, first: str, tmp_path: Path) -> None:
    folder = copied(golden, tmp_path)
    encode, decode = (folder / first).read_bytes(), (folder / DECODE).read_bytes()
    (folder / first).write_bytes(decode)
    (folder / DECODE).write_bytes(encode)
    with pytest.raises(ModelError):
        load_model(folder).encode(noise(40, 40), 50, effort=9)


@pytest.mark.parametrize("name", [IMPROVE, IMPROVE_MIDDLE])
def test_another_graph_in_an_improvers_place(name: str, tmp_path: Path) -> None:
    folder = copied(GOLDENS[-1], tmp_path)
    shutil.copy(folder / ENCODERS[0], folder / name)
    with pytest.raises(ModelError, match="improver"):
        load_model(folder).encode(noise(40, 40), 50, effort=9)


@pytest.mark.parametrize(
    "image",
    [np.zeros((8, 8), np.uint8), np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8, 3), np.float32), np.zeros((0, 8, 3), np.uint8)],
    ids=lambda image: f"{image.dtype}{image.shape}",
)
def test_encode_takes_only_rgb_bytes(image: np.ndarray, model: Model) -> None:
    with pytest.raises(ImageError, match="uint8"):
        model.encode(image, 50)


@pytest.mark.parametrize("quality", [-0.01, 100.01, float("nan")])
def test_quality_outside_is_refused(quality: float, model: Model) -> None:
    with pytest.raises(ValueError, match="outside"):
        model.encode(noise(8, 8), quality)


def test_an_error_without_words_has_its_name() -> None:
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(RuntimeError("")) == "RuntimeError"
