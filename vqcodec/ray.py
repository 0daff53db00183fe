"""Millions of pictures through Ray Data (extra `ray`): one function, on this machine or on whatever cluster Ray is connected to.

>>> import vqcodec.ray                                               # doctest: +SKIP
>>> vqcodec.ray.compress_dataset("photographs", "small", quality=50)
Summary(done=999997, skipped=0, failed={'/data/photographs/torn.jpg': 'torn.jpg is a damaged image ...'})

Both folders must be seen by all machines under the same path. A file appears under its own name only when it is whole: until then it
lies in a folder of its own, which is emptied at the beginning and removed at the end. So a run that ended early is simply started
again, and a worker that ends costs nothing but the files that it was working on, which Ray hands to another one.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import ray
import ray.data

from vqcodec import batch, codec, files
from vqcodec.convert import SUFFIX, CompressOptions, Job
from vqcodec.errors import ImageError, OutputError
from vqcodec.model import model_names

UNFINISHED = ".vqcodec-unfinished"  # folder below the destination
LARGEST_TASK = 64  # pictures: above, the loss of a worker costs more than Ray's own work for a task
RETRIES = 3  # of a task whose process ended; Ray Data's own choice is to try for ever
LOST = "its process has ended again and again, perhaps for want of memory; compress it on its own"
OVERWRITE = batch.Policy(force=True)


@dataclass
class Summary:
    """What became of a dataset: files `done` in this run, those `skipped` since they were there, and why the others `failed`."""

    done: int = 0
    skipped: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def compress_dataset(
    src: str | Path,
    dst: str | Path,
    quality: float = 50,
    model: str | Path = "default",
    goal: tuple[str, float] | None = None,
    keep_metadata: bool = False,
) -> Summary:
    """Compresses every picture below `src` to a `.vq` file below `dst`, where the tree is mirrored; files that exist are skipped.

    `goal` is a target as in `compress_to`, such as `("bpp", 0.2)`, and then the quality does not matter. What fails stops no other
    file, nor do pictures that would have one output. One run at a time may write to `dst`. Raises `ImageError` where there is no
    picture, `OutputError` where `dst` cannot be written, and `ModelError`.
    """
    codec.open_model(model)  # here it is one error, there it would be one per picture
    named = str(model) if str(model) in model_names() else str(Path(model).absolute())
    options = CompressOptions(quality, goal, keep_metadata, named)
    source, target = Path(src).absolute(), Path(dst).absolute()
    if not source.is_dir():
        raise ImageError(f"{src} is no folder; name the one that holds the pictures")
    jobs = batch.plan([str(source)], options, SUFFIX, str(target), recursive=True)
    clashing = batch.clashes(jobs)
    left = {job.source: job for job in jobs if job not in clashing and not Path(job.target).exists()}
    failed = {job.source: error for job, error in clashing.items()}
    summary = Summary(skipped=len(jobs) - len(left) - len(failed), failed=failed)
    unfinished = _emptied(target / UNFINISHED)
    try:
        for largest in (LARGEST_TASK, 1):  # what is lost with its whole task is tried alone
            for source_name, error in _outcomes(list(left.values()), largest, partial(_work, options=options, unfinished=str(unfinished))):
                del left[source_name]
                summary.done += not error
                if error:
                    summary.failed[source_name] = error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    summary.failed |= dict.fromkeys(left, LOST)
    return summary


def _emptied(folder: Path) -> Path:
    """The folder for what is not whole yet, without what an earlier run left there."""
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder.parent} cannot be written: {error.strerror}; choose another folder") from error
    return folder


def _outcomes(jobs: Sequence[Job], largest: int, work: Any) -> Iterator[tuple[str, str]]:
    """Each job's source with what went wrong, or "", as they come; jobs of a task that Ray gave up are missing."""
    if not jobs:
        return
    if not ray.is_initialized():
        ray.init()
    share = len(jobs) // (4 * int(ray.cluster_resources().get("CPU", 1)))  # several tasks a core, so that none waits at the end
    tasks = -(-len(jobs) // min(max(share, 1), largest))
    dataset = ray.data.from_items([job._asdict() for job in jobs], override_num_blocks=tasks)
    dataset = dataset.map_batches(work, batch_size=None, num_cpus=1, max_retries=RETRIES)
    dataset.context.max_errored_blocks = -1
    for row in dataset.iter_rows():
        yield row["source"], row["error"]


def _work(rows: dict[str, Any], options: CompressOptions, unfinished: str) -> dict[str, list[str]]:
    """One task, in a worker."""
    os.environ["VQCODEC_THREADS"] = "1"  # Ray counts one core for it
    jobs = [Job(str(source), str(target)) for source, target in zip(rows["source"], rows["target"], strict=True)]
    return {"source": [job.source for job in jobs], "error": [_one(job, options, Path(unfinished)) for job in jobs]}


def _one(job: Job, options: CompressOptions, unfinished: Path) -> str:
    """Compresses one picture; returns what went wrong, or ""."""
    target, whole = Path(job.target), unfinished / uuid4().hex
    if target.exists():  # an earlier attempt at this task came so far
        return ""
    outcome = batch.attempt(Job(job.source, str(whole)), options, OVERWRITE)
    if outcome.error:
        return outcome.error
    try:
        files.make_parent(job.target)
        whole.replace(target)
    except (OSError, OutputError) as error:
        return f"{target} cannot be written: {error}; check the disk and the paths"
    return ""
