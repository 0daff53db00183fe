"""How long a training runs: in steps, in minutes, or whichever ends first."""

from __future__ import annotations

import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How long and how hard: the run ends after `steps` or `minutes`, whichever comes first."""

    steps: int
    minutes: float
    batch: int = 8
    crop: int = 192
    learning_rate: float = 1e-3
    seed: int = 0


class Clock:
    """Progress of a run in [0, 1], by steps and by the minutes of all its sessions together."""

    def __init__(self, schedule: Schedule, minutes_before: float = 0.0):
        self.schedule, self.before, self.start = schedule, minutes_before, time.monotonic()

    def minutes(self) -> float:
        return self.before + (time.monotonic() - self.start) / 60

    def progress(self, step: int) -> float:
        return min(1.0, max(step / self.schedule.steps, self.minutes() / self.schedule.minutes))
