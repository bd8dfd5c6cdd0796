"""The live server: a Starlette app with one WebSocket, the page, videos as files, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from oneforcing_jax import pages, web
from oneforcing_jax.errors import Refused
from oneforcing_jax.live import recording, wire
from oneforcing_jax.live import session as states
from oneforcing_jax.live.connection import Connection
from oneforcing_jax.live.journal import Journal
from oneforcing_jax.live.queue import Queue
from oneforcing_jax.live.session import Session

COOKIE = "token_live"
# Connections at once, and requests of HTTP that are being worked on.
MOST_CONNECTIONS, MOST_REQUESTS = 200, 8
_STATIC = ("theme.css", "live.css", "live_frames.js", "live.js")
_STATES = (states.WAITING, states.RUNNING, states.PAUSED, states.ENDED)
_Endpoint = Callable[[Request], Awaitable[Response]]


class Server:
    """What a studio answers to browsers. No path of a request is one of the file system.

    Args:
      queue: of its device.
      seconds: that a session may hold the device.
      token: that every request needs; "" where only this machine can ask.
      journal: is told what happens.
    """

    def __init__(self, queue: Queue, seconds: float, token: str, journal: Journal) -> None:
        self._queue, self._seconds, self._token, self._journal = queue, seconds, token, journal
        # A page that comes back with another one was served by a process that is gone.
        self._boot = secrets.token_hex(8)
        self._connections, self._requests = 0, 0
        journal.watch(_STATES, queue.count)

    @property
    def app(self) -> Starlette:
        """The application."""
        get = {"/": self._index, "/health": self._health, "/metrics": self._metrics,
               "/videos/{name}.mp4": self._video}  # fmt: skip
        get |= {f"/{name}": web.static for name in _STATIC}
        routes: list[Any] = [
            Route(path, self._guarded(f), methods=["GET"]) for path, f in get.items()
        ]
        routes.append(Route("/videos", self._guarded(self._make), methods=["POST"]))
        routes.append(WebSocketRoute("/live", self._live))
        return Starlette(routes=routes, lifespan=self._lifespan)

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        yield
        await run_in_threadpool(self._queue.close)

    def _guarded(self, endpoint: _Endpoint) -> _Endpoint:
        """An endpoint for those who may ask, whose refusals are an HTTP status and one line of JSON."""

        async def answer(request: Request) -> Response:
            try:
                web.check_caller(request, self._token, COOKIE)
                response = await endpoint(request)
            except Refused as error:
                self._journal.refused.labels(error.status).inc()
                response = JSONResponse({"error": str(error)}, error.status)
            response.headers.update(web.HEADERS)
            return response

        return answer

    async def _index(self, request: Request) -> Response:
        return web.page(pages.part("live.html"), self._token, COOKIE)

    async def _health(self, request: Request) -> Response:
        count = {state: self._queue.count(state) for state in _STATES}
        return JSONResponse({"ready": self._queue.ready, "sessions": count})

    async def _metrics(self, request: Request) -> Response:
        return Response(self._journal.metrics(), media_type="text/plain; version=0.0.4")

    async def _video(self, request: Request) -> Response:
        """The frames of a session so far, as a file."""
        session = self._queue.find(request.path_params["name"])
        if session is None:
            raise Refused(404, "no such session; it ended long ago, or with another server")
        with self._busy():
            return await self._file(session)

    async def _make(self, request: Request) -> Response:
        """Makes a video from a JSON object and answers with its file, as fast as it is made."""
        said = wire.parsed(await web.body(request, wire.LARGEST))
        with self._busy():
            wish = await run_in_threadpool(wire.wish_of, said, self._queue.studio)
            session = Session(wish, self._seconds, paced=False)
            ended, loop = asyncio.Event(), asyncio.get_running_loop()

            def wake() -> None:
                if session.state == states.ENDED:
                    loop.call_soon_threadsafe(ended.set)

            session.listeners.add(wake)
            self._queue.add(session)
            try:
                while not ended.is_set():
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(ended.wait(), 1)
                    if await request.is_disconnected():
                        raise Refused(499, "nobody waits for the video")
            finally:
                self._queue.leave(session)
            if session.reason != states.DONE:
                raise Refused(500, session.reason)
            return await self._file(session)

    @contextlib.contextmanager
    def _busy(self) -> Any:
        if self._requests >= MOST_REQUESTS:
            raise Refused(
                503, f"{self._requests} videos are being made for others; try again later"
            )
        self._requests += 1
        try:
            yield
        finally:
            self._requests -= 1

    async def _file(self, session: Session) -> Response:
        frames, studio = session.recording.frames(), self._queue.studio
        if not frames:
            raise Refused(409, "this video has no frame yet")
        origin = studio.origin(session.wish, session.prompts)
        content = await run_in_threadpool(recording.mp4, frames, studio.fps, origin)
        name = f'attachment; filename="{session.id}.mp4"'
        return Response(content, media_type="video/mp4", headers={"Content-Disposition": name})

    async def _live(self, socket: WebSocket) -> None:
        """A connection: refused with a reason, or served until it closes."""
        try:
            web.check_caller(socket, self._token, COOKIE)
            _check_origin(socket)
            if self._connections >= MOST_CONNECTIONS:
                raise Refused(503, f"{self._connections} connections are open; try again later")
            form = socket.query_params.get("video", wire.JPEG)
            if form not in (wire.JPEG, wire.H264):
                raise Refused(400, f"video: expected {wire.JPEG} or {wire.H264}")
        except Refused as error:
            self._journal.refused.labels(error.status).inc()
            await socket.accept()
            await socket.close(1008, str(error)[:120])
            return
        await socket.accept()
        self._connections += 1
        self._journal.viewers.inc()
        try:
            served = Connection(socket, self._queue, self._seconds, self._journal, form)
            await served.run(self._hello())
        finally:
            self._connections -= 1
            self._journal.viewers.dec()

    def _hello(self) -> str:
        """What a page needs to know."""
        studio = self._queue.studio
        rows, columns = studio.size
        return json.dumps({
            "say": "hello", "boot": self._boot, "ready": self._queue.ready, "fps": studio.fps,
            "rows": rows, "columns": columns, "frames": studio.frames, "most_frames": studio.most,
            "first_steps": studio.first_steps, "windows": list(studio.windows), "examples": studio.examples,
            "longest_prompt": wire.LONGEST_PROMPT, "largest_image": wire.LARGEST_IMAGE,
        })  # fmt: skip


def _check_origin(socket: WebSocket) -> None:
    """Refuses pages of other sites: browsers say whose page asks, and let it open a WebSocket anywhere."""
    origin = socket.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != socket.headers.get("host"):
        raise Refused(403, "expected a page of this server")


def process(server: Server) -> uvicorn.Server:
    """What serves it: `.run(sockets=[...])` with a socket of `web.listen`, until it is interrupted."""
    return web.server(server.app, ws_max_size=wire.LARGEST, ws_per_message_deflate=False)
