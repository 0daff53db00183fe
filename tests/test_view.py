"""`vqcodec view` without a browser: what the page can ask for, and who must not ask."""

from __future__ import annotations

import io
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image as Pillow

pytest.importorskip("flask", reason="needs the extra view")

from flask.testing import FlaskClient

from tests.support import GOLDEN, IMAGES, ROOT, noise, vqcodec
from vqcodec import codec, container, image, metrics
from vqcodec.cli import main
from vqcodec.errors import ImageError, WrongModelError
from vqcodec.model import Model
from vqcodec.view import server
from vqcodec.view.session import DROPPED, Session, find

MODEL = GOLDEN / "model"


def client(*paths: Path) -> FlaskClient:
    return server.make_app(Session(paths, str(MODEL))).test_client()


def pixels(data: bytes) -> np.ndarray:
    with Pillow.open(io.BytesIO(data)) as picture:
        return np.array(picture)


@contextmanager
def viewing(*arguments: str | Path) -> Iterator[str]:
    """The command as a real program; gives the page's address."""
    command = [sys.executable, "-m", "vqcodec.cli", "view", "--no-browser", "-m", str(MODEL), *map(str, arguments)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            assert line, process.stderr.read() if process.stderr else ""
            yield line.split()[0]
        finally:
            process.terminate()


def test_a_dropped_picture_is_compressed_as_the_library_does(model: Model) -> None:
    browser, original = client(), noise(40, 70)
    found = browser.post("/pictures?name=a.png", data=image.write(original)).json
    assert found == {
        **{"number": 0, "name": "a.png", "bytes": len(image.write(original)), "width": 70, "height": 40, "channels": "rgb"},
        **{"quality": None, "notices": []},
    }
    data = codec.compress(original, 30, model)
    assert browser.get("/pictures/0/picture.vq?quality=30").data == data
    assert np.array_equal(pixels(browser.get("/pictures/0/original.png").data), original)
    sizes = [section.size for section in container.unpack(data).sections]
    ends = [container.HEADER_BYTES + sizes[0], container.HEADER_BYTES + sizes[0] + sizes[1], len(data)]
    for levels in (1, 2, 3):
        restored = codec.decompress(data, model, levels)
        shown = pixels(browser.get(f"/pictures/0/levels/{levels}.png?quality=30").data)
        assert np.abs(shown.astype(int) - restored).max() <= 1
        figures = browser.get(f"/pictures/0/levels/{levels}?quality=30").json
        assert (figures["level_bytes"], figures["bytes"]) == (sizes[levels - 1], ends[levels - 1])
        assert figures["bpp"] == pytest.approx(8 * ends[levels - 1] / 2800)
        assert figures["psnr"] == pytest.approx(metrics.psnr(metrics.mse(original, restored)), abs=0.05)


def test_a_compressed_file_has_its_own_quality_and_no_distortion(model: Model) -> None:
    browser = client()
    data = codec.compress(np.dstack([noise(33, 20), noise(33, 20, 1)[:, :, 0]]), 72, model)
    found = browser.post("/pictures?name=a.vq", data=data).json
    assert (found["quality"], found["channels"], found["width"]) == (72, "rgb+alpha", 20)
    figures = browser.get("/pictures/0/levels/3?quality=5").json
    assert (figures["bytes"], figures["mse"], figures["psnr"]) == (len(data), None, None)
    assert browser.get("/pictures/0/picture.vq?quality=5").data == data
    assert pixels(browser.get("/pictures/0/levels/1.png").data).shape == (33, 20, 4)
    assert np.array_equal(pixels(browser.get("/pictures/0/original.png").data), codec.decompress(data, model))


def test_a_folder_lists_its_pictures(tmp_path: Path) -> None:
    for name in ("b.JPG", "a.png"):
        Pillow.fromarray(noise(8, 8)).save(tmp_path / name)
    (tmp_path / "c.vq").write_bytes((GOLDEN / "dot-q50.vq").read_bytes())
    (tmp_path / "notes.txt").write_text("none")
    (tmp_path / "folder.png").mkdir()
    browser = client(*find(tmp_path))
    assert [entry["name"] for entry in browser.get("/pictures").json["pictures"]] == ["a.png", "b.JPG", "c.vq"]
    assert browser.get("/pictures/1").json["width"] == 8
    (tmp_path / "a.png").write_bytes(b"gone bad")
    answer = browser.get("/pictures/0")
    assert answer.status_code == 422
    assert "a.png" in answer.json["error"]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"no picture", r"bad\.png"),
        (b"", r"bad\.png"),
        ((IMAGES / "coffee.png").read_bytes()[:5000], "damaged"),
        ((GOLDEN / "photo-q60.vq").read_bytes()[:60], "ends|left"),
        ((GOLDEN / "photo-q60.vq").read_bytes().replace(bytes.fromhex("b7bbc6"), b"abc"), "checksum"),
    ],
)
def test_what_cannot_be_read_is_one_sentence_and_not_listed(data: bytes, message: str) -> None:
    browser = client()
    answer = browser.post("/pictures?name=bad.png", data=data)
    assert answer.status_code == 422
    assert re.search(message, answer.json["error"])
    assert "\n" not in answer.json["error"]
    assert browser.get("/pictures").json["pictures"] == []


def test_uploads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "UPLOAD_BYTES", 1000)
    browser = client()
    answer = browser.post("/pictures?name=a.png", data=bytes(1001))
    assert (answer.status_code, list(answer.json)) == (413, ["error"])
    chunked = browser.post("/pictures", input_stream=io.BytesIO(bytes(5000)), headers={"Transfer-Encoding": "chunked"})
    assert chunked.status_code in (413, 422)
    assert browser.get("/pictures").json["pictures"] == []


def test_only_the_last_dropped_pictures_are_kept() -> None:
    browser = client()
    for _ in range(DROPPED + 1):
        assert browser.post("/pictures", data=image.write(noise(2, 2))).status_code == 200
    assert len(browser.get("/pictures").json["pictures"]) == DROPPED
    assert "not kept" in browser.get("/pictures/0").json["error"]


@pytest.mark.parametrize("path", ["/", "/page.js", "/pictures", "/pictures/0/original.png"])
@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "192.168.0.7", ""])
def test_a_rebound_name_gets_nothing(path: str, host: str) -> None:
    answer = client(IMAGES / "coffee.png").get(path, headers={"Host": host})
    assert answer.status_code == 400
    assert list(answer.json) == ["error"]


def test_the_page_answers_by_its_own_names_only() -> None:
    for host in ("127.0.0.1:8123", "localhost:8123"):
        assert client().get("/pictures", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pages_of_other_sites_get_nothing(site: str) -> None:
    browser = client(IMAGES / "coffee.png")
    headers = {"Sec-Fetch-Site": site}
    assert browser.get("/", headers=headers).status_code == 200  # a link to the page
    for answer in (browser.get("/pictures/0/original.png", headers=headers), browser.post("/pictures", data=b"x", headers=headers)):
        assert answer.status_code == 403
    assert browser.get("/pictures", headers={"Sec-Fetch-Site": "same-origin"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "http://127.0.0.1", "http://127.0.0.1:8124", "null"])
def test_pages_of_other_sites_get_nothing_where_a_browser_tells_their_origin_alone(origin: str) -> None:
    browser, host = client(), {"Host": "127.0.0.1:8123"}
    data = image.write(noise(2, 2))
    assert browser.post("/pictures", data=data, headers={**host, "Origin": origin}).status_code == 403
    assert browser.get("/pictures", headers=host).json["pictures"] == []
    assert browser.get("/", headers={**host, "Origin": origin}).status_code == 200
    assert browser.post("/pictures", data=data, headers={**host, "Origin": "http://127.0.0.1:8123"}).status_code == 200


@pytest.mark.parametrize("path", ["/pictures/7/levels/4", "/pictures/x", "/../secret", "/session.py"])
def test_nothing_else_is_served(path: str) -> None:
    answer = client().get(path)
    assert (answer.status_code, list(answer.json)) == (404, ["error"])


@pytest.mark.parametrize("quality", ["-1", "100.5", "nan", "abc", ""])
def test_qualities_out_of_range(quality: str) -> None:
    answer = client(IMAGES / "coffee.png").get(f"/pictures/0/levels/3?quality={quality}")
    assert answer.status_code == 422
    assert "0 to 100" in answer.json["error"]


def test_an_unforeseen_error_is_a_sentence_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Session, "names", lambda self: 1 / 0)
    answer = client().get("/pictures")
    assert answer.status_code == 500
    assert "ZeroDivisionError" in answer.json["error"]


def test_the_page_needs_nothing_from_elsewhere() -> None:
    browser = client()
    for name in ("", "page.css", "page.js"):
        text = browser.get(f"/{name}").text
        assert not re.search(r"https?://|@import|//cdn", text)
    assert "default-src 'self'" in browser.get("/").headers["Content-Security-Policy"]


def test_the_command_serves_this_machine_alone(tmp_path: Path) -> None:
    Pillow.fromarray(noise(8, 8)).save(tmp_path / "a.png")
    with viewing(tmp_path) as address:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/", address)
        with urllib.request.urlopen(f"{address}pictures/0/levels/3?quality=50", timeout=60) as answer:
            assert b"psnr" in answer.read()


def test_a_port_that_is_taken_and_paths_that_are_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        arguments = [["--port", str(taken.getsockname()[1])], [tmp_path / "none.png"], [tmp_path], [GOLDEN / "model" / "model.json"]]
        for argument in arguments:
            result = vqcodec("view", "--no-browser", "-m", MODEL, *argument, cwd=tmp_path)
            assert (result.returncode, result.stdout, result.stderr.count(b"\n")) == (1, b"", 1)


def test_a_file_of_another_model_is_refused_before_the_page_opens(tmp_path: Path) -> None:
    data = bytearray((GOLDEN / "dot-q50.vq").read_bytes())
    held = container.unpack(bytes(data))
    (tmp_path / "a.vq").write_bytes(container.pack(container.Container(b"abcdef", held.width, held.height, 50, held.sections, held.gray)))
    with pytest.raises(WrongModelError):
        Session([tmp_path / "a.vq"], str(MODEL)).describe(0)


def test_find(tmp_path: Path) -> None:
    assert find(None) == []
    assert find(IMAGES / "coffee.png") == [IMAGES / "coffee.png"]
    with pytest.raises(ImageError, match="no picture"):
        find(tmp_path)


@pytest.mark.parametrize(("screen", "option", "opened"), [("1", [], True), ("1", ["--no-browser"], False), ("", [], False)])
def test_a_browser_is_opened_where_it_can_show_itself(
    screen: str, option: list[str], opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    addresses: list[str] = []
    monkeypatch.setattr("webbrowser.open", addresses.append)
    monkeypatch.setattr(server, "serve", lambda session, port, ready: ready("http://127.0.0.1:1/"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", screen)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    result = CliRunner().invoke(main, ["view", *option, "-m", str(MODEL)])
    assert (result.exit_code, result.output) == (0, "http://127.0.0.1:1/  (Ctrl-C ends it)\n")
    assert addresses == (["http://127.0.0.1:1/"] if opened else [])


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGINT for one process")
def test_an_interrupt_ends_it_quietly() -> None:
    command = [sys.executable, "-m", "vqcodec.cli", "view", "--no-browser", "-m", str(MODEL)]
    # a shell's background jobs ignore interrupts, and so would whatever the tests start there
    heeding = partial(signal.signal, signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT, preexec_fn=heeding) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            process.send_signal(signal.SIGINT)
            rest, said = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, rest, said) == (130, b"", b"")


def test_without_flask_the_command_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flask", None)
    for name in ("vqcodec.view.server", "vqcodec.view"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    result = CliRunner().invoke(main, ["view"])
    assert result.exit_code == 1
    assert "pip install 'vqcodec[view]'" in result.output
