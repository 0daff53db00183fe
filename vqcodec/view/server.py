"""The page over HTTP, for the browser on this machine alone: routes, guards, and errors as one sentence of JSON.

Another web site must not get at the pictures through the visitor's browser: the server listens on the loopback address, answers
only requests that name it so (a site that rebinds its own name to 127.0.0.1 does not), and none that another site's page makes.
"""

from __future__ import annotations

import io
import logging
import math
import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, jsonify, request
from PIL import Image as Pillow
from werkzeug.exceptions import HTTPException
from werkzeug.serving import make_server

from vqcodec.errors import VQCodecError
from vqcodec.tiles import Image
from vqcodec.view.session import Session

HOST = "127.0.0.1"
NAMES = [HOST, "localhost"]  # of this machine, in a request's Host
UPLOAD_BYTES = 100_000_000
PAGE = Path(__file__).parent
ASSETS = {"page.html": "text/html", "page.css": "text/css", "page.js": "text/javascript"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}
SENTENCES = {  # what the page says of HTTP's own errors
    400: "this address is not answered; open the page as it was printed, by 127.0.0.1",
    403: "another web site must not ask for this; open the page as it was printed",
    404: "there is no such thing here; load the page again",
    405: "there is no such thing here; load the page again",
    413: f"the file is larger than {UPLOAD_BYTES // 1_000_000} MB; make the picture smaller, or start vqcodec view with its name",
}


def make_app(session: Session) -> Flask:
    """The web application that shows a session."""
    app = Flask("vqcodec.view", static_folder=None)
    app.config.update(TRUSTED_HOSTS=NAMES, MAX_CONTENT_LENGTH=UPLOAD_BYTES)
    app.before_request(_refuse_other_sites)
    app.after_request(_with_headers)
    app.register_error_handler(Exception, _sentence)
    app.add_url_rule("/", view_func=lambda: _asset("page.html"), endpoint="page")
    app.add_url_rule("/<any('page.css','page.js'):name>", view_func=_asset)
    _add_pictures(app, session)
    return app


def _add_pictures(app: Flask, session: Session) -> None:
    @app.get("/pictures")
    def pictures() -> Response:
        found = [{"number": number, "name": name} for number, name in session.names().items()]
        return jsonify(pictures=found, largest=UPLOAD_BYTES)

    @app.post("/pictures")
    def add() -> Response:
        number = session.add(request.args.get("name", "the picture")[:200], request.get_data(cache=False))
        return jsonify(session.describe(number))

    @app.get("/pictures/<int:number>")
    def describe(number: int) -> Response:
        return jsonify(session.describe(number))

    @app.get("/pictures/<int:number>/original.png")
    def original(number: int) -> Response:
        return _png(session.original(number))

    @app.get("/pictures/<int:number>/picture.vq")
    def compressed(number: int) -> Response:
        return Response(session.compressed(number, _quality()), mimetype="application/octet-stream")

    @app.get("/pictures/<int:number>/levels/<int(min=1,max=3):levels>")
    def figures(number: int, levels: int) -> Response:
        return jsonify(session.figures(number, _quality(), levels))

    @app.get("/pictures/<int:number>/levels/<int(min=1,max=3):levels>.png")
    def restored(number: int, levels: int) -> Response:
        return _png(session.restored(number, _quality(), levels))


def _quality() -> float:
    quality = request.args.get("quality", math.nan, type=float) if "quality" in request.args else 50.0
    if not 0 <= quality <= 100:
        raise VQCodecError("the quality is a number from 0 to 100; move the slider")
    return quality


def _png(image: Image) -> Response:
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, "PNG", compress_level=1)  # it travels through memory: quickly is better than small
    return Response(buffer.getvalue(), mimetype="image/png")


def _asset(name: str) -> Response:
    return Response((PAGE / name).read_bytes(), mimetype=ASSETS[name])


def _refuse_other_sites() -> None:
    """Browsers say who asks, old ones by `Origin` alone; only the page itself is opened from elsewhere, by a link or a typed address."""
    own = request.host_url.removesuffix("/")
    foreign = request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin") or request.headers.get("Origin", own) != own
    if foreign and request.path != "/":
        abort(403)


def _with_headers(response: Response) -> Response:
    response.headers.update(HEADERS)
    return response


def _sentence(error: Exception) -> tuple[Response, int]:
    """Any error as JSON with one sentence for the page."""
    if isinstance(error, HTTPException):
        code = error.code or 500
        return jsonify(error=SENTENCES.get(code, f"the request failed ({code}); load the page again")), code
    if isinstance(error, VQCodecError):
        return jsonify(error=" ".join(str(error).split())), 422
    if isinstance(error, MemoryError):
        return jsonify(error="not enough memory for this picture; make it smaller"), 422
    return jsonify(error=f"something unforeseen went wrong ({type(error).__name__}: {error}); please report this with the picture"), 500


def has_screen() -> bool:
    """Whether a browser can show itself: without a screen, a browser in the terminal would be opened, or a word on every missing one."""
    return sys.platform in ("win32", "darwin") or any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))


def serve(session: Session, port: int, ready: Callable[[str], Any]) -> None:
    """Serves the page on the loopback address until it is interrupted; `ready` is called with the page's address.

    Port 0 takes a free one. Raises `VQCodecError` where the port is taken.
    """
    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # no line per request
    try:
        listener = socket.create_server((HOST, port))
    except OSError as error:
        raise VQCodecError(f"port {port} cannot be used ({error.strerror}); choose another --port, or leave it out") from error
    with listener:
        server = make_server(HOST, port, make_app(session), threaded=True, fd=listener.fileno())
        ready(f"http://{HOST}:{server.port}/")
        server.serve_forever()
        raise KeyboardInterrupt  # what ended it, which the server swallows: the command's exit code tells
