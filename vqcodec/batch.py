"""Many files: which ones, where their outputs go, and the work on them. Prints nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from vqcodec import files
from vqcodec.convert import SUFFIX, CompressOptions, Job, Options, Outcome, convert
from vqcodec.errors import ImageError, VQCodecError

# what --recursive takes from a directory; a file that is named itself is always taken
PICTURES = frozenset((".apng", ".avif", ".bmp", ".dib", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg"))
PICTURES |= {".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tga", ".tif", ".tiff", ".webp"}


@dataclass(frozen=True)
class Policy:
    """What to do about existing outputs, and how many processes work at a time."""

    force: bool = False
    skip_existing: bool = False
    processes: int = 1


def plan(inputs: Sequence[str], options: Options, suffix: str, out_dir: str | None, recursive: bool) -> list[Job]:
    """The jobs for files and directories: outputs have `suffix` and lie below `out_dir`, or beside their inputs.

    A directory's tree is mirrored below `out_dir`; what is given twice is taken once. Raises `ImageError` where there is nothing to do,
    for a directory unless `recursive`, and without `out_dir` for one of several inputs that gives nothing: it may be meant for outputs.
    """
    nothing = f"no {'picture' if isinstance(options, CompressOptions) else SUFFIX + ' file'} lies below"
    wanted = PICTURES if isinstance(options, CompressOptions) else {SUFFIX}
    jobs: dict[tuple[str, str], Job] = {}
    for name in inputs:
        found = list(_found(name, wanted, recursive))
        if out_dir is None and len(inputs) > 1 and not (found and Path(name).exists()):
            what = f"{name} does not exist" if found else f"{nothing} {name}"
            raise ImageError(f"{what}; to put outputs there, give --out-dir {name}")
        for path, relative in found:
            target = str((Path(out_dir) / relative if out_dir is not None else path).with_suffix(suffix))
            jobs.setdefault((os.path.realpath(path), os.path.realpath(target)), Job(str(path), target))
    if not jobs:
        raise ImageError(f"{nothing} {' '.join(inputs)}; name files, or a directory that holds some")
    return list(jobs.values())


def clashes(jobs: Sequence[Job]) -> dict[Job, str]:
    """What is wrong with each job whose output is that of another as well."""
    sharing: dict[str, list[Job]] = {}
    for job in jobs:
        sharing.setdefault(os.path.realpath(job.target), []).append(job)
    found: dict[Job, str] = {}
    for group in sharing.values():
        for job in group if len(group) > 1 else ():
            other, *more = (one.source for one in group if one is not job)
            others = f"{other} and {len(more)} more" if more else other
            found[job] = f"{job.source} would become {job.target}, and so would {others}; rename them, or use several directories"
    return found


def run(jobs: Sequence[Job], options: Options, policy: Policy) -> Iterator[Outcome]:
    """Does the jobs, and yields what became of each as soon as it is known; a job that fails stops no other."""
    clashing = clashes(jobs)
    for job, error in clashing.items():
        yield Outcome(*job, "failed", error=error)
    jobs = [job for job in jobs if job not in clashing]
    if policy.processes == 1 or len(jobs) < 2:
        for job in jobs:
            yield attempt(job, options, policy)
        return
    from vqcodec import processes  # what it imports takes as long as all else here

    yield from processes.run(partial(attempt, options=options, policy=policy), jobs, min(policy.processes, len(jobs)))


def attempt(job: Job, options: Options, policy: Policy) -> Outcome:
    """Does one job; what goes wrong is told in the outcome."""
    try:
        if policy.skip_existing and job.target != files.STREAM and Path(job.target).exists():
            return Outcome(*job, "skipped")
        files.target(job.source, job.target, "", policy.force)
        return convert(job, options, policy.force)
    except VQCodecError as error:
        message = str(error)
    except BrokenPipeError:
        raise
    except MemoryError:
        message = "not enough memory for this picture; make it smaller"
    except OSError as error:  # what the steps themselves do not foresee, such as a full disk behind standard output
        message = f"{error}; check the disk and the paths"
    return Outcome(*job, "failed", error=" ".join(message.split()))


def _found(name: str, wanted: frozenset[str] | set[str], recursive: bool) -> Iterator[tuple[Path, Path]]:
    """The files that an input stands for, each with its path below the output directory."""
    path = Path(name)
    if not name:  # which would be the directory that one is in
        raise ImageError("the empty path is no file; name a file or a directory")
    if name == files.STREAM:
        raise ImageError("'-' cannot be one of several inputs; compress it on its own")
    if not path.is_dir():
        yield path, Path(path.name)
        return
    if not recursive:
        raise ImageError(f"{name} is a directory; add --recursive to take the files below it")
    below = (Path(folder) / file for folder, _, names in os.walk(path, onerror=_unreadable) for file in names)
    for found in sorted(below):
        if found.suffix.lower() in wanted and found.is_file():
            yield found, found.relative_to(path)


def _unreadable(error: OSError) -> None:
    """Pictures that nobody sees are not left out in silence."""
    raise ImageError(f"{error.filename} cannot be read: {error.strerror}; make it readable, or name what else there is") from error
