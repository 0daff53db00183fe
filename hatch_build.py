"""Adds the compiled kernel to the wheel where a C compiler can make it; without one the wheel is plain Python and slower."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
from compile_kernel import compile_kernel


class KernelHook(BuildHookInterface):  # type: ignore[type-arg]
    """Compiles before a wheel, editable or not, is put together."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Leaves `build_data` as it is where nothing could be compiled."""
        del version
        wrong = compile_kernel(Path(self.root))
        if wrong:
            self.app.display_warning(f"vqcodec will do without its compiled kernel, at half the speed: {wrong}")
            return
        build_data["artifacts"].append("vqcodec/libkernel.so")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{next(sys_tags()).platform}"
