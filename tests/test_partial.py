"""Training a part of a network, and random keys that share nothing."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens import error

from oneforcing_jax import sharding
from oneforcing_jax.methods import Method, Network, Sampled, Update
from oneforcing_jax.models import trees, wan
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.training import randomness
from oneforcing_jax.training.optim import Optimiser
from oneforcing_jax.training.steps import Ema, Trainer

CONFIG = WanConfig(16, 24, 2, 2, in_dim=2, out_dim=2, text_dim=8, text_len=4, freq_dim=8)


def in_ffn(path):
    return "ffn" in path


def trainer(mask):
    """A quadratic loss over a network of which a part is trained."""

    def loss(params, nets, batch, draws):
        value = 0.5 * optax.tree.norm(params, squared=True) * batch["latents"].mean()
        return value, {"loss": value}

    update = Update("model", 1, lambda key, batch: (), loss)
    net = dataclasses.replace(wan.model(CONFIG), trains=mask)
    method = Method({"model": Network(net)}, (update,), Sampled("model", None))
    mesh = sharding.make_mesh({}, jax.devices()[:1])
    rule = Optimiser(learning_rate=0.1, clip=1e9)
    return Trainer(method, {"model": rule}, Ema(0.5), mesh, seed=0, stage="s", batch=8)


@pytest.mark.parametrize("microbatch", [0, 4])
def test_an_update_trains_its_part_alone(random_params, microbatch):
    """State, optimiser and average hold the part; the rest is frozen, as it is used."""
    made = trainer(in_ffn)
    object.__setattr__(made, "microbatch", microbatch)
    params = random_params(wan.model(CONFIG))
    with jax.set_mesh(made.mesh):
        state, frozen = made.init_state({"model": params}), made.frozen({"model": params})
        before = jax.tree.map(np.asarray, state["params"]["model"])
        batch = made.put({"latents": np.ones((8, 1), np.float32)})
        state, metrics = made.steps()[0](state, frozen, batch, np.int32(0))
    after, chosen = state["params"]["model"], trees.select(params, in_ffn)
    assert jax.tree.structure(after) == jax.tree.structure(chosen)
    for old, new in zip(jax.tree.leaves(before), jax.tree.leaves(after), strict=True):
        assert not np.array_equal(old, new)
    size = sum(leaf.size for leaf in jax.tree.leaves(chosen))
    moments = [leaf.size for leaf in jax.tree.leaves(state["opt"]["model"]) if leaf.ndim]
    assert sum(moments) == size < sum(leaf.size for leaf in jax.tree.leaves(params))
    norm = np.sqrt(sum(float(jnp.vdot(x, x)) for x in jax.tree.leaves(chosen)))
    assert error(metrics["gradient_norm"], norm) < 1e-5
    assert jax.tree.structure(state["ema"]["model"]) == jax.tree.structure(chosen)
    for shown in made.sampled(state, frozen).values():
        assert jax.tree.structure(shown) == jax.tree.structure(params)
        assert shown["head"]["kernel"] is frozen["model"]["head"]["kernel"]


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
