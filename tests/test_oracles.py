"""Independent implementations: diffusers' transformer, torch's AdamW, the published key lists."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from goldens import FOLDER, abstract, dump, error, transformer_of_diffusers

from oneforcing_jax.convert import keys
from oneforcing_jax.convert import wan as keys_wan
from oneforcing_jax.families import wan21
from oneforcing_jax.models import critic, wan
from oneforcing_jax.models.condition import prompted
from oneforcing_jax.training.optim import Optimiser

CONFIG = wan.WanConfig(48, 80, 4, 3, in_dim=4, out_dim=6, text_dim=20, text_len=7, freq_dim=16)


def test_transformer_of_diffusers():
    torch = pytest.importorskip("torch")
    c, net = CONFIG, wan.model(CONFIG)
    theirs, params = transformer_of_diffusers(c, 0.1)

    rng = np.random.default_rng(0)
    latents = rng.normal(size=(2, 3, c.in_dim, 6, 8)).astype(np.float32)
    text = rng.normal(size=(2, c.text_len, c.text_dim)).astype(np.float32)
    sigma = np.array([0.25, 0.96], np.float32)
    found = jax.jit(net.apply)(params, latents, sigma, prompted(text)).flow
    with torch.no_grad():
        expected = theirs(
            torch.from_numpy(latents).transpose(1, 2),
            torch.from_numpy(1000 * sigma),
            torch.from_numpy(text),
            return_dict=False,
        )[0]
    assert error(found, expected.transpose(1, 2).numpy()) < 1e-4

    state = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    shapes = {key: tensor.shape for key, tensor in state.items()}
    back = dump(keys_wan.diffusers(c.num_layers), params, shapes)
    assert back.keys() == state.keys()
    for key, tensor in state.items():
        np.testing.assert_array_equal(back[key], tensor)


@pytest.mark.parametrize("beta1", [0.0, 0.9])
def test_adamw_of_torch(beta1):
    torch = pytest.importorskip("torch")
    settings = Optimiser(learning_rate=1e-2, beta1=beta1, beta2=0.99, weight_decay=0.1, clip=2.0)
    rng = np.random.default_rng(0)
    start = {"a": rng.normal(size=(3, 4)), "b": rng.normal(size=5)}
    params = jax.tree.map(jnp.float32, start)
    theirs = {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float32)) for k, v in start.items()}
    rule = torch.optim.AdamW(
        theirs.values(), settings.learning_rate, (beta1, 0.99), settings.eps, weight_decay=0.1
    )
    ours = settings.make()
    state, step = ours.init(params), jax.jit(ours.update)
    norms = []
    for _ in range(10):
        gradients = {k: rng.normal(size=v.shape).astype(np.float32) for k, v in start.items()}
        updates, state = step(gradients, state, params)
        params = optax.apply_updates(params, updates)
        for k, parameter in theirs.items():
            parameter.grad = torch.tensor(gradients[k])
        norms.append(float(torch.nn.utils.clip_grad_norm_(theirs.values(), settings.clip)))
        rule.step()
    assert any(norm > settings.clip for norm in norms)
    for k, parameter in theirs.items():
        assert error(params[k] - start[k], parameter.detach().numpy() - start[k]) < 1e-4
    moments = [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim]
    copies = 1 if beta1 == 0 else 2
    assert sorted(moments) == sorted(copies * [leaf.shape for leaf in params.values()])


def test_learning_rate_rises_and_falls():
    ours = Optimiser(
        learning_rate=1.0, weight_decay=0.0, eps=0.0, clip=1e9, warmup=4, decay=8
    ).make()
    params = {"a": jnp.zeros(1)}
    state, step, rates = ours.init(params), jax.jit(ours.update), []
    for _ in range(13):
        updates, state = step({"a": jnp.ones(1)}, state, params)
        rates.append(-float(updates["a"][0]))
    np.testing.assert_allclose(rates[:5], [0, 0.25, 0.5, 0.75, 1], atol=1e-5)
    assert all(a > b for a, b in zip(rates[4:], rates[5:], strict=False))
    assert math.isclose(rates[12], 0.1, abs_tol=1e-5)


def test_unknown_optimiser_is_refused():
    with pytest.raises(ValueError, match="expected one of .*'adamw', 'muon'.*found 'adam'"):
        Optimiser(name="adam").make()


PUBLISHED = json.loads((FOLDER / "checkpoint_keys.json").read_text())
NETS = {
    "wan2.1_t2v_1.3b": wan.model(wan21.WAN_1_3B),
    "wan2.1_t2v_14b": wan.model(wan21.WAN_14B),
    "one_forcing_critic_framewise": critic.model(wan21.WAN_1_3B, critic.HeadConfig()),
}
COUNTS = PUBLISHED["params"]
EXPECTED = (COUNTS["wan_1_3b"], COUNTS["wan_14b"], COUNTS["wan_1_3b"] + COUNTS["adversarial_head"])


@pytest.mark.parametrize(("name", "count"), zip(NETS, EXPECTED, strict=True))
def test_published_checkpoints_fit(name, count):
    """Every published tensor is one slice of one leaf, and no part of a leaf is left over."""
    net, published = NETS[name], PUBLISHED["keys"][name]
    tree, layers = abstract(net), net.config.num_layers
    taps = len(tree.get("registers", ()))
    key_map = keys_wan.critic(layers, taps) if taps else keys_wan.transformer(layers)
    assert key_map.keys() == published.keys()
    places = [(leaf.path, leaf.layer) for leaf in key_map.values()]
    assert len(set(places)) == len(places)

    filled = {}
    for key, leaf in key_map.items():
        target = keys.get(tree, leaf.path).shape[0 if leaf.layer is None else 1 :]
        shape = keys.leaf_shape(tuple(published[key]), leaf.layout)
        if leaf.layout == "same":
            shape, target = ([n for n in s if n != 1] for s in (shape, target))
        assert list(shape) == list(target), key
        filled[leaf.path] = filled.get(leaf.path, 0) + math.prod(published[key])
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    sizes = {tuple(k.key for k in path): math.prod(leaf.shape) for path, leaf in leaves}
    assert filled == sizes
    assert sum(sizes.values()) == count


def test_misfits_are_listed():
    net = wan.model(CONFIG)
    key_map, tree = keys_wan.transformer(CONFIG.num_layers), abstract(net)
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), tree)
    tensors = {}
    for key, leaf in key_map.items():
        array = keys.get(params, leaf.path)
        array = array if leaf.layer is None else array[leaf.layer]
        tensors[key] = array.T if leaf.layout == "linear" else array
    keys.load(key_map, tensors, tree)
    del tensors["head.modulation"]
    tensors["blocks.1.ffn.0.bias"] = np.zeros(3, np.float32)
    tensors["ema.decay"] = np.zeros(())
    with pytest.raises(ValueError) as caught:
        keys.load(key_map, tensors, tree, "file.safetensors")
    for part in (
        "file.safetensors does not fit the model",
        "missing head.modulation",
        "unexpected ema.decay",
        "blocks.1.ffn.0.bias has shape (3,), which gives (3,), not (80,)",
    ):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
