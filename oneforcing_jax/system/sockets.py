"""Connections of a server, and when they end: how many there may be, and how long one may keep it waiting."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import h11
from starlette.requests import ClientDisconnect
from uvicorn.protocols.http.h11_impl import H11Protocol
from websockets.exceptions import WebSocketException

# Connections of all kinds at once.
MOST = 256
# Seconds until the headers of a request are here, until its body is from then on, and in which a client takes
# `LEAST` bytes, or all, of what it is sent.
HEADERS, BODY, UNREAD = 10.0, 30.0, 30.0
LEAST = 64 << 10
# Seconds between two looks at all of them.
EVERY = 1
LOG = logging.getLogger("uvicorn.error")
# What a client makes the layers below us raise.
_THEIRS = (h11.ProtocolError, WebSocketException, ClientDisconnect, ConnectionError, UnicodeError)


class Plain(H11Protocol):
    """A connection of HTTP, as uvicorn serves it. Where there are too many, the one that has waited longest
    without a request gives way."""

    def connection_made(self, transport: Any) -> None:
        """Takes a connection in."""
        super().connection_made(transport)
        self.begun = time.monotonic()
        if sum(not other.transport.is_closing() for other in self.connections) > MOST:
            mute = (c for c in self.connections if isinstance(c, Plain) and c.mute)
            min(mute, key=lambda c: c.begun, default=self).transport.abort()

    @property
    def mute(self) -> bool:
        """Whether no request has begun."""
        return self.conn.their_state is h11.IDLE and not self.transport.is_closing()


class Patience:
    """Ends connections that keep a server waiting; `look` is called every now and then.

    Attributes:
      connections: of uvicorn.
    """

    def __init__(self) -> None:
        self.connections: Collection[Any] = ()
        self._seen: dict[Any, tuple[str, Any, float]] = {}

    async def look(self) -> None:
        """Looks at all connections."""
        now, seen = time.monotonic(), {}
        for connection in list(self.connections):
            kind, mark = _awaited(connection)
            before, old, since = self._seen.get(connection, ("", None, now))
            if kind != before or _goes_on(kind, old, mark):
                since = now
            else:
                mark = old
            seen[connection] = kind, mark, since
            if kind and now - since > {"headers": HEADERS, "body": BODY, "unread": UNREAD}[kind]:
                connection.transport.abort()
        self._seen = seen


def _awaited(connection: Any) -> tuple[str, Any]:
    """What a client is to do now, and something that changes when it does."""
    if unread := connection.transport.get_write_buffer_size():
        return "unread", unread
    if isinstance(connection, Plain):
        state = connection.conn.their_state
        if state in (h11.IDLE, h11.SEND_BODY):
            return "headers" if state is h11.IDLE else "body", connection.cycle
    return "", None


def _goes_on(kind: str, before: Any, now: Any) -> bool:
    if kind == "unread":
        return bool(now <= before - LEAST)
    return before is not now


def in_a_line(record: logging.LogRecord) -> bool:
    """Leaves the traceback out of what is logged, where a client is at fault and not the program."""
    fault = record.exc_info[1] if record.exc_info else None
    if isinstance(fault, _THEIRS):
        said = " ".join(f"{type(fault).__name__}: {fault}".split())
        record.msg, record.args = f"a client's fault, its connection is closed: {said:.200}", ()
        record.exc_info = record.exc_text = None
    return True


def watched() -> tuple[Patience, dict[str, Any]]:
    """Who ends connections of a server, and the options of uvicorn with which it does so."""
    patience = Patience()
    look: Callable[[], Awaitable[None]] = patience.look
    for logger in (LOG, logging.getLogger("asyncio")):
        logger.addFilter(in_a_line)
    return patience, {"http": Plain, "callback_notify": look, "timeout_notify": EVERY}
