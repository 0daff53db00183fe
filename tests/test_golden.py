"""The format does not drift: files made once decode to the same codes for ever, and are made again byte for byte."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests import reference
from tests.support import GOLDEN, GOLDENS, ROOT, run_python, same
from vqcodec import codec, container, selftest
from vqcodec.codes import Codes
from vqcodec.kernel import library
from vqcodec.model import Model, load_model

FILES = [path for folder in GOLDENS for path in sorted(folder.glob("*.vq"))]


def stored(path: Path) -> tuple[Codes, int, int, float]:
    """The codes, height, width and quality beside a golden file."""
    with np.load(path.with_name(f"{path.stem}.codes.npz"), allow_pickle=False) as data:
        height, width = map(int, data["size"])
        return Codes(data["top"], data["middle"], data["bottom"]), height, width, float(data["quality"])


def model_of(path: Path) -> Model:
    return load_model(path.parent / "model")


def test_there_are_golden_files() -> None:
    assert all(sum(path.parent == folder for path in FILES) >= 8 for folder in GOLDENS)  # else every test below would pass over nothing


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_file_decodes_to_the_stored_codes(path: Path) -> None:
    assert same(codec.decode_codes(path.read_bytes(), model_of(path)), stored(path)[0])


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_stored_codes_pack_to_the_same_bytes(path: Path) -> None:
    codes, height, width, quality = stored(path)
    extras = container.unpack(path.read_bytes()).extras
    assert codec.pack_codes(codes, height, width, quality, model_of(path), extras) == path.read_bytes()


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_pixels_agree_within_one_step(path: Path) -> None:
    """The transform runs in floating point, so pixels may differ by rounding between machines; codes may not."""
    with np.load(path.with_name(f"{path.stem}.image.npz"), allow_pickle=False) as data:
        expected = data["decoded"].astype(int)
    image = codec.decompress(path.read_bytes(), model_of(path))
    assert image.dtype == np.uint8
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= 1


@pytest.mark.parametrize("threads", ["1", "2"])
def test_thread_count_does_not_change_codes(threads: str) -> None:
    script = f"""
import numpy as np
from pathlib import Path
from vqcodec import codec, container, selftest
from vqcodec.model import load_model
model = load_model({str(GOLDEN / "model")!r})
for path in sorted(Path({str(GOLDEN)!r}).glob("*.vq")):
    codes = codec.decode_codes(path.read_bytes(), model)
    with np.load(path.with_name(path.stem + ".codes.npz"), allow_pickle=False) as stored:
        print(path.stem, all(np.array_equal(stored[name], code_map) for name, code_map in codes._asdict().items()))
"""
    result = run_python("-c", script, OPENBLAS_NUM_THREADS=threads)
    assert result.stderr == b""
    assert result.stdout.decode().splitlines() == [f"{path.stem} True" for path in FILES if path.parent == GOLDEN]


def test_thread_count_does_not_change_bytes_of_a_wide_prior() -> None:
    """The golden model's products are too small for a BLAS to share out; these are not."""
    script = """
import hashlib
import numpy as np
from tests.support import make_config, random_codes, random_prior, same
from vqcodec import bitstream
from vqcodec.prior import Prior
rng = np.random.default_rng(7)
config = make_config(96, (1, 1, 2), (64, 64, 256), 1)
prior = Prior.from_tensors(random_prior(rng, config, spread=40), config)
codes = random_codes(rng, config, 256, 256)
payloads = bitstream.write(prior, codes, 256, 256, 5000)
assert same(bitstream.read(prior, payloads, 256, 256, 5000), codes)
print(hashlib.sha256(b"".join(payloads)).hexdigest())
"""
    runs = [run_python("-c", script, OPENBLAS_NUM_THREADS=threads) for threads in ("1", "2")]
    assert [result.stderr for result in runs] == [b"", b""]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout


@pytest.mark.parametrize("coder", [(), ("--plain",)], ids=["constriction", "plain"])
def test_a_machine_without_the_coder_decodes_all_files(coder: tuple[str, ...]) -> None:
    """The script for other processors, on this one: with each product, by constriction and by the decoder written from docs/FORMAT.md."""
    result = run_python(GOLDEN.parent / "decode.py", *coder)
    assert (result.returncode, result.stderr) == (0, b"")
    kinds = [*selftest.PRODUCTS, *(["compiled integers"] if library() else [])]
    head, *digests, last = result.stdout.decode().splitlines()
    assert ("plain" in head) == bool(coder)
    assert len({line.partition(": ")[2] for line in digests}) == 1
    assert [line.split(",")[0] for line in digests] == [f"{kind}: {len(FILES)} files" for kind in kinds]
    assert last == "0 files have other codes"


def test_the_specification_names_the_models() -> None:
    text = " ".join((ROOT / "docs" / "FORMAT.md").read_text(encoding="utf-8").split())
    named = re.findall(r"`tests/golden/(v\d+)/model`[^`]*(?:`improve\w*\.onnx`[^`]*)?`([0-9a-f]{12})`", text)
    assert dict(named) == {golden.name: load_model(golden / "model").id.hex() for golden in GOLDENS}


@pytest.mark.parametrize("name", ["dot-q50", "line-q80", "odd-q37.5"])
@pytest.mark.parametrize("golden", GOLDENS, ids=lambda golden: golden.name)
def test_the_specification_alone_decodes_a_file(golden: Path, name: str) -> None:
    """Prior and range decoder as docs/FORMAT.md has them, in plain Python, against the payloads of a golden file."""
    path = golden / f"{name}.vq"
    codes, _, _, quality = stored(path)
    config = model_of(path).config
    tensors = load_file(golden / "model" / "prior.safetensors")
    payloads = container.unpack(path.read_bytes()).levels
    above: reference.Map = {(row, column): [] for row in range(codes.top.shape[1]) for column in range(codes.top.shape[2])}
    for level, (code_map, payload) in enumerate(zip(codes, payloads, strict=True)):
        above = reference.context(tensors, config, level, round(quality * 100), codes[level - 1] if level else None, above)
        logits = reference.level_logits(tensors, config, level, code_map, above)
        symbols = [*code_map, (code_map != 0)[::-1].argmax(0)]
        symbols[-1] = np.where(code_map.any(0), len(code_map) - symbols[-1], 0)  # lengths
        kinds = [-1, *range(len(code_map))] if len(logits) > len(code_map) else range(len(code_map))
        order = sorted(above, key=lambda place: (place[1] + 2 * place[0], place[0]))
        fronts = [list(places) for _, places in groupby(order, key=lambda place: place[1] + 2 * place[0])]
        sequence = [(kind, place) for places in fronts for kind in kinds for place in places if place in logits[kind]]
        words = np.frombuffer(payload[2:], "<u4").tolist()
        found = reference.range_decode(words, [reference.frequencies(logits[kind][place]) for kind, place in sequence])
        assert found == [symbols[kind][place] for kind, place in sequence]
