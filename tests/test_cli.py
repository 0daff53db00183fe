"""The command line as a real program: what it writes where, and its exit codes. test_cli_errors.py has what goes wrong."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow

from tests.support import GOLDEN, ROOT, load_image, run_python, vqcodec
from vqcodec import codec, image
from vqcodec.cli import main
from vqcodec.model import Model

MODEL = GOLDEN / "model"
FILE = GOLDEN / "photo-q60.vq"
INFO_KEYS = [
    "width",
    "height",
    "quality",
    "model",
    "model_id",
    "format_version",
    "bytes",
    "bpp",
    "channels",
    "sections",
    "sections_bpp",
    "codes",
]
COMMANDS = sorted(main.commands)
HEAVY = ("numpy", "onnxruntime", "PIL", "constriction", "safetensors", "torch")


def picture() -> np.ndarray:
    """The original of a golden file, 88 x 104."""
    with np.load(GOLDEN / "photo-q60.image.npz", allow_pickle=False) as data:
        return np.asarray(data["original"])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    path.write_bytes(image.write(picture()))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_round_trip_with_default_names(source: Path, model: Model) -> None:
    folder = source.parent
    packed = vqcodec("compress", "photo.png", "-m", MODEL, cwd=folder)
    assert (packed.returncode, packed.stdout, packed.stderr) == (0, b"", b"")
    data = (folder / "photo.vq").read_bytes()
    assert codec.info(data)["quality"] == 50
    source.unlink()
    restored = vqcodec("decompress", "photo.vq", "--model", MODEL, cwd=folder)
    assert (restored.returncode, restored.stdout, restored.stderr) == (0, b"", b"")
    assert names(folder) == {"photo.vq", "photo.png"}
    difference = load_image(source).astype(int) - codec.decompress(data, model)
    assert np.abs(difference).max() <= 1


def test_named_output_quality_and_format(source: Path) -> None:
    folder = source.parent
    assert vqcodec("compress", source, "out.bin", "-q", "12.5", "-m", MODEL, cwd=folder).returncode == 0
    assert codec.info((folder / "out.bin").read_bytes())["quality"] == 12.5
    assert vqcodec("decompress", "out.bin", "back.jpg", "-m", MODEL, cwd=folder).returncode == 0
    assert (folder / "back.jpg").read_bytes()[:2] == b"\xff\xd8"
    assert names(folder) == {"photo.png", "out.bin", "back.jpg"}


def test_streams_carry_data_and_nothing_else(source: Path, tmp_path: Path, model: Model) -> None:
    packed = vqcodec("compress", "-", "-m", MODEL, cwd=tmp_path, stdin=source.read_bytes())
    assert (packed.returncode, packed.stderr) == (0, b"")
    codes = codec.decode_codes(packed.stdout, model)
    restored = vqcodec("decompress", "-", "-", "-m", MODEL, cwd=tmp_path, stdin=packed.stdout)
    assert (restored.returncode, restored.stderr) == (0, b"")
    assert np.abs(image.read(restored.stdout).astype(int) - model.decode(codes, 88, 104, 50)).max() <= 1
    assert restored.stdout.endswith(b"IEND\xae\x42\x60\x82")
    assert names(tmp_path) == {"photo.png"}


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="needs a terminal")
def test_no_bytes_to_a_terminal_unless_forced(source: Path, tmp_path: Path) -> None:
    def on_terminal(*arguments: str | Path) -> tuple[int, bytes, bytes]:
        master, terminal = os.openpty()
        command = [sys.executable, "-m", "vqcodec", *map(str, arguments), "-m", str(MODEL)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        result = subprocess.run(command, cwd=tmp_path, stdout=terminal, stderr=subprocess.PIPE, env=environment, check=False)
        os.write(terminal, b".")  # or reading would wait for what was not written
        os.close(terminal)
        shown = os.read(master, 100_000)
        os.close(master)
        return result.returncode, shown, result.stderr

    for arguments in (("compress", "photo.png", "-"), ("decompress", FILE, "-"), ("compress", "photo.png", "-", "--skip-existing")):
        code, shown, said = on_terminal(*arguments)
        assert (code, shown, said.count(b"\n")) == (1, b".", 1)
        assert b"terminal" in said
    code, shown, said = on_terminal("compress", "photo.png", "-", "--force")
    assert (code, shown[:4], said) == (0, b"\x8fVQC", b"")


def test_what_pillow_warns_about_stays_off_stderr(tmp_path: Path) -> None:
    """A palette with several transparent entries makes Pillow warn; a user can do nothing about that."""
    palette = Pillow.new("P", (4, 4))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "a.png", transparency=bytes([0, 128]))
    result = vqcodec("compress", "a.png", "-m", MODEL, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_existing_output_needs_force(source: Path) -> None:
    folder, target = source.parent, source.with_suffix(".vq")
    target.write_bytes(b"precious")
    refused = vqcodec("compress", "photo.png", "-m", MODEL, cwd=folder)
    assert refused.returncode == 1
    assert b"exists" in refused.stderr
    assert target.read_bytes() == b"precious"
    assert vqcodec("compress", "photo.png", "-m", MODEL, "-f", cwd=folder).returncode == 0
    assert target.read_bytes()[:4] == b"\x8fVQC"
    assert vqcodec("decompress", "photo.vq", "-m", MODEL, cwd=folder).returncode == 1
    assert np.array_equal(load_image(source), picture())
    assert names(folder) == {"photo.png", "photo.vq"}


@pytest.mark.skipif(sys.platform == "win32", reason="files there have no mode, and links are a privilege")
def test_force_keeps_a_file_s_mode_and_writes_through_a_link(source: Path) -> None:
    folder = source.parent
    (folder / "elsewhere").mkdir()
    (folder / "elsewhere" / "real.vq").write_bytes(b"old")
    (folder / "elsewhere" / "real.vq").chmod(0o600)
    (folder / "photo.vq").symlink_to("elsewhere/real.vq")
    (folder / "new.vq").symlink_to("elsewhere/new.vq")
    for output in ("photo.vq", "new.vq"):
        assert vqcodec("compress", "photo.png", output, "-m", MODEL, "-f", cwd=folder).returncode == 0
        assert (folder / output).is_symlink()
        assert (folder / output).read_bytes()[:4] == b"\x8fVQC"
    assert (folder / "elsewhere" / "real.vq").stat().st_mode & 0o777 == 0o600
    assert names(folder) == {"photo.png", "photo.vq", "new.vq", "elsewhere"}
    assert names(folder / "elsewhere") == {"real.vq", "new.vq"}
    assert vqcodec("compress", "photo.png", "/dev/stdout", "-m", MODEL, "-f", cwd=folder).stdout[:4] == b"\x8fVQC"


def test_info_as_json() -> None:
    result = vqcodec("info", FILE, "--json", "-m", MODEL, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, b"")
    facts = json.loads(result.stdout)
    assert list(facts) == INFO_KEYS
    assert {key: facts[key] for key in INFO_KEYS[:4]} == {"width": 104, "height": 88, "quality": 60.0, "model": "golden"}
    assert facts["bytes"] == FILE.stat().st_size
    assert list(facts["sections"]) == list(facts["codes"]) == ["top", "middle", "bottom"]
    assert facts["codes"]["bottom"] == [2, 12, 16]


def test_info_in_words() -> None:
    result = vqcodec("info", FILE, "-m", MODEL, cwd=ROOT)
    assert (result.returncode, result.stderr) == (0, b"")
    text = result.stdout.decode()
    for expected in ("104 x 88", "60", "golden", "version 2", f"{FILE.stat().st_size} ", "2 x 12 x 16"):
        assert expected in text


def test_info_without_the_model_still_describes() -> None:
    result = vqcodec("info", FILE, "--json", cwd=ROOT)
    assert result.returncode == 0
    facts = json.loads(result.stdout)
    assert list(facts) == INFO_KEYS
    assert (facts["model"], facts["codes"]) == (None, None)
    assert b"not installed" in vqcodec("info", FILE, cwd=ROOT).stdout


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["compress"],
        ["decompress"],
        ["info"],
        ["compress", "a", "b", "c"],
        ["compress", "a", "--nonsense"],
        ["compress", "a", "-q", "101"],
        ["compress", "a", "-q", "-1"],
        ["compress", "a", "-q", "high"],
        ["compare", "-", "-"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    result = vqcodec(*arguments, cwd=tmp_path)
    assert result.returncode == 2
    assert b"Usage:" in result.stderr
    assert b"Traceback" not in result.stderr
    assert names(tmp_path) == set()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command: str, tmp_path: Path) -> None:
    result = vqcodec(command, "--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    assert result.stdout.startswith(b"Usage: ")
    assert command.encode() in result.stdout
    assert vqcodec(command, "-h", cwd=tmp_path).stdout == result.stdout


def test_help_lists_the_commands_and_version_is_the_package_s(tmp_path: Path) -> None:
    result = vqcodec("--help", cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, b"")
    listed = re.findall(r"^  (\w+)  ", result.stdout.decode().split("Commands:")[1], re.MULTILINE)
    assert sorted(listed) == COMMANDS
    assert {"compress", "decompress", "info", "compare", "train", "bench", "sample", "selftest", "view"} <= set(listed)
    version = vqcodec("--version", cwd=tmp_path)
    assert version.returncode == 0
    assert re.fullmatch(rb"vqcodec, version \d+\.\d+\.\d+\S*\s*", version.stdout)


@pytest.mark.parametrize(
    "words",
    [
        *("compress", "compress a.png", "compress --out-dir", "decompress", "decompress -m", "info", "compare", "compare a.png"),
        *("compare --picture", "sample", "sample --from", "bench", "bench -m", "train", "view"),
    ],
)
def test_the_shell_completes_names_of_files(words: str, tmp_path: Path) -> None:
    words = f"vqcodec {words} ph"
    query = {"_VQCODEC_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(words.count(" "))}
    found = run_python("-c", "from vqcodec.cli import main; main(prog_name='vqcodec')", cwd=tmp_path, **query)
    assert (found.returncode, found.stdout.split(), found.stderr) == (0, [b"file,ph"], b"")


def loaded(script: str, cwd: Path) -> list[str]:
    """Runs a script and returns which heavy packages it has imported, by its last line of output."""
    report = f"print([name for name in {HEAVY!r} if name in sys.modules])"
    result = run_python("-c", f"import sys\n{script}\n{report}", cwd=cwd)
    assert (result.returncode, result.stderr) == (0, b"")
    return list(json.loads(result.stdout.decode().splitlines()[-1].replace("'", '"')))


def test_import_is_light(tmp_path: Path) -> None:
    assert loaded("import vqcodec, vqcodec.cli", tmp_path) == []


@pytest.mark.parametrize("arguments", [["--help"], ["compress", "--help"], ["train", "--help"], ["--version"]])
def test_help_is_light(arguments: list[str], tmp_path: Path) -> None:
    assert loaded(f"from vqcodec.cli import main\nmain({arguments!r}, standalone_mode=False)", tmp_path) == []


def test_compress_and_decompress_never_import_torch(source: Path) -> None:
    script = f"""
from vqcodec.cli import main
main(["compress", "photo.png", "a.vq", "-m", {str(MODEL)!r}], standalone_mode=False)
main(["decompress", "a.vq", "a.png", "-m", {str(MODEL)!r}], standalone_mode=False)
"""
    assert loaded(script, source.parent) == [name for name in HEAVY if name != "torch"]


@pytest.mark.parametrize(
    ("arguments", "code"),
    [(("info", FILE, "-m", MODEL), 0), (("decompress", FILE, "-", "-m", MODEL), 0), (("info", "none.vq"), 1), (("info",), 2)],
    ids=["text", "bytes", "error", "usage"],
)
def test_the_installed_command_ends_as_any_other(arguments: tuple[str | Path, ...], code: int, tmp_path: Path) -> None:
    """It ends early: nothing that was written may be lost."""
    expected = vqcodec(*arguments, cwd=tmp_path)
    for program in (("-c", "from vqcodec.cli import run; run()"), ("-m", "vqcodec")):
        found = run_python(*program, *arguments, cwd=tmp_path)
        assert (found.returncode, found.stdout) == (code, expected.stdout)
        assert found.stderr.splitlines()[-1:] == expected.stderr.splitlines()[-1:]  # usage begins with the name of the program
        assert bool(found.stderr) == bool(code)
