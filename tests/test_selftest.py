"""The same codes everywhere: the self-test under other threads, BLAS kernels and products, and that it notices a difference."""

from __future__ import annotations

import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest

from tests.support import DEFAULT_MODEL, GOLDEN, GOLDENS, ROOT, run_python
from vqcodec import selftest
from vqcodec.errors import VQCodecError
from vqcodec.model import load_model

CORES = {"Haswell": "avx2", "SkylakeX": "avx512f", "Prescott": "sse2", "Zen": "avx2"}  # kernels of OpenBLAS, and what they need


def test_every_golden_file_is_checked() -> None:
    found = list(selftest.checks())
    assert all(check.holds for check in found)
    assert len(found) >= 5 * len(list(GOLDEN.glob("*.vq")))


@pytest.mark.parametrize("threads", ["1", "2"])
def test_threads(threads: str) -> None:
    result = run_python("-m", "vqcodec.cli", "selftest", "--quiet", OPENBLAS_NUM_THREADS=threads, VQCODEC_THREADS=threads)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="cannot tell what this processor can do")
@pytest.mark.parametrize("core", CORES)
def test_kernels_of_the_blas(core: str) -> None:
    if CORES[core] not in Path("/proc/cpuinfo").read_text():
        pytest.skip(f"this processor has no {CORES[core]}")
    usual, other = [run_python("-c", "import numpy", OPENBLAS_VERBOSE="2", **variables) for variables in ({}, {"OPENBLAS_CORETYPE": core})]
    if b"Core:" not in usual.stdout + usual.stderr:
        pytest.skip("numpy has another BLAS here")
    if core != "SkylakeX" and (usual.stdout, usual.stderr) == (other.stdout, other.stderr):
        pytest.skip("numpy's BLAS takes these kernels anyway here")
    result = run_python("-m", "vqcodec.cli", "selftest", OPENBLAS_CORETYPE=core)
    assert result.returncode == 0, result.stdout
    assert b"checks passed" in result.stdout


def test_a_difference_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """A product that is off by one in one place, as a BLAS that rounds would be."""

    def off(inputs: np.ndarray, weight: np.ndarray) -> np.ndarray:
        acc = inputs @ weight
        acc[0, 0] += 64
        return acc

    monkeypatch.setitem(selftest.PRODUCTS, "products in float32", off)
    wrong = [check for check in selftest.checks() if not check.holds]
    assert wrong
    assert all("float32" in check.name for check in wrong)
    assert all(check.found for check in wrong)


def test_a_damaged_or_other_file_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(GOLDEN, tmp_path / "golden"))
    monkeypatch.setattr(selftest, "golden_folder", lambda: folder)
    with np.load(folder / "dot-q50.codes.npz") as stored:
        codes = dict(stored)
    codes["bottom"] ^= 1
    np.savez(folder / "dot-q50.codes.npz", **codes)
    wrong = [check.name for check in selftest.checks() if not check.holds]
    assert [name.split(" with")[0] for name in wrong] == ["codes of dot-q50"] * len(
        list(selftest.arithmetics(load_model(GOLDEN / "model").prior))
    ) + ["bytes of dot-q50"]
    data = bytearray((folder / "dot-q50.vq").read_bytes())
    data[-1] ^= 1
    (folder / "dot-q50.vq").write_bytes(data)
    with pytest.raises(VQCodecError):
        list(selftest.checks())


def test_missing_golden_files_are_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(GOLDEN / "model", tmp_path / "model")
    monkeypatch.setattr(selftest, "golden_folder", lambda: tmp_path)
    with pytest.raises(VQCodecError, match="install"):
        list(selftest.checks())


def in_the_wheel() -> dict[str, str]:
    """What the wheel takes from elsewhere in the checkout, and where that goes."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    listed: dict[str, str] = wheel["force-include"]
    return listed


@pytest.mark.weights
def test_the_wheel_has_the_whole_default_model() -> None:
    names = {path.name for path in DEFAULT_MODEL.iterdir()}
    listed = {source: target for source, target in in_the_wheel().items() if source.startswith("models/")}
    assert listed == {f"models/default/{name}": f"vqcodec/models/default/{name}" for name in names}


def test_the_wheel_has_what_the_selftest_needs() -> None:
    listed = in_the_wheel()
    written = GOLDENS[-1]
    golden = {source for source, target in listed.items() if target.startswith("vqcodec/golden/")}
    assert all((ROOT / source).is_file() for source in golden)
    assert {f"tests/golden/{written.name}/model/{path.name}" for path in (written / "model").iterdir()} <= golden
    files = [source for source in golden if source.endswith(".vq")]
    assert len(files) >= 4
    assert all(f"{source.removesuffix('.vq')}.codes.npz" in golden for source in files)
    assert all(
        target == source.replace(f"tests/golden/{written.name}", "vqcodec/golden") for source, target in listed.items() if source in golden
    )
