"""Fixtures, and which tests run: `slow` ones on request, `weights` ones where the shipped model lies in the checkout."""

from __future__ import annotations

import os
from pathlib import Path

# One BLAS thread, as the command line has it. Must be set before numpy loads.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # the processes of pytest-xdist share the processors: a thread each, of torch and of the codec
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("VQCODEC_THREADS", "1")

import pytest
from hypothesis import settings

from tests.support import DEFAULT_MODEL, GOLDEN, IMAGES, load_image
from vqcodec import image
from vqcodec.model import Model, load_model

# No deadline: machines that run this differ by a factor of ten, and nothing here may depend on time.
settings.register_profile("vqcodec", deadline=None, max_examples=200, derandomize=True)
settings.load_profile("vqcodec")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--run-slow", action="store_true", help="Run the tests marked slow as well (minutes).")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    wants_slow = config.getoption("--run-slow") or "slow" in config.getoption("markexpr")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.timeout(3600))
            if not wants_slow:
                item.add_marker(pytest.mark.skip(reason="takes minutes; add --run-slow"))
        if "weights" in item.keywords and not (DEFAULT_MODEL / "model.json").is_file() and "CI" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="this checkout has no models/default; train or fetch it first"))


@pytest.fixture(scope="session")
def model() -> Model:
    """The tiny seeded model of the golden files: never trained, small enough for every test."""
    return load_model(GOLDEN / "model")


@pytest.fixture(scope="session")
def default_model() -> Model:
    """The shipped model; only for tests marked `weights`."""
    return load_model(DEFAULT_MODEL)


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two small pictures, one of them in a folder, and a file that is none."""
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    (folder / "cat.png").write_bytes(image.write(load_image(IMAGES / "chelsea.png")[100:164, 100:196]))
    (folder / "more" / "cup, hot.png").write_bytes(image.write(load_image(IMAGES / "coffee.png")[100:196, 200:264]))
    (folder / "README.md").write_text("no picture")
    return folder
