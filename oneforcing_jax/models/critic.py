"""The critic: the transformer as fake score, with an adversarial head on its own features.

Each tapped layer has a learned register token, which asks the layer's tokens in a cross-attention block. The
answers are concatenated, and an MLP turns them into one logit (paper, section 3.3).
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from oneforcing_jax import sharding
from oneforcing_jax.errors import InputError
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.layers import (
    Attention,
    Dense,
    FeedForward,
    LayerNorm,
    RMSNorm,
    layer_norm,
    logical,
    stacked,
)
from oneforcing_jax.models.model import Model
from oneforcing_jax.models.products import Product
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.trees import Params
from oneforcing_jax.models.wan import WanConfig, WanDiT
from oneforcing_jax.setup.ranges import Count, Natural


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """The adversarial head; the defaults are the paper's framewise ones.

    Attributes:
      layers: tapped layers, one register token each.
      ffn_dim: hidden width of the cross-attention blocks.
    """

    layers: tuple[Natural, ...] = (21, 29)
    ffn_dim: Count = 2048

    def __post_init__(self) -> None:
        if len(set(self.layers)) < len(self.layers):
            raise InputError(
                f"head: expected each layer once, found {list(self.layers)}; remove one"
            )


class Scores(NamedTuple):
    """flow [b, f, c, y, x] and logit [b], both float32; None where it was not asked for."""

    flow: jax.Array | None
    logit: jax.Array | None


class Reader(nn.Module):
    """Cross-attention of one register token over the tokens of one layer."""

    config: WanConfig
    ffn_dim: int

    @nn.compact
    def __call__(self, register: jax.Array, tokens: jax.Array) -> jax.Array:
        """register [b, d], tokens [b, f, n, d] -> [b, d]."""
        c = self.config
        cross = Attention(c.dim, c.num_heads, c.dtype, name="cross_attn")
        x = register + cross.read(register, LayerNorm(c.dtype, name="norm3")(tokens))
        ffn = FeedForward(c.dim, self.ffn_dim, c.dtype, name="ffn")
        return x + ffn(layer_norm(x).astype(c.dtype))


class Classifier(nn.Module):
    """LayerNorm, linear, SiLU, linear to one logit, in float32."""

    width: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        x = LayerNorm(jnp.float32, eps=1e-5, name="0")(features.astype(jnp.float32))
        x = nn.silu(Dense(self.width, (None, "embed"), jnp.float32, name="1")(x))
        return Dense(1, ("embed", None), jnp.float32, name="3")(x)[..., 0]


class Critic(nn.Module):
    """Fake score and discriminator in one network; its attributes are those of `WanDiT`, and its head.

    The head is new and trained whole, so the product is the transformer's alone.
    """

    config: WanConfig
    head: HeadConfig
    product: Product = PLAIN

    def setup(self) -> None:
        c, layers = self.config, self.head.layers
        if not layers or any(not 0 <= i < c.num_layers for i in layers):
            raise InputError(
                f"critic: expected tapped layers in [0, {c.num_layers}), found {list(layers)}; "
                "set critic.layers to layers that the model has"
            )
        self.model = WanDiT(c, self.product)
        init = logical(nn.initializers.normal(0.02), ("taps", "embed"))
        self.registers = self.param("registers", init, (len(layers), c.dim))
        self.register_norm = RMSNorm(jnp.float32)
        self.reader = Reader(c, self.head.ffn_dim, parent=None)
        self.readers = stacked(self, "readers", self._init_readers)
        self.classifier = Classifier(c.dim)

    def _init_readers(self, key: jax.Array) -> Any:
        register = jnp.zeros((1, self.config.dim), self.config.dtype)
        tokens = register[:, None, None]
        keys = jax.random.split(key, len(self.head.layers))
        stacked = jax.vmap(lambda k: self.reader.init(k, register, tokens)["params"])(keys)
        return nn.meta.add_axis(stacked, 0, {nn.PARTITION_NAME: "taps"})

    def _tap(self, index: jax.Array, tokens: jax.Array, answers: jax.Array) -> jax.Array:
        """Reads the tokens of the layers that are tapped; `answers` is [taps, b, d]."""
        taps = jnp.array(self.head.layers)
        number = jnp.argmax(taps == index)

        # Without this a branch keeps its intermediates for the backward pass, as zeros in untapped layers.
        @jax.checkpoint
        def read(answers: jax.Array, tokens: jax.Array) -> jax.Array:
            params = jax.tree.map(lambda leaf: jnp.take(leaf, number, axis=0), self.readers)
            answer = self.reader.apply({"params": params}, answers[number], tokens)
            return answers.at[number].set(answer)

        tapped = jnp.any(taps == index)
        return jax.lax.cond(tapped, read, lambda answers, _: answers, answers, tokens)

    def __call__(
        self,
        latents: jax.Array,
        sigma: jax.Array,
        text: jax.Array,
        *,
        want_flow: bool = True,
        want_logit: bool = True,
    ) -> Scores:
        """Flow and logit of noisy latents [b, f, c, y, x] at noise level `sigma` [b], in one forward."""
        if not want_logit:
            return Scores(self.model(latents, sigma, text).flow, None)
        registers = self.register_norm(self.registers).astype(self.config.dtype)
        taps, width = registers.shape
        answers = jnp.broadcast_to(registers[:, None], (taps, latents.shape[0], width))
        out = self.model(latents, sigma, text, tap=self._tap, tapped=answers)
        features = jnp.moveaxis(out.tapped, 0, 1).reshape(latents.shape[0], -1)
        return Scores(out.flow if want_flow else None, self.classifier(features))


@functools.cache
def model(config: WanConfig, head: HeadConfig, product: Product = PLAIN) -> Model:
    """The critic as a record. `apply` gives `Scores`, and takes the arguments of `Critic` with a `Condition`
    in place of the prompt, which is not prepared."""
    net = Critic(config, head, product)

    def init(key: jax.Array) -> Any:
        with sharding.no_mesh():
            return net.init(key, *wan.inputs(config))["params"]

    def apply(
        params: Params, latents: jax.Array, sigma: jax.Array, condition: Condition, **how: Any
    ) -> Scores:
        out: Any = net.apply({"params": params}, latents, sigma, wan.text_of(condition), **how)
        return out

    def prepare(params: Params, clip: Any) -> Any:
        return clip

    def again(other: WanConfig | None, others: Product | None) -> Model:
        return model(other or config, head, others or product)

    # The head is new, so all of it is trained.
    own = product.trains
    trains = own and (lambda path: path[0] != "model" or own(path))
    wide = (*wan.WIDE, "classifier")
    return Model(config, wan.takes(config), init, apply, prepare, again, product, trains, wide)
