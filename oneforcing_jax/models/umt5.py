"""The UMT5 text encoder of Wan2.1: token ids to embeddings.

A T5 encoder with a table of relative positions in every layer, no biases, and no scaling of the
attention logits. The layers are stacked and scanned, so that compile time does not grow with depth.

    params = flax.linen.meta.unbox(init_params(config, key))
    context = UMT5Encoder(config).apply({"params": params}, ids, mask, method="encode")
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from oneforcing_jax.errors import InputError

Array = jax.Array


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """Architecture and arithmetic of the encoder; the defaults are UMT5-XXL's.

    Attributes:
      vocab: number of token ids.
      width: of the residual stream.
      attention_width: heads times head size; need not equal `width`.
      mlp: width inside the feed-forward block.
      heads, layers: numbers of them.
      buckets: relative positions told apart, both directions together.
      max_distance: positions from here on share the last bucket of their direction.
      dtype: compute dtype. Parameters are kept as given; norms and softmax are float32.
    """

    vocab: int = 256384
    width: int = 4096
    attention_width: int = 4096
    mlp: int = 10240
    heads: int = 64
    layers: int = 24
    buckets: int = 32
    max_distance: int = 128
    dtype: Any = jnp.bfloat16

    def __post_init__(self) -> None:
        if self.attention_width % self.heads:
            raise InputError(
                f"UMT5Config.attention_width {self.attention_width} does not divide by "
                f"{self.heads} heads; choose a multiple of the heads."
            )
        if self.buckets < 4 or self.buckets % 4 or self.max_distance <= self.buckets // 4:
            raise InputError(
                f"UMT5Config.buckets {self.buckets} with max_distance {self.max_distance}; "
                "buckets must divide by 4 and max_distance exceed a quarter of them."
            )


@functools.lru_cache(maxsize=64)
def _bucket_table(length: int, buckets: int, max_distance: int) -> np.ndarray:
    """Bucket of distances 0 ... length - 1, within one direction.

    All arithmetic is in integers. Bucket `exact + i` starts at the least n with
    (n / exact)^log_buckets >= (max_distance / exact)^i; a float logarithm one ulp low would put the
    exact powers into the bucket before.
    """
    half = buckets // 2
    exact = half // 2
    spread = half - exact
    n = np.arange(length)
    table = np.minimum(n, exact)
    for i in range(1, spread):
        bound = max_distance**i * exact ** (spread - i)
        least = next(m for m in range(exact, max_distance + 1) if m**spread >= bound)
        table = table + (n >= least)
    return table.astype(np.int32)


def position_buckets(
    relative: np.ndarray, buckets: int = 32, max_distance: int = 128
) -> np.ndarray:
    """Bucket (int32) of each relative position, key minus query."""
    distance = np.abs(np.asarray(relative))
    table = _bucket_table(int(distance.max(initial=0)) + 1, buckets, max_distance)
    return (table[distance] + buckets // 2 * (np.asarray(relative) > 0)).astype(np.int32)


def _param(
    module: nn.Module, name: str, shape: tuple[int, ...], names: tuple[str | None, ...], std: float
) -> Array:
    init = nn.with_logical_partitioning(nn.initializers.normal(std), names)
    return cast(Array, module.param(name, init, shape))


class Norm(nn.Module):
    """x / rms(x) * scale, with the statistics in f32 and no bias."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Array) -> Array:
        init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = cast(Array, self.param("scale", init, x.shape[-1:]))
        wide = x.astype(jnp.float32)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + 1e-6)
        return wide.astype(self.dtype) * scale.astype(self.dtype)


class Attention(nn.Module):
    """Self-attention [b, t, d] -> [b, t, d]; `mask` [b, t] is false where a key is padding."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        config = self.config
        b, t, d = x.shape
        inner, head = config.attention_width, config.attention_width // config.heads

        def project(name: str) -> Array:
            kernel = _param(self, name, (d, inner), ("embed", "heads"), d**-0.5)
            return (x @ kernel.astype(config.dtype)).reshape(b, t, config.heads, head)

        q, k, v = project("q"), project("k"), project("v")
        table = _param(self, "bias", (config.buckets, config.heads), (None, "heads"), 1.0)
        out = _param(self, "o", (inner, d), ("heads", "embed"), inner**-0.5)

        relative = np.arange(t) - np.arange(t)[:, None]
        bucket = position_buckets(relative, config.buckets, config.max_distance)
        bias = jnp.moveaxis(table.astype(jnp.float32)[bucket], -1, 0)  # [h, t, s]
        logits = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
        lowest = float(np.finfo(np.float32).min)
        logits = jnp.where(mask[:, None, None, :], logits + bias, lowest)
        probs = jax.nn.softmax(logits, axis=-1).astype(config.dtype)
        heads = jnp.einsum("bhts,bshk->bthk", probs, v).reshape(b, t, inner)
        return heads @ out.astype(config.dtype)


class MLP(nn.Module):
    """down(up(x) * gelu_tanh(gate(x)))."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: Array) -> Array:
        d, mlp, dtype = x.shape[-1], self.config.mlp, self.config.dtype
        gate = _param(self, "gate", (d, mlp), ("embed", "mlp"), d**-0.5)
        up = _param(self, "up", (d, mlp), ("embed", "mlp"), d**-0.5)
        down = _param(self, "down", (mlp, d), ("mlp", "embed"), mlp**-0.5)
        h = nn.gelu(x @ gate.astype(dtype), approximate=True) * (x @ up.astype(dtype))
        return h @ down.astype(dtype)


class Layer(nn.Module):
    """x += attention(norm(x)); x += mlp(norm(x)). Shaped for `nn.scan`."""

    config: UMT5Config

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> tuple[Array, None]:
        dtype = self.config.dtype
        h = Norm(dtype, name="norm_1")(x)
        x = x + Attention(self.config, name="attention")(h, mask)
        h = Norm(dtype, name="norm_2")(x)
        return x + MLP(self.config, name="mlp")(h), None


class UMT5Encoder(nn.Module):
    """The encoder. `params` is its only collection."""

    config: UMT5Config

    @nn.compact
    def __call__(self, ids: Array, mask: Array) -> Array:
        """Hidden states of every position, padding included: [b, t, d] in the compute dtype.

        Args:
          ids: token ids, [b, t] integers.
          mask: [b, t], non-zero where an id is not padding. Padding is not attended to.

        Raises:
          InputError: the shapes differ, or are not [b, t].
        """
        if ids.ndim != 2 or ids.shape != mask.shape:
            raise InputError(
                f"ids have shape {ids.shape} and mask {mask.shape}; give both as [b, t]."
            )
        config = self.config
        names = ("vocab", "embed")
        table = _param(self, "embedding", (config.vocab, config.width), names, 1.0)
        x = jnp.take(table, ids, axis=0).astype(config.dtype)
        layers = nn.scan(
            Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=config.layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(config, name="layers")
        x, _ = layers(x, mask != 0)
        return Norm(config.dtype, name="norm_out")(x)

    def encode(self, ids: Array, mask: Array) -> Array:
        """Embeddings [b, t, d] in the compute dtype, zero where `mask` is zero."""
        return jnp.where((mask != 0)[:, :, None], self(ids, mask), 0)


def init_params(config: UMT5Config, key: Array) -> Any:
    """Random parameters, f32, boxed with their logical axes (`flax.linen.meta.unbox` opens them)."""
    ids = jnp.zeros((1, 1), jnp.int32)
    return jax.jit(UMT5Encoder(config).init)(key, ids, ids)["params"]
