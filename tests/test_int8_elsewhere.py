"""Serving in eight bits from one file outside the package: a product, and a function that quantises."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import error
from safetensors.numpy import load_file

from oneforcing_jax import sharding
from oneforcing_jax.causal.plan import draw, make_plan
from oneforcing_jax.convert import to_torch
from oneforcing_jax.generation.student import Student
from oneforcing_jax.models import wan
from oneforcing_jax.models.model import unstacked
from oneforcing_jax.models.products import Leaf, Product, plain
from oneforcing_jax.models.wan import WanConfig
from oneforcing_jax.system import checkpoint

CONFIG = WanConfig(32, 48, 2, 2, 4, 4, text_dim=16, text_len=8, freq_dim=16)


def leaves(init, shape, axes, name):
    """A kernel of whole numbers, and a scale for each of its columns."""
    whole = Leaf(lambda key, shape: jnp.zeros(shape, jnp.int8), shape, axes)
    return {"kernel": whole, "scale": Leaf(jax.nn.initializers.ones, shape[1:], axes[1:])}


def multiply(x, leaves, axes):
    kernel = sharding.gathered(leaves["kernel"], axes).astype(x.dtype)
    return plain.matmul(x, kernel) * leaves["scale"].astype(x.dtype)


def merged(leaves):
    return leaves["kernel"] * leaves["scale"]


EIGHT_BITS = Product(leaves, multiply, merged)


def quantised(params):
    """Parameters of a plain network, for one with this product."""
    if "kernel" in params:
        kernel = np.asarray(params["kernel"], np.float32)
        scale = np.maximum(np.abs(kernel).max(-2), 1e-12) / 127
        whole = np.round(kernel / scale[..., None, :]).astype(np.int8)
        return params | {"kernel": whole, "scale": scale}
    return {n: quantised(x) if isinstance(x, dict) else x for n, x in params.items()}


def test_a_stream_of_whole_numbers_is_close_to_the_plain_one(random_params):
    model = wan.model(dataclasses.replace(CONFIG, dtype=jnp.bfloat16))
    served, params = model.with_product(EIGHT_BITS), random_params(model)
    whole = quantised(params)
    # What others ask of the model: memory, placement and the dtypes of what is read.
    in_use = served.in_use(sharding.make_mesh({"data": 1}, jax.devices()[:1]))
    assert jax.tree.structure(in_use) == jax.tree.structure(whole)
    students = (
        Student(served, unstacked(served.in_compute_dtype(jax.tree.map(jnp.asarray, whole)))),
        Student(model, unstacked(model.in_compute_dtype(jax.tree.map(jnp.asarray, params)))),
    )
    for leaf, like in zip(jax.tree.leaves(whole), jax.tree.leaves(in_use), strict=True):
        assert (leaf.dtype == np.int8) == (like.dtype == jnp.int8)
    kernels = [one.params["blocks"][0]["ffn"]["0"]["kernel"] for one in students]
    assert kernels[0].dtype == jnp.int8 and kernels[0].nbytes == kernels[1].nbytes // 2 == 32 * 48
    plan = make_plan(2, 1, [1000.0], 5.0)
    draws = draw(jax.random.key(0), (1, 2, 4, 4, 4), plan, 0.0)
    text = np.random.default_rng(1).normal(size=(1, 8, 16)).astype(np.float32)
    clips = []
    for one in students:
        condition = one.prepare(one.model.condition({"text": text}))
        clips.append(np.asarray(one.clip(draws, condition, plan), np.float32))
    assert 1e-4 < error(*clips) < 0.03  # rounded to 255 levels a column


def test_it_multiplies_as_its_merged_kernel():
    rng = np.random.default_rng(0)
    kernel, x = (rng.normal(size=shape).astype(np.float32) for shape in ((16, 8), (4, 16)))
    whole = quantised({"kernel": kernel, "bias": kernel[0]})
    assert error(multiply(jnp.asarray(x), whole, (None, None)), x @ merged(whole)) < 1e-6
    assert error(merged(whole), kernel) < 0.01


def test_it_is_exported_with_plain_kernels(random_params, tmp_path):
    whole = quantised(random_params(wan.model(CONFIG)))
    with checkpoint.manager(tmp_path / "checkpoints") as manager:
        checkpoint.save(manager, 1, {"params": {"generator": jax.tree.map(jnp.asarray, whole)}})
    with pytest.raises(ValueError, match="found leaves beside kernels"):
        to_torch.export(tmp_path / "checkpoints", tmp_path / "no.safetensors", "diffusers")
    out = tmp_path / "out.safetensors"
    to_torch.export(tmp_path / "checkpoints", out, "diffusers", product=lambda: EIGHT_BITS)
    leaves = {n: x[1] for n, x in whole["blocks"]["self_attn"]["q"].items()}
    found = load_file(out)
    assert np.array_equal(found["blocks.1.attn1.to_q.weight"].T, merged(leaves))
    assert {x.dtype.name for x in found.values()} == {"float32"}
