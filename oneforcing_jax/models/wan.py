"""The Wan2.1 diffusion transformer, one module for every role.

Bidirectional, block-causal, teacher forcing and cached are the same network with another attention
argument: a function `attend(q, k, v, memory) -> (out, new)` that each layer calls with its own part of
`memory`. Layers are stacked on a leading axis and scanned, so compile time does not grow with depth. For
serving they may lie apart (`unstacked`). Nothing is then cut out of a stack, and each layer's memory is a
buffer of its own.

Tokens are [b, f, n, d]: the mesh splits every frame alike.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from oneforcing_jax import shapes, sharding
from oneforcing_jax.errors import InputError
from oneforcing_jax.flow import TRAIN_STEPS
from oneforcing_jax.models import kernels, rope, stack
from oneforcing_jax.models.condition import NEGATIVE, TEXT, Condition, Field
from oneforcing_jax.models.layers import (
    Attention,
    Dense,
    FeedForward,
    LayerNorm,
    layer_norm,
    logical,
    on_tokens,
    sinusoid,
    stacked,
)
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.products import Product
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.stack import Attend, KeyValue, Memory, Tap
from oneforcing_jax.models.trees import Params
from oneforcing_jax.setup.dtypes import DTYPES, Dtype
from oneforcing_jax.setup.ranges import Count, Positive
from oneforcing_jax.shapes import flat, trailing
from oneforcing_jax.sharding import by_heads, constrain


@dataclasses.dataclass(frozen=True)
class WanConfig:
    """Sizes of the transformer; what a release has of them is in its family.

    Attributes:
      dim: width of a token, over all heads.
      ffn_dim: hidden width of the feed-forward layers.
      num_heads, num_layers: attention heads, and layers.
      in_dim, out_dim: channels of the latents that it reads and gives.
      text_dim, text_len: width and number of the prompt's tokens.
      freq_dim: of the sinusoids that say the noise level.
      patch: rows and columns of a latent frame that are one token.
      rope_theta: base of the rotary frequencies.
      qk_bias: with which the biases of self-attention's queries and keys begin; above 0, attention to
        neighbours is there from the start.
      dtype: of the arithmetic.
      remat: what the backward pass recomputes: "none", "full" (all of a layer), "attention" (all but the
        answers of self-attention, where an accelerator's kernel computes them), "dots" (all but matrix
        products), or "offload" (as "full", and what layers begin with waits in the host's memory).
    """

    dim: Count
    ffn_dim: Count
    num_heads: Count
    num_layers: Count
    in_dim: Count
    out_dim: Count
    text_dim: Count
    text_len: Count
    freq_dim: Count
    patch: Count = 2
    rope_theta: Positive = 10000.0
    qk_bias: float = 0.0
    dtype: Dtype = DTYPES["float32"]
    remat: str = "none"

    def __post_init__(self) -> None:
        if self.dim % self.num_heads or (self.dim // self.num_heads) % 2:
            raise InputError(
                f"model: expected an even head size, found dim {self.dim} over {self.num_heads} heads"
            )
        if self.freq_dim % 2:
            raise InputError(f"model: expected an even freq_dim, found {self.freq_dim}; change it")
        if self.remat not in stack.REMAT:
            raise InputError(f"model: expected remat among {stack.REMAT}, found {self.remat!r}")

    @property
    def head_dim(self) -> int:
        return self.dim // self.num_heads

    def frame_tokens(self, rows: int, columns: int) -> int:
        """Tokens of a latent frame of the given size.

        Raises:
          InputError: a size that the patch does not divide.
        """
        if rows % self.patch or columns % self.patch:
            raise InputError(
                f"latent frame: expected a height and width that divide by the patch {self.patch}, found "
                f"{rows}x{columns}; change the video's size"
            )
        return (rows // self.patch) * (columns // self.patch)


# Beginnings of names in the tree of parameters, of what computes in float32.
WIDE = ("time_", "norm")


class Output(NamedTuple):
    """What one forward gives.

    Attributes:
      flow: [b, f, c, y, x] float32.
      new: what `attend` returned, stacked over layers.
      tapped: the final state of `tap`.
    """

    flow: jax.Array
    new: Memory
    tapped: Any


def full(q: jax.Array, k: jax.Array, v: jax.Array, memory: Memory) -> tuple[jax.Array, None]:
    """The bidirectional `attend`."""
    return kernels.chosen().attend(flat(q), flat(k), flat(v)).reshape(q.shape), None


class Layer(nn.Module):
    """One transformer layer."""

    config: WanConfig
    product: Product = PLAIN

    def setup(self) -> None:
        c = self.config
        init = logical(nn.initializers.normal(c.dim**-0.5), (None, "norm"))
        self.modulation = self.param("modulation", init, (6, c.dim))
        self.self_attn = Attention(c.dim, c.num_heads, c.dtype, c.qk_bias, self.product)
        self.norm3 = LayerNorm(c.dtype)
        self.cross_attn = Attention(c.dim, c.num_heads, c.dtype, product=self.product)
        self.ffn = FeedForward(c.dim, c.ffn_dim, c.dtype, self.product)

    def text_key_value(self, text: jax.Array) -> KeyValue:
        return self.cross_attn.key_value(text)

    def __call__(
        self,
        x: jax.Array,
        time: jax.Array,
        turn: tuple[jax.Array, jax.Array],
        text: jax.Array | KeyValue,
        attend: Attend,
        memory: Memory,
    ) -> tuple[jax.Array, Memory]:
        """x [b, f, n, d], time [b, 1 or f, 6, d], text embedded [b, s, d] or as keys and values."""
        modulation = (time + trailing(self.modulation, time))[:, :, :, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = jnp.moveaxis(modulation, 2, 0)

        def modulate(shift: jax.Array, scale: jax.Array) -> jax.Array:
            return (layer_norm(x) * (1 + scale) + shift).astype(x.dtype)

        def gated(y: jax.Array, gate: jax.Array) -> jax.Array:
            return on_tokens(x + (y * gate).astype(x.dtype))

        with jax.named_scope("self_attention"):
            y = modulate(shift1, scale1)
            q, (k, v) = self.self_attn.query(y), self.self_attn.key_value(y)
            out, new = by_heads(attend, rope.rotate(q, turn), rope.rotate(k, turn), v, memory)
            x = gated(self.self_attn.out(out), gate1)
        with jax.named_scope("cross_attention"):
            key_value = text if isinstance(text, tuple) else self.text_key_value(text)
            x = on_tokens(x + self.cross_attn.cross(self.norm3(x), key_value))
        with jax.named_scope("feed_forward"):
            x = gated(self.ffn(modulate(shift2, scale2)), gate2)
        return x, new


class WanDiT(nn.Module):
    """The transformer: flow of noisy latents at given noise levels, conditioned on text; see `model`."""

    config: WanConfig
    product: Product = PLAIN

    def setup(self) -> None:
        c, into, out = self.config, (None, "embed"), ("embed", None)
        self.patch_embedding = Dense(c.dim, into, c.dtype, self.product)
        self.text_embedding_0 = Dense(c.dim, into, c.dtype, self.product)
        self.text_embedding_2 = Dense(c.dim, out, c.dtype, self.product)
        self.time_embedding_0 = Dense(c.dim, into, jnp.float32, self.product)
        self.time_embedding_2 = Dense(c.dim, out, jnp.float32, self.product)
        self.time_projection = Dense(6 * c.dim, out, jnp.float32, self.product)
        self.layer = Layer(c, self.product, parent=None)
        self.blocks = stacked(self, "blocks", self._init_blocks)
        init = logical(nn.initializers.normal(c.dim**-0.5), (None, "norm"))
        self.head_modulation = self.param("head_modulation", init, (2, c.dim))
        zeros, patches = nn.initializers.zeros_init(), c.out_dim * c.patch**2
        self.head = Dense(patches, out, c.dtype, self.product, kernel_init=zeros)

    def _init_blocks(self, key: jax.Array) -> Any:
        c = self.config
        x, text = jnp.zeros((1, 1, 1, c.dim), c.dtype), jnp.zeros((1, 1, c.dim), c.dtype)
        time, turn = jnp.zeros((1, 1, 6, c.dim)), rope.turns(jnp.zeros((1, 1, c.head_dim // 2)))
        keys = jax.random.split(key, c.num_layers)
        stacked = jax.vmap(lambda k: self.layer.init(k, x, time, turn, text, full, None)["params"])(
            keys
        )
        return nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "layers"})

    def embed_text(self, text: jax.Array) -> jax.Array:
        """[b, text_len, text_dim] -> [b, text_len, d]."""
        return self.text_embedding_2(nn.gelu(self.text_embedding_0(text)))

    def text_key_value(self, text: jax.Array) -> KeyValue:
        """Keys and values of the prompt for every layer, [l, b, s, h, k], or a tuple of each layer's:
        computed once a prompt."""
        embedded = self.embed_text(text)

        def layer(_: None, per_layer: Any) -> tuple[None, Any]:
            apply = self.layer.apply
            return None, apply({"params": per_layer[0]}, embedded, method="text_key_value")

        return stack.run(layer, None, self.config.num_layers, self.blocks)[1]

    def _patches(self, latents: jax.Array) -> jax.Array:
        p = self.config.patch
        return rearrange(latents, "b f c (y p) (x q) -> b f (y x) (c p q)", p=p, q=p)

    def __call__(
        self,
        latents: jax.Array,
        sigma: jax.Array,
        text: jax.Array | KeyValue,
        *,
        frames: jax.Array | None = None,
        attend: Attend = full,
        memory: Memory = None,
        beside: jax.Array | None = None,
        tap: Tap | None = None,
        tapped: Any = None,
    ) -> Output:
        """One forward.

        Args:
          latents: [b, f, c, y, x].
          sigma: noise level, [b] for a whole clip or [b, f] for each frame.
          text: prompt embeddings [b, text_len, text_dim], zero beyond the prompt's length, or the
            keys and values of `text_key_value`.
          frames: [f] frame numbers for the rotary embedding; None: 0, 1, 2, ...
          attend: attention structure; `full`, one of `causal/structures.py`, or one that reads `memory`.
          memory: a tree with a leading layer axis, or a tuple of each layer's where layers lie apart;
            handed to `attend` layer by layer.
          beside: [b, 1 or f, d] float32, added to the embedding of the noise level; None: nothing is.
          tap: called after every layer as tap(layer number, tokens [b, f, n, d], state) -> state.
          tapped: initial state of `tap`.
        """
        c = self.config
        size = shapes.check("latents", latents, "b f c y x", c=c.in_dim)
        c.frame_tokens(size["y"], size["x"])
        embedded = None
        if not isinstance(text, tuple):
            shapes.check("text", text, "b s d", b=size["b"], s=c.text_len, d=c.text_dim)
            embedded = self.embed_text(text)
        sigma = sigma.reshape(size["b"], -1)
        frames = jnp.arange(size["f"]) if frames is None else frames
        rows, columns = size["y"] // c.patch, size["x"] // c.patch
        turn = rope.turns(rope.rotations(frames, rows, columns, c.head_dim, c.rope_theta))

        time = self.time_embedding_0(sinusoid(TRAIN_STEPS * sigma, c.freq_dim))
        time = self.time_embedding_2(nn.silu(time))
        time = time if beside is None else time + beside
        modulation = self.time_projection(nn.silu(time)).reshape(*time.shape[:2], 6, c.dim)
        x = on_tokens(self.patch_embedding(on_tokens(self._patches(latents))))

        def layer(carry: Any, per_layer: Any) -> tuple[Any, Any]:
            x, tapped = carry
            params, memory, key_value, index = per_layer
            prompt = embedded if key_value is None else key_value
            x, new = self.layer.apply(
                {"params": params}, x, modulation, turn, prompt, attend, memory
            )
            return (x, tapped if tap is None else tap(index, x, tapped)), new

        layer = stack.recomputed(layer, c.remat)
        key_value = None if embedded is not None else text
        (x, tapped), new = stack.run(
            layer, (x, tapped), c.num_layers, self.blocks, memory, key_value
        )
        return Output(self._head(x, time, rows, columns), new, tapped)

    def _head(self, x: jax.Array, time: jax.Array, rows: int, columns: int) -> jax.Array:
        c = self.config
        modulation = time[:, :, None] + self.head_modulation[None, None]
        shift, scale = jnp.moveaxis(modulation, 2, 0)[:, :, :, None]
        y = (layer_norm(x) * (1 + scale) + shift).astype(c.dtype)
        # The tokens come together only here, because patches are a 24th of their width.
        patches = constrain(on_tokens(self.head(y)), "batch", None, None, None).astype(jnp.float32)
        axes = "b f (y x) (p q c) -> b f c (y p) (x q)"
        return rearrange(patches, axes, y=rows, x=columns, p=c.patch, q=c.patch)


def inputs(config: WanConfig) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Latents, noise level and prompt of one clip of one token, with which parameters are made."""
    latents = jnp.zeros((1, 1, config.in_dim, config.patch, config.patch))
    return latents, jnp.zeros(1), jnp.zeros((1, config.text_len, config.text_dim))


def takes(config: WanConfig) -> dict[str, Field]:
    """The conditions of the transformer: the prompt's embeddings, zero beyond its length."""
    return {TEXT: Field((config.text_len, config.text_dim), null=NEGATIVE)}


def text_of(condition: Condition) -> jax.Array | KeyValue:
    """The prompt of a condition, embedded or prepared."""
    found: jax.Array | KeyValue = condition.clip
    return found[TEXT] if isinstance(found, Mapping) else found


@functools.cache
def model(config: WanConfig, product: Product = PLAIN) -> Model:
    """The transformer as a record. `apply` gives an `Output`, and takes the arguments of `WanDiT` with a
    `Condition` in place of the prompt.

    Args:
      config: its sizes.
      product: of its matrices; the parameters that it trains are those that the model trains.
    """
    net = WanDiT(config, product)

    def init(key: jax.Array) -> Any:
        # No mesh could split one token.
        with sharding.no_mesh():
            return net.init(key, *inputs(config))["params"]

    def apply(
        params: Params, latents: jax.Array, sigma: jax.Array, condition: Condition, **how: Any
    ) -> Output:
        out: Any = net.apply({"params": params}, latents, sigma, text_of(condition), **how)
        return out

    def prepare(params: Params, clip: Any) -> KeyValue:
        out: Any = net.apply({"params": params}, clip[TEXT], method="text_key_value")
        return out

    def again(other: WanConfig | None, others: Product | None) -> Model:
        return model(other or config, others or product)

    trains = product.trains
    return Model(config, takes(config), init, apply, prepare, again, product, trains, WIDE)
