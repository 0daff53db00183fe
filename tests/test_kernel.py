"""The compiled kernel: there wherever it can be, left alone where it is not what it should be, and of no effect but on time.

That it computes the same integers is in test_prior.py (random models and codes), test_golden.py and test_selftest.py.
"""

from __future__ import annotations

import gc
import platform
import shutil
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import GOLDEN, IMAGES, ROOT, load_image, make_config, random_codes, random_prior, run_python, same
from vqcodec import bitstream, codec, container, kernel, metrics
from vqcodec.codes import Codes
from vqcodec.model import load_model
from vqcodec.prior import Prior
from vqcodec.scan import scan

SCRIPT = ROOT / "scripts" / "compile_kernel.py"
RUNS_HERE = platform.machine() in ("x86_64", "AMD64") and Path("/proc/cpuinfo").exists() and "avx2" in Path("/proc/cpuinfo").read_text()
needs_compiler = pytest.mark.skipif(
    not RUNS_HERE or not shutil.which("cc"), reason="no C compiler, or a processor that the kernel is not for"
)


@pytest.fixture(autouse=True)
def asked_again() -> Iterator[None]:
    """The library is looked for once a process; these tests look again and again."""
    kernel.library.cache_clear()
    yield
    kernel.library.cache_clear()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with the script and the source, where something can be compiled."""
    for path in (SCRIPT, *kernel.SOURCES):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(exist_ok=True)
        shutil.copy(path, target)
    return tmp_path


def compile_in(tree: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    return run_python(tree / "scripts" / SCRIPT.name, cwd=tree, **variables)


@needs_compiler
def test_installing_has_compiled_it() -> None:
    assert kernel.library() is not None, "run scripts/compile_kernel.py"


@needs_compiler
def test_compiling_gives_a_library_that_is_taken(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = compile_in(tree)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")
    assert sorted(path.name for path in (tree / "vqcodec").iterdir()) == ["kernel.c", "libkernel.so", "search.c"]
    monkeypatch.setattr(kernel, "LIBRARY", tree / "vqcodec" / "libkernel.so")
    assert kernel.library() is not None


@pytest.mark.parametrize("compiler", ["no-such-compiler", sys.executable])
def test_without_a_working_compiler_nothing_is_left_behind(tree: Path, compiler: str) -> None:
    result = compile_in(tree, CC=compiler)
    assert result.returncode == 1
    assert compiler.encode() in result.stderr or b"no C compiler" in result.stderr
    assert sorted(path.name for path in (tree / "vqcodec").iterdir()) == ["kernel.c", "search.c"]


@needs_compiler
@pytest.mark.parametrize("index", range(len(kernel.SOURCES)))
def test_a_library_of_another_source_is_left_alone(index: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changed = tmp_path / "changed.c"
    changed.write_text(kernel.SOURCES[index].read_text() + "\n")
    monkeypatch.setattr(kernel, "SOURCES", [changed if at == index else path for at, path in enumerate(kernel.SOURCES)])
    assert kernel.library() is None


@pytest.mark.parametrize("content", [None, b"", b"\x7fELF and nothing else"])
def test_without_a_whole_library_numpy_does_the_work(content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if content is not None:
        (tmp_path / "libkernel.so").write_bytes(content)
    monkeypatch.setattr(kernel, "LIBRARY", tmp_path / "libkernel.so")
    assert kernel.library() is None
    model = load_model(GOLDEN / "model")
    codes = random_codes(np.random.default_rng(0), model.config, 40, 50)
    payloads = bitstream.write(model.prior, codes, 40, 50, 5000)
    assert same(bitstream.read(model.prior, payloads, 40, 50, 5000), codes)
    assert payloads == bitstream.write(Prior(model.prior.levels), codes, 40, 50, 5000)


@needs_compiler
def test_the_user_may_leave_it_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VQCODEC_KERNEL", "0")
    assert kernel.library() is None


@needs_compiler
@pytest.mark.weights
def test_files_are_the_same_with_every_kernel(tmp_path: Path) -> None:
    """Of the same codes; the codes of a photograph are the same but for choices that rounding tips, and as good."""
    assert kernel.library() is not None
    image, in_numpy = load_image(IMAGES / "coffee.png"), Prior(load_model().prior.levels)
    found: list[Codes] = []
    sizes: list[int] = []
    psnrs: list[float] = []
    for name in ("0", "avx2", "best"):
        file = tmp_path / f"{name}.vq"
        result = run_python("-m", "vqcodec.cli", "compress", IMAGES / "coffee.png", file, VQCODEC_KERNEL=name)
        assert (result.returncode, result.stderr) == (0, b"")
        data = file.read_bytes()
        found.append(codec.decode_codes(data))
        assert bitstream.write(in_numpy, found[-1], *image.shape[:2], 5000) == list(container.unpack(data).levels)
        sizes.append(len(data))
        psnrs.append(metrics.psnr(metrics.mse(image, codec.decompress(data))))
    first, *others = (np.concatenate([code_map.ravel() for code_map in codes]) for codes in found)
    assert min((other == first).mean() for other in others) > 0.999
    assert max(sizes) < 1.005 * min(sizes)
    assert max(psnrs) < min(psnrs) + 0.01


def test_a_packed_level_is_shared_and_goes_with_its_model() -> None:
    rng, config = np.random.default_rng(0), make_config(4, (1, 1, 1), (4, 4, 4), 1)
    prior = Prior.from_tensors(random_prior(rng, config), config)
    assert kernel.packed(prior.levels[0]) is kernel.packed(prior.levels[0])
    left = weakref.ref(prior.levels[0])
    del prior
    gc.collect()
    assert left() is None


@needs_compiler
def test_a_context_of_another_kind_is_no_context() -> None:
    rng, config = np.random.default_rng(0), make_config(4, (1, 1, 1), (4, 4, 4), 1)
    prior = Prior.from_tensors(random_prior(rng, config), config)
    for wrong in (np.zeros((1, 1, 5), np.int8), np.zeros((1, 1, 4), np.int16)):
        with pytest.raises((ValueError, AssertionError)):
            scan(prior, 0, wrong, (2, 2), lambda *_: np.zeros(1, np.int32))
