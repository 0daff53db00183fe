"""Faults in the middle, on real processes: no partial file under the final name, no stray file, and the exit code that shells expect."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image as Pillow

from tests.support import GOLDEN, ROOT, noise, run_python, start, vqcodec
from tests.test_cli_errors import snapshot
from vqcodec import image

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and limits of POSIX")
MODEL = GOLDEN / "model"
FILE = (GOLDEN / "photo-q60.vq").read_bytes()
SIGNALS = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]

# Runs the command line, but waits at the given point of writing a file, and says so: the real thing takes a millisecond there.
SLOW = """
import os, signal, sys, time
from pathlib import Path
from vqcodec import cli, files

def wait(*args, **kwargs):
    print("here", flush=True)
    time.sleep(60)

setattr({where}, wait)
cli.main()
"""
# A process that works for another one takes a while to start on a busy machine.
SLOW_START = """
import sys, time
from pathlib import Path

if "--multiprocessing-fork" in sys.argv:
    Path("starting").touch()
    time.sleep(1)
"""
AS_A_FILE = "import runpy\nrunpy.run_path('program.py', run_name='__main__')"  # which the processes that work for it run as well
# Where ONNX Runtime is imported a signal comes, and the import makes another error of it.
SPOILT_IMPORT = """
import os, sys, time

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "onnxruntime":
            try:
                os.kill(os.getpid(), {number})
                time.sleep(60)
            except BaseException as error:
                raise ImportError("initialization failed") from error

"""
POINTS = {
    "with the file empty": 'os, "fsync"',
    "before renaming": 'files, "_rename_new"',
    "while working": 'files, "write"',
}


def wait_for(folder: Path, pattern: str) -> Path:
    """A file that another process makes within a minute."""
    deadline = time.monotonic() + 60
    while not (found := list(folder.glob(pattern))):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.png").write_bytes(image.write(noise(40, 40)))
    (tmp_path / "a.vq").write_bytes(FILE)
    return tmp_path


@pytest.mark.parametrize(
    ("number", "code", "point"), [*[(*pair, "with the file empty") for pair in SIGNALS], *[(*SIGNALS[1], point) for point in POINTS]]
)
@pytest.mark.parametrize("arguments", [("compress", "a.png", "b.vq"), ("decompress", "a.vq", "b.png")], ids=lambda a: a[0])
def test_signals(arguments: tuple[str, ...], number: int, code: int, point: str, folder: Path) -> None:
    before = snapshot(folder)
    with start(SLOW.format(where=POINTS[point]), *arguments, "-m", MODEL, cwd=folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        if point != "while working":
            assert len(snapshot(folder)) == len(before) + 1  # the temporary file
        process.send_signal(number)
        process.send_signal(number)  # impatience changes nothing
        _, said = process.communicate(timeout=30)
    assert (process.returncode, said) == (code, b"")
    assert snapshot(folder) == before


def test_a_signal_leaves_the_file_that_force_would_replace(folder: Path) -> None:
    (folder / "b.vq").write_bytes(b"precious")
    before = snapshot(folder)
    with start(SLOW.format(where='os, "fsync"'), "compress", "a.png", "b.vq", "-f", "-m", MODEL, cwd=folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.terminate()
    assert process.returncode == 143
    assert snapshot(folder) == before


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_signals_at_any_time(number: int, code: int, folder: Path) -> None:
    """Without help: wherever the signal strikes once the command is running, what is there is whole or nothing."""
    (folder / "big.png").write_bytes(image.write(noise(600, 800)))
    before = snapshot(folder)
    for delay in (0.3, 0.5, 0.8, 1.1):
        (folder / "c.vq").unlink(missing_ok=True)
        process = start("from vqcodec import cli\nprint(1, flush=True)\ncli.main()", "compress", "big.png", "c.vq", "-m", MODEL, cwd=folder)
        with process:
            assert process.stdout is not None
            process.stdout.readline()
            time.sleep(delay)
            process.send_signal(number)
            _, said = process.communicate(timeout=60)
        assert process.returncode in (0, code, -number)  # the last one before the command has begun
        assert said == b""
        if (folder / "c.vq").exists():
            assert vqcodec("decompress", "c.vq", "c.png", "-f", "-m", MODEL, cwd=folder).returncode == 0
            (folder / "c.png").unlink()
            (folder / "c.vq").unlink()
        assert snapshot(folder) == before


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_a_signal_that_a_library_makes_another_error_of(number: int, code: int, folder: Path) -> None:
    """As ONNX Runtime does while it is imported; here at every try."""
    before = snapshot(folder)
    program = SPOILT_IMPORT.format(number=int(number)) + "sys.meta_path.insert(0, Finder())\nfrom vqcodec import cli\ncli.main()"
    with start(program, "compress", "a.png", "b.vq", "-m", MODEL, cwd=folder) as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, b"")
    assert snapshot(folder) == before


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_the_range_coder_meets_numpy(number: int, code: int, folder: Path) -> None:
    """It looks numpy up from Rust, where an exception would be a panic."""
    before = snapshot(folder)
    program = f"""
import os, sys, time
import numpy as np

def look_up(self, version):
    if "onnxruntime" not in sys._getframe(1).f_code.co_filename:  # it asks as well
        os.kill(os.getpid(), {int(number)})
        time.sleep(0.2)
    real(self, version)

real, np.lib.NumpyVersion.__init__ = np.lib.NumpyVersion.__init__, look_up
from vqcodec import cli
cli.main()
"""
    with start(program, "compress", "a.png", "b.vq", "-m", MODEL, cwd=folder) as process:
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, b"")
    assert snapshot(folder) == before


def test_a_signal_that_is_ignored_stays_ignored(folder: Path) -> None:
    """As under nohup."""
    code = """
import signal, time
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from vqcodec import cli, files
real = files.silenced
def wait():
    print("here", flush=True)
    time.sleep(0.5)
    return real()
files.silenced = wait
cli.main()
"""
    with start(code, "compress", "a.png", "b.vq", "-m", MODEL, cwd=folder) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGHUP)
    assert process.returncode == 0
    assert (folder / "b.vq").exists()


@pytest.mark.parametrize(("number", "code"), SIGNALS)
@pytest.mark.parametrize("group", [False, True], ids=["parent", "group"])
def test_signals_with_several_processes(number: int, code: int, group: bool, tmp_path: Path) -> None:
    for index in range(12):
        (tmp_path / f"{index}.png").write_bytes(image.write(noise(300, 300, index)))
    command = ["compress", ".", "-r", "--out-dir", "out", "-j", "2", "-m", MODEL]
    with start("from vqcodec import cli\ncli.main()", *command, cwd=tmp_path) as process:
        wait_for(tmp_path, "out/*.vq")
        os.killpg(process.pid, number) if group else process.send_signal(number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == code
    assert b"Traceback" not in said
    for path in (tmp_path / "out").iterdir():
        assert path.suffix == ".vq"
        assert vqcodec("info", path, "-m", MODEL, cwd=tmp_path).returncode == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_one_of_several_processes(number: int, tmp_path: Path) -> None:
    """It ends what this one was working on, as if the system had run out of memory; the command says so."""
    (tmp_path / "in").mkdir()
    for index in range(2):
        (tmp_path / "in" / f"{index}.png").write_bytes(image.write(noise(40, 40, index)))
    program = """
import os, sys, time
from pathlib import Path
from vqcodec import batch, cli, convert

def wait(*args):
    Path("busy." + str(os.getpid())).touch()
    time.sleep(5)  # the pool may notice the end of the process that started last only when another one has finished
    return real(*args)

real, convert.files.read = convert.files.read, wait
if __name__ == "__main__":
    cli.main()
"""
    (tmp_path / "program.py").write_text(program)
    command = ["compress", "in", "-r", "--out-dir", "out", "-j", "2", "-m", MODEL]
    with start(AS_A_FILE, *command, cwd=tmp_path) as process:
        os.kill(int(wait_for(tmp_path, "busy.*").suffix[1:]), number)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"--jobs" in said
    assert b"Traceback" not in said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_one_of_several_processes_that_a_library_makes_another_error_of(number: int, tmp_path: Path) -> None:
    """The process must not go on with the next job: it ignores signals from then on, and whoever waits for its end would wait for ever."""
    (tmp_path / "in").mkdir()
    for index in range(4):
        (tmp_path / "in" / f"{index}.png").write_bytes(image.write(noise(40, 40, index)))
    program = """
if __name__ == "__mp_main__":
    sys.meta_path.insert(0, Finder())
from vqcodec import cli
if __name__ == "__main__":
    cli.main()
"""
    (tmp_path / "program.py").write_text(SPOILT_IMPORT.format(number=int(number)) + program)
    command = ["compress", "in", "-r", "--out-dir", "out", "-j", "2", "-m", MODEL]
    with start(AS_A_FILE, *command, cwd=tmp_path) as process:
        _, said = process.communicate(timeout=40)
    assert process.returncode == 1
    assert said.count(b"its process has ended") == 4
    assert b"Traceback" not in said


@pytest.mark.parametrize(("number", "code"), SIGNALS)
def test_signals_while_processes_start(number: int, code: int, tmp_path: Path) -> None:
    """Until a process can handle signals they have to wait: Python's own answer to an interrupt is a traceback."""
    for index in range(2):
        (tmp_path / f"{index}.png").write_bytes(image.write(noise(40, 40, index)))
    (tmp_path / "sitecustomize.py").write_text(SLOW_START)
    program = "import os\nos.environ['PYTHONPATH'] += os.pathsep + os.getcwd()\nfrom vqcodec import cli\ncli.main()"
    command = ["compress", ".", "-r", "--out-dir", "out", "-j", "2", "-m", MODEL]
    with start(program, *command, cwd=tmp_path) as process:
        wait_for(tmp_path, "starting")
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (code, b"")


@pytest.mark.parametrize("arguments", [("decompress", "a.vq", "-"), ("compress", "a.png", "-"), ("info", "a.vq")], ids=lambda a: a[0])
def test_a_closed_pipe_is_quiet(arguments: tuple[str, ...], folder: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "vqcodec.cli", *arguments, "-m", str(MODEL)]
    result = subprocess.run(command, cwd=folder, env=environment, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


def limited(size: int) -> str:
    """The command line under a limit on the size of files."""
    return f"import resource\nresource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\nfrom vqcodec import cli\ncli.main()"


@pytest.mark.parametrize("force", [(), ("-f",)], ids=["new", "force"])
@pytest.mark.parametrize(("arguments", "size"), [(("compress", "a.png", "b.vq"), 100), (("decompress", "a.vq", "b.png"), 4096)])
def test_a_disk_that_fills_up_while_writing(arguments: tuple[str, ...], size: int, force: tuple[str, ...], folder: Path) -> None:
    if force:
        (folder / arguments[2]).write_bytes(b"precious")
    before = snapshot(folder)
    result = run_python("-c", limited(size), *arguments, *force, "-m", MODEL, cwd=folder, PYTHONDONTWRITEBYTECODE="1")
    assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
    assert b"nothing was kept" in result.stderr
    assert snapshot(folder) == before


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can mount a small disk")
def test_a_small_disk(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", disk], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        result = vqcodec("decompress", "a.vq", "disk/b.png", "-m", MODEL, cwd=folder)
        assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
        assert b"No space left" in result.stderr
        assert not list(disk.iterdir())
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_input_that_vanishes_is_one_failure_of_many(tmp_path: Path) -> None:
    """A name that is listed and gone when its turn comes."""
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(image.write(noise(40, 40)))
    code = """
from pathlib import Path
from vqcodec import batch, cli
plan = batch.plan
def planned(*arguments):
    jobs = plan(*arguments)
    Path("b.png").unlink()
    return jobs
batch.plan = planned
cli.main()
"""
    result = run_python("-c", code, "compress", ".", "-r", "--out-dir", "out", "-m", MODEL, cwd=tmp_path)
    assert result.returncode == 1
    assert b"b.png does not exist" in result.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.vq", "c.vq"]


@pytest.mark.parametrize("force", [(), ("-f",)], ids=["new", "force"])
def test_two_processes_with_one_output(force: tuple[str, ...], folder: Path) -> None:
    (folder / "b.png").write_bytes(image.write(noise(40, 40, 1)))
    code = "from vqcodec import cli\ncli.main()"
    processes = [start(code, "compress", f"{name}.png", "out.vq", *force, "-m", MODEL, cwd=folder) for name in "abab"]
    ends = []
    for process in processes:
        _, said = process.communicate(timeout=60)
        ends.append(process.returncode)
        assert said.count(b"\n") == process.returncode
        assert process.returncode == 0 or b"exists" in said
    assert ends.count(0) == (4 if force else 1)
    for name in "ab":
        vqcodec("compress", f"{name}.png", f"{name}1.vq", "-m", MODEL, cwd=folder)
    assert (folder / "out.vq").read_bytes() in [(folder / f"{name}1.vq").read_bytes() for name in "ab"]
    assert sorted(path.name for path in folder.iterdir()) == ["a.png", "a.vq", "a1.vq", "b.png", "b1.vq", "out.vq"]


def test_libraries_that_write_to_stderr_themselves_are_silenced(folder: Path) -> None:
    """libtiff tells of damage on the standard error of the process."""
    Pillow.fromarray(noise(40, 40)).save(folder / "b.tif", compression="tiff_adobe_deflate")
    data = bytearray((folder / "b.tif").read_bytes())
    middle = len(data) // 2
    data[middle : middle + 40] = bytes(40)
    (folder / "b.tif").write_bytes(data)
    for arguments in (("compress", "b.tif", "b.vq"), ("compare", "b.tif", "a.vq")):
        result = vqcodec(*arguments, "-m", MODEL, cwd=folder)
        assert (result.returncode, result.stderr.count(b"\n")) == (1, 1)
        assert b"b.tif" in result.stderr
    script = "import sys\nfrom vqcodec import image\ntry:\n    image.read(open(sys.argv[1], 'rb').read())\nexcept Exception:\n    pass"
    assert run_python("-c", script, folder / "b.tif").stderr != b""  # else this test shows nothing
