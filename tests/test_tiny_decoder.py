"""The tiny decoder against vectors recorded from the published code: whole, cut into pieces, converted."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from goldens import Golden, error
from safetensors.numpy import save_file
from test_convert import CONVERT, run, write_torch

from oneforcing_jax import sharding
from oneforcing_jax.convert import keys, sizes
from oneforcing_jax.convert import tiny_decoder as tiny_keys
from oneforcing_jax.errors import InputError, MissingInput
from oneforcing_jax.families import wan22_5b
from oneforcing_jax.families.wan21 import FAMILY
from oneforcing_jax.families.wan_codec import WanCodec, tiny
from oneforcing_jax.models import vae_stream
from oneforcing_jax.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from oneforcing_jax.models.vae_layers import VAEConfig

# Most of the time goes into compiling; at these sizes the code need not be good.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Its weights are those of a whole file, the encoder's too; `published` are names and shapes at full size.
GOLDEN, NEWER = Golden("taew2_1_tiny"), Golden("taew2_2_tiny")
LATENTS, PIXELS = GOLDEN.inputs["latents"], GOLDEN.outputs["decode_pixels"]
BOTH = pytest.mark.parametrize("golden", [GOLDEN, NEWER], ids=["taew2_1", "taew2_2"])


def config_of(golden: Golden) -> TinyDecoderConfig:
    newer = {"channels": 48, "patch": 2} if golden is NEWER else {}
    return TinyDecoderConfig(widths=tuple(golden.config["n_f"]), dtype=jnp.float32, **newer)


def params_of(golden: Golden) -> Any:
    weights, config = golden.weights(), config_of(golden)
    decoder = {name: weights[name] for name in weights if not name.startswith("encoder.")}
    return keys.load(tiny_keys.published(config), decoder, FAMILY.abstract(config))


def shown(pixels: Any) -> np.ndarray:
    """As the published code clamps and scales them."""
    return np.clip((np.asarray(pixels) + 1) / 2, 0, 1)


@BOTH
def test_decode_equals_recorded(golden: Golden) -> None:
    latents, apply = golden.inputs["latents"], TinyDecoder(config_of(golden)).apply
    pixels = jit(apply)({"params": params_of(golden)}, latents)
    assert pixels.shape[1] == 1 + 4 * (latents.shape[1] - 1)
    assert error(shown(pixels), golden.outputs["decode_pixels"]) < 1e-5
    if golden is NEWER:
        unclamped = (np.asarray(pixels) + 1) / 2
        assert error(unclamped, golden.outputs["decode_unclamped"]) < 1e-5


@BOTH
@pytest.mark.parametrize("size", [1, 2])
def test_stream_equals_recorded(golden: Golden, size: int) -> None:
    step, parts, latents = jit(vae_stream.decode_step), [], golden.inputs["latents"]
    params = params_of(golden)
    state = vae_stream.init_stream(config_of(golden), 1, *latents.shape[3:])
    for start in range(0, latents.shape[1], size):
        part, state = step(params, state, latents[:, start : start + size])
        parts.append(part)
    assert error(shown(np.concatenate(parts, 1)), golden.outputs["decode_pixels"]) < 1e-5


@BOTH
def test_key_map_is_a_bijection_at_full_size(golden: Golden) -> None:
    config = wan22_5b.SMALL if golden is NEWER else TinyDecoderConfig()
    published = {name: tuple(shape) for name, shape in golden.config["published"].items()}
    decoder = {name: published[name] for name in published if name.startswith("decoder.")}
    key_map, shapes = tiny_keys.published(config), FAMILY.abstract(config)
    keys.check(key_map, decoder, shapes)
    assert len({leaf.path for leaf in key_map.values()}) == len(jax.tree.leaves(shapes)) == 64
    assert sizes.tiny_config(published)[0] == config


def test_published_files_become_a_codec(tmp_path: Path, capsys: Any) -> None:
    """Over two devices, in bfloat16: within a level of 8 bits on average."""
    write_torch(tmp_path / "renamed.pth", GOLDEN.weights())
    save_file(GOLDEN.weights(), tmp_path / "renamed.safetensors")
    mesh, found = sharding.make_mesh({"sequence": 2}, jax.devices()[:2]), []
    for suffix in ("pth", "safetensors"):
        for _ in range(2):
            run(CONVERT, source=tmp_path / f"renamed.{suffix}", out=tmp_path / suffix)
        printed = capsys.readouterr().out
        assert "tiny: 64 tensors" in printed and "tiny: finished before" in printed
        found.append(tiny(tmp_path / suffix / "tiny", mesh, jnp.bfloat16, VAEConfig()))
    (_, one), decoder = found
    jax.tree.map(np.testing.assert_array_equal, one, decoder[1])
    frames = WanCodec(VAEConfig(), None, decoder=decoder).stream()(LATENTS)
    assert frames.dtype == jnp.uint8 and frames.sharding.mesh.size == 2
    away = np.abs(np.asarray(frames, np.float32) - 255 * np.moveaxis(PIXELS, 2, -1))
    assert 0.2 < away.mean() < 1


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "missing": ({"decoder.4.conv.2.bias": None}, "missing decoder.4.conv.2.bias"),
    "unknown": ({"decoder.23.weight": np.zeros(3)}, "unexpected decoder.23.weight"),
    "patches": ({"decoder.22.weight": np.zeros((12, 5, 3, 3))}, "decoder.22.bias has shape (3,)"),
    "other": ({"decoder.7.conv.weight": np.zeros(3)}, "expected the tensors of Wan's tiny"),
}


@pytest.mark.parametrize("case", BAD)
def test_unfit_files_are_one_line(tmp_path: Path, case: str) -> None:
    changes, expected = BAD[case]
    state = {k: v for k, v in (GOLDEN.weights() | changes).items() if v is not None}
    save_file(state, tmp_path / "taew2_1.safetensors")
    with pytest.raises(SystemExit) as failure:
        run(CONVERT, source=tmp_path / "taew2_1.safetensors", out=tmp_path / "out")
    line = str(failure.value)
    assert line.startswith("error: ") and "\n" not in line and expected in line
    assert not (tmp_path / "out").exists()


def test_decoders_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInput, match=r"found none; run it with --source taew2_1.pth --out"):
        tiny(tmp_path / "tiny", None, None, VAEConfig())
    grow = np.concatenate([GOLDEN.weights()["decoder.7.conv.weight"]] * 2)
    save_file(GOLDEN.weights() | {"decoder.7.conv.weight": grow}, tmp_path / "a.safetensors")
    run(CONVERT, source=tmp_path / "a.safetensors", out=tmp_path)
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    with pytest.raises(
        InputError, match=r"16 channels with strides \(4, 8\).* found 16 and \(8, 8\)"
    ):
        tiny(tmp_path / "tiny", mesh, None, VAEConfig())
