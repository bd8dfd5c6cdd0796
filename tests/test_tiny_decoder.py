"""The tiny decoder against vectors recorded from the published code, and itself cut into pieces."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import Golden, error

from oneforcing_jax.convert import keys, sizes
from oneforcing_jax.convert import tiny_decoder as tiny_keys
from oneforcing_jax.models import tiny_decoder, vae_stream
from oneforcing_jax.models.tiny_decoder import TinyDecoder, TinyDecoderConfig

# Most of the time goes into compiling; at these sizes the code need not be good.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden("taew2_1_tiny")


@pytest.fixture(scope="module")
def config(golden: Golden) -> TinyDecoderConfig:
    return TinyDecoderConfig(widths=tuple(golden.config["n_f"]), dtype=jnp.float32)


@pytest.fixture(scope="module")
def params(golden: Golden, config: TinyDecoderConfig) -> Any:
    key_map = tiny_keys.published(config)
    made = keys.load(key_map, golden.weights(), sizes.abstract(config))
    return jax.tree.map(jnp.asarray, made)


def test_decode_equals_recorded(golden: Golden, config: Any, params: Any) -> None:
    pixels = jit(TinyDecoder(config).apply)({"params": params}, golden.inputs["latents"])
    shown = np.clip((np.asarray(pixels) + 1) / 2, 0, 1)
    assert error(shown, golden.outputs["decode_pixels"]) < 1e-5
