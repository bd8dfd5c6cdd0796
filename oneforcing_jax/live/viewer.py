"""One viewer of a session: sends what is newest, and no more than is acknowledged."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

from oneforcing_jax.live.journal import Journal
from oneforcing_jax.live.session import LEAD, Session
from oneforcing_jax.live.wire import packed

# Seconds between two reports of where a session stands, and what does not wait for them.
EVERY = 0.25
AT_ONCE = ("state", "place", "epoch", "asked")


class Viewer:
    """Sends frames out of a session's recording, of which it holds none itself.

    A viewer that acknowledges late gets no more frames; when it goes on, it goes on with the newest. Where an
    epoch begins, frames before it are not sent any more.

    Args:
      session: to watch.
      fps: frames per second.
      text, binary: send a message.
      journal: counts.
      encode: makes of the JPEG of each frame that is sent, in order, what is sent; None: it is sent.
    """

    def __init__(
        self,
        session: Session,
        fps: float,
        text: Callable[[str], Awaitable[None]],
        binary: Callable[[bytes], Awaitable[None]],
        journal: Journal,
        encode: Callable[[bytes], Awaitable[bytes]] | None = None,
    ) -> None:
        self._encode = encode
        self.session, self._text, self._binary = session, text, binary
        self._journal = journal
        # Frames on their way: what is made ahead, and a second for the way there and back.
        self._most = round((1 + LEAD) * fps) + 4
        newest = session.recording.newest
        self._next = self._acknowledged = session.fresh if newest is None else newest.serial
        self._event, self._loop = asyncio.Event(), asyncio.get_running_loop()
        self._said: dict[str, Any] = {}
        self._said_at = 0.0

    def acknowledge(self, serial: int) -> bool:
        """Takes in that all frames up to one were shown or dropped; whether this is news."""
        if not self._acknowledged <= serial < self._next:
            return False
        self._acknowledged = serial + 1
        self._event.set()
        return True

    async def run(self) -> None:
        """Sends until it is cancelled."""

        def wake() -> None:
            self._loop.call_soon_threadsafe(self._event.set)

        self.session.listeners.add(wake)
        try:
            while True:
                self._event.clear()
                while await self._send_frame():
                    pass
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._event.wait(), await self._report())
        finally:
            self.session.listeners.discard(wake)

    async def _send_frame(self) -> bool:
        """Sends the next frame, if there is one and it may be sent."""
        await self._report()
        newest = self.session.recording.newest
        wanted = max(self._next, self.session.fresh)
        if newest is None or newest.serial < wanted:
            return False
        if self._next - self._acknowledged >= self._most:
            return False
        frame = self.session.recording.at(wanted)
        if frame is None or newest.serial - frame.serial >= 2 * self._most:
            frame = newest
        self._journal.frames_skipped.inc(frame.serial - wanted)
        self._next = frame.serial + 1
        picture = frame.jpeg
        if self._encode:
            picture = await self._encode(picture)
        await self._binary(packed(frame, picture))
        self._journal.frames_sent.inc()
        return True

    async def _report(self) -> float | None:
        """Says where the session stands, if that has changed; seconds until it may be said again, or None."""
        found, now = self.session.snapshot(), time.monotonic()
        if found == self._said:
            return None
        wait = self._said_at + EVERY - now
        if wait > 0 and all(found[name] == self._said[name] for name in AT_ONCE):
            return wait
        self._said, self._said_at = found, now
        await self._text(json.dumps({"say": "state"} | found))
        return None
