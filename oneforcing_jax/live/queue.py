"""One device and the sessions that wait for it: one thread makes one video at a time, as they came."""

from __future__ import annotations

import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable

from oneforcing_jax.errors import InputError, Refused
from oneforcing_jax.live import session as states
from oneforcing_jax.live.journal import Journal
from oneforcing_jax.live.session import Session
from oneforcing_jax.live.studio import Studio, Wish

# Seconds that an ended session can be seen and fetched, bytes of all of them, and what each counts at least.
KEPT, MOST_KEPT, LEAST_KEPT = 600.0, 1 << 30, 4 << 20
# Seconds that the end of the server waits for the block that is being made.
PATIENCE = 10.0
# A client may have a part of the sessions that wait or run, or `LEAST`, and of the bytes of ended ones.
PART, LEAST = 4, 4


class Queue:
    """All sessions of a server.

    Args:
      studio: makes the videos.
      most: sessions that may wait or run at once.
      journal: is told what happens.
      warmed: is called when all programs are compiled.
    """

    def __init__(
        self,
        studio: Studio,
        most: int,
        journal: Journal,
        warmed: Callable[[], None] = lambda: None,
    ) -> None:
        self.studio, self._most, self._journal, self._warmed = studio, most, journal, warmed
        self._condition = threading.Condition()
        self._all: dict[str, Session] = {}
        self._waiting: list[Session] = []
        self._running: Session | None = None
        self._closed, self.ready = False, False
        self._thread = threading.Thread(target=self._work, name="device", daemon=True)
        self._thread.start()

    def add(self, session: Session, wish: Wish | None = None) -> None:
        """Takes a session in, or with a wish in again; it waits at the end.

        Raises:
          Refused: too many wait, or the server ends.
        """
        with self._condition:
            if self._closed:
                raise Refused(503, "the server ends")
            open_ = {s for s in (*self._waiting, self._running) if s and s is not session}
            if len(open_) >= self._most:
                raise Refused(503, f"{len(open_)} sessions wait or run already; try again later")
            mine = sum(other.client == session.client for other in open_)
            if mine >= max(LEAST, self._most // PART):
                raise Refused(503, f"{mine} sessions of this address wait or run already; end one")
            if wish:
                session.restart(wish)
            self._forget()
            self._all[session.id] = session
            if session in self._waiting:
                self._waiting.remove(session)
            self._waiting.append(session)
            self._number()
            self._condition.notify_all()
        self._journal.said("session_waits", session=session.id, place=session.place)

    def find(self, name: str) -> Session | None:
        """A session by its id, also one that has ended not long ago."""
        with self._condition:
            return self._all.get(name)

    def count(self, state: str) -> int:
        """Sessions in a state."""
        with self._condition:
            return sum(session.state == state for session in self._all.values())

    def close(self) -> None:
        """Ends all sessions and the thread."""
        with self._condition:
            self._closed = True
            for session in self._all.values():
                session.stop("the server ends")
            self._condition.notify_all()
        self._thread.join(PATIENCE)

    def leave(self, session: Session) -> None:
        """Ends a session; those behind it move up."""
        session.stop()
        with self._condition:
            if session in self._waiting:
                self._waiting.remove(session)
                self._number()

    def tidy(self) -> None:
        """Ends sessions that nobody owns any more and others wait for, and lets go of what ended long ago."""
        with self._condition:
            abandoned = [
                session for session in self._all.values()
                if session.abandoned and (self._waiting or session.state != states.RUNNING)
            ]  # fmt: skip
        for session in abandoned:
            self.leave(session)
        with self._condition:
            self._forget()

    def _number(self) -> None:
        for place, session in enumerate(self._waiting, 1):
            session.wait_at(place)

    def _forget(self) -> None:
        """Lets go of what ended long ago, or takes too much memory; the oldest first."""
        ended, kept = (s for s in self._all.values() if s.state == states.ENDED), Counter[str]()
        for session in sorted(ended, key=lambda s: s.ended_at, reverse=True):
            kept[session.client] += max(LEAST_KEPT, session.bytes)
            full = kept.total() > MOST_KEPT or kept[session.client] > MOST_KEPT // PART
            if full or session.ended_at < time.monotonic() - KEPT:
                del self._all[session.id]

    def _work(self) -> None:
        begun = time.monotonic()
        while True:
            if not (self.ready or self._waiting or self._closed):
                self._warm(begun)
            with self._condition:
                self._condition.wait_for(lambda: self._waiting or self._closed)
                if self._closed:
                    return
                session = self._running = self._waiting.pop(0)
                self._number()
            self._make(session)
            with self._condition:
                self._running = None

    def _warm(self, begun: float) -> None:
        """Compiles what sessions run, until one waits: it compiles what it needs, and the rest follows."""
        try:
            for _ in self.studio.warm():
                if self._waiting or self._closed:
                    return
            self._warmed()
        except Exception as error:
            self._failed("warm", error)
        self.ready = True
        self._journal.said("warm", seconds=round(time.monotonic() - begun, 3))

    def _make(self, session: Session) -> None:
        """Makes the video of a session. What goes wrong ends this session alone."""
        self._journal.said("session_runs", session=session.id)
        before = session.total
        try:
            session.run(self.studio)
        except InputError as error:
            session.stop(f"error: {error}")
        except Exception as error:
            self._failed(session.id, error)
            session.stop("a fault of the program; its log says more")
        said = session.snapshot()
        self._journal.made(session.total - before, said["meters"])
        self._journal.said(
            "session_rests", session=session.id, state=said["state"], reason=said["reason"],
            frames=said["made"], first_frame=(said["meters"] or {}).get("first"),
        )  # fmt: skip

    def _failed(self, name: str, error: Exception) -> None:
        self._journal.said("fault", session=name, error=traceback.format_exception(error)[-12:])
