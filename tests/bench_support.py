"""What the tests of `vqcodec bench` share: a small bench, and a progress bar that can interrupt it. Needs the extra bench."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from tests.support import GOLDEN
from vqcodec.bench import run
from vqcodec.bench.plan import Plan
from vqcodec.bench.rows import Row, read_file

MODEL = str(GOLDEN / "model")


class Bar:
    """Stands for click's progress bar; raises KeyboardInterrupt after `patience` rows."""

    def __init__(self, patience: int = 10**6):
        self.patience = patience

    @contextlib.contextmanager
    def __call__(self, length: int) -> Iterator[Bar]:
        self.length = length
        yield self

    def update(self, _: int) -> None:
        self.patience -= 1
        if not self.patience:
            raise KeyboardInterrupt


def plan(dataset: Path, **changes: object) -> Plan:
    settings = {"vqcodec": (0.0, 62.5), "jpeg": (10.0, 40.0)}
    return Plan(
        **{"dataset": dataset, "out": dataset.parent / "out", "codecs": ("vqcodec", "jpeg"), "settings": settings, "model": MODEL} | changes
    )


def measured(asked: Plan, bar: Bar | None = None) -> tuple[list[Row], list[str], list[str]]:
    """Rows, failures and what was told."""
    told: list[str] = []
    failures = run.bench(asked, told.append, bar or Bar())
    return read_file(asked.table)[1], failures, told
