"""Attention structures and kernels against a dense masked softmax."""

import functools

import jax
import jax.numpy as jnp
import kernel_of_rows
import kernel_of_sums
import numpy as np
import pytest
from goldens import error
from hypothesis import given, settings
from hypothesis import strategies as st

from oneforcing_jax.causal import structures
from oneforcing_jax.causal.plan import bucket
from oneforcing_jax.models import kernels, layers
from oneforcing_jax.models.kernels import cudnn, levels, splash, xla
from oneforcing_jax.models.kernels.groups import Stretch, stretches
from oneforcing_jax.shapes import flat


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


@settings(max_examples=12, derandomize=True)
@given(cases())
def test_structures(case):
    layout, window, sink, first, tokens = case
    every = (
        structures.block_causal(layout, window, sink),
        structures.noisy_after_clean(layout, window, sink, first),
        structures.teacher_forcing(layout, window, sink),
    )
    for groups, mask in zip(every, masks(layout, window, sink, first), strict=True):
        # What a structure says, frame by frame.
        found = np.zeros_like(mask)
        for group in groups:
            for a, b in group.keys:
                assert not found[slice(*group.queries), a:b].any()
                found[slice(*group.queries), a:b] = True
        np.testing.assert_array_equal(found, mask)
        assert [g.queries[0] for g in groups[1:]] == [g.queries[1] for g in groups[:-1]]


@pytest.mark.parametrize("calls", ["one", "of groups"])
@pytest.mark.parametrize(
    ("layout", "window", "sink"), [((1, 1, 1), None, 0), ((2, 1, 2), 4, 1), ((3, 1), 4, 0)]
)
def test_attend_groups_is_masked_softmax(layout, window, sink, calls, monkeypatch):
    monkeypatch.setattr(xla, "_MASKED", 0 if calls == "of groups" else xla._MASKED)
    tokens, first = 3, 1
    every = (
        structures.block_causal(layout, window, sink),
        structures.noisy_after_clean(layout, window, sink, first),
        structures.teacher_forcing(layout, window, sink),
    )
    for groups, mask in zip(every, masks(layout, window, sink, first), strict=True):
        mask = mask.repeat(tokens, 0).repeat(tokens, 1)
        q, k, v = inputs(*mask.shape)
        frames = [x.reshape(len(x), -1, tokens, *x.shape[2:]) for x in (q, k, v)]
        attend = jax.jit(structures.structured(groups))
        found, _ = attend(*frames, None)
        assert error(flat(found), dense(q, k, v, mask)) < 1e-5
        one = str(jax.make_jaxpr(attend)(*frames, None)).count(" exp ") == 1
        assert one == (calls == "one" or len(groups) == 1)
        # A device may ask for a part of each frame's tokens.
        asked, _ = attend(frames[0][:, :, :2], *frames[1:], None)
        assert error(asked, found[:, :, :2]) < 1e-6


def test_length_hides_the_rest():
    q, k, v = inputs(5, 9)
    run = jax.jit(xla.attend)
    for length in (1, 4, 9):
        expected = dense(q, k, v, np.broadcast_to(np.arange(9) < length, (5, 9)))
        assert error(run(q, k, v, length), expected) < 1e-5
    poisoned = (
        np.where(np.arange(9)[:, None, None] < 4, x, 1e4).astype(np.float32) for x in (k, v)
    )
    assert error(run(q, *poisoned, 4), run(q, k, v, 4)) < 1e-5
    assert error(xla.attend(q, k, v), run(q, k, v, 9)) < 1e-6


@pytest.mark.parametrize("length", [None, 4])
@pytest.mark.parametrize("t", [7, 12])
def test_chunks_change_nothing(t, length, monkeypatch):
    q, k, v = inputs(t, 10)

    def both(q, k, v):
        def total(*args):
            return jnp.sin(xla.attend(*args, length)).sum()

        return xla.attend(q, k, v, length), *jax.grad(total, (0, 1, 2))(q, k, v)

    whole = jax.jit(both)(q, k, v)
    monkeypatch.setattr(xla, "_LOGITS", 20)
    chunked = functools.partial(both)  # another function, so that it is traced again
    assert "while" in jax.jit(chunked).lower(q, k, v).as_text()
    for found, expected in zip(jax.jit(chunked)(q, k, v), whole, strict=True):
        assert error(found, expected) < 1e-5


@pytest.mark.parametrize("length", [1, 7, 8, 20, 24])
def test_keys_in_parts_are_the_same_keys(length):
    """Whether all parts are seen, or some, or a part of one."""
    rng = np.random.default_rng(length)
    q = 3 * jnp.asarray(rng.normal(size=(2, 5, 2, 4)), jnp.float32)
    k, v = jnp.asarray(rng.normal(size=(2, 2, 24, 2, 4)), jnp.float32)
    whole = kernel_of_sums.plain(q, k, v, length)
    parts = functools.partial(cudnn.by_parts, 3, kernel_of_sums.plain)
    found = jax.jit(parts)(q, k, v, length)
    assert error(found.out, whole.out) < 1e-6 and error(found.total, whole.total) < 1e-6


def test_half_precision_keeps_its_type():
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in inputs(6, 6))
    found = jax.jit(xla.attend)(q, k, v)
    assert found.dtype == jnp.bfloat16
    assert error(found.astype(jnp.float32), dense(q, k, v, np.ones((6, 6), bool))) < 2e-2


SPLASH = splash.made(splash.tiles_of("TPU v5"), interpret=True)


@pytest.mark.parametrize(
    ("t", "s", "length", "size"),
    [(3, 130, None, 128), (128, 128, None, 64), (5, 300, 131, 128), (260, 1400, 1029, 8)],
)
def test_splash_is_the_same(t, s, length, size):
    q, k, v = inputs(t, s, size=size)
    expected = dense(q, k, v, np.broadcast_to(np.arange(s) < (length or s), (t, s)))
    traced = None if length is None else jnp.int32(length)
    assert error(jax.jit(SPLASH.attend)(q, k, v, traced), expected) < 1e-4


def test_splash_reads_rows_where_they_are():
    """Stored rows, of which each query sees its own number; so does the plain form."""
    q, k, v = inputs(260, 1400, size=128)
    length = np.repeat([700, 1029], [100, 160]).astype(np.int32)
    expected = dense(q, k, v, np.arange(1400) < length[:, None])
    fill = ((0, 0), (0, 0), (0, SPLASH.rows(1400) - 1400), (0, 0))
    k, v = (np.pad(np.moveaxis(x, 1, 2), fill) for x in (k, v))
    for attend in (SPLASH.prefixes, kernel_of_rows.prefixes):
        assert error(jax.jit(attend)(q, k, v, length), expected) < 1e-4


@pytest.mark.parametrize("length", [None, 140])
def test_gradients_of_splash(length):
    q, k, v = inputs(150, 260, size=16)

    def gradients(attend):
        def total(q, k, v, length):
            return jnp.sin(attend(q, k, v, length)).sum()

        traced = None if length is None else jnp.int32(length)
        return jax.jit(jax.grad(total, (0, 1, 2)))(q, k, v, traced)

    for found, expected in zip(gradients(SPLASH.attend), gradients(xla.attend), strict=True):
        assert error(found, expected) < 1e-4


@settings(max_examples=50, derandomize=True)
@given(st.integers(1, 40000), st.integers(1, 40000))
def test_tiles_cover_and_waste_little(t, s):
    for tiles in (*splash.TILES.values(), splash.tiles_of("TPU v99")):
        sizes, t_pad, s_pad = splash._blocks(t, s, tiles)
        assert t <= t_pad < 128 + 1.25 * t and s <= s_pad < 128 + 1.25 * s
        assert splash.padded_keys(s_pad, tiles) == s_pad  # stored rows are not filled up again
        for q in (sizes.block_q, sizes.block_q_dkv):
            assert t_pad % q == 0
        for kv in (sizes.block_kv, sizes.block_kv_dkv):
            assert s_pad % kv == 0
        assert sizes.block_kv % sizes.block_kv_compute == 0
        assert sizes.block_kv_dkv % sizes.block_kv_dkv_compute == 0


def test_one_query():
    q, k, v = inputs(1, 12, size=8)
    frames = (x.reshape(len(x), 4, 3, *x.shape[2:]) for x in (k, v))
    found = jax.jit(layers.one_query)(q[:, 0], *frames)
    assert error(found[:, None], dense(q, k, v, np.ones((1, 12), bool))) < 1e-5


def masked(mask):
    """Softmax attention by a mask [t, s], with gradients."""

    def attend(q, k, v):
        logits = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask, logits, -1e30), -1)
        return jnp.einsum("bhts,bshk->bthk", weights, v)

    return attend


def in_frames(x, tokens):
    """[b, t, ...] -> [b, f, n, ...]."""
    return x.reshape(len(x), -1, tokens, *x.shape[2:])


@functools.partial(jax.jit, static_argnums=0)
def with_gradients(attend, q, k, v):
    out, back = jax.vjp(attend, q, k, v)
    return out, *back(jnp.sin(out))


@pytest.mark.parametrize(("layout", "first"), [((1,) * 5, 2), ((2, 2, 2), 0), ((3, 1, 1), 1)])
def test_runs_of_groups_are_masked_softmax(layout, first):
    """What a kernel with a computed mask sees is the structure: outputs and gradients."""
    tokens, asked = 70, 35  # of a frame of keys, and of the half of it that a device asks for
    every = (
        structures.block_causal(layout),
        structures.noisy_after_clean(layout, first=first),
        structures.teacher_forcing(layout),
    )
    for groups, mask in zip(every, masks(layout, None, 0, first), strict=True):
        q, k, v = inputs(mask.shape[0] * asked, mask.shape[1] * tokens, batch=1, size=8)
        mask = mask.repeat(asked, 0).repeat(tokens, 1)

        def by_runs(q, k, v, groups=groups):
            frames = (in_frames(x, n) for x, n in ((q, asked), (k, tokens), (v, tokens)))
            return flat(SPLASH.structured(*frames, groups))

        found, expected = (with_gradients(f, q, k, v) for f in (by_runs, masked(mask)))
        for one, other in zip(found, expected, strict=True):
            assert error(one, other) < 1e-4


def test_rolling_windows_are_no_runs():
    assert stretches(structures.block_causal((1,) * 6, 3, 1)) is None
    assert len(stretches(structures.noisy_after_clean((1,) * 21, first=4))) == 1
    assert len(stretches(structures.teacher_forcing((3,) * 7))) == 2


def test_operations_of_cudnn_are_known():
    """A version of JAX that has them otherwise is noticed here; programs for GPUs then do without."""
    assert cudnn.known()
    q = jax.ShapeDtypeStruct((2, 6, 3, 8), jnp.bfloat16)
    lengths = jax.ShapeDtypeStruct((2,), jnp.int32)
    out, total = jax.eval_shape(cudnn.forward, q, q, q, lengths)
    assert (out.shape, total.shape, total.dtype) == (q.shape, (2, 6, 3), jnp.float32)
    assert [x.shape for x in jax.eval_shape(cudnn.backward, q, q, q, q, total, q)] == [q.shape] * 3


def kernel_forward(q, k, v):
    """As cuDNN's two passes: answers and log-sum-exp, and gradients from no more than these."""
    logits = jnp.einsum("bthk,bshk->bths", q, k) / q.shape[-1] ** 0.5
    total = jax.nn.logsumexp(logits, -1)
    return jnp.einsum("bths,bshk->bthk", jnp.exp(logits - total[..., None]), v), total


def kernel_backward(q, k, v, out, total, given):
    logits = jnp.einsum("bthk,bshk->bths", q, k) / q.shape[-1] ** 0.5
    weights = jnp.exp(logits - total[..., None])
    mean = jnp.einsum("bthk,bthk->bth", out, given)
    change = jnp.einsum("bthk,bshk->bths", given, v) - mean[..., None]
    change = weights * change / q.shape[-1] ** 0.5
    return (
        jnp.einsum("bths,bshk->bthk", change, k),
        jnp.einsum("bths,bthk->bshk", change, q),
        jnp.einsum("bths,bthk->bshk", weights, given),
    )


def check_levels(size, blocks, first, asked, kind):
    """A few calls over many blocks against what the structure says, values and gradients, where a device
    asks for so many of the two tokens of a frame."""
    kinds = ("block_causal", "noisy_after_clean", "teacher_forcing")
    options = {"first": first} if kind == "noisy_after_clean" else {}
    made = stretches(getattr(structures, kind)((size,) * blocks, **options))
    left = blocks - options.get("first", 0)
    assert all(levels.even_blocks(run) == left for run in made)
    mask = masks((size,) * blocks, None, 0, first)[kinds.index(kind)]
    mask = mask.repeat(asked, 0).repeat(2, 1)
    passes = levels.Passes(kernel_forward, kernel_backward)

    def by_levels(q, k, v):
        q, k, v = (in_frames(x, n) for x, n in ((q, asked), (k, 2), (v, 2)))
        parts = [levels.of_stretch(passes, q[:, slice(*run.queries)], k, v, run) for run in made]
        return jnp.concatenate(parts, 1)

    with jax.enable_x64():
        arrays = [jnp.asarray(x, jnp.float64) for x in inputs(*mask.shape)]
        found, right = (with_gradients(f, *arrays) for f in (by_levels, masked(mask)))
    for one, other in zip(found, right, strict=True):
        assert error(one, other) < 1e-13


@pytest.mark.parametrize(
    ("size", "blocks", "first", "asked", "kind"),
    [(1, 8, 1, 1, "noisy_after_clean"), (2, 3, 0, 2, "teacher_forcing")],
)
def test_levels_are_masked_softmax(size, blocks, first, asked, kind):
    check_levels(size, blocks, first, asked, kind)


@pytest.mark.long
@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 3),
    st.integers(1, 9),
    st.integers(0, 8),
    st.integers(1, 2),
    st.sampled_from(["block_causal", "noisy_after_clean", "teacher_forcing"]),
)
def test_all_levels_are_masked_softmax(size, blocks, first, asked, kind):
    check_levels(size, blocks, min(first, blocks - 1), asked, kind)


def test_uneven_blocks_have_no_levels():
    for layout, blocks in (((3, 1, 1), [1, 2]), ((2, 1, 2), [1, 1, 1])):
        made = stretches(structures.block_causal(layout))
        assert [levels.even_blocks(run) for run in made] == blocks
    uneven = Stretch((0, 3), (0, 2, 2), 0, 1)
    assert levels.even_blocks(uneven) == 0


def test_levels_keep_one_answer(capsys):
    """Of all calls, rematerialisation keeps the joint answer and its log-sum-exp, and makes none again."""
    (run,) = stretches(structures.block_causal((1,) * 6))

    def layer(x, k, v):
        return jnp.sin(levels.of_stretch(cudnn.PASSES, jnp.sin(x), k, v, run))

    layer = jax.checkpoint(layer, policy=cudnn.keeps)
    arrays = [jax.ShapeDtypeStruct((1, 6, 2, 3, 8), jnp.bfloat16)] * 3
    jax.ad_checkpoint.print_saved_residuals(layer, *arrays)
    kept = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "named" in line]
    assert sorted(kept) == ["bf16[1,6,2,3,8]", "f32[1,6,2,3]"]
    program = str(jax.make_jaxpr(jax.grad(lambda *x: layer(*x).sum().astype(float)))(*arrays))
    for way in ("fwd", "bwd"):
        made = program.count(f"= dot_product_attention_{way}_wrapper[")
        assert made == len(levels.calls(6, shared=False)) == 4


@pytest.mark.parametrize(
    ("platform", "scope", "rows"), [("tpu", "splash", True), ("gpu", "cudnn", False)]
)
def test_the_devices_of_the_mesh_choose(platform, scope, rows):
    """Structures, caches and plans follow, whatever machine this is."""
    device = jax.sharding.AbstractDevice(device_kind="", num_cores=None, platform=platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    attend = structures.structured(structures.block_causal((1,) * 5))

    def program(x):
        return jax.make_jaxpr(attend)(x, x, x, None).pretty_print(name_stack=True)

    half = jax.ShapeDtypeStruct((1, 5, 6, 2, 8), jnp.bfloat16)
    exact = half.update(dtype=jnp.float32)
    with jax.sharding.use_abstract_mesh(mesh):
        kernel = kernels.chosen()
        assert kernel.skips and bool(kernel.rows) == rows and bucket(21) == 22
        assert f"attention_{scope}" in program(half)
        # cuDNN takes half precision alone; XLA's stands in for it.
        assert kernel.sums(half) == ("attention_xla" in program(exact)) == (scope == "cudnn")
        assert not kernel.sums(exact)
    assert "attention_xla" in program(half) and not kernels.chosen().skips
