"""Everything that can be wrong with an input or output: exit 1, one line on stderr, and nothing left on disk."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support import GOLDEN, noise, vqcodec
from vqcodec import image

MODEL = GOLDEN / "model"
FILE = (GOLDEN / "odd-q0.vq").read_bytes()


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, hidden ones as well, with its content."""
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def refuses(folder: Path, *arguments: str | Path, says: str = "", stdin: bytes = b"") -> None:
    """Runs the command and checks that it fails in the one way there is."""
    before = snapshot(folder)
    result = vqcodec(*arguments, cwd=folder, stdin=stdin)
    message = result.stderr.decode()
    assert result.returncode == 1, message
    assert result.stdout == b""
    assert message.startswith("vqcodec: ")
    assert message.count("\n") == 1
    assert message.endswith("\n")
    assert "Traceback" not in message
    assert says in message
    assert snapshot(folder) == before


def damaged() -> dict[str, tuple[bytes, str]]:
    flipped = bytearray(FILE)
    flipped[-1] ^= 1
    return {
        "empty": (b"", "empty"),
        "truncated": (FILE[:-1], "copy"),
        "half a header": (FILE[:10], "inside its header"),
        "header only": (FILE[:18], "ends"),
        "flipped byte": (bytes(flipped), "checksum"),
        "wrong magic": (b"x" + FILE[1:], "magic"),
        "unknown version": (FILE[:4] + b"\x09" + FILE[5:], "version 9"),
        "trailing bytes": (FILE + b"x", "follow"),
        "a picture": (image.write(noise(4, 4)), "magic"),
    }


@pytest.mark.parametrize("case", damaged())
@pytest.mark.parametrize("command", ["decompress", "info"])
def test_damaged_file(command: str, case: str, tmp_path: Path) -> None:
    data, says = damaged()[case]
    (tmp_path / "a.vq").write_bytes(data)
    refuses(tmp_path, command, "a.vq", "-m", MODEL, says=says)
    refuses(tmp_path, command, "a.vq", "-m", MODEL, says="vqcodec: a.vq: ")


def test_other_commands_name_a_damaged_file_too(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image.write(noise(8, 8)))
    (tmp_path / "a.vq").write_bytes(FILE[:-1])
    refuses(tmp_path, "compare", "a.png", "a.vq", "-m", MODEL, says="vqcodec: a.vq: ")
    (tmp_path / "a.vq").write_bytes(FILE[:20])
    refuses(tmp_path, "sample", "b.png", "--from", "a.vq", "-m", MODEL, says="vqcodec: a.vq: ")


def test_damaged_stream(tmp_path: Path) -> None:
    for command in ("decompress", "info"):
        refuses(tmp_path, command, "-", "-m", MODEL, stdin=FILE[:50], says="vqcodec: the ")
    refuses(tmp_path, "compress", "-", "-m", MODEL, stdin=b"no picture")


def test_file_of_another_model(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "other")
    weights = bytearray((tmp_path / "other" / "prior.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "other" / "prior.safetensors").write_bytes(weights)
    (tmp_path / "a.vq").write_bytes(FILE)
    refuses(tmp_path, "decompress", "a.vq", "-m", "other", says=FILE[6:12].hex())
    refuses(tmp_path, "decompress", "a.vq", says=FILE[6:12].hex())


@pytest.mark.parametrize("command", ["compress", "decompress"])
def test_missing_model(command: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image.write(noise(8, 8)))
    (tmp_path / "a.vq").write_bytes(FILE)
    source, target = ("a.png", "b.vq") if command == "compress" else ("a.vq", "b.png")
    refuses(tmp_path, command, source, target, "-m", "no_such_model", says="no_such_model")
    refuses(tmp_path, command, source, target, "-m", "./nowhere", says="nowhere")
    refuses(tmp_path, command, source, target, "-m", "", says="no model ''")
    refuses(tmp_path, command, source, target, "-m", tmp_path)


def test_damaged_model(tmp_path: Path) -> None:
    shutil.copytree(MODEL, tmp_path / "spoilt")
    (tmp_path / "spoilt" / "encode.onnx").write_bytes(b"no graph")
    (tmp_path / "a.png").write_bytes(image.write(noise(8, 8)))
    refuses(tmp_path, "compress", "a.png", "-m", "spoilt", says="encode.onnx")


@pytest.mark.parametrize("data", [b"", b"no picture", FILE, image.write(noise(32, 32))[:500]], ids=["empty", "text", "vq", "half a png"])
def test_input_that_is_no_picture(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    refuses(tmp_path, "compress", "a.png", "-m", MODEL, says="a.png")


@pytest.mark.parametrize("command", ["compress", "decompress", "info"])
@pytest.mark.parametrize("path", ["missing.file", "no/such/folder/file", ".", "folder", ""])
def test_input_that_cannot_be_read(command: str, path: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    refuses(tmp_path, command, path, "-m", MODEL)


@pytest.mark.parametrize("command", ["compress", "decompress"])
@pytest.mark.parametrize("target", ["", "folder", ".", "no/such/folder/file.png", "file/below.png", "x" * 300 + ".png"])
def test_output_that_cannot_be_written(command: str, target: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "a.png").write_bytes(image.write(noise(8, 8)))
    (tmp_path / "a.vq").write_bytes(FILE)
    source = "a.png" if command == "compress" else "a.vq"
    refuses(tmp_path, command, source, target, "-m", MODEL, says="" if target else "the empty path")
    refuses(tmp_path, command, source, target, "-m", MODEL, "--force")


@pytest.mark.parametrize("target", ["b.nothing", "b.vq", "b.psd"])
def test_output_suffix_without_a_format(target: str, tmp_path: Path) -> None:
    (tmp_path / "a.vq").write_bytes(FILE)
    refuses(tmp_path, "decompress", "a.vq", target, "-m", MODEL, says=Path(target).suffix)


def test_failure_keeps_the_file_that_force_would_replace(tmp_path: Path) -> None:
    (tmp_path / "a.vq").write_bytes(FILE[:-3])
    (tmp_path / "a.png").write_bytes(b"precious")
    refuses(tmp_path, "decompress", "a.vq", "-m", MODEL, "--force")
    assert (tmp_path / "a.png").read_bytes() == b"precious"


def test_output_that_is_the_input(tmp_path: Path) -> None:
    """Whatever it is called, and also where --force is given."""
    (tmp_path / "a.vq").write_bytes(image.write(noise(8, 8)))
    (tmp_path / "b.png").write_bytes(FILE)
    (tmp_path / "link.vq").hardlink_to(tmp_path / "a.vq")
    for force in ((), ("--force",)):
        refuses(tmp_path, "compress", "a.vq", "-m", MODEL, *force, says="name another OUTPUT")
        refuses(tmp_path, "compress", "a.vq", "./link.vq", "-m", MODEL, *force, says="is the input itself")
        refuses(tmp_path, "compress", "a.vq", "--out-dir", ".", "-m", MODEL, *force, says="is the input itself")
        refuses(tmp_path, "decompress", "b.png", "-m", MODEL, *force, says="is the input itself")
        refuses(tmp_path, "compare", "a.vq", "b.png", "--picture", "a.vq", "-m", MODEL, *force, says="is the input itself")
        refuses(tmp_path, "compare", "a.vq", "b.png", "--picture", "b.png", "-m", MODEL, *force, says="is the input itself")
        refuses(tmp_path, "sample", "b.png", "--from", "b.png", "-m", MODEL, *force, says="is the input itself")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_full_disk(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image.write(np.zeros((8, 8, 3), np.uint8)))
    refuses(tmp_path, "compress", "a.png", "/dev/full", "-m", MODEL, "--force", says="/dev/full")


@pytest.mark.skipif(sys.platform == "win32", reason="folders there cannot be made read-only by their mode")
def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "locked"
    folder.mkdir()
    (tmp_path / "a.vq").write_bytes(FILE)
    folder.chmod(0o555)
    try:
        probe = folder / "probe"
        try:
            probe.touch()
        except PermissionError:
            refuses(tmp_path, "decompress", "a.vq", "locked/b.png", "-m", MODEL, says="locked")
        else:
            probe.unlink()
            pytest.skip("this user may write everywhere")
    finally:
        folder.chmod(0o755)


def test_an_error_names_its_file(tmp_path: Path) -> None:
    for name in ("a", "file", "two  spaces.vq"):
        (tmp_path / name).write_bytes(b"")
        refuses(tmp_path, "decompress", name, "out.png", "-m", MODEL, says=f"vqcodec: {name}: the file is empty")
    (tmp_path / "no  picture.png").write_bytes(b"x")
    refuses(tmp_path, "compress", "no  picture.png", "-m", MODEL, says="vqcodec: no picture.png is no image")  # once, and in one line


def test_the_empty_path(tmp_path: Path) -> None:
    (tmp_path / "a.vq").write_bytes(FILE)
    for arguments in (("compress", "", "x.vq"), ("info", ""), ("compare", "", "a.vq")):
        refuses(tmp_path, *arguments, "-m", MODEL, says="the empty path is no file")


def test_a_link_to_nothing_is_an_output_that_exists(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(image.write(noise(8, 8)))
    (tmp_path / "a.vq").symlink_to("elsewhere.vq")
    refuses(tmp_path, "compress", "a.png", "-m", MODEL, says="a.vq exists; use --force")


def test_a_long_name_of_many_bytes_a_letter(tmp_path: Path) -> None:
    name = "\u6587" * 79  # with its suffix 241 bytes of the 255 that a name may have
    (tmp_path / f"{name}.png").write_bytes(image.write(noise(8, 8)))
    assert vqcodec("compress", f"{name}.png", "-m", MODEL, cwd=tmp_path).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.png", f"{name}.vq"}
