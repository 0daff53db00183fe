"""Runs a bench: every codec at every setting on every picture, rows kept as they finish, then summary and report."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from vqcodec.bench.machine import describe, moment
from vqcodec.bench.peers import OURS, Coder, open_coder
from vqcodec.bench.plan import Plan, find_pictures
from vqcodec.bench.report import write_report
from vqcodec.bench.rows import Row, append, read_file, start_file
from vqcodec.bench.summary import Summary, read_reference, summarise, write_json
from vqcodec.bench.work import Task, carry_out
from vqcodec.errors import BenchError, MissingLibraryError

Tell = Callable[[str], None]  # prints a line
Bar = Callable[..., Any]  # click.progressbar, or what looks like it
WORDS = ("library", "knob", "fixed")  # of a codec: where one of them differs, its rows are another codec's
DIGITS = 16  # of a picture's SHA-256, in the table's head


def bench(plan: Plan, tell: Tell, bar: Bar) -> list[str]:
    """Measures, writes rows.csv, results.json, plots and index.html below `plan.out`; returns what had to be skipped.

    Raises `BenchError` for a plan that cannot be carried out.
    """
    pictures = find_pictures(plan.dataset, plan.out)
    reference = read_reference(plan.reference) if plan.reference else []
    coders = _open_all(plan, tell)
    now = moment() | {"jobs": plan.jobs}
    codecs = {coder.name: _words(coder) | now for coder in coders}
    head = describe() | {"dataset": plan.dataset.resolve().name, "codecs": codecs, "pictures": digests(pictures)}
    rows = _begin(plan, head)
    if rows:
        tell(f"{len(rows)} rows are there already")
    failures = _measure_all(plan, _tasks(plan, coders, pictures, {row.key for row in rows}), tell, bar)
    head, rows = read_file(plan.table)
    wanted = [(coder.name, setting) for coder in coders for setting in coder.settings]
    rows = [row for row in rows if (row.codec, row.setting) in wanted and row.image in pictures]
    rows.sort(key=lambda row: (wanted.index((row.codec, row.setting)), row.image))
    summary = summarise(rows, reference)
    write_json(plan.json or plan.out / "results.json", head, rows, summary, failures)
    _report(plan, head, summary, coders)
    return failures


def _report(plan: Plan, head: dict[str, Any], summary: Summary, coders: list[Coder]) -> None:
    if not summary.points:
        raise BenchError("no picture went through every codec, so there is nothing to report; the messages above say why")
    shown = find_pictures(plan.pictures, plan.out) if plan.pictures else {name: plan.dataset / name for name in summary.images}
    write_report(plan.out, head, summary, coders, plan.model, shown)


def _open_all(plan: Plan, tell: Tell) -> list[Coder]:
    """The codecs that can run here, with the plan's settings; names those that cannot."""
    coders: list[Coder] = []
    for name in plan.codecs:
        try:
            coder = open_coder(name, plan.model, plan.effort)
        except MissingLibraryError as error:
            tell(f"{name} is skipped: {error}")
            continue
        coders.append(replace(coder, settings=plan.settings.get(name, coder.settings)))
        _check_settings(coders[-1])
    if unknown := (set(plan.settings) | set(plan.again)) - set(plan.codecs):
        raise BenchError(f"settings or --again for {', '.join(sorted(unknown))}, which --codecs does not name")
    if not coders:
        raise BenchError("no codec is left to run; name others with --codecs")
    return coders


def _check_settings(coder: Coder) -> None:
    low, high = sorted(coder.ends)
    for setting in coder.settings:
        if not low <= setting <= high or (coder.whole and setting != int(setting)):
            kind = "whole numbers" if coder.whole else "numbers"
            raise BenchError(f"{coder.name} has no {coder.knob} {setting:g}; it takes {kind} from {low:g} to {high:g}")


def _words(coder: Coder) -> dict[str, str]:
    return {word: getattr(coder, word) for word in WORDS}


def _begin(plan: Plan, head: dict[str, Any]) -> list[Row]:
    """Starts the table, or takes up an earlier one without the codecs to measure again; returns the rows that it has."""
    rows: list[Row] = []
    if plan.table.exists():
        if not plan.resume:
            raise BenchError(f"{plan.table} exists; continue it with --resume, or name another --out")
        old, found = read_file(plan.table)
        kept = {name: facts for name, facts in old["codecs"].items() if name not in plan.again}
        _check_same(plan.table, old | {"codecs": kept}, head)
        rows = [row for row in found if row.codec in kept]
        seen = old.get("pictures", {})
        _check_pictures(plan.table, seen, head["pictures"], {row.image for row in rows})
        head = head | {"codecs": head["codecs"] | kept, "pictures": seen | head["pictures"]}
    plan.out.mkdir(parents=True, exist_ok=True)
    start_file(plan.table, head, rows)
    return rows


def _check_same(table: Path, old: dict[str, Any], new: dict[str, Any]) -> None:
    """Refuses to mix rows that another machine, library, model or effort has measured."""
    if differing := [key for key in ("machine", "dataset") if old.get(key) != new[key]]:
        raise BenchError(f"{table} was measured with another {' and '.join(differing)}; name another --out")
    both = [name for name in new["codecs"] if name in old["codecs"]]
    changed = [name for name in both if any(old["codecs"][name].get(word) != new["codecs"][name][word] for word in WORDS)]
    if changed:
        names = ",".join(changed)
        raise BenchError(f"{table} has rows of another {names}: measure anew with --resume --again {names}, or name another --out")


def _check_pictures(table: Path, old: dict[str, str], new: dict[str, str], measured: set[str]) -> None:
    """Refuses to mix rows of pictures that only share their names. A table of an earlier version does not tell."""
    if changed := sorted(name for name in measured & old.keys() & new.keys() if old[name] != new[name]):
        more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        raise BenchError(f"{table} was measured when {changed[0]}{more} had other bytes; name another --out")


def digests(pictures: dict[str, Path]) -> dict[str, str]:
    """The first digits of each picture's SHA-256; none of one that cannot be read, which measuring will say."""
    found: dict[str, str] = {}
    for name, path in pictures.items():
        with suppress(OSError), path.open("rb") as file:
            found[name] = hashlib.file_digest(file, "sha256").hexdigest()[:DIGITS]
    return found


def _tasks(plan: Plan, coders: list[Coder], pictures: dict[str, Path], done: set[tuple[str, float, str]]) -> list[Task]:
    first = next(iter(pictures))  # whole processes are timed on one picture: they mostly measure the start
    return [
        Task(coder.name, plan.model, plan.effort, setting, name, path, coder.name == OURS and name == first)
        for coder in coders
        for setting in coder.settings
        for name, path in pictures.items()
        if (coder.name, setting, name) not in done
    ]


def _measure_all(plan: Plan, tasks: list[Task], tell: Tell, bar: Bar) -> list[str]:
    """Carries out the tasks, keeping each row at once; returns the failures, each once."""
    failures: dict[str, None] = {}
    kept = 0
    try:
        with bar(length=len(tasks)) as shown:
            for result in carry_out(tasks, plan.jobs):
                if isinstance(result, Row):
                    append(plan.table, result)
                    kept += 1
                else:
                    failures[result] = None
                shown.update(1)
    except KeyboardInterrupt:
        tell(f"interrupted; {kept} new rows are kept in {plan.table}: continue with --resume")
        raise
    for failure in failures:
        tell(f"skipped: {failure}")
    return list(failures)
