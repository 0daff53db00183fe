"""`vqcodec bench` as a real program: its rows equal what the command line produces; resume, damage, what is missing."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

pytest.importorskip("matplotlib", reason="needs the extra bench")

from tests.bench_support import MODEL, Bar, measured, plan
from tests.support import GOLDENS, load_image, run_python, start, vqcodec
from vqcodec import codec, image, metrics
from vqcodec.bench import run, work
from vqcodec.bench.peers import open_coder
from vqcodec.bench.plan import parse_settings
from vqcodec.bench.rows import Row, read_file
from vqcodec.cli import main
from vqcodec.errors import BenchError

WRITTEN = str(GOLDENS[-1] / "model")


@pytest.fixture
def no_report(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out plots and page, which take most of the time."""
    monkeypatch.setattr(run, "write_report", lambda *_: None)


def test_rows_equal_what_the_command_line_produces(dataset: Path, tmp_path: Path) -> None:
    options = [
        "--codecs",
        "jpeg,vqcodec",
        "--qualities",
        "62.5",
        "--qualities",
        "jpeg=10,40",
        "--model",
        MODEL,
        "--out",
        tmp_path / "out",
    ]
    result = vqcodec("bench", dataset, *options, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (0, b""), result.stderr
    head, rows = read_file(tmp_path / "out" / "rows.csv")
    assert {row.key for row in rows} == {
        (codec, setting, name)
        for codec, settings in (("vqcodec", (62.5,)), ("jpeg", (10, 40)))
        for setting in settings
        for name in ("cat.png", "more/cup, hot.png")
    }
    assert set(head) == {"machine", "versions", "dataset", "codecs", "pictures"}
    assert all(hashlib.sha256((dataset / name).read_bytes()).hexdigest().startswith(head["pictures"][name]) for name in head["pictures"])
    assert set(head["codecs"]["jpeg"]) == {"library", "knob", "fixed", "commit", "started", "load", "jobs"}
    assert (head["dataset"], head["codecs"]["jpeg"]["fixed"]) == ("set", "optimised, progressive, 4:2:0")
    for row in (row for row in rows if row.codec == "vqcodec"):
        original = load_image(dataset / row.image)
        assert vqcodec("compress", dataset / row.image, "a.vq", "-f", "-q", str(row.setting), "-m", MODEL, cwd=tmp_path).returncode == 0
        assert vqcodec("decompress", "a.vq", "a.png", "-f", "-m", MODEL, cwd=tmp_path).returncode == 0
        data = (tmp_path / "a.vq").read_bytes()
        facts = json.loads(vqcodec("info", "a.vq", "--json", "-m", MODEL, cwd=tmp_path).stdout)
        assert data == open_coder("vqcodec", MODEL).compress(original, row.setting)
        assert (row.bytes, row.bpp, row.level_bytes) == (len(data), facts["bpp"], tuple(facts["sections"].values()))
        assert row.mse == metrics.mse(original, load_image(tmp_path / "a.png"))
        assert (row.process_encode_s is not None) == (row.image == "cat.png")


@pytest.mark.usefixtures("no_report")
def test_alpha_is_left_out_of_the_timed_command_too(dataset: Path) -> None:
    original = load_image(dataset / "cat.png")
    (dataset / "cat.png").write_bytes(image.write(np.dstack([original, original[:, :, 0]])))
    rows, failures, _ = measured(replace(plan(dataset), codecs=("vqcodec",), settings={"vqcodec": (62.5,)}))
    assert not failures
    assert (rows[0].image, rows[0].bytes) == ("cat.png", len(open_coder("vqcodec", MODEL).compress(original, 62.5)))
    assert [row.process_encode_s is not None for row in rows] == [True, False]


@pytest.mark.usefixtures("no_report")
def test_rows_of_another_effort_say_so_and_are_not_mixed(dataset: Path) -> None:
    """In process and as a whole command, whose file must have as many bytes."""
    asked = replace(plan(dataset), codecs=("vqcodec",), settings={"vqcodec": (62.5,)}, model=WRITTEN, effort=7)
    rows, failures, _ = measured(asked)
    assert not failures
    for row in rows:
        assert row.bytes == len(codec.compress(load_image(dataset / row.image), row.setting, WRITTEN, effort=7))
    assert sum(row.process_encode_s is not None for row in rows) == 1
    assert read_file(asked.table)[0]["codecs"]["vqcodec"]["fixed"].endswith(", effort 7")
    with pytest.raises(BenchError, match="another vqcodec"):
        measured(replace(asked, effort=3, resume=True))


@pytest.mark.usefixtures("no_report")
def test_an_interrupt_keeps_rows_and_resume_continues(dataset: Path) -> None:
    asked = plan(dataset)
    told: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run.bench(asked, told.append, Bar(patience=3))
    assert "3 new rows are kept" in told[-1]
    kept = read_file(asked.table)[1]
    assert len(kept) == 3
    with asked.table.open("a") as file:
        file.write("jpeg,10.0,more/cu")  # a row that an interrupt cut short
    with pytest.raises(BenchError, match="exists; continue it with --resume"):
        measured(asked)
    bar = Bar()
    rows, failures, told = measured(plan(dataset, resume=True), bar)
    assert (bar.length, failures, told) == (5, [], ["3 rows are there already"])
    assert rows[:3] == kept
    assert len({row.key for row in rows}) == len(rows) == 8
    again = Bar()
    assert measured(plan(dataset, resume=True), again)[0] == rows
    assert again.length == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize("jobs", [1, 2])
def test_control_c_keeps_what_is_finished(jobs: int, dataset: Path, tmp_path: Path) -> None:
    """The real program in a process group of its own, as in a terminal: the signal reaches its workers too."""
    options = ["--codecs", "jpeg,vqcodec", "--qualities", "jpeg=10", "--qualities", "0,20,40", "--jobs", str(jobs)]
    command = ["bench", str(dataset), *options, "--model", MODEL, "--out", str(tmp_path / "out")]
    running = start("from vqcodec import cli\ncli.main()", *command, cwd=tmp_path)
    table = tmp_path / "out" / "rows.csv"
    while not (table.exists() and len(read_file(table)[1]) >= 3):
        assert running.poll() is None, running.communicate()
        time.sleep(0.05)
    os.killpg(running.pid, signal.SIGINT)
    _, said = running.communicate()
    assert running.returncode == 130
    assert b"continue with --resume" in said
    assert b"Traceback" not in said
    kept = read_file(table)[1]
    assert 3 <= len(kept) < 8
    settings: dict[str, tuple[float, ...]] = {"jpeg": (10.0,), "vqcodec": (0, 20, 40)}
    bar = Bar()
    rows, failures, _ = measured(plan(dataset, settings=settings, codecs=("jpeg", "vqcodec"), resume=True), bar)
    assert (bar.length, failures) == (8 - len(kept), [])
    assert rows[: len(kept)] == kept
    assert len({row.key for row in rows}) == len(rows) == 8


@pytest.mark.usefixtures("no_report")
def test_resume_refuses_rows_of_another_model_or_code_until_they_are_measured_again(dataset: Path) -> None:
    rows, _, _ = measured(plan(dataset))
    table = plan(dataset).table
    before = table.read_text().replace('"started": "20', '"started": "19')
    for changed in (r"source \w+", r"onnxruntime [\d.]+", r"model golden \(\w+\)"):
        table.write_text(re.sub(changed, "another", before))
        with pytest.raises(BenchError, match="rows of another vqcodec: measure anew with --resume --again vqcodec, or name another --out"):
            measured(plan(dataset, resume=True))
        assert len(read_file(table)[1]) == len(rows)
    bar = Bar()
    again, failures, told = measured(plan(dataset, resume=True, again=("vqcodec",)), bar)
    assert (bar.length, failures, told) == (4, [], ["4 rows are there already"])
    assert again[:4] == [row for row in rows if row.codec == "jpeg"]
    assert [(row.key, row.bytes) for row in again[4:]] == [(row.key, row.bytes) for row in rows if row.codec == "vqcodec"]
    codecs = read_file(table)[0]["codecs"]
    assert (codecs["jpeg"]["started"][:2], codecs["vqcodec"]["started"][:2]) == ("19", "20")
    points = json.loads((table.parent / "results.json").read_text())["summary"]["points"]
    assert [point["codec"] for point in points] == ["vqcodec", "vqcodec", "jpeg", "jpeg"]


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize(("fact", "found"), [("machine", "another machine"), ("dataset", "another dataset")])
def test_resume_never_mixes_machines_or_datasets(fact: str, found: str, dataset: Path) -> None:
    measured(plan(dataset))
    table = plan(dataset).table
    table.write_text(re.sub(rf"# {fact}: .*", f'# {fact}: "other"', table.read_text()))
    with pytest.raises(BenchError, match=f"{found}; name another --out"):
        measured(plan(dataset, resume=True, again=("vqcodec", "jpeg")))


@pytest.mark.usefixtures("no_report")
def test_resume_refuses_rows_of_a_picture_that_was_another_one(dataset: Path, tmp_path: Path) -> None:
    jpeg = replace(plan(dataset), codecs=("jpeg",), settings={"jpeg": (10,)})
    measured(jpeg)
    table, good = jpeg.table, (dataset / "cat.png").read_bytes()
    (dataset / "new.png").write_bytes(good)
    rows, _, _ = measured(replace(jpeg, resume=True))
    assert {row.image for row in rows} == set(read_file(table)[0]["pictures"]) == {"cat.png", "more/cup, hot.png", "new.png"}
    (dataset / "cat.png").write_bytes((dataset / "more" / "cup, hot.png").read_bytes())
    before = table.read_bytes()
    with pytest.raises(BenchError, match=r"was measured when cat\.png had other bytes; name another --out"):
        measured(replace(jpeg, resume=True))
    assert table.read_bytes() == before
    assert measured(replace(jpeg, resume=True, again=("jpeg",)))[0]  # nothing is left of the earlier picture
    table.write_text(re.sub("# pictures: .*\n", "", before.decode()))  # as an earlier version wrote it
    assert measured(replace(jpeg, resume=True))[0] == rows


@pytest.mark.usefixtures("no_report")
def test_several_processes_give_the_same_rows(dataset: Path, tmp_path: Path) -> None:
    def facts(rows: list[Row]) -> set[tuple[object, ...]]:
        return {(row.key, row.bytes, row.mse) for row in rows}

    assert facts(measured(plan(dataset))[0]) == facts(measured(plan(dataset, out=tmp_path / "two", jobs=2))[0])


@pytest.mark.usefixtures("no_report")
def test_a_process_that_dies_is_an_error_and_not_a_crash(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def submit(self, *_: object) -> object:
            raise BrokenProcessPool

        def shutdown(self, *, cancel_futures: bool) -> None: ...

    monkeypatch.setattr(work, "open_pool", lambda *_: Broken())
    with pytest.raises(BenchError, match=r"a process died.*--resume"):
        measured(plan(dataset, jobs=2))


def test_a_corrupt_picture_is_reported_and_skipped(dataset: Path, tmp_path: Path) -> None:
    (dataset / "bad.png").write_bytes((dataset / "cat.png").read_bytes()[:200])
    out = tmp_path / "out"
    result = vqcodec("bench", dataset, "--codecs", "vqcodec,jpeg", "--qualities", "50", "--model", MODEL, "--out", out, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.count(b"bad.png") == 1
    assert b"Traceback" not in result.stderr
    _, rows = read_file(out / "rows.csv")
    assert {row.image for row in rows} == {"cat.png", "more/cup, hot.png"}
    content = json.loads((out / "results.json").read_text())
    assert ["bad.png" in failure for failure in content["failures"]] == [True]
    assert content["summary"]["images"] == ["cat.png", "more/cup, hot.png"]
    assert (out / "index.html").exists()


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="file names are Unicode there")
def test_names_that_are_no_utf8_are_kept(dataset: Path) -> None:
    odd = os.fsdecode(b"a\xff.png")
    (dataset / "cat.png").rename(dataset / odd)
    (dataset / os.fsdecode(b"bad\xff.png")).write_bytes(b"")
    asked = replace(plan(dataset), codecs=("vqcodec",), settings={"vqcodec": (62.5,)})
    rows, failures, _ = measured(asked)
    assert [row.image for row in rows] == [odd, "more/cup, hot.png"]
    assert len(failures) == 1
    bar = Bar()
    assert measured(replace(asked, resume=True), bar)[0] == rows
    assert bar.length == 1
    assert (asked.out / "index.html").exists()


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("content", [b"\xff\xfe#\0", b"\xff\n", b"# machine: 1\n" + b"x" * 200_000 + b"\n"])
def test_a_table_of_something_else_is_refused(content: bytes, dataset: Path) -> None:
    asked = plan(dataset, resume=True)
    asked.out.mkdir()
    asked.table.write_bytes(content)
    with pytest.raises(BenchError, match="no rows of this version's bench"):
        measured(asked)
    assert asked.table.read_bytes() == content


def test_a_peer_that_stumbles_is_reported_and_its_picture_left_out(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object, **__: object) -> bytes:
        raise RuntimeError("out of order")

    monkeypatch.setattr(
        "vqcodec.bench.peers._save", lambda *a, **k: stumble() if np.asarray(a[1]).shape[0] > 64 else image.write(a[1], ".jpg")
    )
    work._opened.cache_clear()  # codecs that an earlier test opened
    rows, failures, _ = measured(plan(dataset))
    work._opened.cache_clear()
    assert failures == [f"jpeg fails at {quality} on more/cup, hot.png: out of order" for quality in (10, 40)]
    assert len(rows) == 6
    content = json.loads((dataset.parent / "out" / "results.json").read_text())
    assert content["summary"]["left_out"] == ["more/cup, hot.png"]


@pytest.mark.usefixtures("no_report")
def test_a_peer_without_its_library_is_named_and_skipped(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    rows, failures, told = measured(plan(dataset, codecs=("vqcodec", "heic", "jpeg")))
    assert [line.split(":")[0] for line in told] == ["heic is skipped"]
    assert failures == []
    assert {row.codec for row in rows} == {"vqcodec", "jpeg"}


def test_without_the_extra_the_command_says_what_to_install(dataset: Path, tmp_path: Path) -> None:
    script = f"import sys\nsys.modules['matplotlib'] = None\nfrom vqcodec.cli import main\nmain(['bench', {str(dataset)!r}])"
    result = run_python("-c", script, cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.decode().splitlines() == ["vqcodec: the bench needs matplotlib; install the extra: pip install 'vqcodec[bench]'"]
    assert not (tmp_path / "bench-report").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "no folder"),
        (["empty"], "no pictures"),
        (["set", "--codecs", "gif"], "no codec 'gif'"),
        (["set", "--codecs", ","], "no codec is left"),
        (["set", "--codecs", "jpeg", "--qualities", "jpeg=high"], "no list of settings"),
        (["set", "--codecs", "jpeg", "--qualities", "jpeg=nan"], "no finite number"),
        (["set", "--codecs", "jpeg", "--qualities", "jpeg=5.5"], "takes whole numbers from 1 to 95"),
        (["set", "--codecs", "jpeg", "--qualities", "webp=5"], "settings or --again for webp"),
        (["set", "--codecs", "jpeg", "--again", "webp"], "settings or --again for webp"),
        (["set", "--model", "nothing"], "no model 'nothing'"),
        (["set", "--reference", "nothing.csv"], "no table of published points"),
    ],
)
def test_what_cannot_be_done_is_said_before_any_work(
    dataset: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(dataset.parent)
    Path("empty").mkdir()
    result = CliRunner().invoke(main, ["bench", *arguments])
    assert result.exit_code == 1
    assert message in result.output
    assert len(result.output.splitlines()) == 1
    assert not Path("bench-report").exists()


def test_settings_are_parsed() -> None:
    assert parse_settings(("0,50,50", "jpeg=5,10")) == {"vqcodec": (0.0, 50.0), "jpeg": (5.0, 10.0)}
