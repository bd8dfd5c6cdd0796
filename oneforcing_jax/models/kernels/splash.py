"""Pallas splash attention, the kernel of TPUs: tiles by chip and shape, and masks that are computed.

The library walks a mask block by block on the host, and reads what it finds from memory. This module walks
no mask. It hides the keys that only fill a tile by comparing their number. Where a length is known on the
device alone, the table of blocks that the kernel skips is computed there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks

from oneforcing_jax.models.kernels import ANSWERS, Kernel
from oneforcing_jax.models.kernels.groups import Group, Stretch, by_groups, stretches, whole
from oneforcing_jax.shapes import flat

LANES = 128
# In the name of a kernel that is told at run time how many keys count.
RUN_TIME = "seen_at_run_time"
# A step of a kernel's grid costs as much as so many rows, beside its own.
_STEP = 64


class Tiles(NamedTuple):
    """The largest tiles (queries, keys, keys at once) of the forward and of the gradient."""

    forward: tuple[int, int, int]
    gradient: tuple[int, int, int]


# The largest that `tools/search_tiles.py` could compile, or less where more only lengthens compilation.
TILES = {
    "TPU v5": Tiles((2048, 1024, 512), (1024, 2048, 512)),
    "TPU v6": Tiles((3072, 2048, 1024), (1024, 2048, 512)),
}
_SMALLEST = Tiles((512, 512, 512), (512, 512, 512))


def tiles_of(device_kind: str) -> Tiles:
    """The tiles of a chip, by the beginning of JAX's name of it."""
    return next((t for name, t in TILES.items() if device_kind.startswith(name)), _SMALLEST)


def _share(whole: int, most: int) -> int:
    """The largest tile up to `most` that divides `whole`, which is a padded size or a larger tile."""
    return max(t for t in range(LANES, min(whole, most) + 1, LANES) if whole % t == 0)


@functools.lru_cache(maxsize=1024)
def padded(size: int, limits: tuple[int, ...]) -> int:
    """The multiple of 128 to which queries or keys are filled up, for kernels with tiles up to `limits`.

    The kernels share the arrays, so the tiles of each divide it. The best multiple has little to fill, and
    large divisors.
    """
    first = -(-size // LANES) * LANES
    sizes = range(first, first + max(limits), LANES)
    return min(sizes, key=lambda s: sum(s * (1 + _STEP / _share(s, most)) for most in limits))


def padded_keys(s: int, tiles: Tiles) -> int:
    """`padded` of s keys; of what it gave, that."""
    return padded(s, (*tiles.forward[1:], *tiles.gradient[1:]))


def _blocks(t: int, s: int, tiles: Tiles) -> tuple[kernels.BlockSizes, int, int]:
    """Tiles for t queries and s keys, and both padded to them."""
    (q, kv, compute), (back_q, back_kv, back_compute) = tiles
    t_pad, s_pad = padded(t, (q, back_q)), padded_keys(s, tiles)
    kv, back_kv = _share(s_pad, kv), _share(s_pad, back_kv)
    sizes = kernels.BlockSizes(
        block_q=_share(t_pad, q),
        block_kv=kv,
        block_kv_compute=_share(kv, compute),
        block_q_dkv=_share(t_pad, back_q),
        block_kv_dkv=back_kv,
        block_kv_dkv_compute=_share(back_kv, back_compute),
        # One kernel for all three gradients: scores are computed again once, not twice. Each tile of keys
        # writes its part of the queries' gradient, which XLA adds up.
        use_fused_bwd_kernel=True,
    )
    return sizes, t_pad, s_pad


@functools.lru_cache(maxsize=256)
def _below(s: int) -> Callable[[Any, Any], Any]:
    """The mask that shows the first `s` keys; one function a size, for it is part of a program's name."""
    return lambda queries, keys: keys < s


def _before(queries: Any, keys: Any) -> Any:
    """The mask that shows a query the keys before its number."""
    return keys < queries


@functools.lru_cache(maxsize=256)
def _prefix_and_own(distance: int, size: int) -> Callable[[Any, Any], Any]:
    """The mask that shows a query the keys before its number, and `size` keys from `distance` after it."""

    def shown(queries: Any, keys: Any) -> Any:
        after = keys - queries
        return (after < 0) | ((after >= distance) & (after < distance + size))

    return shown


class _Masks(NamedTuple):
    """What the two kernels are told, and a name for profiles: how many blocks the forward computes, or
    that this is known at run time."""

    forward: masks.MaskInfo
    gradient: masks.MaskInfo
    function: Callable[[Any, Any], Any] | None = None
    name: str = "seen_1_of_1"


def _all_keys(sizes: kernels.BlockSizes, t_pad: int, s_pad: int, s: int) -> _Masks:
    """Nothing is hidden but the keys that fill a tile."""
    below = _below(s) if s_pad > s else None
    info = masks.MaskInfo(None, None, None, None, np.zeros(t_pad, np.int32) if below else None)
    return _Masks(info, info, below)


def _first_keys(sizes: kernels.BlockSizes, t_pad: int, s_pad: int, length: jax.Array) -> _Masks:
    """The keys before `length`, which is traced, one for all queries or one for each: the table of blocks
    is computed on the device."""
    filled = jnp.pad(length, (0, t_pad - len(length)), mode="edge") if length.ndim else length
    ends: Any = jnp.broadcast_to(filled, (t_pad,))

    def info(q: Any, kv: Any, by_query: bool = False) -> masks.MaskInfo:
        shape = (1, t_pad // q, s_pad // kv)
        last = jnp.maximum((length.max() + kv - 1) // kv - 1, 0)
        row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
        # A skipped block names the last one that is needed, so that nothing is fetched for it.
        following = row if by_query else jnp.minimum(column, last)
        return masks.MaskInfo(following, None, jnp.where(column <= last, 2, 0), None, ends)

    return _Masks(
        info(sizes.block_q, sizes.block_kv),
        info(sizes.block_q_dkv, sizes.block_kv_dkv, by_query=True),
        _before,
        name=RUN_TIME,
    )


def _stretched(
    sizes: kernels.BlockSizes, t_pad: int, s_pad: int, stretch: Stretch, asked: int, stored: int
) -> _Masks:
    """The table of blocks in which some query sees some key, from the bounds of the blocks; for frames of
    `asked` queries and `stored` keys."""
    ends = np.repeat(np.array(stretch.prefixes, np.int32) * stored, asked)
    # Queries that fill a tile have the last's.
    ends = np.pad(ends, (0, t_pad - len(ends)), mode="edge")
    own = (stretch.distance * stored, stretch.size * stored)

    def seen(q: Any, kv: Any) -> np.ndarray:
        rows = ends.reshape(-1, q)
        low, high = rows.min(1)[:, None], rows.max(1)[:, None]
        begin = np.arange(0, s_pad, kv)[None]
        in_own = (begin < high + sum(own)) & (begin + kv > low + own[0])
        return (begin < high) | in_own

    def info(q: Any, kv: Any, by_query: bool = False) -> masks.MaskInfo:
        blocks = seen(q, kv)
        following = _next_seen(blocks, axis=0 if by_query else 1)
        table = jnp.asarray(np.where(blocks, 2, 0)[None], jnp.int32)
        return masks.MaskInfo(jnp.asarray(following[None]), None, table, None, ends)

    blocks = seen(sizes.block_q, sizes.block_kv)
    return _Masks(
        info(sizes.block_q, sizes.block_kv),
        info(sizes.block_q_dkv, sizes.block_kv_dkv, by_query=True),
        _prefix_and_own(*own),
        name=f"seen_{blocks.sum()}_of_{blocks.size}",
    )


def _next_seen(seen: np.ndarray, axis: int) -> np.ndarray:
    """For each block, the number along `axis` of the next one that is seen, itself included, so that a
    skipped block fetches ahead. Blocks after the last one that is seen have its number."""
    seen = np.moveaxis(seen, axis, 1)
    found = np.zeros(seen.shape, np.int32)
    for row, blocks in zip(found, seen, strict=True):
        numbers = np.flatnonzero(blocks)
        if len(numbers):
            where = np.searchsorted(numbers, np.arange(len(blocks)))
            row[:] = numbers[np.minimum(where, len(numbers) - 1)]
    return np.moveaxis(found, 1, axis)


def attend(
    q: jax.Array, k: jax.Array, v: jax.Array, length: Any = None, *, tiles: Tiles, interpret: bool
) -> jax.Array:
    """See `Kernel`; `length` may also be one for each query, [t]."""
    masked = (
        functools.partial(_all_keys, s=k.shape[1])
        if length is None
        else functools.partial(_first_keys, length=length)
    )
    with jax.named_scope("attention_splash"):
        return _run(q, k, v, masked, tiles, interpret)


def prefixes(
    q: jax.Array, k: jax.Array, v: jax.Array, ends: jax.Array, *, tiles: Tiles, interpret: bool
) -> jax.Array:
    """See `Kernel`."""
    masked = functools.partial(_first_keys, length=ends)
    with jax.named_scope("attention_splash"):
        k, v = (_rows(x, x.shape[2]) for x in (k, v))
        if not interpret:
            # Without this, XLA brings the whole into vector memory, updates it there and writes it all back.
            k, v = (pltpu.with_memory_space_constraint(x, pltpu.HBM) for x in (k, v))
        return _run_rows(q, k, v, masked, tiles, interpret)


def structured(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    groups: tuple[Group, ...],
    *,
    tiles: Tiles,
    interpret: bool,
) -> jax.Array:
    """See `Kernel`: a call for each stretch, or a group where there are none."""
    together = stretches(groups)
    if not together:
        one = functools.partial(attend, tiles=tiles, interpret=interpret)
        return by_groups(one, q, k, v, groups)
    out, asked, stored = [], q.shape[2], k.shape[2]
    with jax.named_scope("attention_splash"):
        for stretch in together:
            masked = functools.partial(_stretched, stretch=stretch, asked=asked, stored=stored)
            own = flat(q[:, slice(*stretch.queries)])
            out.append(_run(own, flat(k), flat(v), masked, tiles, interpret))
    return whole(out, q)


def made(tiles: Tiles, interpret: bool = False) -> Kernel:
    """The kernel with such tiles; `interpret`: it runs without a TPU."""

    def told(function: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
        return functools.partial(function, tiles=tiles, interpret=interpret)

    rows = functools.partial(padded_keys, tiles=tiles)
    return Kernel(told(attend), told(structured), rows=rows, prefixes=told(prefixes), skips=True)


def kernel(device_kind: str) -> Kernel:
    """The kernel of a TPU."""
    return made(tiles_of(device_kind))


def _run(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masked: Callable[[kernels.BlockSizes, int, int], _Masks],
    tiles: Tiles,
    interpret: bool,
) -> jax.Array:
    s_pad, named = padded_keys(k.shape[1], tiles), ANSWERS if k.shape[1] >= q.shape[1] else None
    k, v = (_rows(jnp.moveaxis(x, 2, 1), s_pad) for x in (k, v))
    return _run_rows(q, k, v, masked, tiles, interpret, named)


def _rows(x: jax.Array, padded: int) -> jax.Array:
    """[b, h, s, k] -> [b h, padded, k], k a multiple of the lanes. Keys are hidden from all samples alike, so
    samples can be heads to the kernel, which takes less vector memory than a batch."""
    b, h, s, size = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (0, padded - s), (0, -size % LANES)))
    return x.reshape(b * h, padded, -1)


def _run_rows(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    masked: Callable[[kernels.BlockSizes, int, int], _Masks],
    tiles: Tiles,
    interpret: bool,
    named: str | None = None,
) -> jax.Array:
    """q [b, t, h, k], k and v `_rows`; `named`: what rematerialisation calls the answers."""
    b, t, h, size = q.shape
    sizes, t_pad, s_pad = _blocks(t, k.shape[1], tiles)
    told = masked(sizes, t_pad, s_pad)
    kernel = kernels.SplashAttentionKernel(
        told.forward,
        None,
        told.gradient,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=named,
        mask_function=told.function,
        interpret=interpret,
    )
    with jax.named_scope(told.name):
        out: Any = kernel(_rows(jnp.moveaxis(q * size**-0.5, 2, 1), t_pad), k, v)
    return jnp.moveaxis(out.reshape(b, h, t_pad, -1), 1, 2)[:, :t, :, :size].astype(q.dtype)
