"""The live server: a Starlette app with one WebSocket, the page, videos as files, health and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import quote

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from oneforcing_jax import pages
from oneforcing_jax.errors import Refused
from oneforcing_jax.generation.jobs import file_name
from oneforcing_jax.live import recording, wire
from oneforcing_jax.live import session as states
from oneforcing_jax.live.clients import Clients, Room, client_of
from oneforcing_jax.live.connection import Connection
from oneforcing_jax.live.journal import Journal
from oneforcing_jax.live.queue import Queue
from oneforcing_jax.live.reading import Reader
from oneforcing_jax.live.session import Session
from oneforcing_jax.system import web

COOKIE = "token_live"
# What there may be at once, in all and of one client: connections of pages, videos over HTTP, and messages
# with an image that are read.
ROOMS = {"connections": Room(200, 50), "videos": Room(8, 4), "images": Room(16, 4)}
# Seconds between two looks for sessions that nobody owns.
TIDY = 1.0
_STATIC = ("theme.css", "live.css", "live_frames.js", "live_words.js", "live.js")
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
        self._clients, self._reader = Clients(ROOMS), Reader(queue.studio)
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
        tidying = asyncio.create_task(self._tidy())
        yield
        tidying.cancel()
        self._reader.close()
        await run_in_threadpool(self._queue.close)

    async def _tidy(self) -> None:
        while True:
            await asyncio.sleep(TIDY)
            self._queue.tidy()

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
        with self._clients.held("videos", client_of(request)):
            return await self._file(session)

    async def _make(self, request: Request) -> Response:
        """Makes a video from a JSON object and answers with its file, as fast as it is made."""
        client = client_of(request)
        with self._clients.held("videos", client):
            content = await web.body(request, wire.LARGEST)
            wish = await self._reader.wish(await self._reader.message(content))
            session = Session(wish, self._seconds, paced=False, client=client)
            session.join()
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

    async def _file(self, session: Session) -> Response:
        frames, studio = session.recording.frames(), self._queue.studio
        if not frames:
            raise Refused(409, "this video has no frame yet")
        origin = studio.origin(session.wish, session.prompts)
        content = await self._reader.file(recording.mp4, frames, studio.fps, origin)
        name = quote(f"{file_name(session.prompts[0])}, seed {session.wish.seed}.mp4", safe="")
        kept = f"attachment; filename=\"{session.id}.mp4\"; filename*=UTF-8''{name}"
        return Response(content, media_type="video/mp4", headers={"Content-Disposition": kept})

    async def _live(self, socket: WebSocket) -> None:
        """A connection: refused with a reason, or served until it closes."""
        with contextlib.ExitStack() as held:
            try:
                web.check_caller(socket, self._token, COOKIE)
                web.check_origin(socket)
                held.enter_context(self._clients.held("connections", client_of(socket)))
                form = socket.query_params.get("video", wire.JPEG)
                if form not in (wire.JPEG, wire.H264):
                    raise Refused(400, f"video: expected {wire.JPEG} or {wire.H264}")
            except Refused as error:
                self._journal.refused.labels(error.status).inc()
                await socket.accept()
                await socket.close(1008, str(error)[:120])
                return
            await socket.accept()
            with self._journal.viewers.track_inprogress():
                made = self._queue, self._reader, self._clients, self._seconds, self._journal
                await Connection(socket, *made, form).run(self._hello())

    def _hello(self) -> str:
        """What a page needs to know."""
        studio = self._queue.studio
        rows, columns = studio.size
        return json.dumps({
            "say": "hello", "model": studio.name, "boot": self._boot, "ready": self._queue.ready,
            "fps": studio.fps, "rows": rows, "columns": columns, "frames": studio.frames,
            "most_frames": studio.most, "first_steps": studio.first_steps, "windows": list(studio.windows),
            "adapters": list(studio.adapters),
            "examples": studio.examples, "longest_prompt": wire.LONGEST_PROMPT,
            "largest_image": wire.LARGEST_IMAGE,
        })  # fmt: skip


def process(server: Server) -> uvicorn.Server:
    """What serves it: `.run(sockets=[...])` with a socket of `web.listen`, until it is interrupted."""
    return web.server(server.app, ws_max_size=wire.LARGEST, ws_per_message_deflate=False)
