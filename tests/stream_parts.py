"""Servers that send sound: HTTP at a pace, with the troubles of real ones, and RTSP through GStreamer's."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from parts import PATIENCE_S, Running

STEP_S = 0.02
RTSP = """
import base64, sys, gi
gi.require_version("Gst", "1.0"); gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtspServer
Gst.init(None)
server, factory, auth = GstRtspServer.RTSPServer(), GstRtspServer.RTSPMediaFactory(), GstRtspServer.RTSPAuth()
token = GstRtspServer.RTSPToken()
token.set_string("media.factory.role", "user")
auth.add_basic(GstRtspServer.RTSPAuth.make_basic("cam", "Pa55w0rd"), token)
role = Gst.Structure.new_from_string("user, media.factory.access=(boolean)true, media.factory.construct=(boolean)true")
factory.add_role_from_structure(role)
factory.set_launch(sys.argv[2])
server.set_auth(auth)
server.set_address("127.0.0.1")
server.set_service(sys.argv[1])
server.get_mount_points().add_factory("/street", factory)
server.attach(None)
print("serving", flush=True)
GLib.MainLoop().run()
"""
"""For the system's own Python, where Debian's GObject modules are."""


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


class SoundServer:
    """HTTP that sends each of `files` by its path, `speed` times as quickly as it lasts (0: at once), and then closes.

    sized: it says how many bytes come, as of a file; stalled: connections stay open and nothing more is sent; gone: nobody listens,
    every connection is cut.
    """

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, float]] = {}
        """By path: what is sent, and how long it lasts."""
        self.speed, self.sized, self.stalled = 0.0, False, False
        self.asked: list[str] = []
        self.port = free_port()
        self._server: http.server.ThreadingHTTPServer | None = None
        self._open: list[socket.socket] = []

    def url(self, path: str, who: str = "") -> str:
        return f"http://{who}127.0.0.1:{self.port}/{path}"

    def start(self, tls: ssl.SSLContext | None = None) -> None:
        ours = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                ours.asked.append(self.path[1:])
                ours._open.append(self.connection)
                with contextlib.suppress(OSError):
                    ours._send(self)

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def go(self) -> None:
        if self._server:
            self._server.shutdown()
            self._server.server_close()
            self._server = None
        while self._open:
            with contextlib.suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def _send(self, handler: http.server.BaseHTTPRequestHandler) -> None:
        if handler.path[1:] not in self.files:
            handler.send_error(404)
            return
        data, seconds = self.files[handler.path[1:]]
        handler.send_response(200)
        if self.sized:
            handler.send_header("Content-Length", f"{len(data)}")
        handler.end_headers()
        step = max(1, int(len(data) * STEP_S * self.speed / seconds)) if self.speed else len(data)
        began_s = time.monotonic()
        for at in range(0, len(data), step):
            while self.stalled:
                time.sleep(STEP_S)
            handler.wfile.write(data[at : at + step])
            time.sleep(max(0.0, began_s + at / step * STEP_S - time.monotonic()) if self.speed else 0.0)


@pytest.fixture
def sound_server() -> Iterator[SoundServer]:
    server = SoundServer()
    server.start()
    yield server
    server.stalled = False
    server.go()


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """A port that takes connections and never says anything."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def camera(start: Callable[..., Running]) -> Callable[[Path], str]:
    """A camera with a microphone that hears this WAV, and a picture; the result: its URL, with user and password."""
    probe = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    python = "/usr/bin/python3"
    tools = f"{probe}; from gi.repository import Gst; Gst.init(None); sys = __import__('sys'); "
    tools += "sys.exit(not all(map(Gst.ElementFactory.find, ('rtpL16pay', 'rtpjpegpay', 'jpegenc', 'wavparse', 'videotestsrc'))))"
    if not Path(python).exists() or subprocess.run([python, "-c", tools], capture_output=True, timeout=PATIENCE_S).returncode:
        packages = "python3-gi gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-base gstreamer1.0-plugins-good"
        pytest.skip(f"needs GStreamer's RTSP server: apt install {packages}")

    def serve(sound: Path) -> str:
        audio = f"filesrc location={sound} ! wavparse ! audioconvert ! rtpL16pay name=pay0 pt=96"
        video = "videotestsrc is-live=true ! video/x-raw,format=I420,width=160,height=120,framerate=5/1 "
        video += "! jpegenc ! rtpjpegpay name=pay1 pt=26"
        port = free_port()
        program = start(python, "-c", RTSP, port, f"( {audio} {video} )", env={"PYTHONPATH": ""})
        program.wait_for(lambda line: line == "serving")
        return f"rtsp://cam:Pa55w0rd@127.0.0.1:{port}/street"

    return serve
