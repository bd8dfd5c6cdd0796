"""Layers that the transformer and the adversarial head share.

Statistics of norms are float32; matrix products run in `dtype`; parameters stay in float32.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from oneforcing_jax.models import kernels
from oneforcing_jax.models.products import Axes, Product
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.shapes import flat, trailing
from oneforcing_jax.sharding import by_tokens, constrain

EPS = 1e-6
Dtype = Any


def logical(init: Any, axes: tuple[str | None, ...]) -> Any:
    """An initialiser whose parameter carries the logical names of its axes."""
    return nn.with_logical_partitioning(init, axes)


class Dense(nn.Module):
    """A linear layer.

    Attributes:
      features: of the result.
      axes: logical axes of the kernel, (input, output).
      dtype: of the product and the result.
      product: says which parameters lie beside the kernel, and multiplies.
      bias: what the bias begins with.
      kernel_init: initialiser of the kernel.
    """

    features: int
    axes: Axes
    dtype: Dtype
    product: Product = PLAIN
    bias: float = 0.0
    kernel_init: Any = nn.initializers.xavier_uniform()

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape, name = (x.shape[-1], self.features), ".".join(self.path)
        declared = self.product.leaves(self.kernel_init, shape, self.axes, name)
        leaves = {
            name: self.param(name, logical(leaf.init, leaf.axes), leaf.shape)
            for name, leaf in declared.items()
        }
        init = logical(nn.initializers.constant(self.bias), self.axes[1:])
        bias = self.param("bias", init, (self.features,))
        y = self.product.multiply(x.astype(self.dtype), leaves, self.axes)
        return y + trailing(bias.astype(self.dtype), y)


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
        y = layer_norm(x, self.eps)
        return (y * trailing(scale, y) + trailing(bias, y)).astype(self.dtype)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, over the whole width (all heads together)."""

    dtype: Dtype
    eps: float = EPS

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        init = logical(nn.initializers.ones_init(), ("norm",))
        scale = self.param("scale", init, (x.shape[-1],))
        x = x.astype(jnp.float32)
        y = x * jax.lax.rsqrt(jnp.square(x).mean(-1, keepdims=True) + self.eps)
        return (y * trailing(scale, y)).astype(self.dtype)


class Attention(nn.Module):
    """Projections of multi-head attention with normalised queries and keys."""

    dim: int
    num_heads: int
    dtype: Dtype
    qk_bias: float = 0.0
    product: Product = PLAIN

    def setup(self) -> None:
        into, out = ("embed", "heads"), ("heads", "embed")
        self.q = Dense(self.dim, into, self.dtype, self.product, self.qk_bias)
        self.k = Dense(self.dim, into, self.dtype, self.product, self.qk_bias)
        self.v = Dense(self.dim, into, self.dtype, self.product)
        self.o = Dense(self.dim, out, self.dtype, self.product)
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
            return kernels.chosen().attend(flat(q), k, v).reshape(q.shape)

        return self.out(by_tokens(attend, self.query(x), *key_value))

    def read(self, x: jax.Array, tokens: jax.Array) -> jax.Array:
        """Attention of one vector `x` [b, d] over tokens [b, f, n, d]."""
        return self.out(one_query(self.query(x), *self.key_value(tokens)))


def one_query(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """Attention of one query over the tokens of a clip: q [b, h, k], k and v [b, f, n, h, k] -> [b, h, k].

    It is two products of a matrix and a vector, for which no kernel is made. Tokens may lie on several
    devices, which then exchange a maximum, a sum and a vector for each head.
    """
    logits = jnp.einsum("bhk,bfnhk->bhfn", q, k, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(logits * q.shape[-1] ** -0.5, axis=(-2, -1)).astype(v.dtype)
    return jnp.einsum("bhfn,bfnhk->bhk", weights, v)


class FeedForward(nn.Module):
    """Linear, GELU (tanh form), linear."""

    dim: int
    hidden: int
    dtype: Dtype
    product: Product = PLAIN

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = Dense(self.hidden, ("embed", "mlp"), self.dtype, self.product, name="0")(x)
        return Dense(self.dim, ("mlp", "embed"), self.dtype, self.product, name="2")(nn.gelu(x))


def sinusoid(t: jax.Array, size: int) -> jax.Array:
    """Embedding [..., size] of timesteps: cosines first, then sines."""
    half = size // 2
    frequencies = jnp.exp(-math.log(10000) * jnp.arange(half, dtype=jnp.float32) / half)
    t = t.astype(jnp.float32)[..., None]
    angles = t * trailing(frequencies, t)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], -1)


def on_tokens(x: jax.Array) -> jax.Array:
    """Lays [b, f, n, d] out over the mesh."""
    return constrain(x, "batch", None, "tokens", None)
