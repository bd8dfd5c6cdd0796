"""Layers that the transformer and the adversarial head share.

Statistics of norms are float32; matrix products run in `dtype`; parameters stay in float32.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from oneforcing_jax.models import attention
from oneforcing_jax.sharding import by_tokens, constrain, gathered, sharded_tokens, target

EPS = 1e-6
Dtype = Any


def logical(init: Any, axes: tuple[str | None, ...]) -> Any:
    """An initialiser whose parameter carries the logical names of its axes."""
    return nn.with_logical_partitioning(init, axes)


def _flat_dot_general(x: jax.Array, kernel: jax.Array, dimensions: Any, **kwargs: Any) -> jax.Array:
    """x [..., d] @ kernel [d, e] with one batch axis: XLA is twice as fast so on CPU."""
    if target().platform != "cpu" or sharded_tokens():
        return jax.lax.dot_general(x, kernel, dimensions, **kwargs)
    flat = jax.lax.dot_general(
        x.reshape(-1, x.shape[-1]), kernel, (((1,), (0,)), ((), ())), **kwargs
    )
    return flat.reshape(*x.shape[:-1], kernel.shape[-1])


def dense(
    features: int,
    axes: tuple[str | None, str | None],
    dtype: Dtype,
    bias: float = 0.0,
    **kwargs: Any,
) -> nn.Dense:
    """A linear layer whose kernel has the logical axes (input, output)."""
    init = kwargs.pop("kernel_init", nn.initializers.xavier_uniform())

    def product(x: jax.Array, kernel: jax.Array, dimensions: Any, **kwargs: Any) -> jax.Array:
        return _flat_dot_general(x, gathered(kernel, axes), dimensions, **kwargs)

    return nn.Dense(
        features,
        dtype=dtype,
        kernel_init=logical(init, axes),
        bias_init=logical(nn.initializers.constant(bias), (axes[1],)),
        dot_general=product,
        **kwargs,
    )


def stacked(module: nn.Module, name: str, init: Any) -> Any:
    """Parameters of stacked layers; where some are given, Flax would trace `init` only to check them."""
    if module.has_variable("params", name):
        return module.get_variable("params", name)
    return module.param(name, init)


def layer_norm(x: jax.Array, eps: float = EPS) -> jax.Array:
    """LayerNorm over the last axis without scale and bias, in float32 (the result too)."""
    x = x.astype(jnp.float32)
    mean = x.mean(-1, keepdims=True)
    variance = jnp.square(x - mean).mean(-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)


class LayerNorm(nn.Module):
    """LayerNorm with scale and bias."""

    dtype: Dtype
    eps: float = EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1],)
        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale = self.param("scale", logical(ones, ("norm",)), shape)
        bias = self.param("bias", logical(zeros, ("norm",)), shape)
        return (layer_norm(x, self.eps) * scale + bias).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, over the whole width (all heads together)."""

    dtype: Dtype
    eps: float = EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = logical(nn.initializers.ones_init(), ("norm",))
        scale = self.param("scale", init, (x.shape[-1],))
        x = x.astype(jnp.float32)
        return (x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps) * scale).astype(
            self.dtype
        )


class Attention(nn.Module):
    """Projections of multi-head attention with normalised queries and keys."""

    dim: int
    num_heads: int
    dtype: Dtype
    qk_bias: float = 0.0

    def setup(self) -> None:
        axes = ("embed", "heads")
        self.q = dense(self.dim, axes, self.dtype, bias=self.qk_bias)
        self.k = dense(self.dim, axes, self.dtype, bias=self.qk_bias)
        self.v = dense(self.dim, axes, self.dtype)
        self.o = dense(self.dim, ("heads", "embed"), self.dtype)
        self.norm_q, self.norm_k = RMSNorm(self.dtype), RMSNorm(self.dtype)

    def _heads(self, x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:-1], self.num_heads, self.dim // self.num_heads)

    def query(self, x: jax.Array) -> jax.Array:
        """[..., d] -> [..., h, k]."""
        return self._heads(self.norm_q(self.q(x)))

    def key_value(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[..., d] -> keys and values [..., h, k]."""
        return self._heads(self.norm_k(self.k(x))), self._heads(self.v(x))

    def out(self, x: jax.Array) -> jax.Array:
        """[..., h, k] -> [..., d]."""
        return self.o(x.reshape(*x.shape[:-2], self.dim))

    def cross(self, x: jax.Array, key_value: tuple[jax.Array, jax.Array]) -> jax.Array:
        """Attention of tokens `x` [b, f, n, d] over keys and values [b, s, h, k] of a prompt."""

        def attend(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attention.attend(attention.flat(q), k, v).reshape(q.shape)

        return self.out(by_tokens(attend, self.query(x), *key_value))

    def read(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        """Attention of one vector `x` [b, d] over tokens [b, f, n, d]."""
        return self.out(attention.one_query(self.query(x), *self.key_value(tokens)))


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), linear."""

    dim: int
    hidden: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = dense(self.hidden, ("embed", "mlp"), self.dtype, name="0")(x)
        return dense(self.dim, ("mlp", "embed"), self.dtype, name="2")(nn.gelu(x))


def sinusoid(t: jax.Array, size: int) -> jax.Array:
    """Embedding [..., size] of timesteps: cosines first, then sines."""
    half = size // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / half)
    angles = t.astype(jnp.float32)[..., None] * frequencies
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def on_tokens(x: jax.Array) -> jax.Array:
    """Lays [b, f, n, d] out over the mesh."""
    return constrain(x, "batch", None, "tokens", None)
