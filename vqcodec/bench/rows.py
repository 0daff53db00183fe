"""One measurement: a codec at a setting on a picture, as a row; and the file that keeps rows as they finish.

The file is CSV with a head of comment lines, each `# key: JSON`, so that a table never travels without its machine.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

from vqcodec import container, image, metrics
from vqcodec.bench.peers import OURS, Coder
from vqcodec.config import LEVELS
from vqcodec.errors import BenchError
from vqcodec.msssim import ms_ssim
from vqcodec.tiles import Image

MARK = "# "  # begins a line of the head
NAMES = "surrogateescape"  # pictures' names may be no UTF-8
COMMAND = "from vqcodec.cli import run; run()"  # what the installed command does


@dataclass(frozen=True)
class Row:
    """One measurement. Times are in seconds; what does not apply is None.

    `encode_s` and `decode_s` are warm, in process, by the clock; `*_cpu_s` are the processor's time then, over all threads, which
    a busy machine hardly changes. `process_*` are whole runs of our own command. PSNR is infinite for MSE 0.
    """

    codec: str
    setting: float
    image: str  # path inside the dataset
    width: int
    height: int
    bytes: int
    bpp: float
    mse: float
    psnr: float
    ms_ssim: float | None
    encode_s: float
    decode_s: float
    encode_cpu_s: float | None = None
    decode_cpu_s: float | None = None
    process_encode_s: float | None = None
    process_decode_s: float | None = None
    top_bytes: int | None = None
    middle_bytes: int | None = None
    bottom_bytes: int | None = None

    @property
    def key(self) -> tuple[str, float, str]:
        """What a row measures."""
        return self.codec, self.setting, self.image

    @property
    def level_bytes(self) -> tuple[int, int, int] | None:
        """Bytes of top, middle and bottom."""
        if self.top_bytes is None or self.middle_bytes is None or self.bottom_bytes is None:
            return None
        return self.top_bytes, self.middle_bytes, self.bottom_bytes


COLUMNS = [field.name for field in fields(Row)]
TEXTS, INTEGERS = {"codec", "image"}, {"width", "height", "bytes", "top_bytes", "middle_bytes", "bottom_bytes"}


def measure(coder: Coder, setting: float, pixels: Image, name: str) -> Row:
    """Compresses and decompresses one picture uint8 (H, W, 3), which has this name in the dataset."""
    height, width = pixels.shape[:2]
    start = _clocks()
    data = coder.compress(pixels, setting)
    middle = _clocks()
    restored = coder.decompress(data)
    end = _clocks()
    error = metrics.mse(pixels, restored)
    return Row(
        codec=coder.name,
        setting=setting,
        image=name,
        width=width,
        height=height,
        bytes=len(data),
        bpp=metrics.bpp(len(data), height, width),
        mse=error,
        psnr=metrics.psnr(error),
        ms_ssim=ms_ssim(pixels, restored),
        encode_s=round(middle[0] - start[0], 6),
        decode_s=round(end[0] - middle[0], 6),
        encode_cpu_s=round(middle[1] - start[1], 6),
        decode_cpu_s=round(end[1] - middle[1], 6),
        **({f"{level}_bytes": size for level, size in level_sizes(data).items()} if coder.name == OURS else {}),
    )


def _clocks() -> tuple[float, float]:
    return perf_counter(), process_time()


def level_sizes(data: bytes) -> dict[str, int]:
    """Bytes of each level's section with its head; the file's header is in none of them, nor what adapts the decoder."""
    return {section.name: section.size for section in container.unpack(data).sections if section.name in LEVELS}


def time_command(setting: float, picture: Path | Image, model: str, effort: int, expected: int) -> tuple[float, float]:
    """Seconds of `vqcodec compress` and `vqcodec decompress` as whole processes.

    `picture` is a file, or the pixels that were measured where that has alpha, which the command would keep.
    Raises `BenchError` where the command fails, or its file has not the `expected` number of bytes.
    """
    with tempfile.TemporaryDirectory(prefix="vqcodec-bench-") as folder:
        packed, restored = Path(folder, "a.vq"), Path(folder, "a.png")
        if not isinstance(picture, Path):
            opaque = Path(folder, "opaque.png")
            opaque.write_bytes(image.write(picture))
            picture = opaque
        encode_s = _time("compress", str(picture), str(packed), "-q", repr(setting), "-m", model, "--effort", str(effort))
        decode_s = _time("decompress", str(packed), str(restored), "-m", model)
        if packed.stat().st_size != expected:
            raise BenchError(f"vqcodec compress wrote {packed.stat().st_size} bytes and the bench {expected}: please report this")
    return round(encode_s, 3), round(decode_s, 3)


def _time(*arguments: str) -> float:
    start = perf_counter()
    done = subprocess.run([sys.executable, "-c", COMMAND, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BenchError(f"vqcodec {arguments[0]} failed: {done.stderr.strip()}")
    return perf_counter() - start


def start_file(path: Path, head: dict[str, Any], rows: Iterable[Row] = ()) -> None:
    """Writes head, column names and `rows` anew; an interrupt leaves the earlier file as it was."""
    new = path.with_name(f"{path.name}.new")
    with new.open("w", newline="", encoding="utf-8", errors=NAMES) as file:
        file.writelines(f"{MARK}{key}: {json.dumps(value)}\n" for key, value in head.items())
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    new.replace(path)


def append(path: Path, row: Row) -> None:
    """Adds a row and hands it to the system at once, so that an interrupt keeps it."""
    with path.open("a", newline="", encoding="utf-8", errors=NAMES) as file:
        csv.DictWriter(file, COLUMNS, lineterminator="\n").writerow(asdict(row))


def read_file(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """Head and rows; a last line that an interrupt cut short is left out. Raises `BenchError` for anything else."""
    text = path.read_text(encoding="utf-8", errors=NAMES)
    lines = text[: text.rfind("\n") + 1].split("\n")
    try:
        pairs = [line.removeprefix(MARK).split(": ", 1) for line in lines if line.startswith(MARK)]
        head = {key: json.loads(value) for key, value in pairs}
        table = csv.DictReader(line for line in lines if not line.startswith(MARK))
        if table.fieldnames != COLUMNS:
            raise ValueError("its columns are others")
        return head, [_row(record) for record in table]
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise BenchError(f"{path} holds no rows of this version's bench ({error}); name another --out") from error


def _row(record: dict[str, str]) -> Row:
    return Row(**{name: _value(name, text) for name, text in record.items()})


def _value(name: str, text: str) -> Any:
    if name in TEXTS:
        return text
    if not text:
        return None
    return int(text) if name in INTEGERS else float(text)
