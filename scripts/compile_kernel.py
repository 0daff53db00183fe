"""Compiles vqcodec/kernel.c and search.c into vqcodec/libkernel.so, where there is a C compiler. Installing does it too.

python3 scripts/compile_kernel.py
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zlib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("kernel.c", "search.c")
FLAGS = ["-O3", "-std=gnu11", "-shared", "-fPIC", "-fvisibility=hidden"]


def compile_kernel(root: Path = ROOT) -> str:
    """Makes the library; returns what went wrong, or an empty string. An older library is replaced only by a whole new one."""
    sources, library = [root / "vqcodec" / name for name in SOURCES], root / "vqcodec" / "libkernel.so"
    asked, *options = shlex.split(os.environ.get("CC") or "cc") or ["cc"]
    compiler = shutil.which(asked)
    if compiler is None:
        return f"no C compiler ({asked}; CC names another one)"
    if sys.platform == "win32":
        return "not on Windows, where GCC does not align what vectors are spilled to"
    fresh = library.with_suffix(f".{os.getpid()}.tmp")
    try:
        crc = f"-DSOURCE_CRC={zlib.crc32(b''.join(source.read_bytes() for source in sources))}u"
        command = [compiler, *options, *FLAGS, crc, "-o", fresh, *sources, "-lm"]
        made = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if made.returncode:
            return f"{compiler} failed: {made.stderr.strip()[-500:]}"
        fresh.replace(library)
    except OSError as error:
        return str(error)
    finally:
        fresh.unlink(missing_ok=True)
    return ""


if __name__ == "__main__":
    sys.exit(compile_kernel() or None)
