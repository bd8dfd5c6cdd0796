"""Serves for hours in minutes: visitors come and go, switch prompts, pause, return and vanish.

    python tools/soak_live.py --checkpoint runs/toy/one_forcing --hours 8 --speed 96

Starts a server of its own whose clocks (how long an ended video is kept, a pause may take, an owner may be
away, a connection may be silent, a session may hold the device) are divided by `--speed`; further options are
those of `oneforcing_jax.serve`. The time is cut into eight parts. After each all visitors leave, and its
memory and file handles are read. Prints them as JSON. Ends with 1 where, after the second part, memory grows
by more than 5%, a handle stays open, or the server's log has a fault of the program.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from oneforcing_jax.errors import InputError
from oneforcing_jax.system.command import Help, ending

sys.path.append(str(Path(__file__).parent))
import attack_live  # noqa: E402
import load_live  # noqa: E402

PARTS, WARM, WITHIN = 8, 2, 0.05
VISITORS = 6


def serve(speed: float, options: Sequence[str]) -> None:
    """The server at shortened clocks."""
    from oneforcing_jax import serve as command
    from oneforcing_jax.live import queue, session
    from oneforcing_jax.system import sockets

    clocks = [(queue, "KEPT"), (session, "LONGEST_PAUSE")]
    clocks += [(sockets, name) for name in ("HEADERS", "BODY", "UNREAD")]
    for module, name in clocks:
        setattr(module, name, getattr(module, name) / speed)
    session.AWAY = {state: seconds / speed for state, seconds in session.AWAY.items()}
    command.main([f"--seconds={600 / speed}", "--port=0", *options])


class Visitors:
    """Those who come to a server.

    Args:
      address: HOST:PORT.
      seed: of what they do.

    Attributes:
      came: how many did what.
    """

    def __init__(self, address: str, seed: int) -> None:
        self.address, self._rng = address, random.Random(seed)
        self.came: Counter[str] = Counter()
        self._prompts: list[str] = []
        self._left: list[dict[str, Any]] = []

    async def come(self, seconds: float) -> None:
        """Several at once, one after the other, for so long; the last ones finish what they do."""
        end = time.monotonic() + seconds

        async def some() -> None:
            kinds: list[Callable[[], Awaitable[None]]] = [
                self._watch, self._switch, self._pause, self._vanish, self._return, self._fetch, self._make,
                self._talk, self._mute,
            ]  # fmt: skip
            from websockets.exceptions import ConnectionClosed

            while time.monotonic() < end:
                kind = self._rng.choice(kinds)
                self.came[kind.__name__[1:]] += 1
                with contextlib.suppress(ConnectionClosed, OSError, TimeoutError):
                    await asyncio.wait_for(kind(), load_live.PATIENCE)

        await asyncio.gather(*(some() for _ in range(VISITORS)))

    @contextlib.asynccontextmanager
    async def _started(self, **fields: Any) -> Any:
        """A visitor's connection with a video that has begun."""
        form = self._rng.choice(["jpeg", "jpeg", "h264"])
        async with load_live.connection(self.address, f"/live?video={form}") as socket:
            self._prompts = json.loads(await socket.recv())["examples"] or self._prompts
            if not self._prompts:
                raise InputError("expected a server that names examples of prompts, found none")
            said = {"do": "start", "prompt": self._rng.choice(self._prompts), "frames": 12}
            await socket.send(json.dumps(said | fields))
            visit = Visit(socket)
            await visit.until(lambda: visit.frames > 0 or visit.over)
            yield visit

    async def _watch(self) -> None:
        picture = io.BytesIO()
        Image.new("RGB", (200, 150), tuple(self._rng.randbytes(3))).save(picture, "PNG")
        image = base64.b64encode(picture.getvalue()).decode()
        async with (
            self._started(**self._rng.choice([{}, {"image": image}])) as visit,
            load_live.connection(self.address) as other,
        ):
            friend = Visit(other)
            await friend.say("watch", session=visit.session.get("session"))
            both = visit.until(lambda: visit.over), friend.until(lambda: friend.over)
            await asyncio.gather(*both)

    async def _switch(self) -> None:
        async with self._started(frames=40) as visit:
            for _ in range(3):
                await visit.say("prompt", prompt=self._rng.choice(self._prompts))
                seen = visit.frames
                await visit.until(lambda s=seen: visit.frames > s + 3 or visit.over)
            await visit.say("stop")

    async def _pause(self) -> None:
        async with self._started(frames=30) as visit:
            await visit.say("pause")
            await visit.until(lambda: visit.state.get("state") in ("paused", "ended"))
            await visit.say("resume")
            await visit.until(lambda: visit.over)

    async def _vanish(self) -> None:
        async with self._started(frames=200) as visit:
            self._left.append(visit.session)
            visit.socket.transport.abort()

    async def _return(self) -> None:
        """Comes back to a video that was left behind, if it is there; its key makes an owner again."""
        if self._left:
            gone = self._left.pop()
            async with load_live.connection(self.address) as socket:
                visit = Visit(socket)
                await visit.say("watch", session=gone.get("session"), key=gone.get("key"))
                await visit.until(lambda: visit.state.get("state") is not None or visit.refused > 0)
                await visit.say("stop")

    async def _fetch(self) -> None:
        async with self._started(frames=6) as visit:
            await visit.until(lambda: visit.over)
            await asyncio.to_thread(self._http, f"/videos/{visit.session.get('session')}.mp4", None)

    async def _make(self) -> None:
        if self._prompts:
            wish = {"prompt": self._rng.choice(self._prompts), "frames": 6}
            await asyncio.to_thread(self._http, "/videos", json.dumps(wish).encode())

    def _http(self, path: str, body: bytes | None) -> None:
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"http://{self.address}{path}", body, headers)
        with urllib.request.urlopen(asked, timeout=load_live.PATIENCE) as answer:
            answer.read()

    async def _talk(self) -> None:
        """Says what no page says."""
        async with load_live.connection(self.address) as socket:
            for _ in range(5):
                await socket.send(attack_live.message(self._rng, "a"))
                await socket.recv()

    async def _mute(self) -> None:
        """Connects, says half of a request or nothing, and waits to be sent away."""
        host, port = self.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        with contextlib.closing(writer):
            half = b"POST /videos HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"
            writer.write(self._rng.choice([b"", half[:9], half]))
            await reader.read()


class Visit:
    """A connection, and what was heard on it."""

    def __init__(self, socket: Any) -> None:
        self.socket, self.frames, self.refused = socket, 0, 0
        self.state: dict[str, Any] = {}
        self.session: dict[str, Any] = {}

    @property
    def over(self) -> bool:
        """Whether nothing more comes."""
        return self.state.get("state") == "ended" or self.refused > 0

    async def say(self, do: str, **fields: Any) -> None:
        """Sends a message."""
        await self.socket.send(json.dumps({"do": do} | fields))

    async def until(self, holds: Callable[[], bool]) -> None:
        """Reads until something holds."""
        from oneforcing_jax.live.wire import unpacked

        while not holds():
            message = await self.socket.recv()
            if isinstance(message, bytes):
                self.frames += 1
                await self.say("ack", serial=unpacked(message).serial)
                continue
            said = json.loads(message)
            self.state = said if said["say"] == "state" else self.state
            self.session = said if said["say"] == "session" else self.session
            self.refused += said["say"] == "refused"


@contextlib.contextmanager
def served(speed: float, options: Sequence[str], log: Path) -> Iterator[str]:
    """A server in a process of its own, which logs to a file; gives its address once all is compiled."""
    code = f"import soak_live; soak_live.serve({speed}, {list(options)})"
    path = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])
    with (
        log.open("wb") as file,
        subprocess.Popen(
            [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=file, text=True,
            env=os.environ | {"PYTHONPATH": path},
        ) as process,
    ):  # fmt: skip
        try:
            link = process.stdout.readline().strip() if process.stdout else ""
            if not link:
                raise InputError(f"expected a server, found: {log.read_text()[-500:].strip()}")
            address = link.removeprefix("http://").rstrip("/")
            while not load_live.health(address)["ready"]:
                time.sleep(0.5)
            yield address
        finally:
            process.terminate()


def at_rest(address: str) -> dict[str, int]:
    """Memory in bytes and file handles of a server once nothing is open.

    Raises:
      InputError: something stays open.
    """
    end, found = time.monotonic() + load_live.PATIENCE, dict[str, int]()
    while time.monotonic() < end:
        sessions = load_live.health(address)["sessions"]
        found = {
            "memory": load_live.measured(address),
            "handles": load_live.measured(address, "process_open_fds"),
            "viewers": load_live.measured(address, "oneforcing_viewers"),
        }
        if not (sum(sessions.values()) or found.pop("viewers")):
            return found
        time.sleep(0.5)
    raise InputError(f"expected a server at rest, found {sessions} and {found}")


def soak(hours: float, speed: float, options: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Serves visitors for so many hours of clocks that go `speed` times as fast; gives what was seen."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log.txt"
        with served(speed, options, log) as address:
            visitors, parts = Visitors(address, seed), []
            for _ in range(PARTS):
                asyncio.run(visitors.come(3600 * hours / speed / PARTS))
                parts.append(at_rest(address))
        said = log.read_text()
    memory = [part["memory"] for part in parts[WARM - 1 :]]
    handles = [part["handles"] for part in parts[WARM - 1 :]]
    return {
        "hours": hours, "speed": speed, "visits": visitors.came.total(), "kinds": dict(visitors.came),
        "parts": parts, "memory_grew": round(max(memory) / memory[0] - 1, 4),
        "handles_left": max(handles) - handles[0],
        "faults": said.count("Traceback") + said.count('"event": "fault"'),
    }  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("--hours", type=float, default=8.0, help="of use")
    parser.add_argument(
        "--speed", type=float, default=96.0, help="so many times as fast as real clocks"
    )
    parser.add_argument("--seed", type=int, default=0, help="of what visitors do")
    args, options = parser.parse_known_args(arguments)
    with ending("the server is ended"):
        found = soak(args.hours, args.speed, options, args.seed)
        print(json.dumps(found, indent=1))
        if found["memory_grew"] > WITHIN or found["handles_left"] or found["faults"]:
            raise InputError("expected memory within 5% and no handle more; see above")


if __name__ == "__main__":
    main()
