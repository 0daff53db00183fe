"""What a table of measurements must say about itself: machine, versions and commit."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from vqcodec import __version__

PACKAGES = ("numpy", "pillow", "onnxruntime", "constriction", "imagecodecs", "pillow-heif", "bjontegaard", "scipy")
PACKAGE = Path(__file__).parent.parent


def describe() -> dict[str, Any]:
    """Machine and versions, the head of a table. A package that is not installed has the version None."""
    return {
        "machine": {
            "processor": processor(),
            "cores": os.cpu_count(),
            "system": platform.platform(),
            "python": platform.python_version(),
        },
        "versions": {"vqcodec": __version__} | {name: package_version(name) for name in PACKAGES},
    }


def moment() -> dict[str, Any]:
    """When a codec's rows were begun: commit, time, and how many processes wanted the processor in the minute before."""
    load = round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None
    return {"commit": commit(), "started": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC", "load": load}


def source() -> str:
    """Identifies the codec's own code, without bench and training: rows of other code are not the same measurement."""
    digest = hashlib.sha256()
    for path in sorted([*PACKAGE.glob("*.py"), *PACKAGE.glob("*.c")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:8]


def package_version(name: str) -> str | None:
    """The version of an installed package."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def processor() -> str:
    """The processor's name as its maker writes it, where the system tells."""
    facts = Path("/proc/cpuinfo")
    if facts.is_file():
        for line in facts.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with `-dirty` where files differ from it; None for an installed package."""
    git, folder = shutil.which("git"), PACKAGE.parent
    if git is None or not (folder / ".git").exists():
        return None
    done = subprocess.run([git, "describe", "--always", "--dirty", "--abbrev=12"], cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None
