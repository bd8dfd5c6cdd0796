"""Attention structures and kernels against a dense masked softmax."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import error
from hypothesis import given, settings
from hypothesis import strategies as st

from oneforcing_jax.models import attention


def dense(q, k, v, mask):
    """softmax over the keys that `mask` [t, s] (or [b, t, s]) shows, in float64."""
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    logits = np.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
    mask = np.broadcast_to(mask, (len(q), *np.shape(mask)[-2:]))[:, None]
    weights = np.where(mask, np.exp(logits - logits.max(-1, keepdims=True)), 0)
    return np.einsum("bhts,bshk->bthk", weights / weights.sum(-1, keepdims=True), v)


def inputs(t, s, batch=2, heads=2, size=4):
    rng = np.random.default_rng(t + 100 * s)
    shapes = [(batch, n, heads, size) for n in (t, s, s)]
    return [rng.normal(size=shape).astype(np.float32) for shape in shapes]


def seen_before(frames, block, window, sink):
    """Earlier frames that a block sees: the latest that leave room for it and for the sink."""
    before = [f for f in frames if f < block[0]]
    room = None if window is None else window - len(block)
    if room is None or len(before) <= room:
        return before
    return before[:sink] + (before[len(before) - (room - sink) :] if room > sink else [])


def masks(layout, window, sink, first):
    """The masks [query frame, key frame] of block_causal, noisy_after_clean, teacher_forcing."""
    frames, blocks = list(range(sum(layout))), []
    for size in layout:
        start = sum(map(len, blocks))
        blocks.append(frames[start : start + size])
    total = len(frames)
    clean = np.zeros((total, total), bool)
    context = np.zeros((total, total), bool)
    own = np.zeros((total, total), bool)
    for block in blocks:
        for f in block:
            own[f, block] = True
            context[f, seen_before(frames, block, window, sink)] = True
    clean = context | own
    skipped = sum(layout[:first])
    noisy = np.concatenate([context, own[:, skipped:]], 1)[skipped:]
    whole = np.concatenate([context, own], 1)
    forced = np.concatenate([np.concatenate([clean, np.zeros_like(clean)], 1), whole])
    return clean, noisy, forced


@st.composite
def cases(draw):
    layout = draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    sink = draw(st.integers(0, 2))
    window = draw(st.none() | st.integers(sink + max(layout), sum(layout) + sink + 1))
    return layout, window, sink, draw(st.integers(0, len(layout) - 1)), draw(st.integers(1, 2))


@settings(max_examples=12, deadline=None, derandomize=True)
@given(cases())
def test_structures(case):
    layout, window, sink, first, tokens = case
    structures = (
        attention.block_causal(layout, window, sink),
        attention.noisy_after_clean(layout, window, sink, first),
        attention.teacher_forcing(layout, window, sink),
    )
    for groups, mask in zip(structures, masks(layout, window, sink, first), strict=True):
        # What a structure says, frame by frame.
        found = np.zeros_like(mask)
        for group in groups:
            for a, b in group.keys:
                assert not found[slice(*group.queries), a:b].any()
                found[slice(*group.queries), a:b] = True
        np.testing.assert_array_equal(found, mask)
        assert [g.queries[0] for g in groups[1:]] == [g.queries[1] for g in groups[:-1]]


@pytest.mark.parametrize(
    ("layout", "window", "sink"), [((1, 1, 1), None, 0), ((2, 1, 2), 4, 1), ((3, 1), 4, 0)]
)
def test_attend_groups_is_masked_softmax(layout, window, sink):
    tokens, first = 3, 1
    structures = (
        attention.block_causal(layout, window, sink),
        attention.noisy_after_clean(layout, window, sink, first),
        attention.teacher_forcing(layout, window, sink),
    )
    for groups, mask in zip(structures, masks(layout, window, sink, first), strict=True):
        mask = mask.repeat(tokens, 0).repeat(tokens, 1)
        q, k, v = inputs(*mask.shape)
        found = jax.jit(attention.attend_groups, static_argnums=(3, 4))(q, k, v, groups, tokens)
        assert error(found, dense(q, k, v, mask)) < 1e-5


def test_length_hides_the_rest():
    q, k, v = inputs(5, 9)
    run = jax.jit(attention.attend)
    for length in (1, 4, 9):
        expected = dense(q, k, v, np.broadcast_to(np.arange(9) < length, (5, 9)))
        assert error(run(q, k, v, length), expected) < 1e-5
    poisoned = (
        np.where(np.arange(9)[:, None, None] < 4, x, 1e4).astype(np.float32) for x in (k, v)
    )
    assert error(run(q, *poisoned, 4), run(q, k, v, 4)) < 1e-5
    assert error(attention.attend(q, k, v), run(q, k, v, 9)) < 1e-6


@pytest.mark.parametrize("length", [None, 4])
@pytest.mark.parametrize("t", [7, 12])
def test_chunks_change_nothing(t, length, monkeypatch):
    q, k, v = inputs(t, 10)

    def both(q, k, v):
        def total(*args):
            return jnp.sin(attention.attend(*args, length)).sum()

        return attention.attend(q, k, v, length), *jax.grad(total, (0, 1, 2))(q, k, v)

    whole = jax.jit(both)(q, k, v)
    monkeypatch.setattr(attention, "_XLA_LOGITS", 30)
    chunked = functools.partial(both)  # another function, so that it is traced again
    assert "while" in jax.jit(chunked).lower(q, k, v).as_text()
    for found, expected in zip(jax.jit(chunked)(q, k, v), whole, strict=True):
        assert error(found, expected) < 1e-5


def test_half_precision_keeps_its_type():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs(6, 6))
    found = jax.jit(attention.attend)(q, k, v)
    assert found.dtype == jnp.bfloat16
    assert error(found.astype(jnp.float32), dense(q, k, v, np.ones((6, 6), bool))) < 2e-2


@pytest.mark.parametrize(
    ("t", "s", "lengths"), [(3, 130, None), (128, 128, None), (5, 200, (70, 131))]
)
def test_splash_is_the_same(t, s, lengths):
    q, k, v = inputs(t, s, size=128)
    ends = None if lengths is None else jnp.array(lengths)
    run = jax.jit(functools.partial(attention._splash, interpret=True))
    mask = np.arange(s) < np.array(lengths or (s, s))[:, None, None]
    expected = dense(q, k, v, np.broadcast_to(mask, (2, t, s)))
    assert error(run(q, k, v, ends), expected) < 1e-4
