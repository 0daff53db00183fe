"""Many files in processes: what a worker's end does to the others' outcomes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support import GOLDEN, noise
from vqcodec import batch, image, processes
from vqcodec.batch import Policy
from vqcodec.convert import CompressOptions, Job

OPTIONS = CompressOptions(model=str(GOLDEN / "model"))


def end(threads: int) -> None:
    """Stands in for a worker that the system kills."""
    os._exit(1)


def test_jobs_of_a_worker_that_ended_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "start_worker", end)
    jobs = [Job(f"{number}.png", str(tmp_path / f"{number}.vq")) for number in range(50)]
    outcomes = list(batch.run(jobs, OPTIONS, Policy(processes=2)))
    assert sorted(outcome.input for outcome in outcomes) == sorted(job.source for job in jobs)
    assert all(outcome.status == "failed" and "--jobs" in outcome.error for outcome in outcomes)


def test_outcomes_come_while_others_are_under_way(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image.write(noise(8, 9)))
    jobs = [Job(str(tmp_path / "a.png"), str(tmp_path / "a.vq")), Job(str(tmp_path / "none.png"), str(tmp_path / "b.vq"))]
    first, second = batch.run(jobs, OPTIONS, Policy())
    assert (first.status, first.pixels, first.bytes) == ("done", 72, (tmp_path / "a.vq").stat().st_size)
    assert (second.status, second.pixels) == ("failed", 0)
    assert "does not exist" in second.error
    skipped, _ = batch.run(jobs, OPTIONS, Policy(skip_existing=True))
    assert skipped.status == "skipped"
