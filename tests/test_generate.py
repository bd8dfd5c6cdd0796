"""Generation: noise, streams, prompts that change, checkpoints, and the command line to video files."""

import functools
import gc
import hashlib
import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import Golden, error
from PIL import Image

from oneforcing_jax import flow, generate, methods
from oneforcing_jax.causal import cache as kv
from oneforcing_jax.causal import structures
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.causal.plan import Block, ClipDraws
from oneforcing_jax.convert import to_orbax
from oneforcing_jax.data import mark
from oneforcing_jax.data.origin import read_origin
from oneforcing_jax.data.video import read_video, write_video
from oneforcing_jax.errors import NotFinite
from oneforcing_jax.families import encoders as encoding
from oneforcing_jax.families import records
from oneforcing_jax.families.codec import pad_embeddings
from oneforcing_jax.generation import jobs, making, origins, pretrained, samplers, streaming
from oneforcing_jax.generation.noise import recorded, sample_keys, seeded
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.setup import config as configs
from oneforcing_jax.setup.run import Run
from oneforcing_jax.system import checkpoint
from oneforcing_jax.toy import codec as codecs
from oneforcing_jax.toy import encoders as toy_encoders
from oneforcing_jax.toy import text as texts

ROOT = Path(__file__).parents[1]
CONFIG = wan.WanConfig(24, 32, 2, 2, in_dim=2, out_dim=2, text_dim=8, text_len=4, freq_dim=8)
SHAPE = (2, 4, 2)
TOKENS = CONFIG.frame_tokens(*SHAPE[1:])
ONE_STEP = (Block(1, (1.0,)),)
WORDS = "a red blue square circle moves left"


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def prompt(seed=1, batch=1):
    return prompted(jnp.asarray(normal(seed, batch, CONFIG.text_len, CONFIG.text_dim)))


@pytest.fixture(scope="module")
def student(random_params):
    """One with a window of four frames, one of them the first; its programs serve many tests."""
    params = jax.tree.map(jnp.asarray, random_params(wan.model(CONFIG)))
    return Student(wan.model(CONFIG), params, Window(4, 1))


# Noise.


def test_noise_belongs_to_frames():
    """Blocks, the video's length and the batch do not change the noise of a frame."""
    keys, levels = sample_keys([5, 5, 7], [0, 1, 0]), (1.0, 0.5, 0.2)
    whole = seeded(keys, SHAPE)(0, Block(6, levels))
    parts = [seeded(keys, SHAPE)(start, Block(2, levels)) for start in (0, 2, 4)]
    np.testing.assert_array_equal(np.concatenate([p.start for p in parts], 1), whole.start)
    np.testing.assert_array_equal(np.concatenate([p.renoise for p in parts], 2), whole.renoise)
    alone = seeded(sample_keys([7], [0]), SHAPE)(3, ONE_STEP[0])
    np.testing.assert_array_equal(alone.start[0], whole.start[2, 3:4])
    assert alone.renoise is None
    # All of it is different, and normal.
    values = np.concatenate([np.ravel(whole.start), np.ravel(whole.renoise)])
    assert len(np.unique(values)) > 0.99 * values.size
    assert abs(values.mean()) < 0.1 and abs(values.std() - 1) < 0.1


def test_seeds_are_32_bits():
    with pytest.raises(ValueError, match=r"seed: expected a number from 0 to 2\^32 - 1, found -1"):
        sample_keys([0, -1], [0, 0])


# Streams.


def live_bytes():
    gc.collect()
    return sum(x.nbytes for x in jax.live_arrays())


def test_long_stream_in_constant_memory(student):
    """200 frames; the first 12 again in one pass with the window as an attention structure."""
    noise, text = seeded(sample_keys([3], [0]), SHAPE), student.prepare(prompt())
    frames, held, programs = [], {}, student._step._cache_size()
    for number, x in enumerate(student.stream(noise, text, 200 * ONE_STEP)):
        frames.append(np.array(x))  # a copy: a view would keep the device's array alive
        if number in (50, 199):
            held[number] = live_bytes()
    clip = np.concatenate(frames, 1)
    assert clip.shape == (1, 200, *SHAPE) and np.isfinite(clip).all()
    assert held[199] <= held[50]
    # One program for the first block, and one for those that follow another.
    assert student._step._cache_size() - programs <= 2

    count = 12
    groups = structures.teacher_forcing((1,) * count, 4, 1)
    start = noise(0, Block(count, (1.0,))).start
    pair = jnp.concatenate([clip[:, :count], start], 1)
    sigma = jnp.repeat(jnp.array([[0.0, 1.0]]), count, axis=1)

    @jax.jit
    def again(params, pair, sigma, text):
        numbers, attend = jnp.tile(jnp.arange(count), 2), structures.structured(groups)
        net = wan.model(CONFIG)
        return net.apply(params, pair, sigma, text, frames=numbers, attend=attend).flow

    v = again(student.params, pair, sigma, text)[:, count:]
    assert error(flow.x0_from_flow(start, v, 1.0), clip[:, :count]) < 1e-5
    # Another noise of the last frame seen changes it: the ring still holds what it should.
    assert error(clip[:, 199:], clip[:, 198:199]) > 1e-2


def test_continuation_is_the_rest(student):
    """A video that continues the first frames of another, of the same seed, is the rest of it."""
    noise, text = seeded(sample_keys([3], [0]), SHAPE), student.prepare(prompt())
    whole = student.clip(noise, text, 9 * ONE_STEP)
    rest = list(student.stream(noise, text, 4 * ONE_STEP, given=whole[:, :5]))
    assert error(np.concatenate(rest, 1), whole[:, 5:]) < 1e-5
    other = list(student.stream(noise, text, 4 * ONE_STEP, given=-whole[:, :5]))
    assert error(np.concatenate(other, 1), whole[:, 5:]) > 1e-2


def test_a_batch_of_two_is_two_batches_of_one(student):
    """Samples do not see each other, past the window, too."""
    texts = prompt(1), prompt(2)
    text, plan = jax.tree.map(lambda *x: jnp.concatenate(x), *texts), 7 * ONE_STEP
    both = student.clip(seeded(sample_keys([3, 5], [0, 1]), SHAPE), student.prepare(text), plan)
    for i, (seed, number) in enumerate([(3, 0), (5, 1)]):
        one = student.prepare(texts[i])
        alone = student.clip(seeded(sample_keys([seed], [number]), SHAPE), one, plan)
        assert error(both[i : i + 1], alone) < 1e-5
    assert error(both[:1], both[1:]) > 1e-2


def test_prompts_change_between_blocks(student):
    """Against plain passes: a block and the context that it leaves are made with one prompt."""
    noise, (one, two) = (
        seeded(sample_keys([3], [0]), SHAPE),
        (student.prepare(prompt(seed)) for seed in (1, 2)),
    )
    text = lambda frame: one if frame < 3 else two  # noqa: E731

    @jax.jit
    def forward(params, cache, text, x, sigma, start):
        attend = kv.cached((1,), start, Window(4, 1), cache.k.shape[2])
        numbers, level = start + jnp.arange(1), jnp.full((1, 1), sigma)
        net = wan.model(CONFIG)
        out = net.apply(params, x, level, text, frames=numbers, attend=attend, memory=cache)
        return out.flow, kv.write(cache, out.new, start, Window(4, 1))

    cache, expected = kv.init(CONFIG, 1, 4, TOKENS), []
    for i in range(6):
        x = noise(i, ONE_STEP[0]).start
        v, _ = forward(student.params, cache, text(i), x, 1.0, jnp.int32(i))
        expected.append(x - v)
        _, cache = forward(student.params, cache, text(i), x - v, 0.0, jnp.int32(i))
    found = student.clip(noise, text, 6 * ONE_STEP)
    assert error(found, np.concatenate(expected, 1)) < 1e-5
    unchanged = student.clip(noise, one, 6 * ONE_STEP)
    assert error(found[:, :3], unchanged[:, :3]) < 1e-6
    assert error(found[:, 3:], unchanged[:, 3:]) > 1e-2


@pytest.mark.parametrize(("window", "seen"), [(Window(4, 1), [0, 4, 5]), (Window(), range(6))])
def test_context_passes_anew_under_a_new_prompt(window, seen, student):
    """After a switch the video is one that continues the frames that are seen, under the new prompt."""
    noise, (one, two) = (
        seeded(sample_keys([3], [0]), SHAPE),
        (student.prepare(prompt(seed)) for seed in (1, 2)),
    )
    text = lambda frame: one if frame < 6 else two  # noqa: E731
    plan = 9 * ONE_STEP
    found = list(student.stream(noise, text, plan, recompute=True, window=window))
    found = np.concatenate(found, 1)
    later = lambda frame, block: noise(frame + 6 - len(seen), block)  # noqa: E731
    given = found[:, np.array(seen)]
    rest = list(student.stream(later, two, plan[6:], given, window=window))
    assert error(found[:, 6:], np.concatenate(rest, 1)) < 1e-5
    kept = np.concatenate(list(student.stream(noise, text, plan, window=window)), 1)
    assert error(found[:, :6], kept[:, :6]) == 0
    assert error(found[:, 6:], kept[:, 6:]) > 1e-2


def test_a_block_that_sees_itself_alone_has_no_context(student):
    noise, (one, two) = (
        seeded(sample_keys([3], [0]), SHAPE),
        (student.prepare(prompt(seed)) for seed in (1, 2)),
    )
    text = lambda frame: one if frame < 2 else two  # noqa: E731
    made = [
        np.concatenate(
            list(student.stream(noise, text, 3 * ONE_STEP, recompute=again, window=Window(1))), 1
        )
        for again in (False, True)
    ]
    assert error(*made) < 1e-5


def test_stream_stops_at_any_time(student):
    blocks = student.stream(
        seeded(sample_keys([3], [0]), SHAPE), student.prepare(prompt()), 10**5 * ONE_STEP
    )
    first = [next(blocks) for _ in range(2)]
    blocks.close()
    assert all(x.shape == (1, 1, *SHAPE) for x in first)


def test_the_next_block_is_queued_before_frames_are_read():
    events = []

    class Frames:
        def __init__(self, number):
            self.number = number

        def __array__(self, dtype=None, copy=None):
            events.append(f"read {self.number}")
            return np.full((1,), self.number)

    def blocks():
        for number in range(3):
            events.append(f"block {number}")
            yield number

    def decode(number):
        events.append(f"decode {number}")
        return Frames(number)

    for latents, frames in streaming.decoded(blocks(), decode):
        assert latents == frames[0]
        events.append(f"use {latents}")
    assert events == [
        "block 0", "decode 0", "block 1", "decode 1", "read 0", "use 0",
        "block 2", "decode 2", "read 1", "use 1", "read 2", "use 2",
    ]  # fmt: skip


def test_latents_that_are_not_finite_do_not_leave():
    for wrong in (jnp.nan, -jnp.inf, 1e30):
        blocks = [jnp.zeros((1, 1, 2, 4, 2)), jnp.full((1, 1, 2, 4, 2), wrong)]
        frames = streaming.decoded(blocks, lambda x: x)
        next(frames)
        with pytest.raises(NotFinite, match="expected finite values below 1e.06, found 16 of 16"):
            next(frames)


def test_refusals_of_a_stream(student):
    noise = ClipDraws(normal(0, 1, 2, *SHAPE), normal(0, 1, 2, *SHAPE))
    with pytest.raises(ValueError, match="without context noise, which training alone has"):
        student.clip(noise, student.prepare(prompt()), 2 * ONE_STEP)
    with pytest.raises(ValueError, match="at most size - sink = 3 frames, found a block of 4"):
        student.clip(noise._replace(context=None), student.prepare(prompt()), (Block(4, (1.0,)),))


# Weights and encoders on disk.


def save_weights(folder, config, params, item="params_generator"):
    """What tools/convert_wan.py writes of a student, or by another item's name of a teacher."""
    to_orbax.save_item(folder / "0" / item, jax.tree.map(np.asarray, params))
    record = {"nets": {item: records.describe(config)}}
    (folder / "model.json").write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Recorded weights as converted ones, by the recording's name."""

    @functools.cache
    def make(name):
        return save_weights(tmp_path_factory.mktemp(name) / "transformer", *Golden(name).model())

    return make


@pytest.fixture(scope="module")
def encoders(tmp_path_factory):
    """Codec and text encoder that fit the recorded models."""
    folder = tmp_path_factory.mktemp("encoders")
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), np.uint8)
    words = texts.TextEncoder.train([WORDS], dim=16, length=8)
    toy_encoders.save(folder, codecs.fit(noise, channels=4), words)
    return folder


def recorded_noise(golden, steps):
    """Noise [1, f, c, y, x] and that between steps [1, s, f, c, y, x] of a recording, whose draws are
    in the order of use; frames without a second step have zeros."""
    noise = np.asarray(golden.inputs["noise"])
    renoise = np.zeros((1, steps - 1, *noise.shape[1:]), np.float32)
    draws = [np.asarray(golden.inputs[k]) for k in golden.inputs if k.startswith("renoise")]
    size = golden.config["num_frame_per_block"]
    for number, drawn in enumerate(draws):
        block, step = divmod(number, steps - 1)
        renoise[0, step, block * size : (block + 1) * size] = drawn
    return noise, renoise


def test_recorded_video_by_the_command_line(tmp_path, weights, encoders):
    golden, out = Golden("inference_framewise_ffe"), tmp_path / "new" / "video.mp4"
    noise, renoise = recorded_noise(golden, 4)
    np.savez(tmp_path / "noise.npz", noise=noise, renoise=renoise)
    np.save(tmp_path / "text.npy", golden.inputs["prompt_embeds"])
    weights = weights("inference_framewise_ffe")
    options = f"--checkpoint={weights.parent} --encoders={encoders} --out={out} --dtype=float32"
    options += f" --frames=6 --size=24x32 --fps=8 --crf=4 --noise_file={tmp_path / 'noise.npz'}"
    options += f" --prompt_embeds={tmp_path / 'text.npy'} --save_latents"
    generate.main([*options.split(), "--prompt=a red square"])
    latents = np.load(out.with_suffix(".npy"))
    assert error(latents, golden.outputs["latents"][0]) < 2e-4
    frames, times = read_video(out)
    assert times.rate == 8 and frames.shape == (6, 24, 32, 3)
    pixels = np.asarray(codecs.load(encoders / "codec.npz").decode(latents))
    assert np.abs(frames.astype(int) - pixels).mean() < 4
    assert sorted(p.name for p in out.parent.iterdir()) == ["video.mp4", "video.npy"]


@pytest.mark.parametrize("name", ["inference_chunkwise_4step", "inference_image_to_video"])
def test_recorded_videos(name, weights, encoders):
    golden = Golden(name)
    c, given = golden.config, golden.inputs.get("initial_latent")
    model = streaming.load(weights(name), encoders, dtype="float32", shift=c["timestep_shift"])
    steps = tuple(c["denoising_steps"])
    settings = model.settings(
        6, (24, 32), block_frames=c["num_frame_per_block"], steps=steps, first_steps=None
    )
    noise, renoise = recorded_noise(golden, len(steps))
    more = jnp.asarray(renoise) if len(steps) > 1 else None
    draws = recorded(ClipDraws(jnp.asarray(noise), None, more), 0 if given is None else 1)
    text, frames = model.maker.prepare(prompted(golden.inputs["prompt_embeds"])), []
    latents = []
    for block, shown in model.videos(draws, text, settings, given):
        latents.append(block)
        frames.append(shown)
    assert error(np.concatenate(latents, 1), golden.outputs["latents"]) < 2e-4
    whole = codecs.load(encoders / "codec.npz").decode(np.concatenate(latents, 1))
    np.testing.assert_array_equal(np.concatenate(frames, 1), whole)


@pytest.fixture
def command(tmp_path, weights, encoders):
    """Runs the command line with the recorded framewise model, into the folder `videos`."""

    def run(*options, checkpoint=None, out=tmp_path / "videos"):
        given = {option.split("=")[0] for option in options}
        base = {
            "--checkpoint": checkpoint or weights("inference_framewise_ffe"),
            "--encoders": encoders,
            "--out": out,
            "--dtype": "float32",
            "--frames": 6,
            "--size": "24x32",
            "--first_steps": 1000,
        }
        rest = [f"{name}={value}" for name, value in base.items() if name not in given]
        generate.main([*options, *rest])
        return out

    return run


def test_prompts_from_a_file(tmp_path, command, capsys):
    """Names, seeds, shards, a batch over devices; and a second run makes what is missing alone."""
    file, rewritten = tmp_path / "prompts.jsonl", tmp_path / "rewritten.txt"
    rows = [{"prompt": "what/ever"}, {"prompt": "a blue circle", "seed": 9}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rewritten.write_text("a red square\na blue circle\n")
    options = [f"--prompts={file}", f"--rewritten_prompts={rewritten}", "--save_latents"]
    out = command(*options, "--batch=2")
    names = ["a blue circle-0", "what_ever-0"]
    made = [f"{name}{end}" for name in names for end in (".mp4", ".npy")]
    assert sorted(p.name for p in out.iterdir()) == made

    latents = {name: np.load(out / f"{name}.npy") for name in names}
    assert error(*latents.values()) > 0.1
    (out / "what_ever-0.mp4").unlink()
    kept = (out / "a blue circle-0.mp4").stat().st_mtime_ns
    command(*options, "--shard=0/2")
    assert (out / "what_ever-0.mp4").is_file()
    assert error(np.load(out / "what_ever-0.npy"), latents["what_ever-0"]) < 1e-5
    command(*options)
    assert "2 of 2 videos are there already" in capsys.readouterr().out
    assert (out / "a blue circle-0.mp4").stat().st_mtime_ns == kept


def test_videos_say_how_they_were_made(command, weights):
    out = command("--prompt=a red square", "--seed=5", "--mark=secret", "--crf=2")
    said = read_origin(out / "a red square-0.mp4")
    assert said["checkpoint"] == pretrained.find(weights("inference_framewise_ffe")).identity
    assert said["prompt"] == hashlib.sha256(b"a red square").hexdigest()
    assert (said["seed"], said["sample"]) == (5, 0)
    image = mark.average(read_video(out / "a red square-0.mp4")[0])
    assert mark.detect(image, "secret").marked and not mark.detect(image).marked


def test_interrupted_runs_leave_no_half_video(command, monkeypatch, capsys):
    def stop(writer, frames):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(making.VideoWriter, "write", stop)
        command("--prompt=a red square")
    assert "interrupted; the same command continues after" in capsys.readouterr().err
    out = command("--prompt=a blue circle")
    (video,) = out.iterdir()
    assert video.name == "a blue circle-0.mp4"
    # A file of no bytes, as a failed copy leaves it, is not a video that is there already.
    video.write_bytes(b"")
    command("--prompt=a blue circle")
    assert len(read_video(video)[0])


def test_image_to_video(tmp_path, command, encoders, capsys):
    """Of another aspect: scaled, the middle kept, and said so. The first frame is the image's."""
    pixels = np.zeros((48, 128, 3), np.uint8)
    pixels[:, 32:96] = (200, 60, 30)
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    out = command(f"--image={tmp_path / 'wide.png'}", "--prompt=a red square", "--save_latents")
    assert "wide.png: 48x128 scaled to cover 24x32, the middle kept" in capsys.readouterr().out
    codec = codecs.load(encoders / "codec.npz")
    middle = np.broadcast_to(np.uint8([200, 60, 30]), (1, 24, 32, 3))
    latents = np.load(out / "a red square-0.npy")
    assert latents.shape == (6, 4, 6, 8)
    assert error(latents[:1], codec.encode(middle)) < 0.02
    assert len(read_video(out / "a red square-0.mp4")[0]) == 6


def test_python_api(weights, encoders):
    """Frames of one video as a stream; a prompt that changes; more frames begin with the same."""
    model = streaming.load(weights("inference_framewise_ffe"), encoders, dtype="float32")
    settings = model.settings(6, (24, 32), first_steps=None)
    whole = np.concatenate(list(model.stream("a red square", settings, seed=4)))
    assert whole.shape == (6, 24, 32, 3) and whole.dtype == np.uint8
    asked = []

    def prompt(frame):
        asked.append(frame)
        return "a red square" if frame < 4 else "a blue circle"

    switched = np.concatenate(list(model.stream(prompt, settings, seed=4)))
    assert asked == [0, 1, 2, 3, 4, 5]
    np.testing.assert_array_equal(switched[:4], whole[:4])
    assert (switched[4:] != whole[4:]).any()
    with pytest.raises(ValueError, match="prompt: expected words, found an empty prompt"):
        model.embed(["a", " "])


def test_teacher_by_the_command_line(command, encoders, tmp_path):
    golden = Golden("inference_framewise_ffe")
    folder = save_weights(tmp_path / "teacher", *golden.model(), item="params_model")
    out = command(
        f"--checkpoint={folder}", "--teacher", "--sampling_steps=3", "--guidance=3",
        "--prompt=a red square", "--seed=2", "--save_latents",
    )  # fmt: skip
    config, params = Golden("inference_framewise_ffe").model()
    encoder = texts.load(encoders / "text_encoder")
    words = [encoder.encode(prompt) for prompt in ("a red square", "")]
    text, negative = pad_embeddings(words, encoder.length)[:, None]
    noise = seeded(sample_keys([2], [0]), (4, 6, 8))(0, Block(6, (1.0,))).start
    sampler = samplers.unipc(samplers.wan_grid(3, 5.0))
    net = wan.model(config)
    expected = samplers.sample(
        net, params, noise, prompted(text), prompted(negative[0]), sampler, guidance=2.0
    )
    assert error(np.load(out / "a red square-0.npy"), expected[0]) < 1e-5
    assert len(read_video(out / "a red square-0.mp4")[0]) == 6


# What a file was made from, and what a checkpoint was trained for.


def refusal(command, *options, **given):
    with pytest.raises(SystemExit) as caught:
        command(*options, **given)
    line = str(caught.value)
    assert line.startswith("error: ") and "\n" not in line
    return line


OTHER = [
    ("--prompt=a blue circle", "prompt [0-9a-f]{12} and not [0-9a-f]{12}"),
    ("--seed=1", "seed 0 and not 1"),
    ("--frames=5", "frames 6 and not 5"),
    ("--size=32x24", "size 24,32 and not 32,24"),
    ("--fps=8", "fps 16 and not 8"),
    ("--method=chunkwise", "block_frames 1 and not 3"),
    ("--steps=1000,500", "steps 1000 and not 1000,500"),
    ("--first_steps=1000,500", "first_steps 1000 and not 1000,500"),
    ("--first_frames=2", "first_frames 1 and not 2"),
    ("--shift=3", "shift 5 and not 3"),
    ("--window=3", "window none and not 3"),
    ("--dtype=bfloat16", "dtype float32 and not bfloat16"),
    ("--crf=20", "crf 18 and not 20"),
    ("--mark", "mark none and not [0-9a-f]{12}$|mark none and not [0-9a-f]{12};"),
    ("--image={image}", "image none and not [0-9a-f]{12}"),
    ("--noise_file={image}", "seed 0 and not none, sample 0 and not none, noise_file none and not"),
    ("--prompt_embeds={image}", "prompt_embeds none and not [0-9a-f]{12}"),
    ("--checkpoint={other}", "checkpoint [0-9a-f]{12} and not [0-9a-f]{12}"),
    ("--encoders={encoders}", "encoders [0-9a-f]{12} and not [0-9a-f]{12}"),
]


def test_a_video_of_something_else_is_not_taken_for_this_one(
    command, weights, encoders, tmp_path, capsys
):
    """Whatever changes pixels is named, before anything is made; what does not is no difference."""
    out, image = tmp_path / "new" / "cat.mp4", tmp_path / "image.png"
    command("--prompt=a red square", out=out)
    assert f"video made: {out}\n" in (said := capsys.readouterr().out) and "steps: 1000\n" in said
    made, image_bytes = out.read_bytes(), np.full((24, 32, 3), 90, np.uint8)
    Image.fromarray(image_bytes).save(image)
    other = save_weights(tmp_path / "other", *Golden("inference_chunkwise_4step").model())
    words = texts.load(encoders / "text_encoder")
    (tmp_path / "encoders").mkdir()
    noise = np.random.default_rng(1).integers(0, 256, (4, 24, 32, 3), np.uint8)
    toy_encoders.save(tmp_path / "encoders", codecs.fit(noise, channels=4), words)
    given = {"image": image, "other": other, "encoders": tmp_path / "encoders"}
    for option, expected in OTHER:
        prompt = [] if option.startswith("--prompt=") else ["--prompt=a red square"]
        found = refusal(command, option.format(**given), *prompt, out=out)
        assert re.search(f"{re.escape(str(out))}.* found a video made with .*{expected}", found)
        assert found.endswith("choose another --out, or make it anew with --overwrite")
    assert out.read_bytes() == made
    # As spelt out, and in a batch.
    command("--prompt=a red square", "--fps=16", "--shift=5", "--batch=2", "--steps=1000", out=out)
    assert "1 of 1 videos are there already" in capsys.readouterr().out

    write_video(out, np.zeros((2, 16, 16, 3), np.uint8), 8)  # says nothing of how it was made
    found = refusal(command, "--prompt=a red square", out=out)
    assert "found a video that does not say what it was made from; choose" in found
    command("--prompt=a red square", "--overwrite", out=out)
    assert out.read_bytes() == made


def test_finished_samples_of_other_options_stop_the_rest(command, tmp_path):
    out = command("--prompt=a red square", "--samples=2")
    (out / "a red square-0.mp4").unlink()
    found = refusal(command, "--prompt=a red square", "--samples=2", "--seed=3")
    assert "a red square-1.mp4" in found and "seed 0 and not 3" in found
    assert [p.name for p in out.iterdir()] == ["a red square-1.mp4"]


@pytest.mark.parametrize("name", ["x.gif", "x.GIF", "x.webm", "x.mov", "x.npy"])
@pytest.mark.parametrize("samples", [1, 2])
def test_other_kinds_of_files_are_refused(name, samples, command, tmp_path):
    found = refusal(command, "--prompt=a", f"--samples={samples}", out=tmp_path / name)
    assert f"found {tmp_path / name}; {name[1:].lower()} is not written" in found
    assert not list(tmp_path.iterdir())


def run_of(folder, *changes, stage="one_forcing"):
    """The folder of a stage of the toy's run, without weights."""
    config = configs.load(ROOT / "configs" / "toy.py", [f"--config.{c}" for c in changes])
    (folder / stage / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / stage / "config.json").write_text(config.to_json())
    return folder / stage


@pytest.mark.parametrize(
    ("changes", "steps", "first"),
    [
        ([], (1000,), (1000, 750, 500, 250)),
        (["blocks.steps=(1000,500)"], (1000, 500), (1000, 500)),
        (["blocks.steps=(1000,750,500,250)"], (1000, 750, 500, 250), (1000, 750, 500, 250)),
        (["blocks.first_steps=(1000,500)"], (1000,), (1000, 500)),
        (["blocks.frames=2", "blocks.first_frames=4"], (1000,), (1000, 750, 500, 250)),
    ],
)
def test_what_a_student_was_trained_for_is_what_is_served(
    changes, steps, first, tmp_path, encoders
):
    """Layout and steps of its run, but the paper's first block for one step; a given image has none."""
    source = pretrained.find(run_of(tmp_path, *changes))
    codec = encoding.load(encoders).codec
    made = streaming.settings_of(source, codec)
    frames = (made.block_frames, made.first_frames or made.block_frames)
    expected = [flow.warp_steps(s, 3.0) for s in (first, steps)]
    plan = made.plan(source.shift)
    assert (plan[0].frames, plan[1].frames) == frames[::-1]
    assert frames == ((2, 4) if "blocks.frames=2" in changes else (1, 1))
    assert [plan[0].sigmas, plan[1].sigmas] == expected
    assert {block.sigmas for block in made.plan(source.shift, 2)} == {expected[1]}
    said = origins.in_words(origins.blocks(made.taken(False)))
    assert said.startswith(",".join(map(str, first)))
    # What is chosen stands, and what is not stays as trained.
    chosen = streaming.settings_of(source, codec, steps=(1000.0, 900.0))
    assert chosen.steps == (1000.0, 900.0) and chosen.first_steps == made.first_steps


def test_a_checkpoint_says_which_sampler_it_needs(tmp_path, command):
    """The run's method, or what a conversion noted; a command and Python refuse the other."""
    student, teacher = run_of(tmp_path), run_of(tmp_path, stage="teacher")
    published = save_weights(
        tmp_path / "wan", *Golden("inference_framewise_ffe").model(), item="params_model"
    )
    for folder in (teacher, published):
        found = refusal(command, "--prompt=a red square", f"--checkpoint={folder}")
        assert "expected a causal student, found a bidirectional model" in found
        with pytest.raises(ValueError, match="generate's --teacher samples it, or name another"):
            streaming.load(folder)
    found = refusal(command, "--prompt=a red square", "--teacher", f"--checkpoint={student}")
    assert "expected a bidirectional model" in found and "leave out --teacher" in found
    # A conversion notes it; a student that came as a folder is one.
    record = json.loads((published / "model.json").read_text())
    record["nets"]["params_model"]["more"] = {"family": "Wan2.1", "causal": True, "new": [1]}
    (published / "model.json").write_text(json.dumps(record | {"version": 1, "newer": {}}))
    assert pretrained.find(published).causal
    for version in (2, 0, "1", None):
        (published / "model.json").write_text(json.dumps(record | {"version": version}))
        with pytest.raises(ValueError, match="model.json: expected a record of version 1, found"):
            pretrained.find(published)


# Refusals and names.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt= "], "prompt: expected words, found an empty prompt"),
        (
            ["--prompt=a", "--checkpoint=nowhere"],
            "expected a folder of tools/convert_wan.py, a stage of",
        ),
        (["--prompt=a", "--size=25x32"], "divides, found 25x32"),
        (
            ["--prompt=a", "--size=20x32"],
            "divide by the patch 2, found 5x8; change the video's size",
        ),
        (
            ["--prompt=a", "--frames=0"],
            "--frames: expected a whole number from 1 to 1,000,000, found 0",
        ),
        (["--prompt=a", "--method=chunkwise", "--frames=7"], "7 frames = 3 .* 4 left over"),
        (["--prompt=a", "--image=gone.png"], "no image file at gone.png"),
        (
            ["--prompt=a", "--image=x.png", "--teacher"],
            "makes whole clips and cannot continue x.png",
        ),
        (["--prompt=a", "--image={file}"], "expected an image, found another file"),
        (["--prompt=a", "--video={file}"], "expected a readable video"),
        (["--prompt=a", "--out={file}/videos"], "--out: cannot make .*: Not a directory"),
        (
            ["--prompts={file}", "--rewritten_prompts={empty}"],
            "expected prompts, one a line, found",
        ),
        (["--prompts={empty}"], "expected prompts, one a line, found none"),
        (["--prompts=gone.txt"], "prompts: expected a text file, found nothing at gone.txt"),
        (["--prompt=a", "--noise_file=gone.npz"], r"with noise \[1, 6, 4, 6, 8\], found nothing"),
        (
            ["--prompt=a", "--noise_file={file}"],
            "expected a .npz file of numbers.*, found another kind",
        ),
        (
            ["--prompt=a", "--noise_file={noise}"],
            r"noise \[1, 6, 4, 6, 8\], found noise \[1, 5, 4,",
        ),
        (["--prompt=a", "--prompt_embeds={noise}"], r"prompt_embeds \[1, 8, 16\], found noise"),
        (["--prompt=a", "--shard=2/2"], "shard: expected I/N with I from 0 to N - 1, found '2/2'"),
        (
            ["--prompt=a", "--samples=0"],
            "--samples: expected a whole number from 1 to 1,000,000",
        ),
        (["--prompt=a", "--fps=0"], "--fps: expected a number above 0, of 1000 at most, found 0.0"),
        (["--prompt=a", "--fps=inf"], "--fps: expected a finite number, found inf"),
        (["--prompt=a", "--shift=nan"], "--shift: expected a finite number, found nan"),
        (["--prompt=a", "--guidance=nan"], "--guidance: expected a finite number, found nan"),
        (
            ["--prompt=a", "--seed=-1"],
            "--seed: expected a whole number from 0 to 2.32 - 1, found -1",
        ),
        (
            ["--prompt=a", "--first_frames=-1"],
            "--first_frames: expected a whole number of 1 or more",
        ),
        (["--prompt=a", "--size=0x8"], "--size: expected a whole number of 1 or more"),
        (["--prompt=a", "--crf=-1"], "--crf: expected a whole number"),
        (
            ["--prompt=a", "--batch=0"],
            "--batch: expected a whole number from 1 to 1,000,000, found 0",
        ),
        (
            ["--prompt=a", "--ema"],
            "expected a transformer among ema_generator, found .*params_generator",
        ),
        (["--prompt=a green square"], "green"),
        (
            ["--prompt=a", "--decoder=tiny"],
            "decoder: expected none, as the family of these has, found 'tiny'",
        ),
    ],
)
def test_bad_input_is_one_line(options, message, tmp_path, command, capsys):
    (tmp_path / "some.txt").write_text("a\nb\n")
    (tmp_path / "empty.txt").write_text("\n")
    np.savez(tmp_path / "noise.npz", noise=normal(0, 1, 5, 4, 6, 8))
    files = {name: tmp_path / f"{name}.{end}" for name, end in [("empty", "txt"), ("noise", "npz")]}
    options = [option.format(file=tmp_path / "some.txt", **files) for option in options]
    with pytest.raises(SystemExit) as caught:
        command(*options)
    assert re.search(message, str(caught.value)) and "\n" not in str(caught.value)
    assert str(caught.value).startswith("error: ")
    assert not list(tmp_path.glob("videos/*"))


def test_file_names():
    assert jobs.file_name("a cat / a dog\n?") == "a cat _ a dog_?"
    assert jobs.file_name("..") == "_."
    assert jobs.file_name("x" * 210) == "x" * 210
    assert len(jobs.file_name("x" * 300)) == 220
    chinese = jobs.file_name("一" * 300)
    assert len(chinese.encode()) <= 220 and set(chinese) == {"一"}
    both = [jobs.Prompt("x" * 250 + end, "") for end in "ab"]
    with pytest.raises(ValueError, match="prompts 1 and 2 would both be named .*--naming=number"):
        jobs.make(both, Path("out"))
    with pytest.raises(ValueError, match="out: expected a folder for 2 videos, found one.mp4"):
        jobs.make(both, Path("one.mp4"))
    named = jobs.make(both, Path("out"), samples=2, naming="number")
    assert [job.path.name for job in named[1:3]] == ["00000-1.mp4", "00001-0.mp4"]


def test_shards_share_all_videos():
    made = jobs.make([jobs.Prompt(words, words) for words in "abcde"], Path("out"), samples=2)
    shares = [jobs.share_of(made, f"{i}/3") for i in range(3)]
    assert sorted(job.number for share in shares for job in share) == list(range(10))
    assert {len(share) for share in shares} == {3, 4}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a cat", "line 2: expected JSON like .*, found 'a cat'"),
        ('{"prompt": ""}', "line 2: expected a prompt, found none"),
        ('{"prompt": "a", "seed": "x"}', "line 2: expected as seed a whole number .*, found 'x'"),
        ('["a"]', "line 2: expected JSON like"),
    ],
)
def test_bad_lines_are_named(line, message, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text(f'{{"prompt": "fine"}}\n{line}\n')
    with pytest.raises(ValueError, match=message):
        jobs.read_prompts(file)


def test_rewritten_prompts_pair_by_line(tmp_path):
    for name, lines in (("a.txt", "one\ntwo"), ("b.txt", "1\n2"), ("c.txt", "1")):
        (tmp_path / name).write_text(lines)
    pairs = jobs.read_prompts(tmp_path / "a.txt", tmp_path / "b.txt")
    assert [(p.words, p.embedded) for p in pairs] == [("one", "1"), ("two", "2")]
    with pytest.raises(ValueError, match="c.txt: expected 2 prompts, one for each of .*, found 1"):
        jobs.read_prompts(tmp_path / "a.txt", tmp_path / "c.txt")


def test_encoders_of_another_model_are_refused(tmp_path, weights, encoders):
    noise = np.random.default_rng(0).integers(0, 256, (4, 24, 32, 3), np.uint8)
    words = texts.load(encoders / "text_encoder")
    toy_encoders.save(tmp_path, codecs.fit(noise, channels=3), words)
    with pytest.raises(
        ValueError, match="expected embeddings of width 16 and latents of 4 channels"
    ):
        # Before weights are read: there are none.
        shutil.copy(weights("inference_framewise_ffe") / "model.json", tmp_path)
        streaming.load(tmp_path, tmp_path)


def test_encoders_of_the_first_version_say_their_kind_when_told(tmp_path, encoders, capsys):
    for name in ("codec.npz", "text_encoder"):
        copy = shutil.copytree if (encoders / name).is_dir() else shutil.copy
        copy(encoders / name, tmp_path / name)
    with pytest.raises(FileNotFoundError, match="or an encoders.json that says their kind"):
        encoding.load(tmp_path)
    toy_encoders.main([str(tmp_path)])
    assert encoding.load(tmp_path).codec.channels == 4
    with pytest.raises(SystemExit, match="expected a toy's codec.npz in .*, found none"):
        toy_encoders.main([str(tmp_path / "text_encoder")])
    (tmp_path / "encoders.json").write_text('{"kind": "os.path"}')
    with pytest.raises(
        ValueError, match="expected a part of oneforcing_jax, found 'os.path', whose code"
    ):
        encoding.load(tmp_path)


def test_stages_of_a_run(tmp_path, random_params, encoders):
    """The network of a stage, its average, its schedule, and the encoders of the store it began with."""
    sizes_of = [f"--config.generator.{f}={n}" for f, n in [("dim", 24), ("num_heads", 2)]]
    config = configs.load(ROOT / "configs" / "toy.py", sizes_of)
    (tmp_path / "config.json").write_text(config.to_json())
    net = methods.make("one_forcing", Run.of(config)).nets["generator"].model
    params = random_params(net)
    for stage, nets in (("one_forcing", ("params", "ema")), ("ode", ("params",))):
        name = "generator" if stage == "one_forcing" else "model"
        with checkpoint.manager(tmp_path / stage / "checkpoints") as manager:
            scaled = {k: jax.tree.map(lambda x, s=i: x + s, params) for i, k in enumerate(nets)}
            checkpoint.save(manager, 3, {part: {name: tree} for part, tree in scaled.items()})
    found = pretrained.find(tmp_path / "one_forcing")
    assert (found.shift, found.frames, found.rows, found.block_frames) == (3.0, 8, 6, 1)
    assert found.config == net.config
    plain, average = found.params(), pretrained.find(tmp_path / "one_forcing", ema=True).params()
    for leaf, moved, expected in zip(*map(jax.tree.leaves, (plain, average, params)), strict=True):
        np.testing.assert_array_equal(leaf, expected)
        np.testing.assert_array_equal(moved, expected + 1)
    half = pretrained.find(tmp_path / "ode", dtype="bfloat16").params()
    assert half["blocks"]["ffn"]["0"]["kernel"].dtype == jnp.bfloat16
    assert half["time_embedding_0"]["kernel"].dtype == jnp.float32

    with pytest.raises(ValueError, match="encoders: expected vae/ and text/ .* --encoders"):
        pretrained.find_encoders(tmp_path / "ode")
    store = tmp_path / "world" / "store"
    store.mkdir(parents=True)
    encoding.record(store, encoders)
    assert pretrained.find_encoders(tmp_path / "ode") == store
    assert encoding.load(store).codec.channels == 4
    (tmp_path / "teacher").mkdir()
    with pytest.raises(ValueError, match="expected a folder of .*, found nothing in"):
        pretrained.find(tmp_path / "teacher")
