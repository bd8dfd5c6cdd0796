"""The text encoder against recorded vectors and transformers."""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import FOLDER, Golden, dump, error

from oneforcing_jax import sharding
from oneforcing_jax.convert import keys
from oneforcing_jax.convert import umt5 as keys_umt5
from oneforcing_jax.models import umt5

SMALL = umt5.UMT5Config(
    vocab=50, width=16, attention_width=24, mlp=40, heads=3, layers=2, dtype=jnp.float32
)
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
PUBLISHED = json.loads((FOLDER / "checkpoint_keys.json").read_text())["keys"]["umt5_xxl_encoder"]


def abstract(config: umt5.UMT5Config) -> Any:
    return nn.meta.unbox(jax.eval_shape(lambda: umt5.init_params(config, jax.random.key(0))))


@functools.lru_cache(maxsize=64)
def program(config: umt5.UMT5Config, method: str) -> Any:
    model = umt5.UMT5Encoder(config)
    return jit(lambda params, ids, mask: model.apply({"params": params}, ids, mask, method=method))


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("umt5_tiny")


@pytest.fixture(scope="module")
def config(golden: Golden) -> umt5.UMT5Config:
    return umt5.UMT5Config(
        vocab=golden.config["vocab"],
        width=golden.config["dim"],
        attention_width=golden.config["dim_attn"],
        mlp=golden.config["dim_ffn"],
        heads=golden.config["num_heads"],
        layers=golden.config["num_layers"],
        buckets=golden.config["num_buckets"],
        dtype=jnp.float32,
    )


@pytest.fixture(scope="module")
def params(golden: Golden, config: umt5.UMT5Config) -> Any:
    return keys.load(keys_umt5.original(config), golden.weights(), abstract(config))


@pytest.mark.parametrize(
    ("method", "inputs", "output"),
    [
        ("__call__", ("ids", "mask"), "encoder"),
        ("encode", ("ids", "mask"), "encoder_zeroed"),
        ("__call__", ("ids_long", "mask_long"), "encoder_long"),
    ],
)
def test_encoder_equals_recorded(
    golden: Golden, config: Any, params: Any, method: str, inputs: tuple, output: str
) -> None:
    ids, mask = (golden.inputs[name] for name in inputs)
    assert error(program(config, method)(params, ids, mask), golden.outputs[output]) < 1e-5


def test_buckets_equal_recorded(golden: Golden, params: Any) -> None:
    buckets = umt5.position_buckets(np.asarray(golden.inputs["rel_pos"]))
    np.testing.assert_array_equal(buckets, golden.outputs["rel_bucket"])
    assert buckets.dtype == np.int32
    places = np.arange(24)
    table = params["layers"]["attention"]["bias"][0]
    bias = table[umt5.position_buckets(places - places[:, None])]
    np.testing.assert_array_equal(np.moveaxis(bias, -1, 0)[None], golden.outputs["pos_bias_block0"])


@pytest.mark.parametrize(
    ("bucket", "first", "last"),
    [(8, 8, 11), (9, 12, 15), (10, 16, 22), (11, 23, 31), (12, 32, 45), (13, 46, 63), (14, 64, 90)],
)
def test_bucket_borders(bucket: int, first: int, last: int) -> None:
    distances = np.array([first - 1, first, last, last + 1])
    expected = np.array([bucket - 1, bucket, bucket, bucket + 1])
    np.testing.assert_array_equal(umt5.position_buckets(-distances), expected)
    np.testing.assert_array_equal(umt5.position_buckets(distances), expected + 16)


def test_norm_equals_recorded(golden: Golden) -> None:
    scale = {"scale": golden.weights()["norm.weight"]}
    y = umt5.Norm(jnp.float32).apply({"params": scale}, golden.inputs["norm_x"])
    assert error(y, golden.outputs["norm_y"]) < 1e-6


def oracle_of(config: umt5.UMT5Config) -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.UMT5EncoderModel(
        transformers.UMT5Config(
            vocab_size=config.vocab,
            d_model=config.width,
            d_kv=config.attention_width // config.heads,
            d_ff=config.mlp,
            num_layers=config.layers,
            num_heads=config.heads,
            relative_attention_num_buckets=config.buckets,
            relative_attention_max_distance=config.max_distance,
            feed_forward_proj="gated-gelu",
        )
    ).eval()


def test_transformers_agrees() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    oracle = oracle_of(SMALL)
    with torch.no_grad():
        for weight in oracle.parameters():
            weight.copy_(torch.randn_like(weight) * weight.shape[-1] ** -0.5)
    tensors = {name: tensor.numpy() for name, tensor in oracle.state_dict().items()}
    tensors.pop("encoder.embed_tokens.weight", None)  # tied to shared.weight
    params = keys.load(keys_umt5.transformers(SMALL), tensors, abstract(SMALL))
    rng = np.random.default_rng(0)
    ids = rng.integers(1, SMALL.vocab, (2, 150)).astype(np.int32)
    mask = (np.arange(150) < np.array([[150], [37]])).astype(np.int32)
    with torch.no_grad():
        expected = oracle(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    assert error(program(SMALL, "__call__")(params, ids, mask), expected) < 1e-4
    half = program(dataclasses.replace(SMALL, dtype=jnp.bfloat16), "__call__")(params, ids, mask)
    assert half.dtype == jnp.bfloat16
    assert error(half.astype(jnp.float32), expected) < 0.05


def test_padding_does_not_matter(golden: Golden, config: Any, params: Any) -> None:
    ids, mask = golden.inputs["ids"], golden.inputs["mask"]
    wide = [jnp.pad(x, ((0, 0), (0, 9))) for x in (ids, mask)]
    out = program(config, "encode")(params, *wide)
    assert error(out[:, :24], golden.outputs["encoder_zeroed"]) < 1e-5
    assert not out[:, 24:].any()


def test_key_maps_are_bijections_at_full_size() -> None:
    config = umt5.UMT5Config()
    shapes = abstract(config)
    places = {
        (tuple(p.key for p in path), layer)
        for path, leaf in jax.tree_util.tree_leaves_with_path(shapes)
        for layer in (range(config.layers) if path[0].key == "layers" else [None])
    }
    for key_map in (keys_umt5.original(config), keys_umt5.transformers(config)):
        found = [(leaf.path, leaf.layer) for leaf in key_map.values()]
        assert len(found) == len(set(found)) == len(PUBLISHED)
        assert set(found) == places
    ours = keys_umt5.original(config)
    assert set(ours) == set(PUBLISHED)
    for key, leaf in ours.items():
        shape = keys.get(shapes, leaf.path).shape[0 if leaf.layer is None else 1 :]
        assert keys.leaf_shape(tuple(PUBLISHED[key]), leaf.layout) == shape, key
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 5_680_910_336


def test_transformers_keys_at_full_size() -> None:
    torch = pytest.importorskip("torch")
    config = umt5.UMT5Config()
    with torch.device("meta"):
        oracle = oracle_of(config)
    expected = {name: list(tensor.shape) for name, tensor in oracle.state_dict().items()}
    expected.pop("encoder.embed_tokens.weight", None)
    by_place = {leaf: PUBLISHED[key] for key, leaf in keys_umt5.original(config).items()}
    theirs = keys_umt5.transformers(config)
    assert {key: by_place[leaf] for key, leaf in theirs.items()} == expected
    other = keys_umt5.transformers(config, embedding="encoder.embed_tokens.weight")
    assert set(theirs) ^ set(other) == {"shared.weight", "encoder.embed_tokens.weight"}


def test_weights_survive_a_round_trip(golden: Golden, config: Any, params: Any) -> None:
    shapes = {key: tensor.shape for key, tensor in golden.weights().items()}
    for key, tensor in dump(keys_umt5.original(config), params, shapes).items():
        np.testing.assert_array_equal(tensor, golden.weights()[key])


def test_program_does_not_grow_with_depth() -> None:
    def size(layers: int) -> int:
        config = dataclasses.replace(SMALL, layers=layers)
        ids = jnp.ones((1, 8), jnp.int32)
        lowered = program(config, "encode").lower(abstract(config), ids, ids)
        return len(lowered.as_text().splitlines())

    assert size(24) == size(2)


def test_every_parameter_names_its_axes() -> None:
    boxed = jax.eval_shape(lambda: umt5.init_params(SMALL, jax.random.key(0)))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned))
    for leaf in leaves:
        assert len(leaf.names) == leaf.value.ndim
        assert {name for name in leaf.names if name} <= set(sharding.RULES)
    assert boxed["layers"]["mlp"]["down"].names == ("layers", "mlp", "embed")


def test_odd_inputs_are_refused() -> None:
    ids = jnp.ones((1, 4), jnp.int32)
    with pytest.raises(ValueError, match=r"give both as \[b, t\]"):
        jax.eval_shape(umt5.UMT5Encoder(SMALL).init, jax.random.key(0), ids, ids[:, :3])
    with pytest.raises(ValueError, match="multiple of the heads"):
        dataclasses.replace(SMALL, heads=5)
    with pytest.raises(ValueError, match="divide by 4"):
        dataclasses.replace(SMALL, buckets=30)
