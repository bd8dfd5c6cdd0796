"""A live server of a tiny model with random weights, and what talks to it."""

import contextlib
import functools
import json
import os
import subprocess
import sys
import threading
import time

import jax
import numpy as np
from waits import HANG
from websockets.sync.client import connect

from oneforcing_jax.convert import to_orbax
from oneforcing_jax.families import records
from oneforcing_jax.live.journal import Journal
from oneforcing_jax.live.queue import Queue
from oneforcing_jax.live.server import Server, process
from oneforcing_jax.live.wire import unpacked
from oneforcing_jax.models import wan
from oneforcing_jax.system import web
from oneforcing_jax.toy import codec as codecs
from oneforcing_jax.toy import encoders as toy_encoders
from oneforcing_jax.toy import text as texts

CONFIG = wan.WanConfig(24, 32, 2, 2, in_dim=4, out_dim=4, text_dim=16, text_len=8, freq_dim=8)
WORDS = "a red blue square circle moves left"
# Six frames of 24x32 at 16 a second; a window of three has one program for each kind of block.
OPTIONS = ["--dtype=float32", "--frames=6", "--size=24x32", "--fps=16", "--window=3"]


def make_weights(folder, random_params):
    """A converted model with its encoders in one folder."""
    params = jax.tree.map(np.asarray, random_params(wan.model(CONFIG)))
    to_orbax.save_item(folder / "0" / "params_generator", params)
    (folder / "model.json").write_text(
        json.dumps({"nets": {"params_generator": records.describe(CONFIG)}})
    )
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), np.uint8)
    words = texts.TextEncoder.train([WORDS], dim=16, length=8)
    toy_encoders.save(folder, codecs.fit(noise, channels=4), words)
    return folder


@contextlib.contextmanager
def in_thread(studio, most=8, token="", queue=None):
    """A real server in a thread of this process; gives its address."""
    journal = Journal()
    queue = queue or Queue(studio, most, journal)
    serving = process(Server(queue, HANG, token, journal))
    with web.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=functools.partial(serving.run, sockets=[listening]))
        thread.start()
        try:
            yield f"127.0.0.1:{listening.getsockname()[1]}"
        finally:
            serving.should_exit = True
            thread.join(HANG)
            assert not thread.is_alive()


@contextlib.contextmanager
def in_process(folder, environment, *options):
    """The command in a process of its own; gives it and the address."""
    words = ["-m", "oneforcing_jax.serve", f"--checkpoint={folder}", *OPTIONS, *options]
    with (folder / "log.txt").open("ab") as log:
        started = subprocess.Popen(
            [sys.executable, *words],
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        try:
            address = started.stdout.readline().strip()
            assert address, (folder / "log.txt").read_text()
            yield started, address
        finally:
            started.terminate()
            try:
                started.wait(HANG)
            finally:
                started.kill()
            started.stdout.close()


class Client:
    """A connection that reads what comes: frames, and the last state."""

    def __init__(self, address, query="", **options):
        self.socket = connect(f"ws://{address}/live{query}", max_size=None, **options)
        self.frames, self.state, self.session, self.refused = [], None, None, []
        self.hello = json.loads(self.socket.recv(HANG))
        assert self.hello["say"] == "hello"

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def say(self, do, **fields):
        self.socket.send(json.dumps({"do": do} | fields))

    def read(self, timeout=HANG, acknowledge=True):
        """Takes in one message."""
        message = self.socket.recv(timeout)
        if isinstance(message, bytes):
            frame = unpacked(message)
            self.frames.append(frame)
            if acknowledge:
                self.say("ack", serial=frame.serial)
            return
        said = json.loads(message)
        if said["say"] == "state":
            self.state = said
        elif said["say"] == "session":
            self.session = said
        elif said["say"] == "refused":
            self.refused.append(said)

    def until(self, condition, acknowledge=True):
        """Reads until something holds of this client."""
        end = time.monotonic() + HANG
        while not condition(self):
            left = end - time.monotonic()
            assert left > 0, (self.state, len(self.frames), self.refused)
            with contextlib.suppress(TimeoutError):
                self.read(min(left, 0.5), acknowledge)
        return self

    def drain(self):
        """Reads what is there."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.read(0.01)

    def is_in(self, state):
        """Reads until the session is in a state."""
        return self.until(lambda c: c.state and c.state["state"] == state)

    def all_read(self):
        """Reads the rest of a video that has ended."""
        return self.until(lambda c: c.frames and c.frames[-1].number == c.state["made"] - 1)
