"""One network in every causal form: cached, block-causal, rolled out, replayed, streamed."""

import dataclasses
import functools
import unittest.mock

import jax
import jax.numpy as jnp
import kernel_of_sums
import numpy as np
import pytest
from goldens import ROUNDED, Golden, allowed, error, in_bfloat16
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree

from oneforcing_jax.causal import cache as kv
from oneforcing_jax.causal import structures
from oneforcing_jax.causal.cache import Window
from oneforcing_jax.causal.generate import Generator, generate
from oneforcing_jax.causal.plan import (
    Block,
    ClipDraws,
    draw,
    first_of_window,
    make_plan,
    mean_steps,
    num_frames,
)
from oneforcing_jax.causal.replay import differentiable
from oneforcing_jax.causal.sequential import CONTEXT_GRADIENTS, sequential
from oneforcing_jax.generation import student as students
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models import kernels, rope, wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.models.model import unstacked
from oneforcing_jax.shapes import flat

CONFIG = wan.WanConfig(24, 32, 2, 2, in_dim=2, out_dim=2, text_dim=8, text_len=4, freq_dim=8)
NET = wan.model(CONFIG)
ROWS, COLUMNS = 4, 2
# Kernels of one file each, which is all that a kernel needs.
OF_ROWS, OF_SUMS = "kernel_of_rows", "kernel_of_sums"
TOKENS = CONFIG.frame_tokens(ROWS, COLUMNS)


def on_cpu(kernel):
    """A context in which CPUs have the kernel of a module."""
    return unittest.mock.patch.dict(kernels.MODULES, {"cpu": kernel})


def student(params, window=Window(), context_sigma=0.0, config=CONFIG):
    return Generator(wan.model(config), params, window, context_sigma)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def prompt(batch):
    return prompted(normal(1, batch, CONFIG.text_len, CONFIG.text_dim))


def draws(batch, plan, context=False):
    shape = (batch, num_frames(plan), CONFIG.in_dim, ROWS, COLUMNS)
    more = max(len(block.sigmas) for block in plan) - 1
    return ClipDraws(
        normal(5, *shape),
        normal(6, *shape) if context else None,
        normal(7, more, *shape) if more else None,
    )


# One block against the cache, which then holds its keys and values.


@functools.partial(jax.jit, static_argnames="window", donate_argnames="cache")
def block_forward(params, cache, text, x, sigma, start, window):
    size, limit = x.shape[1], cache.k.shape[2]
    out = NET.apply(
        params,
        x,
        jnp.broadcast_to(sigma, x.shape[:2]),
        text,
        frames=start + jnp.arange(size),
        attend=kv.cached((size,), start, window, limit),
        memory=cache,
    )
    return out.flow, kv.write(cache, out.new, start, window)


@functools.partial(jax.jit, static_argnames=("layout", "window"))
def clip_forward(params, text, x, sigma, layout, window):
    groups = structures.block_causal(layout, window.size, window.sink)
    attend = structures.structured(groups)
    return NET.apply(params, x, sigma, text, attend=attend).flow


def assert_cached_is_block_causal(params, layout, window, batch=1):
    text, frames = prompt(batch), sum(layout)
    x = normal(2, batch, frames, CONFIG.in_dim, ROWS, COLUMNS)
    levels = np.random.default_rng(3).uniform(0.1, 1, len(layout)).astype(np.float32)
    sigma = np.broadcast_to(np.repeat(levels, layout), (batch, frames))
    whole = clip_forward(params, text, x, sigma, layout, window)
    cache, start, parts = kv.init(CONFIG, batch, window.slots(frames), TOKENS), 0, []
    for size, level in zip(layout, levels, strict=True):
        part = x[:, start : start + size]
        v, cache = block_forward(params, cache, text, part, level, np.int32(start), window)
        parts.append(v)
        start += size
    assert error(np.concatenate(parts, 1), whole) < 1e-5
    return whole


@pytest.mark.parametrize(
    ("layout", "window"),
    [
        ((1,) * 6, Window()),
        ((3, 3), Window()),
        ((4, 1, 1), Window()),
        ((1,) * 8, Window(4, 1)),
        ((2,) * 4, Window(5, 1)),
    ],
)
def test_cached_forward_is_block_causal(layout, window, random_params):
    params = random_params(NET)
    whole = assert_cached_is_block_causal(params, layout, window, batch=2)
    # The structure matters: with every frame visible, the result is another.
    text, x = prompt(2), normal(2, *whole.shape)
    levels = np.random.default_rng(3).uniform(0.1, 1, len(layout)).astype(np.float32)
    sigma = np.broadcast_to(np.repeat(levels, layout), whole.shape[:2])
    other = clip_forward(params, text, x, sigma, (len(whole[0]),), Window())
    assert error(whole, other) > 1e-2


@st.composite
def windows(draw):
    layout = tuple(draw(st.lists(st.integers(1, 2), min_size=2, max_size=5)))
    sink = draw(st.integers(0, 2))
    size = draw(st.integers(sink + max(layout), sum(layout) + 1))
    return layout, Window(size, sink)


@settings(max_examples=12, derandomize=True)
@given(windows())
def test_any_layout_and_window(case):
    """What a layer sees through the cache is what the structure of the whole clip shows it."""
    layout, window = case
    frames, heads = sum(layout), (CONFIG.num_heads, CONFIG.head_dim)
    q, k, v = normal(8, 3, 1, frames, TOKENS, *heads)
    groups = structures.block_causal(layout, window.size, window.sink)
    whole, _ = jax.jit(structures.structured(groups))(q, k, v, None)
    one_layer = dataclasses.replace(CONFIG, num_layers=1)

    @functools.partial(jax.jit, static_argnames="in_place")
    def block(cache, q, k, v, start, in_place):
        attend = kv.cached((q.shape[1],), start, window, window.slots(frames), in_place)
        if in_place:
            out, new = attend(q, k, v, cache[0])
            return out, (new,)
        out, new = attend(q, k, v, jax.tree.map(lambda x: x[0], cache))
        return out, kv.write(cache, jax.tree.map(lambda x: x[None], new), start, window)

    # Stacked, apart, and apart as rows, as kernels of TPUs read them.
    for in_place, rows in ((False, False), (True, False), (True, True)):
        start, parts = 0, []
        with on_cpu(OF_ROWS if rows else kernels.XLA):
            cache = kv.init(one_layer, 1, window.slots(frames), TOKENS, stacked=not in_place)
            for size in layout:
                part = (x[:, start : start + size] for x in (q, k, v))
                out, cache = block(cache, *part, np.int32(start), in_place)
                parts.append(out)
                start += size
        assert error(np.concatenate(parts, 1), whole) < 1e-5


@pytest.mark.parametrize(
    ("parts", "window", "dtype"),
    [
        ((1, 1), Window(), jnp.float32),
        ((2, 2), Window(), jnp.bfloat16),
        ((1, 1), Window(4), jnp.bfloat16),
        ((1, 1), Window(4, 2), jnp.float32),
    ],
)
def test_keys_that_both_parts_see_are_read_once(parts, window, dtype):
    """Answers are those of a call a part, from the first frame until a ring has turned twice."""
    slots, heads = window.slots(12), (CONFIG.num_heads, 8)
    stride, calls = parts[0], []
    for together in (False, True):

        @functools.partial(jax.jit, donate_argnums=3)
        def block(q, k, v, memory, start):
            return kv.cached(parts, start, window, slots, in_place=True)(q, k, v, memory)

        memory = kv.Cache(*jnp.zeros((2, 2, slots, TOKENS, *heads), dtype))
        kernel_of_sums.asked.clear()
        with on_cpu(OF_SUMS if together else kernels.XLA):
            for start in range(0, 12 - sum(parts) + 1, stride):
                shape = (3, 2, sum(parts), TOKENS, *heads)
                q, k, v = jnp.asarray(3 * normal(start, *shape), dtype)
                out, memory = block(q, k, v, memory, np.int32(start))
                calls.append(np.asarray(out, np.float32))
        assert bool(kernel_of_sums.asked) == together
    plain, found = np.split(np.stack(calls), 2)
    assert error(found, plain) < (1e-6 if dtype == jnp.float32 else 1e-2)


@pytest.mark.parametrize("parts", [(1, 1), (2,), (3, 1)])
@pytest.mark.parametrize("start", [0, 4])
def test_a_cache_that_stays_as_it_is_is_not_written(parts, start):
    slots, heads = 9, (CONFIG.num_heads, 8)
    memory = kv.Cache(*jnp.asarray(3 * normal(1, 2, 2, slots, TOKENS, *heads)))
    q, k, v = jnp.asarray(3 * normal(2, 3, 2, sum(parts), TOKENS, *heads))
    found = []
    for together in (False, True):
        with on_cpu(OF_SUMS if together else kernels.XLA):
            attend = kv.cached(parts, np.int32(start), Window(), slots, frozen=True)
            found.append(jax.jit(attend)(q, k, v, memory)[0])
            written = str(jax.make_jaxpr(attend)(q, k, v, memory))
        assert ("dynamic_update_slice" in written) is not together
    assert error(*found) < 1e-6


def test_a_relative_sink_lies_before_the_ring():
    """Against attention over keys that are rotated where they lie, block by block."""
    window, frames, size = Window(5, 1, relative=True), 8, 2
    heads = (CONFIG.num_heads, CONFIG.head_dim)
    q, k, v = normal(8, 3, 1, frames, TOKENS, *heads)

    def at(x, numbers):
        angles = rope.rotations(jnp.array(numbers), 1, TOKENS, CONFIG.head_dim, CONFIG.rope_theta)
        return rope.rotate(x, rope.turns(angles))

    numbers, expected = np.arange(frames), []
    for end in range(size, frames + 1, size):
        recent = numbers[max(window.sink, end - 4) : end]
        places, seen = [recent[0] - 1, *recent], [0, *recent]
        asked = at(q[:, end - size : end], range(end - size, end))
        own = map(flat, (asked, at(k[:, seen], places), v[:, seen]))
        expected.append(kernels.chosen().attend(*own).reshape(asked.shape))
    expected, (q, k) = np.concatenate(expected, 1), (at(x, numbers) for x in (q, k))

    def found(window, in_place):
        one, parts = dataclasses.replace(CONFIG, num_layers=1), []
        cache = kv.init(one, 1, window.slots(frames), TOKENS, stacked=not in_place)
        for start in range(0, frames, size):
            part = [x[:, start : start + size] for x in (q, k, v)]
            own = cache[0] if in_place else jax.tree.map(lambda x: x[0], cache)
            attend = kv.cached((size,), jnp.int32(start), window, window.slots(frames), in_place)
            out, new = attend(*part, own)
            written = jax.tree.map(lambda x: x[None], new)
            cache = (new,) if in_place else kv.write(cache, written, jnp.int32(start), window)
            parts.append(out)
        return np.concatenate(parts, 1)

    for in_place, rows in ((False, False), (True, False), (True, True)):
        with on_cpu(OF_ROWS if rows else kernels.XLA):
            assert error(found(window, in_place), expected) < 1e-5
    assert error(found(Window(5, 1), False), expected) > 1e-2


# The rollout and its plain form.


def blocks(count, frames, *sigmas):
    return (Block(frames, sigmas),) * count


# Blocks, window, and the noise level of finished blocks (None: no noise is drawn).
MULTI_STEP = (Block(2, (1.0, 0.7, 0.3)), *blocks(3, 1, 1.0, 0.5))
PLANS = {
    "framewise": (blocks(4, 1, 1.0), Window(), None),
    "multi-step": (MULTI_STEP, Window(), 0.1),
    "rolling": ((Block(1, (1.0, 0.6)), *blocks(6, 1, 1.0)), Window(3, 1), 0.1),
}


@functools.partial(jax.jit, static_argnames=("plan", "window"))
def generated(params, noise, text, plan, window, context_sigma):
    return generate(student(params, window, context_sigma), noise, text, plan)


@functools.partial(jax.jit, static_argnames=("plan", "window"))
def plain(params, noise, text, plan, window, context_sigma):
    g = student(params, window, context_sigma)
    return sequential(g, noise, text, plan, 0, "stop")


@pytest.mark.parametrize("name", PLANS)
def test_rollout_and_stream_are_block_by_block(name, random_params):
    plan, window, sigma = PLANS[name]
    params, text, noise = random_params(NET), prompt(2), draws(2, plan, sigma is not None)
    found = generated(params, noise, text, plan, window, sigma)
    expected = plain(params, noise, text, plan, window, sigma)
    assert error(found.latents, expected) < 1e-5
    assert found.cache.k.shape[2] == window.slots(num_frames(plan))
    if sigma:
        other = generated(params, noise, text, plan, window, 2 * sigma)
        assert error(other.latents, expected) > 1e-3
        # The first block has no context.
        assert error(other.latents[:, :1], expected[:, :1]) < 1e-5
        # At level 0 the context is what a stream sees, which has no noise for it.
        found = generated(params, noise, text, plan, window, 0.0)
    noise = noise._replace(context=None)
    streamed = Student(NET, params, window)
    parts = list(streamed.stream(noise, streamed.prepare(text), plan))
    assert [part.shape[1] for part in parts] == [block.frames for block in plan]
    assert error(np.concatenate(parts, 1), found.latents) < 1e-5


RINGS = [
    (blocks(6, 1, 1.0), Window(3)),
    pytest.param(
        (Block(2, (1.0, 0.7)), *blocks(4, 2, 1.0, 0.5)), Window(5, 1), marks=pytest.mark.long
    ),
    pytest.param(blocks(8, 1, 1.0), Window(4, 1, relative=True), marks=pytest.mark.long),
]


@pytest.mark.parametrize(("plan", "window"), RINGS)
def test_a_window_that_rolls_in_place_is_block_by_block(plan, window, random_params):
    """As it is served, with layers and caches apart, far past the window."""
    params, text, noise = random_params(NET), prompt(1), draws(1, plan)
    expected = plain(params, noise, text, plan, window, 0.0)
    served = Student(NET, unstacked(params), window)
    text = served.prepare(text)
    found = served.clip(noise, text, plan)
    assert error(found, expected) < 1e-5
    # The first frame counts while it is seen, and no longer.
    other = noise._replace(
        start=noise.start + np.eye(1, noise.start.shape[1])[..., None, None, None]
    )
    moved = np.abs(served.clip(other, text, plan) - found).max((0, 2, 3, 4))
    assert (moved[: window.size] > 1e-4).all()


EXITS = (Block(1, (1.0, 0.8)), *blocks(3, 1, 1.0, 0.7, 0.3))


@functools.partial(jax.jit, static_argnames="plan")
def ended(params, noise, text, plan):
    found = generate(student(params, context_sigma=0.1), noise, text, plan)
    return found.latents, found.levels


@pytest.mark.parametrize("exit", [0, 2])
def test_blocks_end_at_their_exit(exit, random_params):
    """As if the list ended there; the first block has a list of its own. What follows does not run."""
    cut = (EXITS[0], *blocks(3, 1, *EXITS[1].sigmas[: exit + 1]))
    params, text, noise = random_params(NET), prompt(2), draws(2, EXITS, context=True)
    noise = noise._replace(renoise=np.swapaxes(noise.renoise, 0, 1))
    unread = noise._replace(renoise=noise.renoise.copy(), exit=np.full(2, exit, np.int32))
    unread.renoise[:, exit:, 1:] = np.nan
    (latents, levels), (expected, last) = (
        ended(params, given, text, plan) for given, plan in ((unread, EXITS), (noise, cut))
    )
    assert error(latents, expected) < 1e-5
    np.testing.assert_array_equal(levels, last)
    again = jax.jit(
        lambda: sequential(
            student(params, context_sigma=0.1), unread, text, EXITS, 0, "straight_through"
        )
    )()
    assert error(again, expected) < 1e-5


def test_one_exit_is_drawn_for_all(random_params):
    shape = (3, num_frames(EXITS), 2, ROWS, COLUMNS)
    found = np.array(
        [draw(jax.random.key(i), shape, EXITS, 0.0, random_exit=True).exit for i in range(32)]
    )
    assert set(found[:, 0]) == {0, 1, 2} and (found == found[:, :1]).all()
    assert mean_steps(EXITS, random_exit=True) == (2, 2, 2, 2)
    assert mean_steps(EXITS) == (2, 3, 3, 3)
    one_step = (EXITS[0], *blocks(3, 1, 1.0))
    assert draw(jax.random.key(0), shape, one_step, 0.0, random_exit=True).exit is None


# A first block that is given to some clips, as in training on videos that begin with an image.


def test_a_given_block_is_what_a_video_continues(random_params):
    """As it is trained, so it is served; the other clips of the batch are as without."""
    plan = (Block(1, (1.0, 0.6)), *blocks(2, 2, 1.0))  # an image is one latent frame
    params, text = random_params(NET), prompt(2)
    noise, latents = draws(2, plan), normal(9, 2, num_frames(plan), CONFIG.in_dim, ROWS, COLUMNS)
    noise = noise._replace(renoise=np.swapaxes(noise.renoise, 0, 1))
    half = noise._replace(given=np.array([True, False])).beginning(latents, plan)
    found = generated(params, half, text, plan, Window(), 0.0)
    without = generated(params, noise, text, plan, Window(), 0.0)
    np.testing.assert_array_equal(found.latents[0, :1], latents[0, :1])
    assert error(found.latents[1], without.latents[1]) < 1e-5
    rest = ClipDraws(noise.start[:, 1:])
    served = clip(params, CONFIG, rest, text, plan[1:], latents[:, :1]).latents
    assert error(found.latents[0, 1:], served[0]) < 1e-5
    np.testing.assert_array_equal(found.levels, np.float32([[0, 1, 1, 1, 1], [0.6, 1, 1, 1, 1]]))


@pytest.mark.long
def test_no_gradient_passes_to_a_given_block(random_params):
    params, mode = random_params(NET), "straight_through"
    noise = draws(1, PLAN, context=True)
    noise = noise._replace(given=np.array([True])).beginning(normal(9, *noise.start.shape), PLAN)
    weight = normal(4, *noise.start.shape)
    found, expected = (
        gradient(params, noise, prompt(1), weight, form, 0, mode)
        for form in ("differentiable", "sequential")
    )
    assert error(found, expected) < 1e-4
    weight[:, 0] = 7  # on what the block itself is
    again = gradient(params, noise, prompt(1), weight, "differentiable", 0, mode)
    assert error(again, found) < 1e-5


# Gradients through the context.


@functools.partial(jax.jit, static_argnames=("form", "first", "mode"))
def gradient(params, noise, text, weight, form, first, mode):
    def loss(params):
        run = {"differentiable": differentiable, "sequential": sequential}[form]
        return jnp.vdot(
            weight, run(student(params, context_sigma=0.1), noise, text, PLAN, first, mode)
        )

    return ravel_pytree(jax.grad(loss)(params))[0]


PLAN = (Block(1, (1.0, 0.5)), *blocks(2, 1, 1.0))


def of_mode(params, form, first, mode, since=0):
    """Gradient of latents times fixed weights, which are 0 before frame `since`."""
    noise = draws(1, PLAN, context=True)
    weight = normal(4, *noise.start.shape)
    weight[:, :since] = 0
    return gradient(params, noise, prompt(1), weight, form, first, mode)


@pytest.mark.parametrize(
    ("mode", "first"),
    [
        ("straight_through", 0),
        ("stop", 1),
        pytest.param("straight_through", 1, marks=pytest.mark.long),
        pytest.param("stop", 0, marks=pytest.mark.long),
    ],
)
def test_replay_gradients_are_sequential(mode, first, random_params):
    params = random_params(NET)
    if mode == "stop":
        # No gradient passes from block to block, so those from `first` on have all of theirs.
        expected = of_mode(params, "sequential", 0, mode, since=first)
    else:
        expected = of_mode(params, "sequential", first, mode)
    assert np.linalg.norm(expected) > 0
    assert error(of_mode(params, "differentiable", first, mode), expected) < 1e-4


@pytest.mark.long
def test_context_gradients_differ(random_params):
    params = random_params(NET)
    found = {mode: of_mode(params, "sequential", 0, mode) for mode in CONTEXT_GRADIENTS}
    assert error(found["stop"], found["full"]) > 1e-2
    assert error(found["straight_through"], found["full"]) > 1e-2
    assert error(found["straight_through"], found["stop"]) > 1e-2


def test_gradient_window_cuts_what_lies_before(random_params):
    params = random_params(NET)
    whole, last = (of_mode(params, "differentiable", first, "stop") for first in (0, 1))
    assert error(last, whole) > 1e-2
    assert [first_of_window(PLAN, n) for n in (None, 1, 2, 9)] == [0, 2, 1, 0]


# Recorded generation.


def recorded_draws(golden, plan):
    """Renoise draws are recorded in the order of use: block by block, step by step."""
    noise, frames, number = golden.inputs["noise"], 0, 0
    more = max(len(block.sigmas) for block in plan) - 1
    renoise = np.full((noise.shape[0], more, *noise.shape[1:]), np.nan, np.float32)
    for block in plan:
        for step in range(len(block.sigmas) - 1):
            drawn = golden.inputs[f"renoise{number}"].reshape(1, block.frames, *noise.shape[2:])
            renoise[:, step, frames : frames + block.frames] = drawn
            number += 1
        frames += block.frames
    assert f"renoise{number}" not in golden.inputs
    return ClipDraws(noise, None, jnp.asarray(renoise) if more else None)


@functools.partial(jax.jit, static_argnames=("config", "plan", "window"))
def clip(params, config, noise, text, plan, given=None, window=Window()):
    return generate(student(params, window, config=config), noise, text, plan, given)


def recorded_plan(golden):
    c, noise = golden.config, golden.inputs["noise"]
    return make_plan(
        noise.shape[1],
        c["num_frame_per_block"],
        c["denoising_steps"],
        c["timestep_shift"],
        first_block_steps=c["first_block_denoising_steps"],
    )


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["inference_framewise_ffe", "inference_chunkwise_4step", "inference_image_to_video"]
)
def test_recorded_generation(name):
    golden = Golden(name)
    config, params = golden.model()
    plan, given = recorded_plan(golden), golden.inputs.get("initial_latent")
    noise, text = recorded_draws(golden, plan), prompted(golden.inputs["prompt_embeds"])
    found = clip(params, config, noise, text, plan, given).latents
    if given is not None:
        found = jnp.concatenate([given, found], 1)
    assert error(found, golden.outputs["latents"]) < allowed(2e-4)


@pytest.mark.parametrize(("frames", "count"), [(1, 1), (2, 2)])
def test_given_blocks_are_context(frames, count, random_params):
    """A clip that continues the first blocks of another is the rest of the other.

    The last given block shares the first forward; those before it are passed over on their own.
    """
    plan, params, text = blocks(3, frames, 1.0), random_params(NET), prompt(1)
    noise, known = draws(1, plan), frames * count
    whole = clip(params, CONFIG, noise, text, plan).latents
    rest, first = ClipDraws(noise.start[:, known:]), whole[:, :known]
    found = clip(params, CONFIG, rest, text, plan[count:], first).latents
    assert error(found, whole[:, known:]) < 1e-5
    other = clip(params, CONFIG, rest, text, plan[count:], -first).latents
    assert error(other, found) > 1e-2


@pytest.mark.gpu
@pytest.mark.parametrize(
    "rounded", [False, pytest.param(True, marks=pytest.mark.long)], ids=["float32", "bfloat16"]
)
@pytest.mark.parametrize(
    "name", ["wan_causal_framewise", "wan_causal_chunkwise", "wan_causal_rolling_sink"]
)
def test_recorded_rollout(name, rounded):
    golden = Golden(name)
    c, (config, params) = golden.config, golden.model()
    config, params = in_bfloat16(config, params) if rounded else (config, params)
    tolerance = ROUNDED if rounded else allowed(2e-4)
    size, rolling = c["num_frame_per_block"], c["local_attn_size"] > 0
    window = Window(c["local_attn_size"], c["sink_size"]) if rolling else Window()
    noise, text = golden.inputs["noise"], prompted(golden.inputs["prompt_embeds"])
    total = noise.shape[1]
    plan = make_plan(total, size, [1000], c["timestep_shift"])
    found = clip(params, config, ClipDraws(noise), text, plan, window=window)
    assert error(found.latents, golden.outputs["x0_cached_rollout"]) < tolerance
    g = student(params, window, config=config)
    again = jax.jit(lambda: sequential(g, ClipDraws(noise), text, plan, 0, "stop"))()
    assert error(again, golden.outputs["x0_cached_rollout"]) < tolerance
    cache = found.cache
    # The recording ends with the clean pass of the last block, which we skip; its frames are in
    # order. In the ring, the frame `f` beyond the sink lies in slot sink + (f - sink) % ring.
    kept = range(total - size)
    where, recorded = {f: f for f in kept}, {f: f for f in kept}
    if rolling:
        ring = window.size - window.sink
        kept = [*range(window.sink), *range(total - ring, total - size)]
        where = {f: f if f < window.sink else window.sink + (f - window.sink) % ring for f in kept}
        recorded = {f: f if f < window.sink else f - (total - window.size) for f in kept}
    for ours, name in ((cache.k[0], "cache_k_layer0"), (cache.v[-1], "cache_v_last")):
        theirs = golden.outputs[name]
        theirs = theirs.reshape(theirs.shape[0], -1, *ours.shape[2:])
        assert theirs.shape[1] == ours.shape[1]
        for f in kept:
            assert error(ours[:, where[f]], theirs[:, recorded[f]]) < tolerance, (name, f)


# Refusals.


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((7, 3), r"7 frames = 3 \(first block\) \+ a multiple of 3, found 4 left over; change"),
        ((2, 3), r"2 frames = 3 \(first block\) \+ a multiple of 3, found -1 left over"),
        ((8, 3, 4), r"8 frames = 4 \(first block\) \+ a multiple of 3, found 4 left over"),
    ],
)
def test_blocks_that_do_not_divide_are_refused(sizes, message):
    frames, size, *first = sizes
    with pytest.raises(ValueError, match=message):
        make_plan(frames, size, [1000], 5.0, *first)


def test_odd_shapes_are_refused(random_params):
    params, plan = jax.tree.map(jnp.asarray, random_params(NET)), blocks(2, 1, 1.0)
    text = prompt(1)

    def run(rows, frames=2, window=Window(), plan=plan, given=None):
        noise = ClipDraws(normal(0, 1, frames, CONFIG.in_dim, rows, COLUMNS))
        abstract = functools.partial(generate, student(params, window), noise, text, plan)
        jax.eval_shape(abstract, given)

    run(ROWS)
    with pytest.raises(ValueError, match="divide by the patch 2, found 5x2; change the video"):
        run(5)
    with pytest.raises(ValueError, match="draws.start: expected f=2"):
        run(ROWS, frames=3)
    with pytest.raises(ValueError, match="given: expected y=4"):
        run(ROWS, given=normal(0, 1, 1, CONFIG.in_dim, 2, COLUMNS))
    with pytest.raises(ValueError, match="at most size - sink = 1 frames, found a block of 2"):
        run(ROWS, window=Window(2, 1), plan=blocks(1, 2, 1.0))
    with pytest.raises(ValueError, match="expected renoise for a block of 2 steps, found None"):
        run(ROWS, plan=blocks(2, 1, 1.0, 0.5))


def test_odd_settings_are_refused(random_params):
    with pytest.raises(ValueError, match="0 <= sink < size, found sink 3 and size 3"):
        Window(3, 3)
    with pytest.raises(ValueError, match="context gradient: expected one of .* found 'none'"):
        differentiable(student({}), None, None, PLAN, 0, "none")
    with pytest.raises(ValueError, match="positive number of blocks or None, found 0"):
        first_of_window(PLAN, 0)
    with pytest.raises(ValueError, match="even head size, found dim 24 over 5 heads"):
        dataclasses.replace(CONFIG, num_heads=5)


def test_replay_refuses_a_rolling_cache(random_params):
    plan, window = blocks(3, 1, 1.0), Window(2, 1)
    noise, text = draws(1, plan), prompt(1)

    def run(params):
        g = student(params, window)
        return differentiable(g, noise, text, plan, 0, "stop")

    with pytest.raises(ValueError, match="cache of all 3 frames, found 2 slots; train without"):
        jax.eval_shape(run, random_params(NET))


@pytest.mark.parametrize(
    ("kernel", "window"),
    [(kernels.XLA, Window()), (kernels.XLA, Window(4, 1)), (OF_ROWS, Window())]
    + [(OF_ROWS, Window(4, 1)), (OF_SUMS, Window(4, 1))],
)
def test_layers_apart_stream_the_same(window, kernel, random_params, monkeypatch):
    """Caches that are updated in place hold what stacked ones do, those too that lie as kernels of TPUs read
    them, and those of which both passes of a block read once what both see, as kernels of GPUs can."""
    monkeypatch.setitem(kernels.MODULES, "cpu", kernel)
    # Not `_empty`, which may have been traced for the other form.
    monkeypatch.setattr(students, "_empty", kv.init)
    params, text = random_params(NET), prompt(1)
    plan = make_plan(8, 1, [1000], 5.0, first_block_steps=[1000, 500])
    both = Student(NET, params, window), Student(NET, unstacked(params), window)
    stacked, apart = (s.clip(draws(1, plan), s.prepare(text), plan) for s in both)
    assert error(apart, stacked) < 1e-6
    assert error(stacked[:, 7:], stacked[:, 6:7]) > 1e-2
