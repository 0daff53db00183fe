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
            self.app.display_warning(f"vqcodec will do without its compiled kernel, in numpy: {wrong}")
            return
        build_data["artifacts"].append("vqcodec/libkernel.so")
        build_data["pure_python"] = False
        platform = next(tag.platform for tag in sys_tags() if "manylinux" not in tag.platform and "musllinux" not in tag.platform)
        build_data["tag"] = f"py3-none-{platform}"
