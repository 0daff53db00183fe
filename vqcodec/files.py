"""Files by their paths, "-" being standard input or output. Knows nothing of what is in them."""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from vqcodec.errors import ImageError, LimitError, OutputError

STREAM = "-"
STDERR = 2  # its file descriptor
PIECE = 1 << 20  # bytes read at a time


def target(source: str, output: str | None, suffix: str, force: bool) -> str:
    """The output's name; refuses what cannot be written before any work is done."""
    if output is None:
        if source != STREAM and not Path(source).name:
            raise ImageError(f"{source or 'the empty path'} is no file; name a file")
        output = STREAM if source == STREAM else str(Path(source).with_suffix(suffix))
    if output == STREAM:
        if sys.stdout is not None and sys.stdout.isatty() and not force:
            raise OutputError("standard output is a terminal, which cannot show this; name an OUTPUT, or use --force")
        return output
    if not output:
        raise OutputError("the empty path is no file; name a file")
    path = Path(output)
    try:
        if path.is_dir():
            raise OutputError(f"{output} is a directory; name a file")
        if source != STREAM and path.is_file() and Path(source).exists() and path.samefile(source):
            raise OutputError(f"{output} is the input itself; name another OUTPUT")
        if os.path.lexists(path) and not force:  # also a link to nothing
            raise OutputError(f"{output} exists; use --force to overwrite it, or name another OUTPUT")
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path.parent} is no directory; create it first")
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL
        raise OutputError(f"{output} cannot be written: {error}; choose another name") from error
    return output


def make_parent(name: str) -> None:
    """Makes the directory that a file is to lie in; raises `OutputError` where that fails."""
    try:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(f"{Path(name).parent} cannot be made: {error}; choose another directory") from error


def read(source: str, limit: int) -> bytes:
    """All bytes of a file or of standard input; raises `ImageError` where it cannot be read, `LimitError` for more than `limit`."""
    if not source:  # which would be the directory that one is in
        raise ImageError("the empty path is no file; name a file")
    if source == STREAM:
        if sys.stdin is None:
            raise ImageError("there is no standard input; name a file")
        return _all(sys.stdin.buffer, "standard input", limit)
    try:
        with Path(source).open("rb") as file:
            return _all(file, source, limit)
    except FileNotFoundError as error:
        raise ImageError(f"{source} does not exist; check the path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{source} is a directory; name a file in it") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{source} cannot be read: {error}") from error


def _all(file: BinaryIO, name: str, limit: int) -> bytes:
    """Reads to the end, in pieces: streams and devices do not say how much there is."""
    size = os.fstat(file.fileno()).st_size  # 0 where it is not known
    left, parts = limit - size, list[bytes]()
    while left >= 0 and (part := file.read(max(size + 1, PIECE))):
        parts.append(part)
        left = limit - sum(map(len, parts))
    if left < 0:
        raise LimitError(f"{name} has more than the limit of {limit} bytes; if you trust it, raise the limit (--max-pixels)")
    return b"".join(parts)


def write(target: str, data: bytes, force: bool) -> None:
    """Writes all of `data` or nothing: to a temporary file beside the target, which is then renamed.

    Raises `OutputError`; a `BrokenPipeError` stays one, for nobody is left to be told.
    """
    try:
        if target == STREAM:
            if sys.stdout is None:
                raise OutputError("there is no standard output; name a file")
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        path = Path(target)
        if path.exists() and not path.is_file():  # a device or pipe cannot be replaced by renaming
            path.write_bytes(data)
        else:
            _write_all(path, data, force)
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"{target} cannot be written: {error.strerror or error}; nothing was kept") from error


def _write_all(path: Path, data: bytes, force: bool) -> None:
    if force:
        path = Path(os.path.realpath(path))  # a link stays one
    # named here, not by the system: whatever interrupts this, the name is known and the file removed; letters have up to four bytes of 255
    temporary = path.absolute().parent / f".{path.name[:50]}.{os.urandom(8).hex()}"
    try:
        with temporary.open("xb") as file:
            if force and path.exists():
                temporary.chmod(stat.S_IMODE(path.stat().st_mode))
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path) if force else _rename_new(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _rename_new(temporary: Path, path: Path) -> None:
    """Renames without replacing a file that appeared meanwhile, where the file system has hard links."""
    try:
        path.hardlink_to(temporary)
        temporary.unlink()
    except FileExistsError:
        raise OutputError(f"{path} exists by now; use --force to overwrite it, or name another OUTPUT") from None
    except OSError:  # a file system without hard links
        temporary.replace(path)


@contextmanager
def silenced() -> Iterator[None]:
    """Without what compiled libraries write to the standard error of the process, such as libtiff on damage: our own line says it."""
    try:
        kept = os.dup(STDERR)
    except OSError:  # it is closed
        yield
        return
    try:
        with Path(os.devnull).open("wb") as nowhere:
            os.dup2(nowhere.fileno(), STDERR)
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)
