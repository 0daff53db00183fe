"""The package as a user gets it: installed into an empty environment, without torch, used from another folder."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.support import IMAGES, ROOT
from vqcodec import kernel


@pytest.mark.slow
@pytest.mark.weights
def test_an_installed_package_needs_neither_torch_nor_the_checkout(tmp_path: Path) -> None:
    def run(*command: str | Path) -> str:
        result = subprocess.run([*map(str, command)], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return result.stdout

    run(sys.executable, "-m", "venv", "environment")
    programs = tmp_path / "environment" / ("Scripts" if sys.platform == "win32" else "bin")
    run(programs / "python", "-m", "pip", "install", "--quiet", "--no-cache-dir", ROOT)
    assert "torch" not in run(programs / "python", "-m", "pip", "list").split()
    found = run(programs / "python", "-c", "from vqcodec import kernel; print(kernel.library() is not None)")
    assert found.split() == [str(kernel.library() is not None)]  # what the editable installation of the tests could compile, a wheel has
    run(programs / "vqcodec", "compress", IMAGES / "coffee.png", "coffee.vq")
    run(programs / "vqcodec", "decompress", "coffee.vq")
    assert "600 x 400" in run(programs / "vqcodec", "info", "coffee.vq")
    assert (tmp_path / "coffee.png").stat().st_size > 100_000


def test_the_demo_leaves_a_picture_in_its_folder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands, with none of them run and no environment made."""
    commands: list[tuple[str | Path, ...]] = []
    house = SimpleNamespace(ROOT=tmp_path, make=lambda *_: Path(sys.executable), run=lambda *command: commands.append(command))
    monkeypatch.setitem(sys.modules, "environment", house)
    picture = tmp_path / "demo" / "a.png"
    monkeypatch.setattr(sys, "argv", ["demo.py", str(picture)])
    runpy.run_path(str(ROOT / "scripts" / "demo.py"))
    assert [command[1] for command in commands] == ["compress", "decompress", "info", "scripts/measure.py"]
    assert commands[0][2] == picture
    assert picture not in (commands[0][3], commands[1][3])
