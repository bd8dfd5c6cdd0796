"""Training a part of a network, other matrix products, and random keys that share nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens import error, prompted

from oneforcing_jax import sharding
from oneforcing_jax.methods import Method, Network, Sampled, Update
from oneforcing_jax.models import layers, trees, wan
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.training import randomness
from oneforcing_jax.training.optim import Optimiser
from oneforcing_jax.training.steps import Ema, Trainer

CONFIG = WanConfig(16, 24, 2, 2, in_dim=2, out_dim=2, text_dim=8, text_len=4, freq_dim=8)


def in_ffn(path):
    return "ffn" in path


def trainer(*masks):
    """A quadratic loss, one update for each mask."""

    def loss(params, nets, batch, draws):
        value = 0.5 * optax.tree.norm(params, squared=True) * batch["latents"].mean()
        return value, {"loss": value}

    updates = tuple(Update("model", 1, lambda key, batch: (), loss, trains=mask) for mask in masks)
    method = Method({"model": Network(wan.model(CONFIG))}, updates, Sampled("model", None))
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    rule = Optimiser(learning_rate=0.1, clip=1e9)
    return Trainer(method, {"model": rule}, Ema(0.5), mesh, seed=0, stage="s", batch=8)


@pytest.mark.parametrize("microbatch", [0, 4])
def test_an_update_trains_its_part_alone(random_params, microbatch):
    made = trainer(in_ffn)
    object.__setattr__(made, "microbatch", microbatch)
    with jax.set_mesh(made.mesh):
        state = made.init_state({"model": random_params(wan.model(CONFIG))})
        before = jax.tree.map(np.asarray, state["params"]["model"])
        batch = made.put({"latents": np.ones((8, 1), np.float32)})
        state, metrics = made.steps()[0](state, {}, batch, np.int32(0))
    after = state["params"]["model"]
    for (path, old), new in zip(
        jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True
    ):
        moved = not np.array_equal(old, new)
        assert moved == in_ffn([entry.key for entry in path]), path
    chosen = trees.select(before, in_ffn)
    size = sum(leaf.size for leaf in jax.tree.leaves(chosen))
    moments = [leaf.size for leaf in jax.tree.leaves(state["opt"]["model"]) if leaf.ndim]
    assert sum(moments) == size < sum(leaf.size for leaf in jax.tree.leaves(before))
    norm = np.sqrt(sum(float(jnp.vdot(x, x)) for x in jax.tree.leaves(chosen)))
    assert error(metrics["gradient_norm"], norm) < 1e-5
    assert jax.tree.structure(state["ema"]["model"]) == jax.tree.structure(after)


def test_updates_of_one_network_train_one_part():
    with pytest.raises(ValueError, match="updates of model train different parts"):
        trainer(in_ffn, None)


def low_rank(x, leaves, axes):
    """The plain product, and that of an adapter where there is one."""
    y = layers.plain(x, leaves, axes)
    if "down" in leaves:
        y += layers.matmul(layers.matmul(x, leaves["down"]), leaves["up"])
    return y


def eight_bits(x, leaves, axes):
    """A kernel of whole numbers with a scale a column."""
    if "scale" not in leaves:
        return layers.plain(x, leaves, axes)
    return layers.matmul(x, leaves["kernel"].astype(x.dtype)) * leaves["scale"]


def inputs():
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(1, 2, 2, 4, 4)).astype(np.float32)
    text = rng.normal(size=(1, 4, 8)).astype(np.float32)
    return latents, np.full((1, 2), 0.5, np.float32), prompted(text)


def with_query(params, **changes):
    """Parameters whose self-attention's queries have other leaves."""
    attention = params["blocks"]["self_attn"]
    query = attention | {"q": attention["q"] | changes}
    return params | {"blocks": params["blocks"] | {"self_attn": query}}


@pytest.mark.parametrize("product", [low_rank, eight_bits])
def test_products_are_handed_in(random_params, product):
    """Adapters beside a kernel add to it; a quantised kernel is multiplied as it lies."""
    params = random_params(wan.model(CONFIG))
    kernel = params["blocks"]["self_attn"]["q"]["kernel"]
    rng = np.random.default_rng(1)
    if product is low_rank:
        down, up = (rng.normal(size=s).astype(np.float32) for s in ((2, 16, 3), (2, 3, 16)))
        changed, equal = with_query(params, down=down, up=up), kernel + down @ up
    else:
        scale = np.abs(kernel).max(1, keepdims=True) / 127
        whole = np.round(kernel / scale).astype(np.int8)
        changed, equal = with_query(params, kernel=whole, scale=scale), whole * scale
    apply = jax.jit(lambda p, *x: wan.model(CONFIG, product).apply(p, *x).flow)
    plain = jax.jit(lambda p, *x: wan.model(CONFIG).apply(p, *x).flow)
    expected = plain(with_query(params, kernel=equal), *inputs())
    assert error(apply(changed, *inputs()), expected) < 1e-5
    assert error(plain(params, *inputs()), expected) > 1e-4


def test_random_keys_share_nothing():
    purposes = [
        (seed, stage, net, what)
        for seed in range(4)
        for stage in ("teacher", "one_forcing")
        for net in ("generator", "critic")
        for what in ("init", "update", "data")
    ]
    keys = [jax.random.key_data(randomness.key(*purpose)).tolist() for purpose in purposes]
    numbers = [randomness.number(*purpose) for purpose in purposes]
    assert len({tuple(key) for key in keys}) == len(set(numbers)) == len(purposes)
    assert keys[5] == jax.random.key_data(randomness.key(*purposes[5])).tolist()
    assert all(0 <= number < 2**32 for number in numbers)
