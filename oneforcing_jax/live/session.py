"""A video that is made while it is watched: where it stands, and what can still be said.

A session knows nothing of connections. One thread makes its video; controls come from any other, and whoever
listens is told that something changed.
"""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any, NamedTuple, Protocol

from oneforcing_jax.errors import Refused
from oneforcing_jax.live.recording import Recording, Shown, to_jpeg
from oneforcing_jax.live.studio import Made, Wish

WAITING, RUNNING, PAUSED, ENDED = "waiting", "running", "paused", "ended"
# Seconds that a video is made ahead of what is seen.
LEAD = 0.5
# Seconds that a pause may take: others wait for the device.
LONGEST_PAUSE = 120.0
# Seconds that a session outlives its last owner, who may come back: a reload takes less.
AWAY = {WAITING: 10.0, RUNNING: 30.0, PAUSED: 30.0}
# Prompts of one video.
MOST_MARKS = 50
DONE, STOPPED = "complete", "stopped"


class Maker(Protocol):
    """What makes the video of a session, such as a `Studio`."""

    @property
    def fps(self) -> float:
        """Frames a second."""

    def make(self, wish: Wish, prompt: Callable[[int], str]) -> Generator[Made]:
        """Blocks of a video; see `Studio.make`."""


class Mark(NamedTuple):
    """Where a prompt took effect: the number of its first frame."""

    frame: int
    epoch: int
    prompt: str


class Meters(NamedTuple):
    """Seconds of model and decoder for the last block, frames a second made since the beginning, and seconds
    from the request (waiting included) to the first frame."""

    model: float
    decode: float
    made: float
    first: float


class Session:
    """One video, made anew as often as its owner wishes.

    Args:
      wish: what to make.
      seconds: that it may hold the device.
      paced: whether it is made no faster than it plays.
      client: who asked for it.
    """

    def __init__(self, wish: Wish, seconds: float, paced: bool = True, client: str = "") -> None:
        self.id, self.key = secrets.token_urlsafe(9), secrets.token_urlsafe(16)
        self.client = client
        # Connections that may control it, and since when there is none.
        self.owners, self._left = 0, time.monotonic()
        self.listeners: set[Callable[[], None]] = set()
        self._seconds, self._paced = seconds, paced
        self._condition = threading.Condition()
        # Frames of all videos of this session, and the first that is not stale: those before it belong to an
        # older prompt or video.
        self.total = self.fresh = 0
        self._epoch = self._take = 0
        self._begin_anew(wish)

    def _begin_anew(self, wish: Wish) -> None:
        self.wish, self.state, self.reason, self.place = wish, WAITING, "", 0
        self.recording = Recording()
        self._take += 1
        self._epoch += 1
        self.fresh = self.total
        self._asked: str | None = None
        self._prompt, self._made, self._marks = wish.prompt, 0, [Mark(0, self._epoch, wish.prompt)]
        self._meters: Meters | None = None
        # The clock of the video stands still in a pause: its zero, when it was stopped, and when
        # the next frame is to be seen.
        self._zero = self._stopped = self._due = 0.0
        self._wished, self.ended_at = time.monotonic(), 0.0

    def _told(self) -> None:
        """Wakes the maker and tells the listeners; the lock is held."""
        self._condition.notify_all()
        for listener in tuple(self.listeners):
            listener()

    # Owners, of the thread that has the connections.

    def join(self) -> None:
        """Somebody may control it from now on."""
        self.owners += 1

    def leave(self) -> None:
        """Somebody who might control it is gone."""
        self.owners -= 1
        self._left = time.monotonic()

    @property
    def abandoned(self) -> bool:
        """Whether it holds a place or the device for nobody; a running video may be for its viewers."""
        alone = 0.0 if self.owners else time.monotonic() - self._left
        watched = self.state == RUNNING and self.listeners
        return alone > AWAY.get(self.state, math.inf) and not watched

    # Controls, of any thread.

    def restart(self, wish: Wish) -> None:
        """Begins anew with another wish. Whoever has the queue adds the session again."""
        with self._condition:
            self._begin_anew(wish)
            self._told()

    def switch(self, prompt: str) -> None:
        """Goes on with another prompt from the next block on.

        Raises:
          Refused: the video has ended, or has had too many prompts.
        """
        with self._condition:
            self._check_open()
            if len(self._marks) >= MOST_MARKS:
                raise Refused(409, f"expected at most {MOST_MARKS} prompts of one video")
            self._asked = prompt
            self._told()

    def pause(self) -> None:
        """Holds the video, and the device. A session that waits is not held."""
        with self._condition:
            if self.state != RUNNING:
                raise Refused(409, f"expected a running video to pause, found it {self.state}")
            self.state, self._stopped = PAUSED, time.monotonic()
            self._told()

    def resume(self) -> None:
        """Goes on after a pause."""
        with self._condition:
            if self.state != PAUSED:
                raise Refused(409, f"expected a paused video, found it {self.state}")
            self._zero += time.monotonic() - self._stopped
            self.state, self._stopped = RUNNING, 0.0
            self._told()

    def stop(self, reason: str = STOPPED) -> None:
        """Ends the video where it is; what was made is kept."""
        with self._condition:
            if self.state != ENDED:
                self.state, self.reason, self.place = ENDED, reason, 0
                self.ended_at = time.monotonic()
                self._told()

    def wait_at(self, place: int) -> None:
        """Says the place in the queue, from 1."""
        with self._condition:
            if self.state == WAITING and self.place != place:
                self.place = place
                self._told()

    def _check_open(self) -> None:
        if self.state == ENDED:
            raise Refused(409, f"expected a video that goes on, found it ended: {self.reason}")

    def snapshot(self) -> dict[str, Any]:
        """Where it stands, as JSON holds it."""
        with self._condition:
            return {
                "session": self.id, "state": self.state, "reason": self.reason, "place": self.place,
                "epoch": self._epoch, "made": self._made, "frames": self.wish.frames,
                "kept_from": self._made - self.recording.count, "prompt": self._prompt,
                "asked": self._asked, "seed": self.wish.seed, "first_steps": self.wish.first_steps,
                "window": self.wish.window, "recompute": self.wish.recompute,
                "adapter": self.wish.adapter,
                "marks": [mark._asdict() for mark in self._marks],
                "meters": self._meters and self._meters._asdict(),
            }  # fmt: skip

    @property
    def prompts(self) -> list[str]:
        """That the video has had, in order."""
        with self._condition:
            return [mark.prompt for mark in self._marks]

    @property
    def bytes(self) -> int:
        """That it keeps in memory."""
        image = self.wish.image
        return self.recording.bytes + (0 if image is None else image.nbytes)

    def watch(self) -> Iterator[Shown]:
        """Frames when they are to be seen, until the video has ended and all were. Who comes late for a frame
        gets the newest one; what was made for an older prompt and is not seen yet, is not shown."""
        after = self.fresh
        while True:
            with self._condition:
                now, due, wait = (self._stopped or time.monotonic()) - self._zero, None, None
                after = max(after, self.fresh)
                while (frame := self.recording.at(after)) and frame.serial >= after:
                    if frame.time > now:
                        wait = frame.time - now
                        break
                    due, after = frame, frame.serial + 1
                if due is None:
                    if self.state == ENDED and (wait is None or self._stopped):
                        return
                    self._condition.wait(None if self._stopped else wait)
                    continue
            yield due

    # The making, of one thread.

    def run(self, studio: Maker) -> None:
        """Makes the video until it ends, or is begun anew."""
        with self._condition:
            take, wish = self._take, self.wish
            if self.state != WAITING:
                return
            self.state, self.place, self._zero = RUNNING, 0, time.monotonic()
            held = self._zero + self._seconds
            self._told()
        blocks = studio.make(wish, lambda frame: self._prompt_at(frame, take))
        for made in blocks:
            if not self._show(made, studio.fps, take) or not self._wait(take, held):
                break
        blocks.close()

    def _prompt_at(self, frame: int, take: int) -> str:
        with self._condition:
            if self._asked is not None and take == self._take:
                self._prompt, self._asked = self._asked, None
                self._epoch += 1
                if self._marks[-1].frame == frame:  # a prompt that has made nothing
                    self._marks.pop()
                self._marks.append(Mark(frame, self._epoch, self._prompt))
                # What is not seen yet of the old prompt gives way.
                self._due, self.fresh = time.monotonic() - self._zero, self.total
                self._told()
            return self._prompt

    def _show(self, made: Made, fps: float, take: int) -> bool:
        """Takes the frames of a block; whether the video goes on."""
        pictures = [to_jpeg(pixels) for pixels in made.frames]
        with self._condition:
            if take != self._take or self.state == ENDED:
                return False
            now = (self._stopped or time.monotonic()) - self._zero
            for picture in pictures[: self.wish.frames - self._made]:
                time_ = max(self._due, now) if self._paced else self._due
                shown = Shown(self.total, self._epoch, self._made, time_, picture)
                self.recording.append(shown)
                self._made, self._due = self._made + 1, time_ + 1 / fps
                self.total += 1
            first = self._meters.first if self._meters else time.monotonic() - self._wished
            self._meters = Meters(made.model, made.decode, self._made / max(now, 1e-6), first)
            if self._made >= self.wish.frames:
                self.stop(DONE)
            self._told()
            return self.state != ENDED

    def _wait(self, take: int, held: float) -> bool:
        """Waits while the video is paused or far enough ahead; whether it goes on."""
        while True:
            with self._condition:
                if take != self._take or self.state == ENDED:
                    return False
                now = time.monotonic()
                if now >= held:
                    self.stop(f"the device is held for {self._seconds:g} s at most")
                    return False
                if self.state == PAUSED:
                    left = self._stopped + LONGEST_PAUSE - now
                    if left <= 0:
                        self.stop(f"a pause takes {LONGEST_PAUSE:g} s at most")
                        return False
                    self._condition.wait(min(left, held - now))
                    continue
                ahead = self._due - (now - self._zero) - LEAD
                if not self._paced or self._asked is not None or ahead <= 0:
                    return True
                self._condition.wait(min(ahead, held - now))
