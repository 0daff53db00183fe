"""Many files, targets and levels on the command line, as a real program."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.support import GOLDEN, ROOT, noise, vqcodec
from vqcodec import batch, codec, container, image, processes
from vqcodec.convert import CompressOptions, Outcome
from vqcodec.errors import ImageError
from vqcodec.model import Model

MODEL = GOLDEN / "model"
FILE = GOLDEN / "photo-q60.vq"


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def album(tmp_path: Path) -> Path:
    """Three pictures in a tree, one file that only looks like a picture, and one that does not."""
    for number, name in enumerate(("a.png", "sub/b.jpg", "sub/deep/c.PNG")):
        path = tmp_path / "album" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image.write(noise(16, 24, number), path.suffix))
    (tmp_path / "album" / "broken.png").write_bytes(b"no picture")
    (tmp_path / "album" / "notes.txt").write_text("no picture")
    return tmp_path


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_tree_is_mirrored_and_what_fails_is_summed_up(jobs: str, album: Path, model: Model) -> None:
    result = vqcodec("compress", "album", "-r", "--out-dir", "out", "-j", jobs, "-m", MODEL, cwd=album)
    assert (result.returncode, result.stdout) == (1, b"")
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 2
    assert "broken.png" in lines[0]
    assert lines[1].startswith("vqcodec: 1 of 4 files failed")
    assert tree(album / "out") == {"a.vq", "sub/b.vq", "sub/deep/c.vq"}
    assert np.array_equal(codec.decompress((album / "out/a.vq").read_bytes(), model).shape, (16, 24, 3))
    back = vqcodec("decompress", "out", "-r", "--out-dir", "back", "--format", "webp", "-j", jobs, "-m", MODEL, cwd=album)
    assert (back.returncode, back.stdout, back.stderr) == (0, b"", b"")
    assert tree(album / "back") == {"a.webp", "sub/b.webp", "sub/deep/c.webp"}


def test_processes_give_the_same_bytes(album: Path) -> None:
    (album / "album" / "broken.png").unlink()
    for jobs in ("1", "2"):
        assert vqcodec("compress", "album", "-r", "--out-dir", f"out{jobs}", "-j", jobs, "-m", MODEL, cwd=album).returncode == 0
    for name in tree(album / "out1"):
        assert (album / "out1" / name).read_bytes() == (album / "out2" / name).read_bytes()


def test_outputs_lie_beside_their_inputs_without_a_folder_for_them(album: Path) -> None:
    before = tree(album)
    assert vqcodec("compress", "album/sub", "-r", "-m", MODEL, cwd=album).returncode == 0
    assert tree(album) - before == {"album/sub/b.vq", "album/sub/deep/c.vq"}


def test_several_files(album: Path) -> None:
    result = vqcodec("compress", "album/a.png", "album/sub/b.jpg", "--out-dir", "new/out", "-v", "-m", MODEL, cwd=album)
    assert (result.returncode, result.stdout) == (0, b"")
    assert tree(album / "new/out") == {"a.vq", "b.vq"}
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 2
    assert "24 x 16" in lines[0]
    assert "bpp" in lines[0]


def test_skip_existing_and_json(album: Path) -> None:
    command = ("compress", "album", "-r", "--out-dir", "out", "--skip-existing", "--json", "--quiet", "-m", MODEL)
    first = [json.loads(line) for line in vqcodec(*command, cwd=album).stdout.splitlines()]
    assert sorted(row["status"] for row in first) == ["done", "done", "done", "failed"]
    done = next(row for row in first if row["input"].endswith("a.png"))
    assert done["bytes"] == (album / "out/a.vq").stat().st_size
    assert done["bpp"] == 8 * done["bytes"] / (16 * 24)
    (album / "out/a.vq").write_bytes(b"mine")
    again = [json.loads(line) for line in vqcodec(*command, cwd=album).stdout.splitlines()]
    assert sorted(row["status"] for row in again) == ["failed", "skipped", "skipped", "skipped"]
    assert (album / "out/a.vq").read_bytes() == b"mine"


def test_existing_outputs_are_errors_without_force(album: Path) -> None:
    command = ("compress", "album/a.png", "--out-dir", "out", "-m", MODEL)
    assert vqcodec(*command, cwd=album).returncode == 0
    refused = vqcodec(*command, cwd=album)
    assert refused.returncode == 1
    assert b"exists" in refused.stderr
    assert vqcodec(*command, "--force", cwd=album).returncode == 0


def test_one_file_takes_the_options_too(album: Path) -> None:
    (album / "a.vq").write_bytes(b"mine")
    skipped = vqcodec("compress", "album/a.png", "a.vq", "--skip-existing", "--json", "-m", MODEL, cwd=album)
    assert (skipped.returncode, json.loads(skipped.stdout)["status"]) == (0, "skipped")
    assert (album / "a.vq").read_bytes() == b"mine"


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_inputs_with_one_output_fail_and_stop_no_other(jobs: str, album: Path) -> None:
    (album / "album" / "broken.png").unlink()
    (album / "album" / "a.jpg").write_bytes(image.write(noise(8, 8), ".jpg"))
    result = vqcodec("compress", "album", "-r", "--out-dir", "out", "-j", jobs, "-m", MODEL, cwd=album)
    assert (result.returncode, result.stdout) == (1, b"")
    lines = result.stderr.decode().splitlines()
    assert len(lines) == 3
    for line in lines[:2]:
        assert all(str(Path(name)) in line for name in ("album/a.jpg", "album/a.png", "out/a.vq"))
    assert lines[2].startswith("vqcodec: 2 of 4 files failed")
    assert tree(album / "out") == {"sub/b.vq", "sub/deep/c.vq"}


def test_what_is_given_twice_is_taken_once(album: Path) -> None:
    (album / "album" / "broken.png").unlink()
    (album / "link.png").symlink_to("album/a.png")
    result = vqcodec("compress", "album", "album/sub", str(album / "album" / "a.png"), "-r", "--json", "-m", MODEL, cwd=album)
    assert (result.returncode, result.stderr) == (0, b"")
    assert len(result.stdout.splitlines()) == 3
    result = vqcodec("compress", "album/a.png", "link.png", "./album/a.png", "--out-dir", "out", "-m", MODEL, cwd=album)
    assert (result.returncode, result.stderr) == (0, b"")
    assert tree(album / "out") == {"a.vq", "link.vq"}


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["a", "b", "c"], 2, "--out-dir"),
        (["album", "--out-dir", "out"], 1, "--recursive"),
        (["-", "--out-dir", "out"], 1, "on its own"),
        (["album/a.png", "album/sub/b.jpg", "--force"], 1, "--out-dir"),
        (["empty", "-r"], 1, "no picture"),
        (["album", "empty", "-r"], 1, "--out-dir empty"),
        (["album", "missing", "-r"], 1, "--out-dir missing"),
        (["album", "", "-r"], 1, "the empty path"),
        (["album/a.png", "--out-dir", "album/notes.txt"], 1, "notes.txt"),
        (["album/a.png", "-", "--json"], 2, "--json"),
        (["album/a.png", "-q", "5", "--target-bpp", "1"], 2, "not both"),
        (["album/a.png", "--target-mse", "5", "--target-bpp", "1"], 2, "not both"),
        (["album/a.png", "--target-size", "big"], 2, "no size"),
        (["album/a.png", "--target-size", "0"], 2, "no size"),
        (["album/a.png", "--target-psnr", "inf"], 2, "finite"),
        (["album/a.png", "--target-mse", "0"], 2, "0"),
        (["album/a.png", "--target-size", "20"], 1, "at least"),
        (["album/a.png", "--target-psnr", "60"], 1, "at best"),
    ],
)
def test_what_cannot_be_done(arguments: list[str], code: int, says: str, album: Path) -> None:
    (album / "empty").mkdir()
    before = tree(album)
    result = vqcodec("compress", *arguments, "-m", MODEL, cwd=album)
    assert (result.returncode, result.stdout) == (code, b"")
    assert says in result.stderr.decode()
    assert b"Traceback" not in result.stderr
    assert tree(album) == before


@pytest.mark.parametrize("option", [("--target-size", "0.5k"), ("--target-bpp", "0.45")])
def test_targets(option: tuple[str, str], tmp_path: Path) -> None:
    with np.load(GOLDEN / "photo-q60.image.npz", allow_pickle=False) as data:
        Pillow.fromarray(data["original"]).save(tmp_path / "a.png")
    assert vqcodec("compress", "a.png", *option, "-m", MODEL, cwd=tmp_path).returncode == 0
    assert (tmp_path / "a.vq").stat().st_size <= {"0.5k": 500, "0.45": 0.45 * 88 * 104 / 8}[option[1]]


@pytest.mark.parametrize(("levels", "count"), [("top", 1), ("middle", 2), ("bottom", 3)])
def test_levels(levels: str, count: int, tmp_path: Path, model: Model) -> None:
    data = FILE.read_bytes()
    (tmp_path / "a.vq").write_bytes(data if count == 3 else data[:-1])
    assert vqcodec("decompress", "a.vq", "--levels", levels, "-m", MODEL, cwd=tmp_path).returncode == 0
    difference = image.read((tmp_path / "a.png").read_bytes()).astype(int) - codec.decompress(data, model, count)
    assert np.abs(difference).max() <= 1


def test_a_cut_off_file_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.vq").write_bytes(FILE.read_bytes()[:-1])
    result = vqcodec("decompress", "a.vq", "-m", MODEL, cwd=tmp_path)
    assert result.returncode == 1
    assert b"--levels middle" in result.stderr


def test_info_shows_the_rate_of_each_level() -> None:
    facts = json.loads(vqcodec("info", FILE, "--json", "-m", MODEL, cwd=GOLDEN).stdout)
    assert list(facts["sections_bpp"]) == ["top", "middle", "bottom"]
    assert abs(sum(facts["sections_bpp"].values()) + 8 * container.HEADER_BYTES / (88 * 104) - facts["bpp"]) < 1e-9
    assert f"{facts['sections_bpp']['bottom']:.4f} bpp" in vqcodec("info", FILE, "-m", MODEL, cwd=GOLDEN).stdout.decode()


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_progress_on_a_terminal(album: Path) -> None:
    master, terminal = os.openpty()
    command = [sys.executable, "-m", "vqcodec.cli", "compress", "album", "-r", "--out-dir", "out", "-m", str(MODEL)]
    result = subprocess.run(command, cwd=album, stderr=terminal, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    os.close(terminal)
    shown = os.read(master, 100_000).decode()
    os.close(master)
    assert result.returncode == 1
    assert "4/4" in shown
    assert "MP/s" in shown


@pytest.mark.slow
def test_many_small_pictures_are_ten_times_faster_than_a_process_each(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.png").write_bytes(image.write(noise(64, 64, number)))
    start = perf_counter()
    assert vqcodec("compress", ".", "-r", "--out-dir", "out", "-m", MODEL, cwd=tmp_path).returncode == 0
    together = (perf_counter() - start) / 200
    start = perf_counter()
    for number in range(10):
        assert vqcodec("compress", f"{number}.png", "-m", MODEL, cwd=tmp_path).returncode == 0
    assert (perf_counter() - start) / 10 > 10 * together


@pytest.mark.skipif(shutil.which("file") is None, reason="needs the program file(1)")
def test_the_magic_snippet(tmp_path: Path, model: Model) -> None:
    command = ["file", "--brief", "-m", ROOT / "docs" / "vqcodec.magic"]
    said = subprocess.run([*command, FILE], capture_output=True, check=True).stdout
    assert said == b"vqcodec image data, version 2, 104 x 88\n"
    (tmp_path / "a.vq").write_bytes(codec.compress(np.zeros((5, 9, 2), np.uint8), 50, model))
    said = subprocess.run([*command, tmp_path / "a.vq"], capture_output=True, check=True).stdout
    assert said == b"vqcodec image data, version 2, 9 x 5, gray, with alpha\n"


def test_where_all_files_fail_no_others_are_done(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"no picture")
    result = vqcodec("compress", "a.png", "b.png", "--out-dir", "out", "-m", MODEL, cwd=tmp_path)
    assert result.stderr.decode().splitlines()[-1] == "vqcodec: 2 of 2 files failed, see above"


def test_a_folder_that_cannot_be_read_is_not_left_out_in_silence(album: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def locked(path: str | Path) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(ImageError, match="deep cannot be read: Permission denied"):
        batch.plan([str(album / "album")], CompressOptions(model=str(MODEL)), ".vq", str(album / "out"), True)


@pytest.mark.parametrize(("wanted", "each"), [(0, 3), (2, 2)])
def test_workers_share_the_processors_that_there_are(wanted: int, each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twelve among four workers; or for each what `VQCODEC_THREADS` says."""
    started: list[int] = []

    class StoppedError(Exception):
        """No process need start for this."""

    def open_pool(count: int, start: object, threads: int) -> None:
        started.extend((count, threads))
        raise StoppedError

    monkeypatch.setattr(processes, "open_pool", open_pool)
    monkeypatch.setattr(processes, "threads", lambda: 12)
    monkeypatch.setattr(processes, "wanted_threads", lambda: wanted)
    with pytest.raises(StoppedError):
        list(processes.run(lambda job: Outcome(*job, "done"), [], 4))
    assert started == [4, each]
