"""vqcodec: a learned image codec whose files decode to the same codes on every machine.

>>> import vqcodec                                                   # doctest: +SKIP
>>> data = vqcodec.compress(image, quality=50)   # image: uint8 (H, W, 3)
>>> image = vqcodec.decompress(data)

The interface is imported when it is first used, so that `import vqcodec` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vqcodec.codec import compress, decode_codes, decompress, read_metadata, salvage
    from vqcodec.codes import Codes
    from vqcodec.container import Metadata
    from vqcodec.errors import VQCodecError
    from vqcodec.model import Model, load_model
    from vqcodec.targets import compress_to

__version__ = "0.1.0.dev0"
__all__ = [
    "Codes",
    "Metadata",
    "Model",
    "VQCodecError",
    "compress",
    "compress_to",
    "decode_codes",
    "decompress",
    "load_model",
    "read_metadata",
    "salvage",
]

_HOMES = {
    "compress": "codec",
    "compress_to": "targets",
    "decode_codes": "codec",
    "decompress": "codec",
    "read_metadata": "codec",
    "salvage": "codec",
    "Codes": "codes",
    "Metadata": "container",
    "VQCodecError": "errors",
    "Model": "model",
    "load_model": "model",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'vqcodec' has no attribute '{name}'")
    return getattr(import_module(f"vqcodec.{_HOMES[name]}"), name)
