"""Attacks a live server beside one viewer: hostile messages, and connections that send rubbish, half of a
request, or nothing.

    python -m oneforcing_jax.serve --checkpoint runs/toy/one_forcing
    python tools/attack_live.py 127.0.0.1:8000 --prompt "a circle moving left"

Prints what was seen as JSON: the longest time without a frame for the viewer, the server's memory before and
at its most, what was let in, and connections that were not ended. Ends with 1 where that is too much.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import itertools
import json
import random
import struct
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from oneforcing_jax.errors import InputError
from oneforcing_jax.system.command import Help, count, ending

sys.path.append(str(Path(__file__).parent))
import load_live  # noqa: E402

# Seconds that a viewer may be without a frame; bytes that memory may grow.
GAP, GROWTH = 2.0, 300e6
# Seconds in which the server ends what keeps it waiting, and a session that nobody owns.
PATIENCE = 75.0
SENDERS = 10
PATHS = ("/../../etc/passwd", "/videos/../../etc/passwd.mp4", "/videos/%2e%2e%2fx.mp4", "/videos/\\x.mp4",
         "//etc/passwd", "/live.js/../theme.css/..", "/pages/live.html", "/videos/.mp4", "/%00", "/live",
         f"/videos/{'a' * 5000}.mp4", f"/?{'a' * 9000}/..%2f", "/session.py", "/live.html")  # fmt: skip
_POST = "POST /videos HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
_GET = "GET {path} HTTP/1.1\r\nHost: {host}\r\n"
_UPGRADE = (
    _GET.replace("{path}", "/live") + "Connection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
)
# What connections send before they wait for their end. `{slow}` is sent byte by byte.
RAW = (
    "", "G", _GET + "X: y", _GET + "{slow}X: " + "y" * 90,
    _POST + 'Content-Length: 999\r\n\r\n{"do"', _POST + "Content-Length: 999\r\n\r\n{slow}" + "[" * 90,
    _POST + "Content-Length: 1000000000000\r\n\r\n{", _POST + "Content-Length: -1\r\n\r\n",
    _POST + "Transfer-Encoding: chunked\r\n\r\nzz\r\n", _POST + "Transfer-Encoding: chunked\r\n\r\n5\r\n[",
    _POST + "Expect: 100-continue\r\nContent-Length: 9\r\n\r\n", _GET + "X: " + "a" * 90_000,
    _GET.replace("{path}", "/health") + "\r\n\xff\xfe rubbish\r\n\r\n", "\x16\x03\x01\x02\x00\x01",
    _POST + "Content-Length: 20000\r\n\r\n" + "\xff" * 20_000, _POST + "Content-Length: 2\r\n\r\n{}GET",
    "GET /\xff HTTP/1.1\r\nHost: {host}\r\n\r\n", "GET http://[/ HTTP/1.1\r\nHost: {host}\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: http://[\r\n\r\n", "GET / HTTP/1.1\r\n\r\n", "GET / HTTP/1.1\r\nHost: [\r\n\r\n",
    _UPGRADE + "Origin: http://[\r\n\r\n", _UPGRADE + "Origin: null\r\n\r\n",
    _UPGRADE + "Cookie: token_live=\xff\r\n\r\n", _UPGRADE + "Origin: \xff\r\n\r\n",
    _UPGRADE.replace("13", "x") + "\r\n", _UPGRADE.replace("AAAA", "A") + "\r\n",
)  # fmt: skip


def junk(rng: random.Random) -> Any:
    """A value of no use."""
    values = [True, -1, 1e308, 10**30, 0.5, "", " ", "\ud800", "\0", "x" * 3000, [], {}, [[]] * 10,
              "../../etc/passwd", "a" + "\u0301" * 500, {"prompt": "a"}]  # fmt: skip
    return rng.choice(values)


def png(size: int, rng: random.Random, cut: int | None = None) -> str:
    """A small image whose header says another size, or of which there is only a part, in base64."""
    file = io.BytesIO()
    Image.frombytes("RGB", (8, 8), rng.randbytes(192)).save(file, "PNG")
    content = bytearray(file.getvalue())
    content[16:24] = size.to_bytes(4, "big") * 2  # what the header claims
    return base64.b64encode(bytes(content[:cut])).decode()


def large(rng: random.Random, prompt: str) -> list[str | bytes]:
    """Messages about as long as any may be, and images that take much room; they start nothing."""
    found: list[str | bytes] = [
        json.dumps({"do": "start", "prompt": 3, "image": "A" * 2_700_000}),
        json.dumps({"do": "start", "more": "A" * 2_700_000}),
        '{"image": "", "x": ' + "[" * 1_300_000 + "]" * 1_300_000 + "}",
        '{"image": "", "x": [' + "[]," * 900_000 + "[]]}",
        rng.randbytes(2_700_000),
        rng.randbytes(5_000_000),
    ]
    for mode in ("RGB", "RGBA", "I;16", "P", "L"):
        file = io.BytesIO()
        Image.new(mode, (4096, 4096)).save(file, "PNG", compress_level=1)
        picture = base64.b64encode(
            file.getvalue()[:-99]
        ).decode()  # seen when most of it is decoded
        found.append(json.dumps({"do": "start", "prompt": prompt, "image": picture}))
    return found


def message(rng: random.Random, prompt: str) -> str | bytes:
    """A message that no page sends, and that starts nothing."""
    start, key = (
        {"do": "start", "prompt": prompt},
        rng.choice(["prompt", "seed", "frames", "first_steps", "window"]),
    )
    image = rng.choice(
        [png(60000, rng), png(9, rng, 60), png(8, rng, 40), "AAAA", "R0lGODlh", junk(rng)]
    )
    kinds: list[Callable[[], str | bytes]] = [
        lambda: rng.randbytes(rng.randrange(300)),
        lambda: "".join(map(chr, rng.choices(range(1, 0xD000), k=rng.randrange(100)))),
        lambda: "[" * rng.randrange(1, 15000),
        lambda: json.dumps({"do": junk(rng)}),
        lambda: json.dumps(start | {key: junk(rng)}),
        lambda: json.dumps(start | {"image": image}),
        lambda: json.dumps(start | {"recompute": rng.choice([1, "yes", None, []])}),
        lambda: json.dumps({"do": "prompt", "prompt": junk(rng)}),
        lambda: json.dumps({"do": "watch", "session": junk(rng), "key": junk(rng)}),
        lambda: json.dumps({"do": rng.choice(["pause", "resume", "stop"])}),
        lambda: json.dumps({"do": "ack", "serial": junk(rng)}),
        lambda: json.dumps({"do": "watch", "more": "x" * 20000}),
    ]
    return rng.choice(kinds)()


def frame(opcode: int, content: bytes, last: bool = True, length: int | None = None) -> bytes:
    """A frame of a WebSocket as clients send it, with a mask of zeros; it may claim another length."""
    claimed = len(content) if length is None else length
    return struct.pack(">BBQI", opcode | last << 7, 0xFF, claimed, 0) + content


# What connections send once they are WebSockets.
FRAMES = (
    frame(1, b"\xff\xfe"), frame(1, b'{"do":', length=2_700_000), frame(1, b"{", length=1 << 40),
    frame(1, b"x" * 9, False), frame(3, b""), frame(0, b"x"), b"\x81\x02{}", frame(9, b"x" * 200),
    frame(8, b"\xff"), frame(8, b"\x03\xe8\xff\xff"), frame(1, b"A" * 2_700_000, False) * 2,
    frame(1, b'{"do":"ack","serial":1}') * 200, frame(2, b"\xff" * 99) * 30,
)  # fmt: skip


def said(address: str) -> list[bytes]:
    """What hostile connections send first, which is no request that may be answered well."""
    return [
        head.replace("{host}", address).replace("{path}", "/x").replace("{slow}", "").encode("latin-1")
        for head in RAW
    ]  # fmt: skip


class Attack:
    """What is done to a server, and what it did.

    Args:
      address: HOST:PORT.
      prompt: that the server reads.
      rng: chooses.

    Attributes:
      let_in: what was answered as if it were no attack.
      open: what was not ended.
      sent: messages.
    """

    def __init__(self, address: str, prompt: str, rng: random.Random) -> None:
        self.address, self._prompt, self._rng = address, prompt, rng
        self.let_in: list[str] = []
        self.open: list[str] = []
        self.sent = 0
        # Made before: who watches is served by the same loop.
        self._large = large(rng, prompt)

    async def talk(self, messages: int) -> None:
        """Sends messages, each of which is refused or ends its connection; every tenth one is large, and with
        every eighth comes a request of HTTP."""
        from websockets.exceptions import ConnectionClosed, InvalidHandshake

        while messages > 0:
            with contextlib.suppress(ConnectionClosed, InvalidHandshake, OSError):
                async with load_live.connection(self.address, max_size=None) as socket:
                    await socket.recv()
                    while messages > 0:
                        messages, self.sent = messages - 1, self.sent + 1
                        if messages % 8 == 0:
                            await asyncio.to_thread(self._request, self._rng.choice(PATHS))
                        said = message(self._rng, self._prompt)
                        if messages % 10 == 0:
                            said = self._rng.choice(self._large)
                        await socket.send(said)
                        answer = json.loads(await socket.recv())
                        if answer["say"] != "refused":
                            self.let_in.append(f"{said[:99]!r}: {answer['say']}")

    def _request(self, path: str) -> None:
        try:
            with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
                if not path.startswith("/?"):
                    self.let_in.append(f"{path}: {answer.status}")
        except urllib.error.HTTPError as error:
            if error.code >= 500 and error.code != 503:
                self.let_in.append(f"{path}: {error.code}")
        except (OSError, ValueError):
            pass

    async def hold(self, number: int) -> None:
        """A connection that says something and then waits for its end."""
        kinds = len(RAW) + len(FRAMES) + 2
        kind = number % kinds
        try:
            if kind < len(RAW):
                await self._raw(RAW[kind])
            elif kind < len(RAW) + len(FRAMES):
                await self._raw(_UPGRADE + "\r\n", FRAMES[kind - len(RAW)])
            elif kind == kinds - 2:
                await self._disown()
            else:
                await self._raw(_UPGRADE + "\r\n", self._unread())
        except TimeoutError:
            self.open.append(repr((RAW + FRAMES + ("disown", "unread"))[kind])[:99])
        except OSError:
            pass  # it was cut off

    async def _raw(self, head: str, after: bytes = b"") -> None:
        host, port = self.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        head, _, slow = (
            head.replace("{host}", self.address).replace("{path}", "/").partition("{slow}")
        )
        async with asyncio.timeout(PATIENCE):
            with contextlib.closing(writer):
                writer.write(head.encode("latin-1"))
                if after:
                    await reader.readuntil(b"\r\n\r\n")
                    writer.write(after)
                for letter in slow.encode():
                    writer.write(bytes([letter]))
                    await writer.drain()
                    await asyncio.sleep(0.5)
                while await reader.read(1 << 16):
                    pass

    def _unread(self) -> bytes:
        """Asks for thousands of answers."""
        return frame(1, b'{"do":"stop"}') * 15

    async def _disown(self) -> None:
        """Starts videos and then only watches them, so that nobody owns them any more."""
        async with load_live.connection(self.address) as socket:
            for _ in range(3):
                await socket.send(json.dumps({"do": "start", "prompt": self._prompt, "frames": 2}))
                async for said in socket:
                    found = json.loads(said) if isinstance(said, str) else {}
                    if found.get("say") == "session":
                        await socket.send(json.dumps({"do": "watch", "session": found["session"]}))
                        break
                    if found.get("say") == "refused":
                        return
            await asyncio.sleep(5)


async def attack(
    address: str, prompt: str, messages: int, connections: int, seed: int = 0
) -> dict[str, Any]:
    """Attacks, while somebody watches a video; gives what was seen."""
    made = Attack(address, prompt, random.Random(seed))
    async with asyncio.TaskGroup() as tasks:
        viewer, watching = await load_live.watcher(tasks, address)
        await viewer.say("start", prompt=prompt, frames=viewer.state["most_frames"])
        while len(viewer.numbers) < 8:
            await asyncio.sleep(0.05)
        before = [await asyncio.to_thread(load_live.measured, address) for _ in range(3)]
        memory: list[int] = []
        looking = tasks.create_task(_look(address, memory))
        held = [made.hold(n) for n in range(connections)]
        talking = [made.talk(messages // SENDERS) for _ in range(SENDERS)]
        await asyncio.gather(*held, *talking)
        await asyncio.to_thread(_tidied, address)
        looking.cancel()
        shown = len(viewer.arrivals)
        await viewer.say("stop")
        await watching
    seen, idle = viewer.arrivals[:shown], max(before)
    gap = max(b - a for a, b in itertools.pairwise(seen))
    return {
        "messages": made.sent, "connections": connections, "frames": shown, "longest_gap": round(gap, 3),
        "memory_idle": idle, "memory_most": max(memory), "memory_grew": max(memory) - idle,
        "let_in": made.let_in, "still_open": made.open, "reason": viewer.state["reason"],
    }  # fmt: skip


async def _look(address: str, memory: list[int]) -> None:
    while True:
        with contextlib.suppress(OSError):
            memory.append(await asyncio.to_thread(load_live.measured, address))
        await asyncio.sleep(0.2)


def _tidied(address: str) -> None:
    """Waits until no session waits any more."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            if load_live.health(address)["sessions"]["waiting"] == 0:
                return
        time.sleep(0.5)
    raise InputError("expected that sessions without owners end, found some that wait; see /health")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=Help)
    parser.add_argument("address", help="of the server, HOST:PORT")
    parser.add_argument("--prompt", required=True, help="that its text encoder reads")
    parser.add_argument("--messages", type=count, default=1000, help="hostile ones")
    parser.add_argument("--connections", type=count, default=100, help="hostile ones, at once")
    parser.add_argument("--seed", type=int, default=0, help="of what is sent")
    args = parser.parse_args(arguments)
    with ending("nothing is left behind"):
        given = args.address, args.prompt, args.messages, args.connections, args.seed
        found = load_live.ran(attack(*given))
        print(json.dumps(found, indent=1))
        if (
            found["let_in"]
            or found["still_open"]
            or found["memory_grew"] > GROWTH
            or found["longest_gap"] > GAP
        ):
            raise InputError("expected an attack that nobody notices; see above")


if __name__ == "__main__":
    main()
