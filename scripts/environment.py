"""Makes a virtual environment inside the checkout and installs the package there; used by demo.py and test.py."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import venv
from pathlib import Path

from compile_kernel import SOURCES as COMPILED

ROOT = Path(__file__).resolve().parent.parent
# what an editable installation reads or compiles
SOURCES = ("pyproject.toml", "hatch_build.py", "scripts/compile_kernel.py", *(f"vqcodec/{name}" for name in COMPILED))


def make(name: str, *requirements: str) -> Path:
    """Creates ROOT/name if needed, installs `requirements` there and returns its Python."""
    if sys.version_info < (3, 11):  # noqa: UP036 - run by whatever Python a fresh machine has
        sys.exit(f"vqcodec needs Python 3.11 or newer; this is {sys.version.split()[0]}")
    folder = ROOT / name
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    stamp = folder / "installed"
    sources = [(ROOT / path).read_bytes() for path in SOURCES]
    wanted = hashlib.sha256(repr((requirements, sys.version, sources)).encode()).hexdigest()
    if not python.exists() or not stamp.exists() or stamp.read_text() != wanted:
        venv.create(folder, with_pip=True, clear=True)
        run(python, "-m", "pip", "install", "--quiet", "--no-cache-dir", "--disable-pip-version-check", *requirements)
        stamp.write_text(wanted)
    return python


def run(*command: str | Path, **variables: str) -> None:
    """Runs a command in the checkout; ends this process with its exit code where it fails."""
    print("+", *[str(part).replace(str(ROOT) + os.sep, "") for part in command], flush=True)
    result = subprocess.run([str(part) for part in command], cwd=ROOT, env={**os.environ, **variables})
    if result.returncode:
        sys.exit(result.returncode)
