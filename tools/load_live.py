"""Loads a live server: one video with many viewers, of whom one does not read, while sessions wait.

    python -m oneforcing_jax.serve --checkpoint runs/toy/one_forcing --sessions 64
    python tools/load_live.py 127.0.0.1:8000 --prompt "a circle moving left" --seconds 300

Prints what was seen as JSON: frames that a viewer missed or had twice, how late frames came, and the server's
memory. Ends with 1 where a frame was lost or a session did not end well.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
import urllib.request
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from oneforcing_jax.errors import InputError
from oneforcing_jax.system.command import Help, count, ending

# Seconds that a server may take for what takes a moment.
PATIENCE = 120.0
_T = TypeVar("_T")


class Watcher:
    """A viewer that keeps up.

    Attributes:
      numbers: of the frames that came.
      delays: seconds between the time of each frame in the video and its arrival.
      arrivals: when each frame came.
      state: the last that was said of the session.
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self.numbers: list[int] = []
        self.delays: list[float] = []
        self.arrivals: list[float] = []
        self.state: dict[str, Any] = {}
        self.joined: dict[str, Any] = {}

    async def say(self, do: str, **fields: Any) -> None:
        """Sends a message."""
        await self._socket.send(json.dumps({"do": do} | fields))

    async def run(self) -> None:
        """Reads until the video has ended and all of it is here.

        Raises:
          InputError: the server refused something.
        """
        from oneforcing_jax.live.wire import unpacked  # an extra brings what it needs

        async for message in self._socket:
            if isinstance(message, bytes):
                frame = unpacked(message)
                self.numbers.append(frame.number)
                self.arrivals.append(time.monotonic())
                self.delays.append(self.arrivals[-1] - frame.time)
                await self.say("ack", serial=frame.serial)
            else:
                said = json.loads(message)
                if said["say"] == "refused":
                    raise InputError(f"the server refused: {said['error']}")
                self.state = said if said["say"] == "state" else self.state
                self.joined = said if said["say"] == "session" else self.joined
            seen = self.numbers[-1] + 1 if self.numbers else 0
            if self.state.get("state") == "ended" and seen == self.state["made"]:
                return


async def load(
    address: str, prompt: str, seconds: float, viewers: int, waiting: int
) -> dict[str, Any]:
    """Runs the load; gives what was seen."""
    async with asyncio.TaskGroup() as tasks:
        main, task = await watcher(tasks, address)
        await main.say("start", prompt=prompt, frames=_frames(main, seconds))
        while not main.numbers:
            await asyncio.sleep(0.05)
        name, others = main.joined["session"], []
        for _ in range(viewers - 1):
            other, _ = await watcher(tasks, address)
            await other.say("watch", session=name)
            others.append(other)
        # One that says it watches and then reads nothing.
        stalled = await connection(address, max_queue=1)
        await stalled.send(json.dumps({"do": "watch", "session": name}))
        queued: list[Watcher] = []
        for _ in range(waiting):
            session, _ = await watcher(tasks, address, **_elsewhere(address, len(queued)))
            await session.say("start", prompt=prompt, frames=2)
            queued.append(session)
        memory = [await asyncio.to_thread(measured, address)]
        while not task.done():
            await asyncio.sleep(min(5.0, seconds / 4))
            memory.append(await asyncio.to_thread(measured, address))
        stalled.transport.abort()
    lost = sum(_lost(watcher.numbers) for watcher in (main, *others))
    late = sorted(d - min(w.delays) for w in (main, *others) for d in w.delays)
    return {
        "seconds": seconds, "viewers": viewers, "frames": len(main.numbers), "lost_or_doubled": lost,
        "waited": waiting, "ended_well": sum(s.state["reason"] == "complete" for s in queued),
        "late_median": late[len(late) // 2], "late_99%": late[len(late) * 99 // 100], "late_most": late[-1],
        "memory_first": memory[0], "memory_last": memory[-1], "memory_most": max(memory),
    }  # fmt: skip


def _elsewhere(address: str, number: int) -> dict[str, Any]:
    """Where one of several clients connects from: on this machine they have addresses of their own, for each
    may have a part of what there is."""
    return {"local_addr": (f"127.0.1.{1 + number // 4}", 0)} if address.startswith("127.") else {}


def connection(address: str, path: str = "/live", **options: Any) -> Any:
    """A WebSocket of a server."""
    from websockets.asyncio.client import connect  # an extra brings it

    return connect(f"ws://{address}{path}", **options)


async def watcher(
    tasks: asyncio.TaskGroup, address: str, **options: Any
) -> tuple[Watcher, asyncio.Task[None]]:
    """A viewer, of whom a task reads what comes; its state is what the server said of itself."""
    socket = await connection(address, **options)
    watcher = Watcher(socket)
    watcher.state = json.loads(await socket.recv())
    return watcher, tasks.create_task(watcher.run())


def _frames(watcher: Watcher, seconds: float) -> int:
    frames = round(seconds * watcher.state["fps"])
    if frames > watcher.state["most_frames"]:
        raise InputError(
            f"--seconds: expected at most {watcher.state['most_frames']} frames, found {frames}; serve with "
            "a higher --most_frames"
        )
    return frames


def _lost(numbers: Sequence[int]) -> int:
    """Frames that are missing between the first and the last, or came again."""
    whole = set(range(numbers[0], numbers[-1] + 1))
    return len(whole - set(numbers)) + len(numbers) - len(set(numbers))


def measured(address: str, name: str = "process_resident_memory_bytes") -> int:
    """A number among the metrics of a server; 0: it does not say it."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
        found = re.search(rf"^{name} (\S+)", answer.read().decode(), re.MULTILINE)
    return int(float(found[1])) if found else 0


def health(address: str) -> Any:
    """What a server says of itself."""
    with urllib.request.urlopen(f"http://{address}/health", timeout=PATIENCE) as answer:
        return json.load(answer)


def ran(work: Coroutine[Any, Any, _T]) -> _T:
    """Runs what has tasks of its own; the first of their errors is the command's."""
    try:
        return asyncio.run(work)
    except* (InputError, ImportError) as several:
        raise several.exceptions[0] from None


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("address", help="of the server, HOST:PORT")
    parser.add_argument("--prompt", required=True, help="that its text encoder reads")
    parser.add_argument("--seconds", type=float, default=300.0, help="of the video")
    parser.add_argument("--viewers", type=count, default=10, help="of one video")
    parser.add_argument("--waiting", type=count, default=50, help="sessions in the queue")
    args = parser.parse_args(arguments)
    with ending("nothing is left behind"):
        found = ran(load(args.address, args.prompt, args.seconds, args.viewers, args.waiting))
        print(json.dumps(found, indent=1))
        if found["lost_or_doubled"] or found["ended_well"] < args.waiting:
            raise InputError("expected no frame lost and every session ended well; see above")


if __name__ == "__main__":
    main()
