"""What a bench is asked to do: the options of the command line, checked before any work is done."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from vqcodec.bench.peers import OURS
from vqcodec.config import DEFAULT_EFFORT
from vqcodec.errors import BenchError
from vqcodec.image import FORMATS


@dataclass(frozen=True)
class Plan:
    """One bench. `settings` replaces a codec's default settings; `reference` is a table of published points.

    `pictures` are the photographs that the report shows; the dataset's own where it is None. `again` names codecs whose
    earlier rows are dropped and measured anew. `effort` is that of vqcodec's search.
    """

    dataset: Path
    out: Path
    codecs: tuple[str, ...]
    settings: dict[str, tuple[float, ...]]
    model: str = "default"
    jobs: int = 1
    resume: bool = False
    json: Path | None = None
    reference: Path | None = None
    pictures: Path | None = None
    again: tuple[str, ...] = ()
    effort: int = DEFAULT_EFFORT

    @property
    def table(self) -> Path:
        """Where the rows are kept."""
        return self.out / "rows.csv"


def parse_codecs(text: str) -> tuple[str, ...]:
    """`jpeg,webp` -> names in that order, each once."""
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def parse_settings(texts: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """`0,50,100` (for vqcodec) or `jpeg=5,10` -> settings for each codec named; raises `BenchError` for anything else."""
    found: dict[str, tuple[float, ...]] = {}
    for text in texts:
        name, separator, numbers = text.rpartition("=")
        try:
            values = tuple(float(number) for number in numbers.split(","))
        except ValueError as error:
            raise BenchError(f"'{text}' is no list of settings; write 0,50,100 or jpeg=5,10,20") from error
        if not all(map(math.isfinite, values)):
            raise BenchError(f"'{text}' has a setting that is no finite number")
        found[name.strip() if separator else OURS] = tuple(dict.fromkeys(values))
    return found


def find_pictures(folder: Path, out: Path) -> dict[str, Path]:
    """Every file below `folder` that has the suffix of a picture, by its path inside; raises `BenchError` for none.

    What lies below `out` is left out: an earlier report's plots are no photographs.
    """
    if not folder.is_dir():
        raise BenchError(f"{folder} is no folder; give a folder of pictures")
    paths = (path for path in folder.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    found = {path.relative_to(folder).as_posix(): path for path in paths if out.resolve() not in path.resolve().parents}
    if not found:
        raise BenchError(f"there are no pictures below {folder} ({' '.join(FORMATS)})")
    return dict(sorted(found.items()))
