"""Pallas splash attention: tiles by chip and shape, and masks that are computed.

The library walks a mask block by block on the host, and reads what it finds from memory. Nothing here is
walked: keys that only fill a tile are hidden by comparing their number, and for a length that is known on
the device alone, the table of blocks that the kernel skips is computed there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask_info as masks

LANES = 128
# Rows that a step of the kernel's grid costs beside its own.
_STEP = 64


class Tiles(NamedTuple):
    """The largest tiles (queries, keys, keys at once) that a chip's vector memory takes, of the forward, of
    the gradient of keys and values, and of that of queries."""

    forward: tuple[int, int, int]
    dkv: tuple[int, int, int]
    dq: tuple[int, int]


TILES = {
    "TPU v5 lite": Tiles((1024, 1024, 512), (512, 1024, 512), (512, 1024)),
    "TPU v5": Tiles((1024, 1024, 512), (512, 1024, 512), (512, 1024)),
    "TPU v6": Tiles((1024, 1024, 512), (512, 1024, 512), (512, 1024)),
}
_SMALLEST = Tiles((512, 512, 512), (512, 512, 512), (512, 512))


def tiles_of(device_kind: str) -> Tiles:
    """The tiles of a chip, by the beginning of JAX's name of it."""
    return next((t for name, t in TILES.items() if device_kind.startswith(name)), _SMALLEST)


def tile(size: int, most: int) -> int:
    """The multiple of 128 up to `most` that covers `size` at the least cost in padding and steps."""
    limit = min(most, -(-size // LANES) * LANES)
    return min(
        range(LANES, limit + 1, LANES), key=lambda t: (-(-size // t) * (t + _STEP), -t)
    )


def _share(whole: int, most: int) -> int:
    """The largest part of a tile of keys, up to `most`, that divides it."""
    return max(t for t in range(LANES, min(whole, most) + 1, LANES) if whole % t == 0)


def _blocks(t: int, s: int, tiles: Tiles) -> tuple[kernels.BlockSizes, int, int]:
    """Tiles for t queries and s keys, and both padded to them.

    The three kernels share the padded arrays, so their tiles divide one padded size.
    """
    q, kv = tile(t, tiles.forward[0]), tile(s, tiles.forward[1])
    t_pad, s_pad = -(-t // q) * q, -(-s // kv) * kv
    dkv_q, dkv_kv = _share(q, tiles.dkv[0]), _share(kv, tiles.dkv[1])
    sizes = kernels.BlockSizes(
        block_q=q,
        block_kv=kv,
        block_kv_compute=_share(kv, tiles.forward[2]),
        block_q_dkv=dkv_q,
        block_kv_dkv=dkv_kv,
        block_kv_dkv_compute=_share(dkv_kv, tiles.dkv[2]),
        block_q_dq=_share(q, tiles.dq[0]),
        block_kv_dq=_share(kv, tiles.dq[1]),
    )
    return sizes, t_pad, s_pad


@functools.lru_cache(maxsize=256)
def _below(s: int) -> Callable[[Any, Any], Any]:
    """The mask that shows the first `s` keys; one function a size, for it is part of a program's name."""
    return lambda queries, keys: keys < s


def _skipping(t_pad: int, s_pad: int, q: int, kv: int, length: Any, by_query: bool) -> Any:
    """The table of blocks of which the kernel computes those that hold one of the first `length` keys.

    Args:
      by_query: whether the inner loop goes over queries, as that of the gradient of keys does.
    """
    shape = (1, t_pad // q, s_pad // kv)
    last = jnp.maximum((length + kv - 1) // kv - 1, 0)
    row, column = (jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (1, 2))
    # A skipped block names the last one that is needed: nothing is fetched for it.
    following = row if by_query else jnp.minimum(column, last)
    return masks.MaskInfo(following, None, jnp.where(column <= last, 2, 0), None, None)


def attend(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    length: Any,
    device_kind: str,
    interpret: bool = False,
) -> jax.Array:
    """softmax(q k^T / sqrt(k)) v over the first `length` keys: see `attention.attend`.

    Args:
      q, k, v: [b, t, h, k] and [b, s, h, k].
      length: number of keys that count, may be traced; None: all.
      device_kind: of the chip that the program is for.
      interpret: run it without a TPU.
    """
    (_, t, _, size), s = q.shape, k.shape[1]
    sizes, t_pad, s_pad = _blocks(t, s, tiles_of(device_kind))

    def laid(x: jax.Array, padded: int) -> jax.Array:
        """[b, s, h, k] -> [b, h, padded, k], k a multiple of the lanes."""
        fill = ((0, 0), (0, padded - x.shape[1]), (0, 0), (0, -size % LANES))
        return jnp.moveaxis(jnp.pad(x, fill), 2, 1)

    blocks = (sizes.block_q, sizes.block_kv), (sizes.block_q_dq, sizes.block_kv_dq)
    dkv_blocks = (sizes.block_q_dkv, sizes.block_kv_dkv)
    segments, below = None, None
    if length is None:
        below = _below(s) if s_pad > s else None
        number = jnp.zeros(t_pad, jnp.int32) if below else None
        forward = dq = dkv = masks.MaskInfo(None, None, None, None, number)
    else:
        forward, dq = (_skipping(t_pad, s_pad, *block, length, False) for block in blocks)
        dkv = _skipping(t_pad, s_pad, *dkv_blocks, length, True)
        hidden = (jnp.arange(s_pad) >= length).astype(jnp.int32)
        segments = kernels.SegmentIds(jnp.zeros(t_pad, jnp.int32), hidden)
    kernel = kernels.SplashAttentionKernel(
        forward,
        dq,
        dkv,
        block_sizes=sizes,
        is_mqa=False,
        save_residuals=False,
        mask_value=kernels.DEFAULT_MASK_VALUE,
        attn_logits_soft_cap=None,
        residual_checkpoint_name=None,
        mask_function=below,
        interpret=interpret,
    )
    out = jax.vmap(lambda q, k, v: kernel(q, k, v, segments))(
        laid(q * size**-0.5, t_pad), laid(k, s_pad), laid(v, s_pad)
    )
    return jnp.moveaxis(out, 1, 2)[:, :t, :, :size].astype(q.dtype)
