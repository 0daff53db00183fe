"""Sampling from the prior."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import vqcodec
from tests.support import GOLDEN, load_image, noise
from tests.support import vqcodec as run
from vqcodec import codec, sample
from vqcodec.model import Model


def test_a_seed_names_a_picture(model: Model) -> None:
    first = sample.sample(70, 45, 50, 3, model)
    assert first.shape == (70, 45, 3)
    assert first.dtype == np.uint8
    assert np.array_equal(first, sample.sample(70, 45, 50, 3, model))
    assert not np.array_equal(first, sample.sample(70, 45, 50, 4, model))


@pytest.mark.parametrize("keep", [1, 2])
def test_the_levels_of_a_file_are_kept(keep: int, model: Model) -> None:
    data = codec.compress(noise(64, 96), 50, model)
    known = codec.decode_codes(data, model)
    drawn = sample.draw(model, 64, 96, 5000, np.random.default_rng(0), known[:keep])
    assert all(np.array_equal(a, b) for a, b in zip(known[:keep], drawn[:keep], strict=True))
    assert not np.array_equal(known.bottom, drawn.bottom)
    assert sample.sample_from(data, keep, 0, model).shape == (64, 96, 3)


def test_codes_are_drawn_with_the_prior_s_frequencies(model: Model) -> None:
    """The first code of the top level, over many seeds, against its frequencies."""
    found: list[int] = []
    frequencies: list[np.ndarray] = []

    def visit(stage: int, rows: np.ndarray, columns: np.ndarray, freqs: np.ndarray) -> np.ndarray:
        if stage == 0 and not frequencies:
            frequencies.append(freqs[0] / freqs[0].sum())
        return np.zeros(len(rows), np.int32)

    from vqcodec.scan import scan

    scan(model.prior, 0, model.prior.context(0, 5000, None, None), (1, 1), visit)
    for seed in range(400):
        found.append(int(sample.draw(model, 1, 1, 5000, np.random.default_rng(seed), []).top[0, 0, 0]))
    counted = np.bincount(found, minlength=len(frequencies[0])) / len(found)
    assert np.abs(counted - frequencies[0]).max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["--from", "a.vq", "--size", "64x64"], 2, "--size"),
        (["--from", "a.vq", "-q", "50"], 2, "--quality"),
        (["--keep", "middle"], 2, "--keep"),
        (["-q", "nan"], 2, "finite"),
        (["--size", "60000x60000"], 1, "smaller"),
        (["-m", ""], 1, "no model ''"),
    ],
)
def test_what_cannot_be_drawn(arguments: list[str], code: int, says: str, tmp_path: Path) -> None:
    (tmp_path / "a.vq").write_bytes((GOLDEN / "photo-q60.vq").read_bytes())
    result = run("sample", "b.png", "-m", GOLDEN / "model", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (code, b"")
    assert says in result.stderr.decode()
    assert b"Traceback" not in result.stderr
    assert b"--max-pixels" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.vq"]


@pytest.mark.weights
def test_the_command_draws_a_picture(tmp_path: Path) -> None:
    assert run("sample", "a.png", "--size", "96x64", cwd=tmp_path).returncode == 0
    assert load_image(tmp_path / "a.png").shape == (64, 96, 3)
    (tmp_path / "a.vq").write_bytes(vqcodec.compress(load_image(tmp_path / "a.png")))
    assert run("sample", "b.png", "--from", "a.vq", "--keep", "middle", cwd=tmp_path).returncode == 0
    assert load_image(tmp_path / "b.png").shape == (64, 96, 3)
    again = run("sample", "b.png", cwd=tmp_path)
    assert again.returncode == 1
    assert b"--force" in again.stderr
    assert run("sample", "c.png", "--size", "0x5", cwd=tmp_path).returncode == 2


def test_of_a_gray_file_the_picture_is_gray(model: Model) -> None:
    data = codec.compress(noise(40, 56)[:, :, 0], 60, model)
    assert sample.sample_from(data, 1, model=model).shape == (40, 56)
