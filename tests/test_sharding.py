"""What a forward exchanges between the devices of a video, counted in its program."""

import jax
import jax.numpy as jnp
import pytest
from goldens import abstract

from oneforcing_jax import sharding
from oneforcing_jax.causal import cache as kv
from oneforcing_jax.models import wan
from oneforcing_jax.models.condition import Condition
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.targets import kernels

CONFIG = WanConfig(64, 96, 4, 3, in_dim=4, out_dim=4, text_dim=16, text_len=8, freq_dim=16)
FRAMES, ROWS, COLUMNS = 2, 8, 8
TOKENS = CONFIG.frame_tokens(ROWS, COLUMNS)
BATCH = 2
needs_eight = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight (virtual) devices")


def forward(mesh, attend=None, memory=None):
    """Kernels of a forward with text as keys and values, as it is generated with."""
    net = wan.model(CONFIG)
    text = jnp.zeros((CONFIG.num_layers, BATCH, CONFIG.text_len, 4, 16))
    more = {} if attend is None else {"attend": attend, "memory": memory}

    def run(params, latents, memory):
        if more:
            more["memory"] = memory
        return net.apply(params, latents, jnp.ones(BATCH), Condition((text, text)), **more)

    latents = jax.ShapeDtypeStruct((BATCH, FRAMES, 4, ROWS, COLUMNS), jnp.float32)
    with jax.set_mesh(mesh):
        made = jax.jit(run).lower(abstract(net), latents, memory).compile()
    return [k for k in kernels.read(made.as_text(), mesh.size).kernels if k.sent]


def count(found, kind):
    return sum(k.times for k in found if k.sent.kind == kind)


@needs_eight
def test_tokens_are_exchanged_for_heads_and_never_gathered():
    mesh = sharding.make_mesh({"data": 2, "sequence": 4}, jax.devices()[:8])
    found = forward(mesh)
    # Queries, keys and values there, and the answers back.
    assert count(found, "all-to-all") == 4 * CONFIG.num_layers
    assert not count(found, "all-reduce")
    gathered = [k for k in found if k.sent.kind == "all-gather"]
    patches = BATCH * FRAMES * TOKENS * 4 * CONFIG.patch**2 * 4 / 2
    assert sum(k.times * k.sent.bytes for k in gathered) <= patches


@needs_eight
def test_context_gathers_keys_and_values_alone():
    mesh = sharding.make_mesh({"data": 2, "context": 2, "sequence": 2}, jax.devices()[:8])
    found = forward(mesh)
    assert count(found, "all-to-all") == 4 * CONFIG.num_layers
    inside = [k for k in found if k.sent.kind == "all-gather" and k.times > 1]
    assert sum(k.times for k in inside) == 2 * CONFIG.num_layers
    of_heads = BATCH / 2 * FRAMES * TOKENS * CONFIG.dim * 4 / 2
    assert all(k.sent.bytes <= of_heads / 2 for k in inside)


@needs_eight
def test_a_cache_lies_by_heads_and_stays_there():
    mesh = sharding.make_mesh({"data": 2, "sequence": 4}, jax.devices()[:8])
    with jax.set_mesh(mesh):
        cache = jax.jit(lambda: kv.init(CONFIG, BATCH, 4, TOKENS))()
    assert cache.k.addressable_shards[0].data.size * 8 == cache.k.size
    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), cache
    )
    attend = kv.cached((1, 1), jnp.int32(1), kv.Window(), 4)
    found = forward(mesh, attend, like)
    assert count(found, "all-to-all") == 4 * CONFIG.num_layers
    assert not [k for k in found if k.sent.kind == "all-gather" and k.times > 1]


@needs_eight
def test_matrices_are_gathered_before_products_and_gradients_go_where_they_lie():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4}, jax.devices()[:8])
    axes = ("embed", "heads")
    x, kernel = jnp.arange(48.0).reshape(8, 6, 1) + jnp.arange(16), jnp.eye(16, 8)

    def loss(kernel, x):
        return jnp.square(x @ sharding.gathered(kernel, axes)).mean()

    expected = jax.grad(loss)(kernel, x)
    lies = sharding.named(mesh, axes)
    with jax.set_mesh(mesh):
        arguments = (
            jax.device_put(kernel, lies),
            jax.device_put(x, sharding.named(mesh, ("batch",))),
        )
        made = jax.jit(jax.grad(loss)).lower(*arguments).compile()
    found = [k.sent for k in kernels.read(made.as_text(), 8).kernels if k.sent]
    (gather,) = [sent for sent in found if sent.kind == "all-gather"]
    assert gather.bytes == 3 * 4 * 8 * 4 and len(gather.group) == 4  # three parts from the others
    gradient = made(*arguments)
    assert gradient.sharding.is_equivalent_to(lies, 2)
    assert jnp.allclose(gradient, expected, rtol=1e-6)


def test_tokens_that_do_not_divide_are_refused():
    mesh = sharding.make_mesh({"sequence": 8}, jax.devices()[:8])
    with pytest.raises(ValueError, match="expected attention heads to divide over 8 devices"):
        forward(mesh)
