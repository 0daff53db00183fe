"""Drives a headless Chromium over its debugging pipe: enough to look at a page and to use a mouse on it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
LONGEST = 120  # seconds that the browser may take to end


# The program must find its pipes at 3 and 4: this gives them these numbers and then becomes the program.
LAUNCH = "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); os.execv(sys.argv[3], sys.argv[3:])"
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")


@contextlib.contextmanager
def browse(program: str, page: Path) -> Iterator[Browser]:
    """Starts the program, opens the page, and ends the program."""
    with contextlib.ExitStack() as stack:
        profile = stack.enter_context(tempfile.TemporaryDirectory(prefix="vqcodec-browser-", ignore_cleanup_errors=True))
        (theirs_in, ours_out), (ours_in, theirs_out) = os.pipe(), os.pipe()
        files = stack.enter_context(os.fdopen(ours_out, "wb")), stack.enter_context(os.fdopen(ours_in, "rb"))
        command = [sys.executable, "-c", LAUNCH, str(theirs_in), str(theirs_out), program, *FLAGS, f"--user-data-dir={profile}"]
        nothing = subprocess.DEVNULL
        process = subprocess.Popen(command, pass_fds=(theirs_in, theirs_out), stdin=nothing, stdout=nothing, stderr=nothing)
        stack.callback(process.wait, LONGEST)
        stack.callback(process.terminate)
        os.close(theirs_in)
        os.close(theirs_out)
        browser = Browser(*files)
        browser.open(page)
        yield browser


class Browser:
    """One page of a running browser. Messages are JSON that ends in a zero byte."""

    def __init__(self, out: IO[bytes], answers: IO[bytes]):
        self.out, self.answers, self.count = out, answers, 0
        self.session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def open(self, page: Path) -> None:
        """Goes to the page and waits for all of it."""
        self.resize(1280, 900)
        self.call("Page.navigate", url=page.as_uri())
        self.evaluate("document.readyState == 'complete' || new Promise(done => addEventListener('load', done))")

    def call(self, method: str, **parameters: Any) -> Any:
        """Sends a command and waits for its answer; events in between are passed over."""
        self.count += 1
        message: dict[str, Any] = {"id": self.count, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        self.out.write(json.dumps(message).encode() + b"\0")
        self.out.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self.count:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> bytes:
        """One message."""
        parts = []
        while (byte := self.answers.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts.append(byte)
        return b"".join(parts)

    def evaluate(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        """The window's size in pixels."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)

    def drag(self, start: tuple[float, float], stop: tuple[float, float]) -> None:
        """Presses the mouse at one place and releases it at another."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", stop), ("mouseReleased", stop)):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)
