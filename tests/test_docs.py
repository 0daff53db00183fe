"""The documents' examples run, their links lead somewhere, and the diagram shows the model that ships."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from tests.support import DEFAULT_MODEL, ROOT
from vqcodec.kernel import LIBRARY
from vqcodec.model import load_model

DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


@pytest.mark.weights
def test_the_examples_in_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    failed, tried = doctest.testfile(str(ROOT / "docs" / "PYTHON.md"), module_relative=False, optionflags=doctest.ELLIPSIS)
    assert failed == 0
    assert tried > 40


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", path.read_text(encoding="utf-8")):
        if not link.startswith("http"):
            assert (path.parent / link.split("#")[0]).exists(), link


def test_the_readme_names_every_module_of_the_house() -> None:
    house = (ROOT / "README.md").read_text(encoding="utf-8").split("## The house")[1].split("```")[1]
    others = ("__init__.py", "__pycache__", "py.typed", LIBRARY.name)
    modules = {path.name for path in (ROOT / "vqcodec").iterdir() if path.name not in others}
    assert {name for name in modules if name not in house} == set()


@pytest.mark.weights
def test_the_diagram_is_of_the_model_that_ships() -> None:
    drawn = (ROOT / "docs" / "pictures" / "how-it-works.svg").read_text(encoding="utf-8")
    assert f"model {load_model(DEFAULT_MODEL).id.hex()}" in drawn, "draw it anew: python3 scripts/diagram.py"
