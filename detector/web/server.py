"""The listener: a page that shows what is heard, figures for Prometheus, and how the daemon is. In a thread of its own.

The daemon's loop leaves what it has and goes on; nothing here can hold it up, and no failure here ends it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from detector.audio.source import Block
from detector.config import Settings, clips_folder, node_name
from detector.config import thresholds as changed
from detector.errors import ConfigError, UrbandetectError
from detector.model import Description, Threshold
from detector.observer import Observer, Sound
from detector.tables import build
from detector.tracker import Change
from detector.web.figures import Figures
from detector.web.guard import Guard, listen, policy, token
from detector.web.hub import RECENT, Hub

log = logging.getLogger(__name__)

STILL_S = 10.0
"""A loop that has not been round for so long does not get on: it says so every second, and a step may take half of one."""
AGAIN_S = 5.0
"""After a failure the listener is opened again so much later."""
MOST_BODY_BYTES = 1 << 14
"""Of a request: thresholds for a hundred labels."""
AT_ONCE = 64
"""Connections: a browser uses up to six."""
SENT_BYTES = 1 << 16
"""On their way to a browser, in the system's hands: half a minute of one source. Its own choice is megabytes of old sound."""
ASK_S = 10.0
"""Who has connected must have asked by then."""
ALIVE = "ok\n"
"""What `/healthz` says when all is well."""
WRITTEN_S = 3.0
"""A clip that is asked for is written so long after its last sample, or it is not."""
CLIP = ".flac"
"""The end of the name of what a browser can play: not of what is encrypted."""


class Connection(H11Protocol):
    """One at most of AT_ONCE, and only for who asks something: idle ones would use up the descriptors of the whole daemon."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > AT_ONCE:
            transport.abort()
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENT_BYTES)
        self.loop.call_later(ASK_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.cycle is None:
            self.transport.abort()


class Web(Observer):
    """What the daemon tells is shown."""

    def __init__(self, settings: Settings, model: Description) -> None:
        """Listens at once. Raises ConfigError when it cannot, or may not without a token."""
        self._secret = token(settings.web)
        self._socket = listen(settings.web.listen, self._secret)
        host, self._port = self._socket.getsockname()[:2]
        self._host = f"[{host}]" if ":" in host else host
        self._settings, self._hop, self._rate = settings, model.hop, model.sample_rate
        names = [source.name for source in settings.source]
        self._figures = Figures(names, model.labels, model.hop / model.sample_rate)
        own = {label: asdict(threshold) for label, threshold in model.thresholds.items()}
        node = node_name(settings)
        facts = {"node": node, "model": f"{model.name} {model.version}", "labels": model.labels, "sources": names, "own": own}
        self._hub = Hub(model.sample_rate, model.hop, facts)
        self._health: Mapping[str, Any]
        self._stages: Mapping[str, str]
        self._looked_s: float
        self._clips: dict[str, Path] = {}
        """Of the events that a page shows, by their id: the only files that are ever read for anybody."""
        self._thresholds: dict[str, Threshold] = {}
        self._wanted: dict[str, Threshold] | None = None
        self._lock = threading.Lock()
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._stopping = False
        page = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        self._page, self._app = page, self._routes(page)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopping = True
        if self._server:
            self._server.should_exit = True

    def block(self, source: str, block: Block) -> None:
        self._figures.block(source, len(block.samples))

    def stepped(self, took_s: float, sounds: Sequence[Sound]) -> None:
        """Samples and scores are only copied, and only while somebody looks."""
        self._figures.step(took_s, len(sounds[0].mean_squares))
        for sound in sounds:
            self._figures.level(sound.source, sound.level_dbfs)
            if self._hub.watched:
                self._hub.put(sound.kept())

    def event(self, event: dict[str, Any], change: Change) -> None:
        self._figures.event(event)
        if (event.get("clip") or "").endswith(CLIP):
            self._clips[event["id"]] = clips_folder(self._settings) / event["clip"]
            if len(self._clips) > RECENT:
                del self._clips[next(iter(self._clips))]
        self._hub.put(("event", event))

    def look(self, health: Mapping[str, Any], stages: Mapping[str, str]) -> None:
        self._health, self._stages, self._looked_s = health, stages, time.monotonic()
        self._hub.put(("stages", stages))

    def use(self, source: str, thresholds: Mapping[str, Threshold]) -> None:
        """Of several sources the page shows the thresholds of the first."""
        if source != self._settings.source[0].name:
            return
        with self._lock:
            self._thresholds = {label: replace(threshold, on=min(1.0, threshold.on)) for label, threshold in thresholds.items()}
            self._hub.put(("thresholds", {label: asdict(threshold) for label, threshold in self._thresholds.items()}))

    def wanted(self) -> dict[str, Threshold] | None:
        with self._lock:
            wanted, self._wanted = self._wanted, None
        return wanted

    # What follows runs in the web's thread.

    def _run(self) -> None:
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # failures are said here, in a line each
        log.info("web: http://%s:%d/", self._host, self._port)
        while True:
            try:
                asyncio.run(self._serve())
                why = "it ended"
            except (Exception, SystemExit) as error:  # noqa: BLE001 - uvicorn leaves so when it cannot begin
                why = f"{type(error).__name__}: {error}"
            finally:
                self._hub.close()
            if self._stopping:
                return
            log.error("web: the listener failed (%s); detection goes on, and it is tried again", why)
            self._listen_again()

    def _listen_again(self) -> None:
        while not self._stopping:
            time.sleep(AGAIN_S)
            try:
                self._socket.close()
                self._socket = listen(f"{self._host}:{self._port}", self._secret)
            except UrbandetectError as error:
                log.debug("%s", error)
            else:
                return

    async def _serve(self) -> None:
        self._hub.open(asyncio.get_running_loop())
        config = uvicorn.Config(
            self._app,
            log_config=None,
            access_log=False,
            lifespan="off",
            ws="none",
            http=Connection,
            loop="asyncio",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._server.should_exit = self._stopping
        await self._server.serve(sockets=[self._socket])

    def _routes(self, page: str) -> Guard:
        routes = [
            Route("/", self._show),
            Route("/stream", self._stream),
            Route("/clips/{event}", self._clip),
            Route("/thresholds", self._change, methods=["POST"]),
            Route("/metrics", self._metrics),
            Route("/healthz", self._alive),
            Route("/readyz", self._ready),
        ]
        paths = ", ".join(route.path for route in routes)

        def refuse(_: Request, error: Exception) -> Response:
            assert isinstance(error, HTTPException)
            wrong = "this method is not for this path; use " + (error.headers or {}).get("Allow", "another")
            what = f"there is no such path; there are {paths}" if error.status_code == 404 else wrong
            return JSONResponse({"error": what}, error.status_code, error.headers)

        app = Starlette(routes=routes, exception_handlers={HTTPException: refuse})
        return Guard(app, self._secret, self._settings.web.hosts, policy(page))

    async def _show(self, _: Request) -> Response:
        return HTMLResponse(self._page)

    async def _stream(self, _: Request) -> Response:
        if self._hub.full():
            return JSONResponse({"error": f"{self._hub.browsers} pages are open already"}, 503)
        return StreamingResponse(self._hub.stream(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})

    async def _clip(self, request: Request) -> Response:
        """The sound of an event that a page shows, whole or the ranges asked for. Who is too early waits until it is written."""
        path = self._clips.get(request.path_params["event"])
        deadline_s = time.monotonic() + self._settings.clips.after_s + WRITTEN_S
        while path and not path.is_file() and time.monotonic() < deadline_s:
            await asyncio.sleep(0.1)
        if not path or not path.is_file():
            return JSONResponse({"error": "there is no such clip"}, 404)
        return FileResponse(path, media_type="audio/flac")

    async def _metrics(self, _: Request) -> Response:
        return PlainTextResponse(self._figures.text(self._health), media_type="text/plain; version=0.0.4")

    async def _alive(self, _: Request) -> Response:
        still_s = time.monotonic() - self._looked_s
        if still_s > STILL_S:
            return PlainTextResponse(f"the loop has stood still for {still_s:.0f} s\n", 503)
        return PlainTextResponse(ALIVE)

    async def _ready(self, _: Request) -> Response:
        """200 while sound arrives from every source; else 503, and the words say what is missing."""
        hearing = all(facts["hearing"] for facts in self._health["sources"].values())
        ready = hearing and time.monotonic() - self._looked_s <= STILL_S
        return JSONResponse({"ready": ready, "stages": self._stages}, 200 if ready else 503)

    async def _change(self, request: Request) -> Response:
        """Thresholds as in detector.toml, {label: {on, off, min_on_s, min_off_s}}, each with what is to change."""
        if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
            return JSONResponse({"error": "the body must be application/json"}, 415)
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BODY_BYTES:
                return JSONResponse({"error": "the body is too large"}, 413)
        try:
            wish = build(Settings, {"thresholds": json.loads(body)}, "the request")
            with self._lock:
                new = changed(wish, self._wanted or self._thresholds, "the request")
                self._wanted = new
        except (ValueError, RecursionError):
            return JSONResponse({"error": "the body is not JSON"}, 400)
        except ConfigError as error:
            return JSONResponse({"error": f"{error}"}, 400)
        log.info("web: thresholds of %s changed until the next start or reload", ", ".join(wish.thresholds) or "nothing")
        return JSONResponse({label: asdict(new[label]) for label in wish.thresholds}, 202)
