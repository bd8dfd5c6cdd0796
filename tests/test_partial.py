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
from oneforcing_jax.models import critic, trees, wan
from oneforcing_jax.models.critic import HeadConfig
from oneforcing_jax.models.products.plain import PLAIN
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.system import checkpoint, files, places, saved
from oneforcing_jax.system.bases import Base
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


def test_the_head_of_a_critic_is_new_and_trained_with_its_products_own():
    low_rank = dataclasses.replace(PLAIN, own=("down", "up"))
    net = critic.model(CONFIG, HeadConfig((0,), 16), low_rank)
    flat = net.part(jax.tree.map(np.shape, sharding.unbox(net.shapes)))
    assert flat.keys() == {"registers", "register_norm", "readers", "classifier"}
    assert net.with_product(PLAIN).trains is None


def written(folder, number, net, params, stands_on=None):
    """A checkpoint of a stage in a work directory, and what names it for those that stand on it."""
    with checkpoint.manager(folder / "checkpoints") as manager:
        checkpoint.claim(manager, {}, {net: stands_on} if stands_on else None)
        checkpoint.save(manager, number, {"params": {net: params}})
    step = saved.find(folder / "checkpoints")
    at = places.relative(step, folder.parent)
    return lambda under="": Base(at, net, under, saved.identity(step, net))


def test_a_network_may_stand_on_one_that_stands_on_another(tmp_path):
    """What is nearer wins; a base may fill a part; each is named by all that it stands on."""
    x = {name: np.full((2,), value, np.float32) for value, name in enumerate("abcdef")}
    lowest = written(
        tmp_path / "one", 1, "model", {"in": {"k": x["a"], "b": x["b"]}, "out": x["c"]}
    )
    middle = written(tmp_path / "two", 1, "model", {"in": {"k": x["d"], "up": x["e"]}}, lowest())
    written(tmp_path / "three", 7, "critic", {"head": x["f"]}, middle("model"))
    whole = {
        "model": {"in": {"k": x["d"], "b": x["b"], "up": x["e"]}, "out": x["c"]},
        "head": x["f"],
    }
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), whole)
    found = saved.load_net(tmp_path / "three" / "checkpoints", "critic", like)
    assert jax.tree.structure(found) == jax.tree.structure(whole)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, found, whole)))
    saved.check_net(tmp_path / "three" / "checkpoints", "critic", like)
    with pytest.raises(ValueError, match="of another model: 1 missing .more.; use the config"):
        saved.check_net(tmp_path / "three" / "checkpoints", "critic", like | {"more": x["a"]})
    record = tmp_path / "three" / "checkpoints" / saved.RUN_FILE
    for wrong in ([], {"critic": {"net": "model"}}, {"critic": dict.fromkeys(Base._fields, 1)}):
        record.write_bytes(files.record({"bases": wrong}))
        with pytest.raises(
            ValueError, match="expected checkpoint and net and under and identity of"
        ):
            saved.pieces(tmp_path / "three" / "checkpoints", "critic")
    (tmp_path / "one").rename(tmp_path / "gone")
    with pytest.raises(ValueError, match="'model' stands, 'model' of .*one.*, found none there"):
        saved.load_net(tmp_path / "two" / "checkpoints", "model", like["model"])


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
