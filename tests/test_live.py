"""Live videos: sessions, the server over real connections, its limits, and the page in a real browser."""

import asyncio
import base64
import contextlib
import copy
import dataclasses
import http.client
import io
import itertools
import json
import os
import random
import re
import socket
import sys
import time
import tracemalloc
import types
from pathlib import Path

import av
import jax
import numpy as np
import pytest
import waits
from browser import NARROW, assert_accessible, chromium, page_of, until
from live import OPTIONS, Client, in_process, in_thread, make_weights
from PIL import Image
from starlette.requests import HTTPConnection
from waits import HANG
from websockets.exceptions import ConnectionClosed

from oneforcing_jax import demos, serve
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.data import images
from oneforcing_jax.data.origin import digest, read_origin
from oneforcing_jax.data.video import read_video
from oneforcing_jax.errors import Refused
from oneforcing_jax.generation.loading import Loading
from oneforcing_jax.generation.scene import Look
from oneforcing_jax.live import clients, wire
from oneforcing_jax.live import queue as module
from oneforcing_jax.live import session as states
from oneforcing_jax.live.journal import Journal
from oneforcing_jax.live.queue import Queue
from oneforcing_jax.live.session import Session
from oneforcing_jax.live.studio import Studio, Wish, _windows
from oneforcing_jax.setup.ranges import options
from oneforcing_jax.system import sockets, web

sys.path.append(str(Path(__file__).parents[1] / "tools"))
import attack_live  # noqa: E402
import bench  # noqa: E402
import load_live  # noqa: E402
import soak_live  # noqa: E402

RED, BLUE = "a red square", "a blue circle"


@pytest.fixture(scope="module")
def weights(tmp_path_factory, random_params):
    return make_weights(tmp_path_factory.mktemp("live"), random_params)


@pytest.fixture(scope="module")
def studio(weights):
    args = serve._parser("serve").parse_args(
        [f"--checkpoint={weights}", *OPTIONS, "--most_frames=2000"]
    )
    given = serve.STREAMED | vars(args)
    return serve.make_studio(options(Loading, given), options(Look, given), args.most_frames)


@pytest.fixture(scope="module")
def queue(studio):
    made = Queue(studio, 8, Journal())
    yield made
    made.close()


@pytest.fixture(scope="module")
def address(studio, queue):
    with in_thread(studio, queue=queue) as found:
        yield found


def ask(address, path, body=None, method="GET", **headers):
    """Status and content of an answer."""
    connection = http.client.HTTPConnection(address, timeout=HANG)
    with contextlib.closing(connection):
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


def test_a_session_makes_what_the_model_makes(studio):
    """The frames of a stream whose prompt changes, whatever the length that was wished for."""
    asked = lambda frame: RED if frame < 2 else BLUE  # noqa: E731
    made = []
    for again in (False, True):
        blocks = studio.make(Wish(RED, seed=3, first_steps=1, recompute=again), asked)
        made.append(np.concatenate([next(blocks).frames for _ in range(4)]))
        one = dataclasses.replace(studio.settings, first_steps=None)
        whole = list(studio.model.stream(asked, one, seed=3, recompute=again))
        np.testing.assert_array_equal(made[-1], np.concatenate(whole)[:4])
    # It matters whether what is still seen passes anew under the new prompt.
    np.testing.assert_array_equal(made[0][:2], made[1][:2])
    assert (made[0][2:] != made[1][2:]).any()


def test_windows_of_a_wish(studio):
    made = _windows(
        Window(21, 3, relative=True), dataclasses.replace(studio.settings, first_frames=4)
    )
    assert made == {21: Window(21, 3, True), 10: Window(10, 3, True)}
    assert list(studio.windows) == [3]
    with pytest.raises(ValueError, match="expected a size, found none"):
        _windows(Window(), studio.settings)
    with pytest.raises(Refused, match=r"window: expected one of \[3\]"):
        wire.wish_of({"prompt": RED, "window": 2}, studio)
    assert wire.wish_of({"prompt": RED, "recompute": True}, studio) == Wish(
        RED, frames=studio.frames, first_steps=4, window=3, recompute=True
    )


def test_nothing_is_compiled_after_the_warming(studio):
    """First blocks of any number of steps, images, switched prompts and prompts of any length."""
    for _ in studio.warm():
        pass
    compilations = []

    def heard(event, seconds, **_):
        if event == "/jax/core/compile/backend_compile_duration":
            compilations.append(seconds)

    image = np.full((1, 48, 40, 3), 90, np.uint8)
    wishes = [Wish(RED, n, first_steps=steps) for n, steps in enumerate((1, 2, 3, 4))]
    jax.monitoring.register_event_duration_secs_listener(heard)
    try:
        for wish in (*wishes, Wish(RED, image=image), Wish(RED, recompute=True)):
            for switched in (1, 2, 3):
                asked = lambda frame, s=switched: RED if frame < s else f"{BLUE} moves left"  # noqa: E731
                for _ in itertools.islice(studio.make(wish, asked), 8):
                    pass
        assert not compilations
        jax.jit(lambda x: x + 1)(np.zeros(3))
        assert compilations  # they are heard
    finally:
        jax.monitoring.unregister_event_duration_listener(heard)


def test_a_session_does_not_wait_for_the_warming(studio):
    class Cold(Studio):
        def warm(self):
            while True:
                time.sleep(0.02)
                yield

    cold = Cold(studio.model, studio.settings, studio.fps, studio.most, Window(3))
    queue = Queue(cold, 8, Journal())
    for _ in range(2):
        session = Session(Wish(RED, frames=4), seconds=HANG, paced=False)
        queue.add(session)
        waits.until(lambda s=session: s.state == "ended")
        assert session.reason == "complete" and not queue.ready
    queue.close()
    assert not queue._thread.is_alive()


def test_a_video_is_watched_paused_switched_and_fetched(address, tmp_path):
    with Client(address) as client:
        assert client.hello["examples"] == ["a red circle", "a blue square"]
        client.say("start", prompt=RED, seed=5, frames=40)
        client.until(lambda c: len(c.frames) >= 6)
        client.say("pause")
        client.is_in("paused")
        held = client.state["made"]
        with contextlib.suppress(TimeoutError):
            while True:
                client.read(0.5)
        assert client.state["made"] <= held + 1
        client.say("prompt", prompt=BLUE)
        client.say("resume")
        client.is_in("ended").all_read()
        state, frames = client.state, client.frames
    assert (state["reason"], state["made"]) == ("complete", 40)
    # The prompt took effect where the epoch rose, and this is marked; no frame is lost or doubled.
    (_, mark), first = state["marks"], next(f for f in frames if f.epoch > frames[0].epoch)
    assert mark["prompt"] == BLUE and mark["frame"] == first.number
    assert [f.number for f in frames] == list(range(40))
    # In each epoch no faster than it plays.
    for one, two in zip(frames, frames[1:], strict=False):
        assert one.epoch != two.epoch or two.time - one.time >= 1 / 16 - 1e-6
    assert Image.open(io.BytesIO(frames[0].jpeg)).size == (32, 24)

    status, content = ask(address, f"/videos/{state['session']}.mp4")
    (tmp_path / "video.mp4").write_bytes(content)
    video, times = read_video(tmp_path / "video.mp4")
    assert status == 200 and video.shape == (40, 48, 64, 3) and times.rate == 16
    said = read_origin(tmp_path / "video.mp4")
    assert said["seed"] == 5 and said["checkpoint"]
    assert said["prompt"] == digest(f"{RED}\n{BLUE}") and said["settings"]["live"]
    assert said["settings"]["first_steps"] == [1000, 750, 500, 250]
    # It holds these frames in this order, as far as H.264 keeps noise.
    shown = [Image.open(io.BytesIO(f.jpeg)).resize((64, 48), 0) for f in frames]
    apart = [np.abs(video[7] - np.asarray(picture, int)).mean() for picture in shown]
    assert np.argmin(apart) == 7


def test_a_prompt_that_made_nothing_is_not_told(studio):
    """It was replaced while the session waited: no frame, no file and no name of a file is of it."""
    session = Session(Wish(RED, frames=3), seconds=HANG, paced=False)
    session.switch(BLUE)
    session.run(studio)
    assert [tuple(mark.values())[::2] for mark in session.snapshot()["marks"]] == [(0, BLUE)]
    assert session.prompts == [BLUE] and session.snapshot()["made"] == 3


def test_a_studio_says_which_model_it_is(studio, weights):
    assert studio.name == "/".join(weights.parts[-2:])
    source = dataclasses.replace(
        studio.model.source, folder=Path("runs/toy/one_forcing/checkpoints"), ema=True
    )
    other = copy.copy(studio)
    other.model = types.SimpleNamespace(source=source)
    assert other.name == "toy/one_forcing, moving average"
    source = dataclasses.replace(source, folder=demos.folder("toy"), ema=False)
    other.model = types.SimpleNamespace(source=source)
    assert other.name == "demo toy"


def test_frames_as_h264(address, tmp_path):
    """What a viewer gets is a stream that a decoder reads, whichever frames it gets, one for each."""
    with Client(address) as owner, Client(address, "?video=h264") as viewer:
        owner.say("start", prompt=RED, frames=40)
        owner.until(lambda c: c.frames).say("pause")
        owner.is_in("paused")
        viewer.say("watch", session=owner.session["session"])
        viewer.is_in("paused")
        owner.say("resume")
        viewer.is_in("ended").all_read()
        owner.is_in("ended").all_read()
    decoder, pictures = av.CodecContext.create("h264", "r"), []
    for frame in viewer.frames:
        pictures += decoder.decode(av.Packet(frame.jpeg))
    pictures += decoder.decode(None)
    assert len(pictures) == len(viewer.frames) > 1
    sent = {frame.serial: frame.jpeg for frame in owner.frames}
    number = next(n for n, frame in reversed([*enumerate(viewer.frames)]) if frame.serial in sent)
    jpeg = Image.open(io.BytesIO(sent[viewer.frames[number].serial]))
    expected = np.asarray(jpeg.resize((64, 48), 0), int)
    apart = [np.abs(p.to_ndarray(format="rgb24") - expected).mean() for p in pictures]
    assert np.argmin(apart) == number
    assert np.mean([len(f.jpeg) for f in viewer.frames[1:]]) < np.mean([*map(len, sent.values())])
    with pytest.raises(ConnectionClosed) as closed, Client(address, "?video=av1"):
        pass
    assert closed.value.rcvd.reason == "video: expected jpeg or h264"


def test_a_plain_request_gives_a_file(address, tmp_path, studio):
    pixels = np.full((24, 32, 3), (200, 60, 30), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    body = {"prompt": RED, "frames": 5, "image": base64.b64encode(file.getvalue()).decode()}
    kind = {"Content-Type": "application/json"}
    status, content = ask(address, "/videos", json.dumps(body), "POST", **kind)
    assert status == 200, content
    (tmp_path / "video.mp4").write_bytes(content)
    video, _ = read_video(tmp_path / "video.mp4")
    assert len(video) == 5
    # It begins with the image, as the codec gives it back.
    latents = studio.model.encoders.codec.encode(pixels[None])
    given = np.asarray(studio.model.encoders.codec.stream()(latents[None]))[0, 0]
    assert np.abs(video[0, ::2, ::2].astype(int) - given).mean() < 10
    assert ask(address, "/videos", json.dumps(body), "POST")[0] == 415


def test_sessions_wait_in_places_and_viewers_share_one(address):
    with Client(address) as one, Client(address) as two, Client(address) as three:
        one.say("start", prompt=RED, frames=2000)
        one.until(lambda c: c.frames)
        two.say("start", prompt=RED, frames=3)
        two.is_in("waiting")
        three.say("start", prompt=BLUE, frames=3)
        three.until(lambda c: c.state and c.state["place"] == 2)
        with Client(address) as viewer:
            viewer.say("watch", session=one.session["session"])
            viewer.until(lambda c: len(c.frames) > 3)
            viewer.say("stop")
            viewer.until(lambda c: c.refused)
            assert viewer.refused[0]["status"] == 403 and "key" not in viewer.session
        two.say("stop")
        three.until(lambda c: c.state["place"] == 1)
        # The owner comes back, begins anew, and waits behind those who came first.
        with Client(address) as again:
            again.say("watch", session=one.session["session"], key=one.session["key"])
            again.until(lambda c: c.frames)
            again.say("start", prompt=BLUE, frames=3)
            again.is_in("ended").all_read()
            assert [f.number for f in again.frames if f.epoch == again.frames[-1].epoch] == [
                0,
                1,
                2,
            ]
        three.is_in("ended")
        assert three.state["reason"] == "complete"


def test_a_slow_viewer_misses_frames_and_slows_nobody(address):
    with Client(address) as fast, Client(address) as slow:
        fast.say("start", prompt=RED, frames=130)
        fast.until(lambda c: c.session)
        slow.say("watch", session=fast.session["session"])
        fast.is_in("ended").all_read()
        numbers = [f.number for f in fast.frames]
        assert numbers == sorted(set(numbers)) and numbers[-1] == 129
        with contextlib.suppress(TimeoutError):
            while True:
                slow.read(0.5, acknowledge=False)
        limit = len(slow.frames)
        assert limit <= 1.5 * 16 + 5 and limit + 1 < len(numbers)
        slow.say("ack", serial=slow.frames[-1].serial)
        slow.until(lambda c: c.frames[-1].number == 129)
        assert len(slow.frames) == limit + 1


def test_a_full_queue_refuses_and_an_end_is_told(studio):
    with in_thread(studio, most=1) as address:
        one, two = Client(address), Client(address)
        one.say("start", prompt=RED, frames=2000)
        one.until(lambda c: c.frames)
        two.say("start", prompt=RED)
        two.until(lambda c: c.refused)
        assert two.refused[0]["status"] == 503
        assert json.loads(ask(address, "/health")[1])["sessions"]["running"] == 1
        text = ask(address, "/metrics")[1].decode()
        assert 'oneforcing_sessions{state="running"} 1.0' in text
        assert 'oneforcing_refused_total{status="503"} 1.0' in text
    with one, two, pytest.raises(ConnectionClosed) as caught:
        while True:
            one.read()
    assert caught.value.rcvd.code == 1012


def test_time_on_the_device_is_limited(queue):
    session = Session(Wish(RED, frames=400), seconds=0.4)
    queue.add(session)
    waits.until(lambda: session.state == "ended")
    assert session.reason == "the device is held for 0.4 s at most" and session.snapshot()["made"]


# Who may ask, and hostile input.


def test_only_who_may_ask_is_answered(address, studio):
    assert ask(address, "/", Host="evil.example")[0] == 400
    with pytest.raises(ConnectionClosed) as closed, Client(address, origin="http://evil.example"):
        pass
    assert closed.value.rcvd.reason == "expected a page of this server"
    with Client(address, origin=f"http://{address}"):
        pass
    with in_thread(studio, token="a long token") as guarded:
        for path in ("/", "/live.js", "/health", "/metrics", "/videos/x.mp4"):
            assert ask(guarded, path)[0] == 403 and ask(guarded, f"{path}?token=wrong")[0] == 403
        assert ask(guarded, "/?token=a%20long%20token")[0] == 200
        with pytest.raises(ConnectionClosed) as closed, Client(guarded):
            pass
        assert closed.value.rcvd.code == 1008
        with Client(guarded, additional_headers={"Cookie": 'token_live="a long token"'}):
            pass


def attack(address, count):
    """Sends so many hostile messages and requests while a video is made; each has an answer with a reason."""
    rng, told = random.Random(count), 0
    kind = {"Content-Type": "application/json"}
    with Client(address) as victim, contextlib.ExitStack() as stack:
        victim.say("start", prompt=RED, frames=400)
        victim.until(lambda c: c.frames)
        client = stack.enter_context(Client(address))
        for n in range(count):
            victim.drain()
            if n % 8 == 7:
                path = attack_live.PATHS[n // 8 % len(attack_live.PATHS)]
                status, said = ask(address, path)
                assert status in (400, 404, 414) or (status == 200 and path[1] == "?"), (
                    path,
                    status,
                )
                assert b"root:" not in said
                body = attack_live.message(rng, RED)
                body = body.encode(errors="replace") if isinstance(body, str) else body
                status, said = ask(address, "/videos", body, "POST", **kind)
                assert 400 <= status < 500 and json.loads(said)["error"], (body, status)
                continue
            message, before = attack_live.message(rng, RED), len(client.refused)
            try:
                client.socket.send(message)
                client.until(lambda c, b=before: len(c.refused) > b)
                told += 1
            except ConnectionClosed as closed:
                assert closed.rcvd.code in (1007, 1008, 1009) and closed.rcvd.reason, message
                client = stack.enter_context(Client(address))
        # A flood, and a message beyond all limits.
        for flood in (['{"do": "ack", "serial": 1}'] * 100, ["x" * (5 << 20)]):
            with pytest.raises(ConnectionClosed) as closed, Client(address) as other:
                for message in flood:
                    other.socket.send(message)
                while True:
                    other.read()
            # Of a message that is cut off the sender may see no more than that the connection is closed.
            told_why = closed.value.rcvd
            assert len(flood) == 1 or (told_why.code == 1008 and told_why.reason)
        if victim.state["state"] != "ended":
            victim.say("stop")
        victim.is_in("ended").all_read()
        assert victim.state["reason"] in ("stopped", "complete") and told > count / 2
    # The device still works: the warming, which gave way to sessions, comes to its end.
    waits.until(lambda: json.loads(ask(address, "/health")[1])["ready"], pause=0.1)


def test_hostile_input_is_answered_and_no_session_is_lost(address):
    attack(address, 100)


@pytest.mark.long
def test_much_hostile_input(address):
    attack(address, 1000)


@pytest.mark.long
def test_many_viewers_and_many_who_wait(studio):
    with in_thread(studio, most=64) as address:
        found = asyncio.run(load_live.load(address, RED, seconds=20, viewers=10, waiting=50))
    # A viewer that the machine keeps from its turn for seconds misses frames.
    assert 0 < found["frames"] <= 320 and found["ended_well"] == 50
    assert found["memory_most"] - found["memory_first"] < 100e6, found


@pytest.mark.long
def test_an_attack_beside_a_viewer(weights, light_environment):
    """A thousand messages and a hundred connections; the longest gap is for the tool to judge."""
    (weights / "log.txt").unlink(missing_ok=True)
    with in_process(weights, light_environment, "--port=0") as (_, link):
        address = link.removeprefix("http://").rstrip("/")
        waits.until(lambda: json.loads(ask(address, "/health")[1])["ready"], pause=0.5)
        found = asyncio.run(attack_live.attack(address, RED, messages=1000, connections=100))
    assert (found["messages"], found["let_in"], found["still_open"]) == (1000, [], []), found
    assert found["memory_grew"] < attack_live.GROWTH and found["reason"] == "stopped", found
    assert "Traceback" not in (weights / "log.txt").read_text()


@pytest.mark.long
def test_a_server_that_lives_for_long(weights, light_environment, monkeypatch):
    """A minute of visitors at clocks of 96 times the speed."""
    for name, value in light_environment.items():
        monkeypatch.setenv(name, value)
    found = soak_live.soak(1.6, 96.0, [f"--checkpoint={weights}", *OPTIONS])
    assert found["memory_grew"] <= soak_live.WITHIN and found["handles_left"] == 0, found
    assert found["faults"] == 0 and len(found["kinds"]) == 9, found


@pytest.mark.long
def test_a_restarted_server_compiles_nothing(weights, tmp_path, capfd):
    options = [f"--checkpoint={weights}", *OPTIONS, "--starts=1"]
    bench.main(["serve", *options, f"--out={tmp_path / 'starts.json'}"])
    found = json.loads((tmp_path / "starts.json").read_text())
    said = [line for line in capfd.readouterr().err.splitlines() if '"event": "programs"' in line]
    cold, restarted = map(json.loads, said)
    assert cold["loaded"] == 0 < cold["compiled"]
    assert (restarted["loaded"], restarted["compiled"]) == (cold["compiled"], 0)
    assert found["cold"].keys() == found["restarted"].keys()
    assert all(seconds > 0 for row in found.values() for seconds in row.values())


# Limits.


def test_a_session_that_nobody_owns_ends_where_others_wait(address, monkeypatch):
    monkeypatch.setattr(states, "AWAY", dict.fromkeys(states.AWAY, 0.1))
    with contextlib.ExitStack() as stack:
        one, two, three = (stack.enter_context(Client(address)) for _ in range(3))
        one.say("start", prompt=RED, frames=2000)
        one.until(lambda c: c.frames)
        # Who watches a video without its key owns none any more.
        two.say("start", prompt=RED)
        two.is_in("waiting")
        two.say("watch", session=two.session["session"])
        two.is_in("ended")
        assert two.state["reason"] == "stopped" and not two.frames
        with Client(address) as gone:
            gone.say("start", prompt=RED)
            gone.is_in("waiting")
        waits.until(lambda: json.loads(ask(address, "/health")[1])["sessions"]["waiting"] == 0)
        # A running one is made for its viewers, or for its owner who may come back, until somebody waits.
        two.say("watch", session=one.session["session"])
        two.until(lambda c: c.frames)
        one.socket.socket.shutdown(socket.SHUT_RDWR)
        three.say("start", prompt=BLUE, frames=3)
        three.is_in("waiting")
        seen = len(two.frames)
        two.until(lambda c: len(c.frames) > seen + 8)
        two.socket.socket.shutdown(socket.SHUT_RDWR)
        three.is_in("ended").all_read()
        assert three.state["reason"] == "complete"


def test_a_client_leaves_room_for_others(studio, monkeypatch):
    queue = Queue(studio, 8, Journal())
    try:
        mine = [Session(Wish(RED, frames=2000), HANG, client="a") for _ in range(5)]
        for session in mine[:4]:
            queue.add(session)
        with pytest.raises(Refused, match="4 sessions of this address wait or run already"):
            queue.add(mine[4])
        other = Session(Wish(RED, frames=2000), HANG, client="b")
        queue.add(other)
        # Of what has ended, too, each keeps a part: the newest.
        monkeypatch.setattr(module, "MOST_KEPT", 8 * module.LEAST_KEPT)
        for session in (other, *mine[:4]):
            queue.leave(session)
        queue.tidy()
        assert [queue.find(s.id) for s in mine[:4]] == [None, None, *mine[2:4]]
        assert queue.find(other.id) is other
    finally:
        queue.close()
    held, rooms = contextlib.ExitStack(), clients.Clients({"places": clients.Room(3, 2)})
    with held:
        for client in "aab":
            held.enter_context(rooms.held("places", client))
        with pytest.raises(Refused, match="3 places are open already"):
            held.enter_context(rooms.held("places", "c"))
    with (
        rooms.held("places", "a"),
        rooms.held("places", "a"),
        pytest.raises(Refused, match="of this address"),
    ):
        held.enter_context(rooms.held("places", "a"))
    given = ("10.0.0.1", "::ffff:10.0.0.1", "2001:db8::1", "2001:db8:0:0:5::1", "2001:db8:0:1::1")
    asked = [HTTPConnection({"type": "http", "headers": [], "client": (x, 1)}) for x in given]
    one, mapped, *wide = map(clients.client_of, asked)
    assert one == mapped and wide[0] == wide[1] != wide[2]


def taken(connection):
    """What comes until the other side closes."""
    content = b""
    with contextlib.suppress(ConnectionError):
        while part := connection.recv(1 << 16):
            content += part
    return content


def test_connections_that_keep_the_server_waiting_end(address, monkeypatch):
    for name in ("HEADERS", "BODY", "UNREAD"):
        monkeypatch.setattr(sockets, name, 0.2)
    with contextlib.ExitStack() as stack:
        where = "127.0.0.1", int(address.split(":")[1])

        def opened(content):
            made = stack.enter_context(socket.create_connection(where, HANG))
            made.sendall(content)
            return made

        post = b"POST /videos HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        get = b"GET /live.js HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        handles = len(os.listdir("/proc/self/fd"))
        waiting = [
            opened(half) for half in (b"", b"GET / HT", post, post + b"Content-Length: 9\r\n\r\n{")
        ]
        # A client that asks again and again, and reads nothing of what it gets.
        deaf, many = opened(get), 2000
        with contextlib.suppress(ConnectionError):
            deaf.sendall(get * many)
        assert [taken(connection) for connection in waiting] == [b""] * 4
        waits.until(lambda: len(os.listdir("/proc/self/fd")) == handles + 5)
        assert taken(deaf).count(b"HTTP/1.1 200") < many
        # Where there are too many, those that say nothing give way.
        monkeypatch.setattr(sockets, "HEADERS", HANG)
        monkeypatch.setattr(sockets, "MOST", 5)
        mute = [opened(b"") for _ in range(6)]
        assert ask(address, "/health")[0] == 200
        assert taken(mute[0]) == b""


def test_a_message_is_measured_before_it_is_read():
    long, image = "x" * wire.LARGEST_PLAIN, "A" * wire.LARGEST_IMAGE
    said = {"do": "start", "prompt": RED, "image": image}
    for text in (json.dumps(said), json.dumps(said).encode(), json.dumps(said, indent=9)):
        assert wire.parsed(text) == said
    slashes = "AA/" * wire.LARGEST_PLAIN
    assert wire.parsed(json.dumps({"image": slashes}).replace("/", "\\/")) == {"image": slashes}
    for status, message in (
        (413, "x" * (wire.LARGEST + 1)), (413, json.dumps({"do": "prompt", "prompt": long})),
        (413, json.dumps(said | {"more": long})), (413, '{"image": ""' + "[" * wire.LARGEST_PLAIN),
        (413, json.dumps(said | {"prompt": ["image", image]})), (400, json.dumps({"x": said})),
        (400, json.dumps(said | {"do": "watch"})), (400, json.dumps({'a"image': image})),
        (413, b"\xff" * 20000), (400, b"\xff" * 200), (400, json.dumps(said) + "x"),
        (400, json.dumps(said)[:-1] + ', "image": "again"}'),
    ):  # fmt: skip
        with pytest.raises(Refused) as caught:
            wire.parsed(message)
        assert caught.value.status == status, message[:80]


def base64_of(pixels, kind="PNG"):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return base64.b64encode(file.getvalue()).decode()


def test_an_image_is_kept_at_the_size_of_the_videos(studio):
    rows, columns = studio.size
    half = np.zeros((1200, 1600), np.uint8)
    half[:, 800:] = 200
    clear = np.stack([half, half, half, np.full_like(half, 255)], -1)
    for pixels in (half, clear, clear[..., :3], half.astype(np.uint16) * 257):
        kept = wire.wish_of({"prompt": RED, "image": base64_of(pixels)}, studio).image
        assert kept.dtype == np.uint8 and kept.shape == (1, rows, columns, 3)
        found = kept[0, :, [columns // 4, 3 * columns // 4]].mean((1, 2))
        np.testing.assert_allclose(found, [0, 200], atol=1)
    with pytest.raises(Refused, match="image: expected proportions near"):
        wire.wish_of({"prompt": RED, "image": base64_of(np.zeros((1, 9000), np.uint8))}, studio)
    with pytest.raises(Refused, match="at most 16,777,216 pixels"):
        image = base64_of(np.zeros((4097, 4096), bool))
        wire.wish_of({"prompt": RED, "image": image}, studio)


def test_grey_of_16_bits_takes_no_wide_numbers():
    grey = np.arange(1 << 20, dtype=np.uint16).reshape(1024, 1024)
    tracemalloc.start()
    made = images._eight(grey)
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(made, np.round(grey / 257.0).astype(np.uint8))
    assert made.dtype == np.uint8 and most < 2.5 * grey.size


# Corners of the web.


def test_a_token_of_any_letters(studio):
    token = 'ключ a&b#c+d=e%41;"f, g'
    with in_thread(studio, token=token) as address:
        path = web.link("127.0.0.1", types.SimpleNamespace(getsockname=lambda: (0, 0)), token)
        connection = http.client.HTTPConnection(address, timeout=HANG)
        with contextlib.closing(connection):
            connection.request("GET", path[path.index("/?") :])
            answer = connection.getresponse()
            assert answer.status == 200 and answer.read()
            cookie = answer.headers["Set-Cookie"].split(";")[0]
        assert ask(address, "/live.js", Cookie=cookie)[0] == 200
        with Client(address, additional_headers={"Cookie": cookie}):
            pass
        for wrong in (cookie[:-1], "token_live=%ff", "token_live=\xff", "token_live="):
            assert ask(address, "/live.js", Cookie=wrong)[0] == 403
        for wrong in ("%ff", "%D0", "?", token[:4].encode().hex()):
            assert ask(address, f"/?token={wrong}")[0] == 403


def test_what_is_no_request_is_a_line(studio, capsys, caplog):
    with in_thread(studio) as address:
        for origin in ("http://[", "null", "", "http://", "\xff"):
            with pytest.raises(ConnectionClosed) as closed, Client(address, origin=origin):
                pass
            assert closed.value.rcvd.reason == "expected a page of this server"
        for content in attack_live.said(address):
            with socket.create_connection(address.split(":"), HANG) as connection:
                connection.sendall(content)
                connection.shutdown(socket.SHUT_WR)
                answer = taken(connection)
                well = answer.count(b"HTTP/1.1 2") - content.startswith(b"GET /health")
                assert not well and not re.search(rb"HTTP/1.1 5", answer), content[:200]
        with Client(address) as client, pytest.raises(ConnectionClosed) as closed:
            client.socket.send(b"\xff\xfe", text=True)
            while True:
                client.read()
        assert closed.value.rcvd.code == 1007
    said = capsys.readouterr().err
    assert "a request ended before its body was whole" in said
    assert "a client's fault, its connection is closed: UnicodeDecodeError" in said
    assert "Traceback" not in said + caplog.text


def test_bad_options_are_one_line(weights, capsys):
    for given, words in (
        (["--token=short"], "--token: expected 8 characters or more"),
        (["--token=a long \udcff one"], "--token: expected Unicode text"),
        (["--port=99999"], "choose another --host or --port"),
        (["--most_frames=3", "--port=0"], "--most_frames: expected 6 or more"),
        (
            ["--programs=/dev/null/x"],
            "--programs /dev/null/x: expected a folder that can be written",
        ),
        (["--sessions=0"], "--sessions: expected a whole number from 1"),
    ):
        with pytest.raises(SystemExit) as caught:
            serve.main([f"--checkpoint={weights}", *OPTIONS, *given])
        assert words in str(caught.value) and "\n" not in str(caught.value)


# The page.

STATUS = "document.querySelector('#status').textContent"
IDLE = "!document.querySelector('#idle').hidden && document.querySelector('#idle').textContent"


def seen(page, count):
    until(page, f"Number(document.querySelector('#canvas').dataset.count) >= {count}")


@pytest.mark.browser
def test_a_prompt_becomes_a_video_in_two_browsers(address, tmp_path):
    pixels = "document.querySelector('#canvas').toDataURL()"
    with (
        chromium() as browser,
        page_of(browser) as page,
        page_of(browser, NARROW, color_scheme="dark", has_touch=True) as narrow,
    ):
        page.goto(f"http://{address}/")
        until(page, f"{STATUS} === 'Ready.'")
        assert page.title().endswith(" · Live video") and "32×24" in page.inner_text("#model")
        assert page.input_value("#prompt") == "a red circle"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "prompt"
        assert_accessible(page)
        page.click("#examples button")
        page.fill("#frames", "2000")
        page.fill("#seed", "9")
        page.check("#recompute")
        page.select_option("#steps", "2")
        page.press("#prompt", "Control+Enter")
        seen(page, 3)
        first = page.evaluate(pixels)
        seen(page, 12)
        assert page.evaluate(pixels) != first

        narrow.goto(page.evaluate("document.querySelector('#watch').href"))
        seen(narrow, 3)
        assert narrow.get_attribute("#pause", "aria-disabled") == "true"

        page.fill("#prompt", "a blue circle")
        page.click("#switch")
        until(page, "document.querySelectorAll('.mark').length === 1")
        until(narrow, "document.querySelectorAll('#marks li').length === 2")
        assert "a blue circle" in page.inner_text("#marks li:last-child")
        until(page, f"seen > state.marks[1].frame && {STATUS} === 'Running.'")

        # With less data the same frames come in another form.
        page.check("#small")
        until(page, f"small && decoder && {STATUS} === 'Running.'")
        first, count = page.evaluate(pixels), page.evaluate("shown")
        seen(page, count + 5)
        assert page.evaluate(pixels) != first and page.is_visible("#may_small")

        page.click("#pause")
        until(page, f"{STATUS} === 'Paused.'")
        held = ""
        while held != (held := page.evaluate(pixels)):  # what was on its way
            page.wait_for_timeout(500)
        assert page.inner_text("#pause") == "Resume" and page.evaluate("shown") < 2000
        # A reload in the middle goes on with the same video, and still controls it.
        page.reload()
        until(page, f"{STATUS} === 'Paused.'")
        form = {
            "#prompt": "a blue circle",
            "#seed": "9",
            "#frames": "2000",
            "#steps": "2",
            "#window": "3",
        }
        assert {name: page.input_value(name) for name in form} == form
        assert page.is_checked("#recompute")
        page.focus("body")
        page.keyboard.press("Space")
        seen(page, 5)
        page.screenshot(path=tmp_path / "wide.png", full_page=True)
        narrow.screenshot(path=tmp_path / "narrow.png", full_page=True)
        for one in (page, narrow):
            assert_accessible(one)
        page.click("#stop")
        until(page, f"{STATUS}.startsWith('Ended: stopped')")
        kept = int(page.inner_text("#status").split(". ")[1].split()[0])

        with page.expect_download() as download:
            page.click("#download")
        assert download.value.suggested_filename == "a red circle, seed 9.mp4"
        download.value.save_as(tmp_path / "video.mp4")
        assert len(read_video(tmp_path / "video.mp4")[0]) == kept
        assert read_origin(tmp_path / "video.mp4")["seed"] == 9
        page.click("#replay")
        until(page, "document.querySelector('#replayed').currentTime > 0.2")
        assert_accessible(page)
        page.click("#replay")  # back
        until(page, f"{STATUS}.startsWith('Ended: stopped')")
        page.fill("#prompt", "a purple elephant")
        page.click("#start")
        until(page, f"{STATUS}.startsWith('That was refused')")
        assert "purple" in page.inner_text("#status")


@pytest.mark.browser
def test_the_page_never_says_what_is_not_so(address):
    """While a session waits, before its first frame, after its end, and when another begins; on a phone all
    that one needs first is on the first screen."""
    with chromium() as browser, page_of(browser) as page, page_of(browser, NARROW) as phone:
        for one in (page, phone):
            one.goto(f"http://{address}/")
            until(one, f"{STATUS} === 'Ready.' && ({IDLE}) === 'Say what to see, and press Start.'")
        for name in ("#prompt", "#start", "#frame", "#stop"):
            box = phone.locator(name).bounding_box()
            assert box["y"] + box["height"] <= NARROW["height"], name
        assert phone.evaluate("document.documentElement.scrollWidth") == NARROW["width"]
        page.fill("#frames", "2000")
        page.click("#start")
        seen(page, 3)
        phone.click("#start")
        until(
            phone, f"{STATUS} === 'Waiting for the device: you are next.' && ({IDLE}) === {STATUS}"
        )
        assert phone.inner_text("#m_queue") == "place 1"
        assert_accessible(phone)
        page.click("#stop")
        until(page, f"{STATUS}.startsWith('Ended: stopped')")
        assert page.inner_text("#m_queue") == "ended" and page.is_hidden("#idle")
        until(phone, f"{STATUS} === 'Ended: complete. 6 frames are kept.'")
        assert phone.is_hidden("#idle")
        # A new video waits behind another one: of the old one nothing is left.
        phone.fill("#frames", "2000")
        phone.click("#start")
        until(phone, "seen > 0 && state.state === 'running'")
        page.click("#start")
        until(page, f"({IDLE}) === 'Waiting for the device: you are next.'")
        assert not page.inner_text("#count").strip()
        phone.click("#stop")
        seen(page, 8)
        until(page, f"{STATUS} === 'Running.'")
        page.click("#stop")


@pytest.mark.browser
def test_the_page_says_what_a_kill_did(weights, light_environment):
    """The next start serves at once, at the same address; the page comes back and makes another video."""
    with chromium() as browser, page_of(browser) as page:
        with in_process(weights, light_environment, "--port=0") as (process, address):
            page.goto(address)
            page.fill("#prompt", RED)
            page.fill("#frames", "300")
            page.click("#start")
            seen(page, 5)
            process.kill()
            until(page, f"{STATUS}.startsWith('The connection is lost')")
        port = address.rstrip("/").split(":")[-1]
        with in_process(weights, light_environment, f"--port={port}"):
            until(page, f"{STATUS}.startsWith('The server was started anew')")
            shown = int(page.get_attribute("#canvas", "data-count"))
            page.click("#start")
            seen(page, shown + 5)
