"""`.vq` files in Pillow: after `import vqcodec.pillow`, `Image.open` and `Image.save` know them.

>>> from PIL import Image, ImageOps                                  # doctest: +SKIP
>>> import vqcodec.pillow
>>> picture = ImageOps.exif_transpose(Image.open("photo.jpg"))        # upright: a `.vq` file cannot say that it should be turned
>>> picture.save("photo.vq", quality=60, icc_profile=picture.info.get("icc_profile"))
>>> Image.open("photo.vq").size       # decodes nothing yet

`save` takes `quality`, `effort`, `model`, `icc_profile`, `exif` and `xmp`. What goes wrong is an `OSError`, as Pillow has it. A file opens
if its model comes with the package; `vqcodec.decompress` takes any.
"""

from __future__ import annotations

import io
from typing import IO, Any

import numpy as np
from PIL import ExifTags, Image, ImageFile

from vqcodec import codec, container
from vqcodec.config import DEFAULT_EFFORT
from vqcodec.container import Metadata
from vqcodec.errors import BadMagicError, VQCodecError

FORMAT, SUFFIX, MIME = "VQ", ".vq", "image/x-vqcodec"
MODES = {(False, False): "RGB", (False, True): "RGBA", (True, False): "L", (True, True): "LA"}  # by gray and alpha


class VQImageFile(ImageFile.ImageFile):
    """A `.vq` file: its size, mode and metadata are known once it is open, its pixels when they are first asked for."""

    format = FORMAT
    format_description = "vqcodec image"

    def _open(self) -> None:
        assert self.fp is not None
        self._data = self.fp.read()
        try:
            held = container.unpack(self._data)
        except BadMagicError as error:
            raise SyntaxError(str(error)) from error  # tells Pillow to try other formats
        except VQCodecError as error:
            raise OSError(str(error)) from error
        self._size = held.width, held.height
        self._mode = MODES[held.gray, bool(held.extras.alpha)]
        metadata = held.extras.metadata
        kept = {"icc_profile": metadata.icc, "exif": metadata.exif, "xmp": metadata.xmp}
        self.info = {"quality": held.quality / 100, **{name: value for name, value in kept.items() if value}}

    def load(self) -> Any:
        """Decodes the file; raises `OSError` where that fails."""
        if self._data:
            try:
                pixels = codec.decompress(self._data)
            except VQCodecError as error:
                raise OSError(str(error)) from error
            if self.fp and self._exclusive_fp:
                self.fp.close()
            self._data, self.fp = b"", io.BytesIO(pixels.tobytes())
            self.tile = [ImageFile._Tile("raw", (0, 0, *self.size), 0, self.mode)]
        return super().load()

    def load_read(self, read_bytes: int) -> bytes:
        """The next of the decoded pixels. That it is there keeps Pillow from mapping the file under `filename`, which holds none."""
        assert self.fp is not None
        return self.fp.read(read_bytes)


def _accept(prefix: bytes) -> bool:
    return prefix.startswith(container.MAGIC)


def _save(picture: Image.Image, file: IO[bytes], filename: str | bytes) -> None:
    if picture.mode not in MODES.values():
        raise OSError(f"cannot write mode {picture.mode} as {FORMAT}; convert it to one of {', '.join(MODES.values())} first")
    options = picture.encoderinfo
    try:
        metadata = Metadata(options.get("icc_profile") or b"", _exif(options.get("exif")), options.get("xmp") or b"")
        quality, effort = options.get("quality", 50), options.get("effort", DEFAULT_EFFORT)
        data = codec.compress(np.asarray(picture), quality, options.get("model", "default"), metadata, effort=effort)
    except (VQCodecError, ValueError, TypeError) as error:
        raise OSError(f"cannot write {FORMAT}: {error}") from error
    file.write(data)


def _exif(exif: Image.Exif | bytes | None) -> bytes:
    """EXIF as bytes; refuses one that wants the picture turned, for the pictures in `.vq` files are upright."""
    if not exif:
        return b""
    if isinstance(exif, bytes):
        data, exif = exif, Image.Exif()
        try:
            exif.load(data)
        except Exception as error:  # Pillow raises whatever it stumbles over
            raise ValueError(f"the EXIF data is damaged ({error}); leave it out") from error
    else:
        data = exif.tobytes()
    if exif.get(ExifTags.Base.Orientation, 1) != 1:
        raise OSError("the EXIF data turns the picture; apply PIL.ImageOps.exif_transpose to it first")
    return data.removeprefix(b"Exif\0\0")


Image.register_open(FORMAT, VQImageFile, _accept)
Image.register_save(FORMAT, _save)
Image.register_extension(FORMAT, SUFFIX)
Image.register_mime(FORMAT, MIME)
