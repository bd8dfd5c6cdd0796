"""A connection: what it may say, and the session that it watches or owns."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
from collections.abc import Mapping
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from oneforcing_jax.errors import Refused
from oneforcing_jax.live import wire
from oneforcing_jax.live.clients import Clients, client_of
from oneforcing_jax.live.h264 import Encoder
from oneforcing_jax.live.journal import Journal
from oneforcing_jax.live.queue import Queue
from oneforcing_jax.live.reading import Reader
from oneforcing_jax.live.session import Session
from oneforcing_jax.live.viewer import Viewer
from oneforcing_jax.system import web

# Messages refused in a row after which a connection is closed.
PATIENCE = 20


class Connection:
    """Serves one WebSocket.

    Args:
      socket: that was accepted.
      queue: where sessions are.
      reader: of what it says.
      clients: count what it holds.
      seconds: that a session may hold the device.
      journal: counts.
      form: of frames, `wire.JPEG` or `wire.H264`.
    """

    def __init__(
        self,
        socket: WebSocket,
        queue: Queue,
        reader: Reader,
        clients: Clients,
        seconds: float,
        journal: Journal,
        form: str,
    ) -> None:
        self._form, self._reader, self._clients = form, reader, clients
        self._client = client_of(socket)
        self._socket, self._queue, self._seconds, self._journal = socket, queue, seconds, journal
        self._lock = asyncio.Lock()
        self._viewer: Viewer | None = None
        self._task: asyncio.Task[None] | None = None
        self._owned: Session | None = None

    async def run(self, hello: str) -> None:
        """Answers until the other side closes, or says too much."""
        allowance, wrong = wire.Allowance(), 0
        try:
            await self._text(hello)
            while True:
                message = await self._socket.receive()
                if message["type"] == "websocket.disconnect":
                    return
                try:
                    await self._hear(message.get("text") or message.get("bytes") or b"", allowance)
                    wrong = 0
                except Refused as error:
                    wrong += 1
                    self._journal.refused.labels(error.status).inc()
                    if error.status == 429 or wrong >= PATIENCE:
                        await self._socket.close(1008, str(error)[:120])
                        return
                    await self._text(
                        json.dumps({"say": "refused", "status": error.status, "error": str(error)})
                    )
        except (WebSocketDisconnect, RuntimeError):
            return  # gone while something was sent
        finally:
            await self._unwatch()
            if self._owned:
                self._owned.leave()

    async def _hear(self, message: str | bytes, allowance: wire.Allowance) -> None:
        """Takes in a message. A long one counts, and needs its place, before it is read.

        Raises:
          Refused: what it says cannot be done, or there is too much of it.
        """
        long = wire.is_heavy(message)
        said = {} if long else wire.parsed(message)
        # Acknowledgements are as many as frames; those of no frame count as talk.
        if said.get("do") == "ack" and self._acknowledged(said):
            return
        heavy = long or said.get("image") is not None  # a few bytes may be an image of many pixels
        allowance.take(wire.HEAVY if heavy else 1)
        with self._clients.held("images", self._client) if heavy else contextlib.nullcontext():
            await self._do(await self._reader.message(message) if long else said)

    def _acknowledged(self, said: Mapping[str, Any]) -> bool:
        serial = said.get("serial")
        return bool(self._viewer and type(serial) is int and self._viewer.acknowledge(serial))

    async def _do(self, said: Mapping[str, Any]) -> None:
        """Does what a message says.

        Raises:
          Refused: that cannot be done.
        """
        match said.get("do"):
            case "start":
                await self._start(said)
            case "watch":
                await self._watch(said)
            case "prompt":
                session = self._mine()
                session.switch(await self._reader.prompt(said))
            case "pause":
                self._mine().pause()
            case "resume":
                self._mine().resume()
            case "stop":
                self._queue.leave(self._mine())
            case "ack":
                raise Refused(400, "ack: expected the serial number of a frame on its way")
            case _:
                raise Refused(400, "do: expected start, watch, prompt, pause, resume, stop or ack")

    def _mine(self) -> Session:
        if self._owned is None:
            raise Refused(403, "expected the owner of a session; start one")
        return self._owned

    async def _start(self, said: Mapping[str, Any]) -> None:
        wish = await self._reader.wish(said)
        if self._owned:
            self._queue.add(self._owned, wish)
            return
        session = Session(wish, self._seconds, client=self._client)
        self._queue.add(session)
        await self._attach(session, own=True)

    async def _watch(self, said: Mapping[str, Any]) -> None:
        name, key = said.get("session"), said.get("key", "")
        if not isinstance(name, str) or not isinstance(key, str):
            raise Refused(400, "session, key: expected words")
        session = self._queue.find(name)
        if session is None:
            raise Refused(404, "no such session; it ended long ago, or with another server")
        own = web.same(key, session.key)
        if key and not own:
            raise Refused(403, "key: expected that of the session")
        await self._attach(session, own)

    async def _attach(self, session: Session, own: bool) -> None:
        """Watches a session, and no other."""
        await self._unwatch()
        if self._owned:
            self._owned.leave()
        self._owned = session if own else None
        if own:
            session.join()
        said = {"say": "session", "session": session.id, "own": own}
        await self._text(json.dumps(said | ({"key": session.key} if own else {})))
        fps = self._queue.studio.fps
        encode = None
        if self._form == wire.H264:
            encode = functools.partial(self._reader.encode, Encoder(fps).encode)
        self._viewer = Viewer(session, fps, self._text, self._binary, self._journal, encode)
        self._task = asyncio.create_task(self._viewer.run())

    async def _unwatch(self) -> None:
        if self._task:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError, WebSocketDisconnect, RuntimeError):
                await self._task
        self._task = self._viewer = None

    async def _text(self, message: str) -> None:
        async with self._lock:
            await self._socket.send_text(message)

    async def _binary(self, message: bytes) -> None:
        async with self._lock:
            await self._socket.send_bytes(message)
