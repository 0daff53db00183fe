"""Ray Data, started on this machine with real files: whatever ends a worker, there is one whole output per input."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.support import GOLDEN, ROOT, load_image
from vqcodec import codec
from vqcodec.model import Model

MODEL = GOLDEN / "model"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"),
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds Ray's processes by /proc"),
]
SCRIPT = """
import json, os, sys, ray
import vqcodec.ray
from vqcodec.errors import VQCodecError
harmless = vqcodec.ray._work

def deadly(rows, **options):
    if any("deadly" in str(source) for source in rows["source"]):
        os._exit(1)
    return harmless(rows, **options)

vqcodec.ray._work = deadly
ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False, _temp_dir=sys.argv[4])
try:
    found = vqcodec.ray.compress_dataset(sys.argv[1], sys.argv[2], quality=40, model=sys.argv[3])
    result = [found.done, found.skipped, found.failed]
except VQCodecError as error:
    result = str(error)
print("\\nRESULT", json.dumps(result))  # Ray prints too
"""


def pictures(folder: Path, count: int, side: int = 48) -> list[Path]:
    """That many pictures in two folders, and their paths."""
    rng, made = np.random.default_rng(0), []
    for index in range(count):
        path = folder / ("a" if index % 2 else "b") / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Pillow.fromarray(rng.integers(0, 256, (side, side + index, 3), np.uint8)).save(path)
        made.append(path)
    return made


def started(src: Path, dst: Path, scratch: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_DATA_DISABLE_PROGRESS_BARS": "1", "RAY_USAGE_STATS_ENABLED": "0"}
    command = [sys.executable, "-c", SCRIPT, str(src), str(dst), str(MODEL), scratch]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=src, env=environment)


def finished(process: subprocess.Popen[str]) -> Any:
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err[-3000:]
    return json.loads(out.rsplit("RESULT ", 1)[1].splitlines()[0])


def below(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir()} if folder.exists() else set()


def workers(ancestor: int) -> list[int]:
    """Processes that work on our tasks, among the descendants of a process."""
    parents, names = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            names[int(entry.name)] = (entry / "cmdline").read_bytes()
        except OSError:
            continue

    def descends(pid: int) -> bool:
        while pid > 1 and pid != ancestor:
            pid = parents.get(pid, 0)
        return pid == ancestor

    return [pid for pid, name in names.items() if name.startswith(b"ray::MapBatches(") and descends(pid)]


@pytest.fixture
def scratch(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Ray's sockets lie there, whose paths have an upper limit."""
    return str(tmp_path_factory.mktemp("r"))


def test_a_dataset_its_failures_and_another_run(tmp_path: Path, scratch: str, model: Model) -> None:
    src, dst = tmp_path / "in", tmp_path / "out"
    made = pictures(src, 10)
    (src / "a" / "torn.png").write_bytes(made[0].read_bytes()[:900])
    (src / "notes.txt").write_text("no picture")
    done, skipped, failed = finished(started(src, dst, scratch))
    assert (done, skipped, list(failed)) == (10, 0, [str(src / "a" / "torn.png")])
    assert "damaged" in failed[str(src / "a" / "torn.png")]
    expected = {path.relative_to(src).with_suffix(".vq") for path in made}
    assert below(dst) == expected
    for path in made:
        assert (dst / path.relative_to(src)).with_suffix(".vq").read_bytes() == codec.compress(load_image(path), 40, model)
    gone, *kept = sorted(expected)
    (dst / gone).unlink()
    times = {path: (dst / path).stat().st_mtime_ns for path in kept}
    (dst / ".vqcodec-unfinished").mkdir()
    (dst / ".vqcodec-unfinished" / "left over").write_bytes(b"by a run that was killed")
    assert finished(started(src, dst, scratch))[:2] == [1, 9]
    assert below(dst) == expected
    assert {path: (dst / path).stat().st_mtime_ns for path in kept} == times


def test_workers_that_are_killed_cost_no_output(tmp_path: Path, scratch: str, model: Model) -> None:
    src, dst = tmp_path / "in", tmp_path / "out"
    made = pictures(src, 60, side=300)
    process = started(src, dst, scratch)
    killed: set[int] = set()
    while process.poll() is None and len(killed) < 8:
        time.sleep(0.2)
        if below(dst):
            for pid in workers(process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
    assert len(killed) >= 3
    done, skipped, failed = finished(process)
    assert (done, skipped, failed) == (60, 0, {})
    assert below(dst) == {path.relative_to(src).with_suffix(".vq") for path in made}
    for path in made:
        data = (dst / path.relative_to(src)).with_suffix(".vq").read_bytes()
        assert codec.decompress(data, model).shape == load_image(path).shape


def test_a_picture_that_ends_its_process_fails_alone(tmp_path: Path, scratch: str) -> None:
    """Such as one that takes more memory than there is; the others of its task are not lost with it."""
    src, dst = tmp_path / "in", tmp_path / "out"
    made = pictures(src, 20)
    # no test can take all memory of a machine: the process ends itself where it sees this name
    made[7].rename(made[7].with_name("deadly.png"))
    done, skipped, failed = finished(started(src, dst, scratch))
    assert (done, skipped, list(failed)) == (19, 0, [str(made[7].with_name("deadly.png"))])
    assert "its process has ended" in failed[str(made[7].with_name("deadly.png"))]
    assert len(below(dst)) == 19


def test_pictures_with_one_output_fail_alone(tmp_path: Path, scratch: str) -> None:
    src, dst = tmp_path / "in", tmp_path / "out"
    first, *others = pictures(src, 4)
    second = first.with_suffix(".bmp")
    Pillow.open(first).save(second)
    done, skipped, failed = finished(started(src, dst, scratch))
    assert (done, skipped, set(failed)) == (3, 0, {str(first), str(second)})
    assert below(dst) == {path.relative_to(src).with_suffix(".vq") for path in others}


def test_what_cannot_be_done_is_one_error(tmp_path: Path, scratch: str) -> None:
    (tmp_path / "empty").mkdir()
    assert "no picture" in finished(started(tmp_path / "empty", tmp_path / "out", scratch))
    assert not (tmp_path / "out").exists()
