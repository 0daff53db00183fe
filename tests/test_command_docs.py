"""What the documents say of the commands is what the commands say: README and man page."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support import ROOT, run_python
from vqcodec.cli import main

SCRIPT = "scripts/command_docs.py"


def test_the_documents_are_up_to_date() -> None:
    result = run_python(SCRIPT, "--check")
    assert (result.returncode, result.stderr) == (0, b"")


def test_every_command_and_option_is_there() -> None:
    readme, page = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / "docs/vqcodec.1").read_text(encoding="utf-8")
    for name, command in main.commands.items():
        assert f"Usage: vqcodec {name} " in readme
        part = page.split(f".SS vqcodec {name} ")[1].split(".SS ")[0]
        for parameter in command.params:
            for option in parameter.opts if parameter.param_type_name == "option" else ():
                assert option.replace("-", "\\-") in part


@pytest.mark.parametrize("path", ["README.md", "docs/vqcodec.1"])
def test_a_difference_is_noticed_and_mended(path: str, tmp_path: Path) -> None:
    for name in ("README.md", "docs/vqcodec.1", SCRIPT):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    text = (tmp_path / path).read_text(encoding="utf-8")
    assert text.count("Overwrite an existing OUTPUT") > 1
    (tmp_path / path).write_text(text.replace("Overwrite an existing OUTPUT", "Overwrite nothing", 1), encoding="utf-8")
    result = run_python(tmp_path / SCRIPT, "--check")
    assert result.returncode == 1
    assert re.match(rf"{path}: run python3 {SCRIPT}\s*$", result.stderr.decode())
    assert run_python(tmp_path / SCRIPT).returncode == 0
    assert (tmp_path / path).read_text(encoding="utf-8") == text


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="there is no mandoc on this machine")
def test_the_man_page_is_well_formed() -> None:
    result = subprocess.run(["mandoc", "-T", "lint", "-W", "error", ROOT / "docs/vqcodec.1"], capture_output=True, check=False)
    assert (result.returncode, result.stdout) == (0, b"")
