"""Time from the start of a live server to its first frames, cold and with the programs that it kept.

Everything goes over the WebSocket of a server in a process of its own. Of several starts the least counts,
for other work on a machine only adds to a time.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from oneforcing_jax.errors import InputError
from oneforcing_jax.system.command import count


def options(parser: argparse.ArgumentParser) -> None:
    """Adds the options; all others are the server's."""
    parser.add_argument("--starts", type=count, default=3, help="of each kind")


def run(given: argparse.Namespace, rest: Sequence[str]) -> dict[str, Any]:
    """a live server's start and first frames; other options are those of oneforcing_jax.serve

    Raises:
      InputError: the server does not start, or makes no video.
    """
    rows = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("cold", "restarted"):
            # A restarted server finds what the first cold one kept.
            kept = [f"{folder}/{n if kind == 'cold' else 0}" for n in range(given.starts)]
            starts = [_start([*rest, f"--programs={where}"]) for where in kept]
            rows[kind] = {name: min(start[name] for start in starts) for name in starts[0]}
            print(
                kind, *(f"{name} {seconds:.3f}" for name, seconds in rows[kind].items()), sep="  "
            )
    return rows


def _start(options: Sequence[str]) -> dict[str, float]:
    """Seconds of one server: from its start until it listens, and until all is compiled; from a request to
    the first frame, when it listens and when all is compiled, by steps of the first block; of a block."""
    begun = time.perf_counter()
    with _server(options) as address:
        row = {"listens": time.perf_counter() - begun, "asked_at_once": _video(address, 4)[0]}
        while not _is_ready(address):
            time.sleep(0.02)
        row["ready"] = time.perf_counter() - begun
        row["ready_4_steps"], _ = _video(address, 4)
        row["ready_1_step"], meters = _video(address, 1)
        row["block"] = meters["model"] + meters["decode"]
    return row


@contextlib.contextmanager
def _server(options: Sequence[str]) -> Iterator[str]:
    """The command in a process of its own; its address."""
    words = [sys.executable, "-m", "oneforcing_jax.serve", "--port=0", *options]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        try:
            address = process.stdout.readline().strip()
            if not address:
                raise InputError("serve: expected its address, found that it ended; see its line")
            yield address.removeprefix("http://").rstrip("/")
        finally:
            process.terminate()


def _is_ready(address: str) -> bool:
    with urllib.request.urlopen(f"http://{address}/health", timeout=30) as answer:
        return bool(json.load(answer)["ready"])


def _video(address: str, steps: int) -> tuple[float, dict[str, float]]:
    """Seconds from a request to its first frame, and the meters at the video's end."""
    # They need packages of an extra, which other benchmarks do without.
    from websockets.sync.client import connect

    from oneforcing_jax.live.wire import unpacked

    with connect(f"ws://{address}/live", max_size=None) as socket:
        prompt, first = json.loads(socket.recv())["examples"][0], 0.0
        begun = time.perf_counter()
        socket.send(json.dumps({"do": "start", "prompt": prompt, "first_steps": steps}))
        said: dict[str, Any] = {}
        while said.get("state") != "ended" or (said["reason"] == "complete" and not first):
            message = socket.recv()
            if isinstance(message, str):
                said = json.loads(message)
                continue
            first = first or time.perf_counter() - begun
            socket.send(json.dumps({"do": "ack", "serial": unpacked(message).serial}))
    if said["reason"] != "complete":
        raise InputError(f"serve: expected a whole video, found {said['reason']!r}")
    return first, said["meters"]
