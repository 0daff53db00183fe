"""The measuring itself, in this process or in several: a task in, a row or a reason out.

Worker processes import this module, so it stays away from what only the summary and the report need.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from vqcodec import channels, image
from vqcodec.bench.peers import Coder, open_coder
from vqcodec.bench.rows import Row, measure, time_command
from vqcodec.errors import BenchError, ImageError, LimitError, VQCodecError
from vqcodec.processes import open_pool, receive_signals, submit
from vqcodec.tiles import Image


@dataclass(frozen=True)
class Task:
    """One row to measure; `timed` where our own command is timed as a whole process too."""

    codec: str
    model: str
    effort: int
    setting: float
    name: str
    path: Path
    timed: bool


def carry_out(tasks: list[Task], jobs: int) -> Iterator[Row | str]:
    """Yields a row for each task, or the reason in words why there is none; with several jobs in the order of finishing."""
    if jobs == 1:
        yield from map(work, tasks)
        return
    pool = open_pool(jobs, receive_signals)
    try:
        for future in as_completed([submit(pool, work, task) for task in tasks]):
            yield future.result()
    except BrokenProcessPool as error:
        raise BenchError("a process died, perhaps for want of memory; continue with --resume and fewer --jobs") from error
    finally:
        pool.shutdown(cancel_futures=True)


def work(task: Task) -> Row | str:
    """Measures one row; returns the reason in words where the picture or the peer does not work."""
    try:
        pixels, _, alpha = channels.split(image.read_picture(task.path.read_bytes(), task.name).pixels)
    except (ImageError, LimitError, OSError) as error:
        return str(error)
    try:
        row = measure(_warm(task, pixels), task.setting, pixels, task.name)
    except VQCodecError:
        raise
    except Exception as error:  # peers' libraries raise whatever they stumble over
        return f"{task.codec} fails at {task.setting:g} on {task.name}: {error}"
    if task.timed:
        picture = task.path if alpha is None else pixels
        encode_s, decode_s = time_command(task.setting, picture, task.model, task.effort, row.bytes)
        row = replace(row, process_encode_s=encode_s, process_decode_s=decode_s)
    return row


@cache
def _opened(name: str, model: str, effort: int) -> tuple[Coder, set[tuple[int, ...]]]:
    """A codec, and the shapes that this process has put through it."""
    return open_coder(name, model, effort), set()


def _warm(task: Task, pixels: Image) -> Coder:
    """The task's codec after one untimed run on a picture of this shape."""
    coder, seen = _opened(task.codec, task.model, task.effort)
    if pixels.shape not in seen:
        coder.decompress(coder.compress(pixels, task.setting))
        seen.add(pixels.shape)
    return coder
