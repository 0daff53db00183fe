"""The long run: spoils inputs by the million, and tells what became of them.

python -m tests.fuzz.mutate --minutes 60                 every target, in turns
python -m tests.fuzz.mutate --count 1000000 --seed 7     that many inputs, shared out among the targets
python -m tests.fuzz.mutate --target graph --only 12345  one input again; its bytes go to --save

Each input depends on the seed, the target and its number alone. They run in a child process that may take 1 GB of memory more than it
has when it is ready, and 5 seconds of the processor for an input; should the child crash or hang, the parent notes the input and goes
on with the next.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from random import Random
from types import FrameType

from tests.fuzz.mutations import random_edits
from tests.fuzz.targets import TARGETS, Target
from vqcodec.errors import VQCodecError

SECONDS = 5  # of the processor for an input: the machine may be busy with other things
MEMORY = 1 << 30  # bytes beyond those of a child that is ready
BATCH = 100_000  # inputs between two rounds over the targets
PROGRAM = (sys.executable, "-m", "tests.fuzz.mutate")
KILLED = f"ended with {-signal.SIGKILL}"
NOT_YET = b"\xff" * 8  # the number of the input in work, before there is one
PATIENCE = 120  # seconds until a child that cannot be interrupted, or waits for nothing, is killed


class Hang(BaseException):
    """An input took too long. No `Exception`, lest the code under test catches it."""


def make(target: Target, seed: int, number: int) -> bytes:
    """The input of that number."""
    rng = Random(f"{seed} {target.name} {number}")
    seeds = target.seeds()
    start = seeds[rng.randrange(len(seeds))]
    return target.spoil(start, random_edits(rng), seeds[rng.randrange(len(seeds))])


def outcome(target: Target, data: bytes) -> tuple[str, bool]:
    """What became of an input in words, and whether that is as it should be."""
    try:
        target.run(data)
    except VQCodecError as error:
        return f"refused by {where(error)}: {type(error).__name__}", True
    except Hang:
        return f"took more than {SECONDS} s", False
    except BaseException as error:
        return f"{type(error).__name__}: {error}", False
    return "taken", True


def where(error: BaseException) -> str:
    """The innermost module of the package that an error came through: how deep the input went."""
    trace, name = error.__traceback__, ""
    while trace:
        module = str(trace.tb_frame.f_globals.get("__name__"))
        name = module.removeprefix("vqcodec.") if module.startswith("vqcodec.") else name
        trace = trace.tb_next
    return name


def child(target: Target, seed: int, start: int, stop: int, note: Path) -> None:
    """Runs inputs start..stop - 1 and prints a JSON line for each unexpected outcome, and one with the counts at the end."""
    for data in target.seeds():
        target.run(data)  # opens everything, and shows that intact inputs are taken
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what libraries have to say about damage
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * mmap.PAGESIZE
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MEMORY, -1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    def hang(_signal: int, _frame: FrameType | None) -> None:
        raise Hang

    signal.signal(signal.SIGPROF, hang)
    counts: Counter[str] = Counter()
    with note.open("r+b") as file, mmap.mmap(file.fileno(), 8) as number_now:
        for number in range(start, stop):
            number_now[:] = number.to_bytes(8, "little")
            data = make(target, seed, number)
            signal.setitimer(signal.ITIMER_PROF, SECONDS)
            found, expected = outcome(target, data)
            signal.setitimer(signal.ITIMER_PROF, 0)
            counts[found if expected else "UNEXPECTED"] += 1
            if not expected:
                print(json.dumps({"number": number, "outcome": found}), flush=True)
    print(json.dumps({"counts": counts, "peak_kb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}), flush=True)


class Run:
    """The parent's tally over all targets."""

    def __init__(self, seed: int, save: Path, program: Sequence[str] = PROGRAM):
        self.seed, self.save, self.program = seed, save, program
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in TARGETS}
        self.seconds: Counter[str] = Counter()
        self.peak = 0
        save.mkdir(parents=True, exist_ok=True)

    def batch(self, target: Target, start: int, stop: int) -> None:
        """Runs inputs start..stop - 1, over crashes and hangs."""
        note = self.save / f".{target.name}.{os.getpid()}"
        began = time.monotonic()
        while start < stop:
            note.write_bytes(NOT_YET)
            command = [*self.program, "--child", str(start), str(stop), str(note)]
            command += ["--target", target.name, "--seed", str(self.seed)]
            with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
                lines, died = self._wait(process, note)
            for line in lines:
                self._take(target, json.loads(line))
            if not died:
                break
            if note.read_bytes() == NOT_YET and died == KILLED:
                continue  # the machine is so busy that the child did not even start
            if note.read_bytes() == NOT_YET:
                raise SystemExit(f"the target {target.name} refuses an intact input, see above")
            number = int.from_bytes(note.read_bytes(), "little")
            self._take(target, {"number": number, "outcome": died})
            self.counts[target.name]["before a crash"] += number - start
            start = number + 1
        note.unlink(missing_ok=True)
        self.seconds[target.name] += time.monotonic() - began

    def _wait(self, process: subprocess.Popen[bytes], note: Path) -> tuple[list[bytes], str]:
        """The child's lines, and how it died, if it did."""
        seen, since = b"", time.monotonic()
        while True:
            try:
                output, _ = process.communicate(timeout=1)
                break
            except subprocess.TimeoutExpired:
                now = note.read_bytes()
                if now != seen:
                    seen, since = now, time.monotonic()
                elif time.monotonic() - since > PATIENCE:
                    process.kill()
        lines = output.splitlines()
        whole = bool(lines) and b'"counts"' in lines[-1] and process.returncode == 0
        return lines, "" if whole else f"ended with {process.returncode}"

    def _take(self, target: Target, said: dict[str, object]) -> None:
        if "counts" in said:
            self.counts[target.name].update(said["counts"])
            self.peak = max(self.peak, int(str(said["peak_kb"])))
            return
        number = int(str(said["number"]))
        path = self.save / f"{target.name}-{self.seed}-{number}"
        path.write_bytes(make(target, self.seed, number))
        if str(said["outcome"]).startswith("ended"):
            self.counts[target.name]["UNEXPECTED"] += 1
        print(f"UNEXPECTED {target.name} {number}: {said['outcome']}; kept as {path}", flush=True)

    def report(self) -> int:
        """Prints what became of all inputs; returns how many outcomes were unexpected."""
        for name, counts in self.counts.items():
            if counts:
                print(f"{name}: {counts.total()} inputs in {self.seconds[name]:.0f} s")
                for found, count in counts.most_common():
                    print(f"  {count:>8}  {found}")
        wrong = sum(counts["UNEXPECTED"] for counts in self.counts.values())
        total = sum(counts.total() for counts in self.counts.values())
        print(
            f"{total} inputs in {sum(self.seconds.values()) / 60:.1f} minutes, {wrong} unexpected outcomes, peak {self.peak / 1024:.0f} MB"
        )
        return wrong


def main() -> int:
    """Returns the exit code: 1 where something unexpected happened."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=None)
    parser.add_argument("--count", type=int, default=None)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=list(TARGETS))
    parser.add_argument("--only", type=int, metavar="NUMBER")
    parser.add_argument("--save", type=Path, default=Path("runs/fuzz"), help="Folder for inputs with unexpected outcomes.")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(TARGETS[given.target], given.seed, int(given.child[0]), int(given.child[1]), Path(given.child[2]))
        return 0
    run = Run(given.seed, given.save)
    chosen = [TARGETS[given.target]] if given.target else list(TARGETS.values())
    if given.only is not None:
        (given.save / f"{chosen[0].name}-{given.seed}-{given.only}").write_bytes(make(chosen[0], given.seed, given.only))
        run.batch(chosen[0], given.only, given.only + 1)
        return 1 if run.report() else 0
    shares = sum(target.share for target in chosen)
    quota = {target.name: -(-given.count * target.share // shares) if given.count else sys.maxsize for target in chosen}
    done: Counter[str] = Counter()
    end = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    while time.monotonic() < end and any(done[name] < wanted for name, wanted in quota.items()):
        for target in chosen:
            batch = min(-(-BATCH * target.share // shares), quota[target.name] - done[target.name])
            if batch > 0 and time.monotonic() < end:
                run.batch(target, done[target.name], done[target.name] + batch)
                done[target.name] += batch
        run.report()
    return 1 if run.report() else 0


if __name__ == "__main__":
    sys.exit(main())
